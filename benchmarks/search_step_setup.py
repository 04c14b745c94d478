"""Builds what `search_step` times: the compiled update of the search job."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common as config_lib
from hwdarts_jax import spaces
from hwdarts_jax.bilevel import dual, population
from hwdarts_jax.bilevel import update as update_lib
from hwdarts_jax.data import pipeline, sources
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.jobs import common, memory
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.latency import cost
from hwdarts_jax.latency import predictor as predictor_lib
from hwdarts_jax.models import evaluations
from hwdarts_jax.runtime import optimizers, packing, sharding
from hwdarts_jax.spaces.spec import NetworkSpec

# Params of published supernets: any other number is another network.
PUBLISHED_PARAMS = {
  spaces.make('darts', **config_lib.SEARCH_SPECS['darts']): 1_930_618
}
_MAX_IMAGES = 25_000  # half of CIFAR-10, as in a search
_MAX_BYTES = 2**28  # of one set, where images are large
# Gradient passes in units of a forward pass: the train batch has a forward
# pass and gradients of params and activations, the validation batch no
# gradients of params.
_FORWARD_PASSES = {'first_order': 5, 'lookahead': 5}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is timed; zeros stand for the published size.

  Attributes:
    space: name of the space.
    hypergrad: name of the estimator.
    batch: images of a batch, on each device.
    devices: size of the mesh.
    dtype: of activations.
    evaluation: 'plain', 'fused' or 'shared'.
    relaxation: of alphas to gates.
    remat: what the fused evaluation computes again.
    depthwise_gradient: see `op.Context`.
    steps_per_call: bilevel steps of one call.
    features: of the first cell.
    cells: of the supernet.
    image_size: height and width.
    images: of each of the two sets.
    seed: of everything random.
    members: of a population on one set of params; 0: a single search.
    members_per_step: that share the batches of a step.
    packed: whether the state is a few large arrays (`runtime.packing`).
  """

  space: str = 'darts'
  hypergrad: str = 'first_order'
  batch: int = 64
  devices: int = 1
  dtype: str = 'bfloat16'
  evaluation: str = 'fused'
  relaxation: str = 'softmax'
  remat: str = 'nothing'
  depthwise_gradient: str = 'conv'
  steps_per_call: int = 1
  features: int = 0
  cells: int = 0
  image_size: int = 0
  images: int = 0
  seed: int = 0
  members: int = 0
  members_per_step: int = 4
  packed: bool = False


@dataclasses.dataclass(frozen=True)
class Setup:
  """All that is timed, on its devices.

  Attributes:
    settings: what was asked for.
    spec: the supernet.
    problem: what is optimized.
    costs: the ms that the latency model adds up.
    config: the search config of the space, for the optimizers and multiplier.
    state: before the first step; donated by the first call.
    num_params: of the supernet.
    feeds: of train and validation images.
    sets: the images of the two feeds.
    update: (state, *chunks) -> (state, metrics), jitted.
  """

  settings: Settings
  spec: NetworkSpec
  problem: update_lib.Problem
  costs: cost.CostTable
  config: Any
  state: update_lib.SearchState
  num_params: int
  feeds: tuple[pipeline.Feed, ...]
  sets: tuple[sources.Dataset, ...]
  update: Any

  @property
  def global_batch(self) -> int:
    """Images of a batch, over all devices."""
    return self.settings.batch * self.settings.devices

  def chunks(self, step: int) -> tuple[pipeline.Chunk, ...]:
    """The data of one call, from `step` on."""
    return tuple(f(step, self.settings.steps_per_call) for f in self.feeds)


def size_settings(settings: Settings) -> dict[str, int]:
  """Settings of the space in the size that is asked for."""
  sizes = {
    'features': settings.features,
    'num_cells': settings.cells,
    'image_size': settings.image_size,
  }
  published = config_lib.SEARCH_SPECS.get(settings.space, {})
  # Zeros are for a data set to fill in; there is none.
  return {k: v for k, v in published.items() if v or isinstance(v, bool)} | {
    k: v for k, v in sizes.items() if v
  }


def make_spec(settings: Settings) -> NetworkSpec:
  """The search spec of the space."""
  return spaces.make(settings.space, **size_settings(settings))


def make(settings: Settings) -> Setup:
  """Builds everything; see `Settings`.

  Raises:
    ValueError: a setting is not allowed.
    AssertionError: see `check_params`.
  """
  spec = make_spec(settings)
  config = config_lib.search_config(
    '', 'none', f'space={settings.space},dataset=cifar10'
  )
  mesh = sharding.make_mesh(settings.devices)
  global_batch = settings.batch * settings.devices
  sharding.check_batch(global_batch, settings.devices, settings.devices)
  costs = _random_costs(spec, settings.seed)
  problem = _make_problem(settings, spec, config, costs)
  sets = tuple(_make_images(settings, spec, i) for i in range(2))
  replicated = sharding.replicated(mesh)
  # Two seeds, or the halves would be walked in step.
  feeds = tuple(
    pipeline.Feed(
      images,
      global_batch,
      2 * settings.seed + i,
      resident=True,
      replicated=replicated,
      batch_sharding=sharding.batched(mesh, axis=1),
    )
    for i, images in enumerate(sets)
  )
  augment = Augment(**common.section(config, 'data', 'augment'))
  state = _make_state(settings, problem, config)
  num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  check_params(spec, num_params)
  state = jax.device_put(state, replicated)
  return Setup(
    settings,
    spec,
    problem,
    costs,
    config,
    packing.packed(state, search_job.PACKED) if settings.packed else state,
    num_params,
    feeds,
    sets,
    _make_update(settings, problem, sets[0], augment, mesh),
  )


