"""From the config of a search to what it optimizes."""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np

from hwdarts_jax.bilevel import dual, exploration
from hwdarts_jax.bilevel import update as update_lib
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.models import evaluations, ops
from hwdarts_jax.runtime import programs
from hwdarts_jax.spaces import discretize

# Sections of the config that no program of a search depends on.
_OF_OTHERS = (
  'describe',
  'evaluate',
  'export',
  'population',
  'retrain',
  'seed',
  'source',
)


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


def facts(search: Any, problem: update_lib.Problem, name: str) -> Any:
  """What a program of a search depends on; see `programs.find_or_trace`.

  Args:
    search: a `search.Search`.
    problem: what is optimized, as it was planned to fit into memory.
    name: of the program.

  Returns:
    JSON-able facts; None if the source of an op is not known.
  """
  specs = search.specs
  names = {op for site in specs.search.sites() for op in site.ops}
  of_ops = programs.digest_of_modules(ops.module(op) for op in names)
  if of_ops is None:
    return None
  config = search.config.to_dict()
  return search.hashes() | {
    'name': name,
    'config': {k: v for k, v in config.items() if k not in _OF_OTHERS},
    'ops': of_ops,
    'network': repr(problem.network),
    'batch_parts': problem.batch_parts,
    'reference_ms': float(problem.reference_ms).hex(),
    'latency': programs.digest_of_arrays(search.latency.variables),
    'bounds': [[b.name, b.target, b.aim] for b in search.bounds],
    'images': programs.digest_of_arrays([search.train.mean, search.train.std]),
  }
