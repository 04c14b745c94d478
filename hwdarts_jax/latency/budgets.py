"""What a device may limit: expected costs of a soft architecture, by name.

A `Budget` maps gates to the expected cost of the architecture that they stand
for (see `expectation`), in the unit that its name ends in:

    latency_ms      milliseconds on the device, by its predictor
    energy_mj       millijoules, by a predictor of a measured column of a table
    macs            multiply-accumulates of one image
    model_mb        megabytes (10^6) of the exported float32 .tflite file
    peak_memory_mb  megabytes of the arena that holds the images of inference,
                    of float32 and one at a time; see `arena`

In spaces that can be enumerated the cost of every architecture is kept and
contracted with the gates: the exact expectation, which at one-hot gates is the
cost itself. In others macs and model_mb are sums over ops, of which this holds
as well. There peak_memory_mb is that of `activations`, an approximation inside;
at one-hot gates it is what the images that are alive at once need, exactly, and
the arena (`Budget.of`) may be larger by gaps that nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import (
  activations,
  arena,
  cost,
  expectation,
  footprint,
  liveness,
  sampling,
)
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.latency.predictor import LatencyPredictor
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec, Site

Gates = Mapping[str, Any]
# name -> unit
NAMES = {
  'latency_ms': 'ms',
  'peak_memory_mb': 'MB',
  'model_mb': 'MB',
  'macs': 'MACs',
  'energy_mj': 'mJ',
}
_MEASURED = ('latency_ms', 'energy_mj')
_MB = 1e6
# What a file spends on naming a tensor and the operation that writes it.
_TENSOR_BYTES = 150
_DRAWN = 1000  # architectures that the range of other spaces is taken from
_DRAWN_PLANS = 32  # where each takes as long as laying out an arena
_CHUNK = 512  # architectures that are predicted at a time
_ROUNDS = 3  # of changing one edge after the other


@dataclasses.dataclass(frozen=True)
class Range:
  """The costs that networks of a space can have.

  Attributes:
    low: of the cheapest architecture that connects input and output.
    high: of the dearest one.
    is_exact: whether there is none beyond; else these were found by a search,
      and both are attained.
  """

  low: float
  high: float
  is_exact: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
  """An expected cost.

  Attributes:
    name: one of `NAMES`.
    unit: of the cost.
    spec: whose gates it reads.
    predict: gates f[..., E, O] of each group -> expected cost f32[...];
      differentiable.
    exact: cost f[N] of architectures f[N, E, O] of each group, if there is
      another way than `predict`.
  """

  name: str
  unit: str
  spec: NetworkSpec
  predict: Callable[[Gates], jax.Array]
  exact: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None

  def __call__(self, gates: Gates) -> jax.Array:
    """Expected cost f32[...] of gates f[..., E, O] of each group."""
    return self.predict(gates)

  def of(self, genotype: Genotype) -> float:
    """The cost of an architecture.

    Raises:
      ValueError: the genotype is not of the space.
    """
    one_hot = discretize.one_hot(self.spec, genotype)
    return float(self.costs({g: p[None] for g, p in one_hot.items()})[0])

  @functools.cached_property
  def range(self) -> Range:
    """The costs that architectures can have; see `Range`."""
    if is_enumerable(self.spec):
      one_hot = corners(self.spec)
      costs = self.costs(one_hot)[liveness.is_connected(self.spec, one_hot)]
      return Range(float(costs.min()), float(costs.max()), True)
    ends = [self._descend(sign) for sign in (1, -1)]
    return Range(ends[0], ends[1], False)

  def costs(self, one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    """Costs f[N] of architectures f[N, E, O] of each group."""
    if self.exact is not None:
      return self.exact(one_hot)
    # Always as many at a time: a predictor takes seconds to compile.
    jitted, parts = jax.jit(self.predict), []
    count = len(next(iter(one_hot.values())))
    for at in range(0, count, _CHUNK):
      rows = np.minimum(np.arange(at, at + _CHUNK), count - 1)
      part = {name: np.asarray(p)[rows] for name, p in one_hot.items()}
      parts.append(np.asarray(jitted(_float32(part))))
    return np.concatenate(parts)[:count]

  def _descend(self, sign: int) -> float:
    """The least cost times `sign` that changes of single nodes lead to."""
    rng = np.random.default_rng(0)
    uniform = discretize.uniform(self.spec)
    count = _DRAWN if self.exact is None else _DRAWN_PLANS
    drawn = sampling.draw(self.spec, uniform, count, rng)
    costs = sign * self.costs(drawn)
    best = {name: d[costs.argmin()] for name, d in drawn.items()}
    least = float(costs.min())
    for _ in range(_ROUNDS):
      before = least
      for block in sampling.blocks(self.spec):
        values = sampling.choices(self.spec, block)
        rows = list(block.rows)
        tried = {
          name: np.repeat(b[None], len(values), 0) for name, b in best.items()
        }
        tried[block.group][:, rows] = values
        connected = liveness.is_connected(self.spec, tried)
        costs = np.where(connected, sign * self.costs(tried), np.inf)
        if costs.min() < least:
          least = float(costs.min())
          best = {name: t[costs.argmin()] for name, t in tried.items()}
      if least == before:
        break
    return sign * least


def make(
  name: str,
  spec: NetworkSpec,
  predict: Callable[[Gates], jax.Array] | None = None,
) -> Budget:
  """Returns the expected cost `name` of a space.

  Args:
    name: one of `NAMES`.
    spec: the deploy spec.
    predict: of 'latency_ms' and 'energy_mj', that were measured: gates ->
      expected cost.

  Raises:
    ValueError: there is no such cost, or nothing was measured.
  """
  check_name(name)
  if name in _MEASURED:
    if predict is None:
      raise ValueError(
        f'{name} is no function of the space alone: it needs a predictor '
        'fitted to measurements of the device.'
      )
    return Budget(name, NAMES[name], spec, predict)
  return _COSTS[name](spec)


def check_name(name: str) -> None:
  """Raises ValueError if `name` is not one of `NAMES`."""
  if name not in NAMES:
    raise ValueError(
      f'objective.constraints has {name!r}; known are {sorted(NAMES)}.'
    )


def constant_bytes(site: Site, op: str) -> float:
  """What an op takes up in an exported float32 .tflite file.

  Batch norms are folded into the kernels before them.
  """
  found = footprint.of(site, op)
  return float(found.constant_bytes + _TENSOR_BYTES * found.num_tensors)


def _macs(spec: NetworkSpec) -> Budget:
  """Every op of the architecture counts, as in the literature."""
  predict = _sum(spec, cost.tabulate(spec, cost.macs, 'macs'))
  return Budget('macs', NAMES['macs'], spec, predict)


def _sum(
  spec: NetworkSpec, table: cost.CostTable
) -> Callable[[Gates], jax.Array]:
  """The expectation of a sum over the ops of the architecture."""

  def predict(gates: Gates) -> jax.Array:
    probs = expectation.marginals(spec, _arrays(gates))
    total = jnp.asarray(table.fixed, jnp.float32)
    for group, costs in table.per_op.items():
      per_op = jnp.asarray(costs, jnp.float32)
      total = total + jnp.einsum('...eo,eo->...', probs[group], per_op)
    return total

  return predict


def _model_mb(spec: NetworkSpec) -> Budget:
  """Ops on a path from input to output are in the file, with their constants.

  An op with constants that is fed by nothing, and whose node is read, leaves an
  image that does not depend on the input: the file holds that image instead.
  """
  live = cost.tabulate(spec, constant_bytes, 'bytes')
  dead = cost.tabulate(spec, _image_bytes, 'bytes')

  def predict(gates: Gates) -> jax.Array:
    compiled = expectation.paid(spec, _arrays(gates), 'compiled')
    pruned = expectation.paid(spec, _arrays(gates), 'pruned')
    total = jnp.asarray(live.fixed, jnp.float32)
    for group in spec.groups():
      costs = [jnp.asarray(t.per_op[group], jnp.float32) for t in (live, dead)]
      unfed = pruned[group] - compiled[group]
      total = total + jnp.einsum('...eo,eo->...', compiled[group], costs[0])
      total = total + jnp.einsum('...eo,eo->...', unfed, costs[1])
    return total / _MB

  name = 'model_mb'
  if is_enumerable(spec):
    one_hot = corners(spec)
    costs = np.asarray(predict(_float32(one_hot)), np.float64)
    costs -= _merged_bytes(spec, one_hot) / _MB
    mean, find = contract(spec, costs), _finder(spec, costs)
    return Budget(name, NAMES[name], spec, mean, find)
  return Budget(name, NAMES[name], spec, predict)


def _merged_bytes(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> np.ndarray:
  """What files need less than the sum over ops, in bytes f[N].

  Constants that are added at one node are one, those at nodes that depend on no
  input are parts of others, and a chain of cells that only hand on their input
  and add constants to it has one for all of them.
  """
  compiled = liveness.paid_ops(spec, one_hot, 'compiled')
  pruned = liveness.paid_ops(spec, one_hot, 'pruned')
  sizes = activations.output_bytes(spec)
  dead = cost.tabulate(spec, _image_bytes, 'bytes')
  sites = {(s.group, s.row): s for s in spec.sites()}
  saved = np.zeros(len(next(iter(one_hot.values()))))
  for name, group in spec.groups().items():
    passes = np.array(
      [
        [footprint.of(sites[name, row], op).is_identity for op in group.ops]
        for row in range(len(group.edges))
      ]
    )
    images = (pruned[name] - compiled[name]) * dead.per_op[name]
    only = ~(compiled[name] * ~passes).any((1, 2))
    total = np.zeros(len(saved))
    ends = np.array([dst for _, dst in group.edges])
    for dst in np.unique(ends):
      into = compiled[name][:, ends == dst].sum((1, 2))
      only &= into <= 1
      total += np.where(into > 0, images[:, ends == dst].max((1, 2)), 0)
    runs = itertools.groupby(spec.all_cells, lambda c: (c.group, sizes[c.name]))
    chains = sum(size for (own, size), _ in runs if own == name)
    total = np.where(only & (total > 0), chains, total)
    saved += images.sum((1, 2)) - total
  return saved


def _image_bytes(site: Site, op: str) -> float:
  """What an op leaves in a file that depends on no input."""
  found = footprint.of(site, op)
  return float(found.out_bytes) if found.constant_bytes else 0.0


def _peak_memory_mb(spec: NetworkSpec) -> Budget:
  def exact(one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    return arena.arena_bytes(spec, _float32(one_hot)) / _MB

  def predict(gates: Gates) -> jax.Array:
    return activations.peak_bytes(spec, _arrays(gates)) / _MB

  name = 'peak_memory_mb'
  if is_enumerable(spec):
    costs = exact(corners(spec))
    mean, find = contract(spec, costs), _finder(spec, costs)
    return Budget(name, NAMES[name], spec, mean, find)
  return Budget(name, NAMES[name], spec, predict, exact)


def _finder(
  spec: NetworkSpec, costs: np.ndarray
) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
  """Finds the costs of architectures among those f[N] of all of them."""

  def find(one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    number: Any = 0
    for name, group in spec.groups().items():
      columns = np.asarray(one_hot[name]).argmax(-1)
      for row in range(len(group.edges)):
        number = number * len(group.ops) + columns[..., row]
    return costs[number]

  return find


def contract(
  spec: NetworkSpec, costs: np.ndarray
) -> Callable[[Gates], jax.Array]:
  """The exact expectation of costs f[N] of all architectures."""
  variables = {'params': {'corners_ms': jnp.asarray(costs, jnp.float32)}}
  model = LatencyPredictor(spec)

  def predict(gates: Gates) -> jax.Array:
    value = model.apply(variables, _arrays(gates))
    assert isinstance(value, jax.Array)
    return value

  return predict


def _arrays(gates: Gates) -> dict[str, jax.Array]:
  return {name: jnp.asarray(g) for name, g in gates.items()}


def _float32(one_hot: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: np.asarray(p, np.float32) for name, p in one_hot.items()}


_COSTS = {
  'macs': _macs,
  'model_mb': _model_mb,
  'peak_memory_mb': _peak_memory_mb,
}