def _make_population(settings, problem) -> population.Population:
  """Members whose latency is bounded, as in the job `pareto`."""
  bound = dual.Constraint('latency_ms', problem.latency)
  member = dataclasses.replace(problem, constraints=(bound,))
  return population.Population(
    problem, member, settings.members, settings.members_per_step
  )


def _make_state(settings, problem, config) -> update_lib.SearchState:
  """The state before the first step."""
  if not settings.members:
    return update_lib.init_state(
      problem, settings.seed, config.objective.multiplier
    )
  targets = problem.reference_ms * np.geomspace(0.5, 1.5, settings.members)
  return population.init_state(
    _make_population(settings, problem),
    settings.seed,
    range(settings.members),
    [0.0] * settings.members,
    {'latency_ms': targets.tolist()},
  )


def _make_problem(settings, spec, config, costs) -> update_lib.Problem:
  """What the search job optimizes, with one batch group a device."""
  if settings.remat != 'nothing' and settings.evaluation != 'fused':
    raise ValueError(
      f'remat is {settings.remat!r} and evaluation {settings.evaluation!r}; '
      'only the fused evaluation can compute anything again.'
    )
  network = common.section(config, 'network')
  network |= {
    'bn_groups': settings.devices,
    'dtype': settings.dtype,
    'depthwise_gradient': settings.depthwise_gradient,
  }
  num_steps = config.search.num_steps
  params_settings = common.section(config, 'params_optimizer')
  alphas_settings = common.section(config, 'alphas_optimizer')
  fit = predictor_lib.from_table(spec, costs)
  model = predictor_lib.LatencyPredictor(spec)
  problem = update_lib.Problem(
    network=evaluations.make(
      spec, common.make_context(network, affine=False), settings.evaluation
    ),
    latency=functools.partial(model.apply, fit.variables),
    params_optimizer=optimizers.make(num_steps=num_steps, **params_settings),
    alphas_optimizer=optimizers.make(num_steps=num_steps, **alphas_settings),
    num_steps=num_steps,
    learning_rate=common.learning_rate(params_settings, num_steps),
    hypergrad=settings.hypergrad,
    relaxation=settings.relaxation,
    objective=config.objective.name,
    reference_ms=uniform_ms(costs),
  )
  return memory.planned(problem, memory.Plan(settings.remat))


def _make_update(settings, problem, dataset, augment, mesh):
  """The jitted update of the search job, or of its population."""
  dtype = problem.network.context.dtype
  where = dataset, augment, mesh, dtype
  if not settings.members:
    return search_job.jitted_step(problem, *where)
  return search_job.jitted_step(
    _make_population(settings, problem), *where, population.population_update
  )


def uniform_ms(costs: cost.CostTable) -> float:
  """Expected ms where all ops are equally likely."""
  return costs.of(
    {g: np.full(c.shape, 1 / c.shape[1]) for g, c in costs.per_op.items()}
  )


def _random_costs(spec: NetworkSpec, seed: int) -> cost.CostTable:
  """An additive latency in ms; what it says does not matter here."""
  rng = np.random.default_rng(seed)
  per_op = {g: rng.uniform(0, 1, s.shape) for g, s in spec.groups().items()}
  return cost.CostTable(per_op, 1.0, 'ms')


def _make_images(
  settings: Settings, spec: NetworkSpec, index: int
) -> sources.Dataset:
  """Noise for the feed number `index`, in the shape of the data."""
  shape = spec.input_shape
  fitting = min(_MAX_IMAGES, _MAX_BYTES // int(np.prod(shape)))
  rng = np.random.default_rng((settings.seed, index))
  number = settings.images or fitting
  images = rng.integers(0, 256, (number, *shape), np.uint8)
  labels = rng.integers(0, spec.num_classes, number, np.int32)
  mean, std = (0.5,) * shape[-1], (0.29,) * shape[-1]
  return sources.Dataset('noise', images, labels, spec.num_classes, mean, std)


def check_params(spec: NetworkSpec, found: int) -> None:
  """Raises AssertionError if a published supernet has another number."""
  expected = PUBLISHED_PARAMS.get(spec, found)
  if found != expected:
    raise AssertionError(f'{found} params; this supernet has {expected}.')


def useful_macs(setup: Setup) -> float | None:
  """Multiply-accumulates of a step on one device, ops taken one by one.

  Those of the spec, so that evaluations are compared by the same number; None
  for estimators that differentiate gradients.
  """
  passes = _FORWARD_PASSES.get(setup.settings.hypergrad)
  if passes is None:
    return None
  table = cost.tabulate(setup.spec, cost.macs, 'macs')
  forward = table.fixed + sum(float(c.sum()) for c in table.per_op.values())
  return passes * forward * setup.settings.batch


def is_finite(metrics: Any) -> bool:
  """Whether all metrics are numbers."""
  return all(bool(jnp.isfinite(m).all()) for m in jax.tree.leaves(metrics))
