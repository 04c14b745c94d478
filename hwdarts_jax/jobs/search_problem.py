"""From the config of a search to what it optimizes."""

from __future__ import annotations

import ml_collections
import numpy as np

from hwdarts_jax.bilevel import dual, exploration
from hwdarts_jax.bilevel import update as update_lib
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.models import evaluations
from hwdarts_jax.spaces import discretize


def make(
  config: ml_collections.ConfigDict,
  specs: common.Specs,
  latency: common.LatencyModel,
  bounds: tuple[bounds_lib.Bound, ...],
) -> update_lib.Problem:
  """What is optimized, from the sections of the config.

  Args:
    config: of a search, checked.
    specs: search and deploy.
    latency: of the deploy spec.
    bounds: on its costs.

  Raises:
    ValueError: a setting does not go with the space.
  """
  settings = config.search
  if settings.auxiliary_skip:
    exploration.check_skips(specs.search)
  network = evaluations.make(
    specs.search,
    common.make_context(config.network.to_dict(), affine=False),
    config.network.evaluation,
  )
  uniform = discretize.uniform(specs.search, np.float32)
  reference_ms = config.objective.reference_ms or float(
    latency.predict(uniform)
  )
  params_settings = common.section(config, 'params_optimizer')
  hypergrad_settings = common.section(config, 'hypergrad')
  return update_lib.Problem(
    network=network,
    latency=latency.predict,
    params_optimizer=settings_lib.make_optimizer(
      'params_optimizer', params_settings, settings.num_steps
    ),
    alphas_optimizer=settings_lib.make_optimizer(
      'alphas_optimizer',
      common.section(config, 'alphas_optimizer'),
      settings.num_steps,
    ),
    num_steps=settings.num_steps,
    warmup_steps=settings.warmup_steps,
    learning_rate=common.learning_rate(params_settings, settings.num_steps),
    relaxation=config.relaxation.name,
    temperature_start=config.relaxation.temperature_start,
    temperature_end=config.relaxation.temperature_end,
    hypergrad=hypergrad_settings.pop('name'),
    hypergrad_settings=hypergrad_settings,
    objective=config.objective.name,
    reference_ms=reference_ms,
    constraints=bounds_lib.constraints(bounds),
    dual=dual.Settings(**common.section(config, 'objective', 'dual')),
    regularizers=common.section(config, 'regularizers'),
    auxiliary_skip=settings.auxiliary_skip,
    warmup_gates=settings.warmup_gates,
  )
