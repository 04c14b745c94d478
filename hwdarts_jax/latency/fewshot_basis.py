"""What the latency of a device may look like, as functions of architectures.

The few-shot model writes the latency of a new device as a sum of functions
that are known before anything is measured on it: the latencies of other
devices (each smoothed by a regression, so that it is defined everywhere and
without its noise), those of simulated devices, and features of the
architecture for whatever these leave over.

A simulated device pays for every op that it runs a share of its
multiply-accumulates, its memory traffic and the mere start of it, each with an
efficiency drawn at random for every op, on top of a random fixed part. They
are crude one by one; what counts is how the latencies of two architectures
vary together over many of them. This is what makes twenty measurements alone
enough, without any other device.

Where the predictor keeps one figure for each architecture, latencies are
compared in logarithms, under all semantics of `liveness`. Elsewhere it is
linear in ops and adjacent pairs, and so is every function here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
from typing import NamedTuple

import numpy as np
from scipy import linalg

from hwdarts_jax.latency import cost, liveness, pairs, sampling
from hwdarts_jax.latency import features as features_lib
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.models import ops
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec, Site

_NUM_SIMULATED = 600
_NUM_REFERENCES = 2000  # drawn architectures where there are too many
_MAX_SMOOTHED = 2500  # rows of a series that its regression reads
_PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
# In a regression, features matter this much beside simulated devices.
_STRUCTURE_SCALE = 0.3
_PAIR_SCALE = 0.5  # pairs are finer effects than ops


class Rows(NamedTuple):
  """Measured networks of one device.

  Attributes:
    one_hot: for each group f[N, E, O].
    latency_ms: f[N], positive.
  """

  one_hot: Mapping[str, np.ndarray]
  latency_ms: np.ndarray


class Values(NamedTuple):
  """The functions at N architectures.

  Attributes:
    structure: features of mean 0 and mean square norm 1, f[N, F].
    devices: other devices, f[N, D].
    simulated: f[N, S].
  """

  structure: np.ndarray
  devices: np.ndarray
  simulated: np.ndarray

  def take(self, rows) -> Values:
    """The values at some of the architectures."""
    return Values(*(v[rows] for v in self))

  def without(self, device: int) -> Values:
    """The values as they are where a device is not known."""
    return self._replace(devices=np.delete(self.devices, device, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
  """Functions of architectures; see the docstring of this file.

  Attributes:
    spec: the space.
    center: mean of the raw features, f[F].
    scale: 1 / root mean square norm of the centred features.
    structure_of: weights of the features in each device's series, f[F, D].
    simulated_of: and of the simulated devices, f[S, D].
    fixed: of each simulated device, f[S].
    per_op: of each simulated device, for each group f[S, E, O].
    semantics: of each simulated device, an index of its list, i[S].
    unit: mean of each simulated device, f[S], in the link's scale.
  """

  spec: NetworkSpec
  center: np.ndarray
  scale: float
  structure_of: np.ndarray
  simulated_of: np.ndarray
  fixed: np.ndarray
  per_op: Mapping[str, np.ndarray]
  semantics: np.ndarray
  unit: np.ndarray

  def __call__(self, one_hot: Mapping[str, np.ndarray]) -> Values:
    """Returns the functions at architectures, for each group f[N, E, O]."""
    structure = self.scale * (features(self.spec, one_hot) - self.center)
    simulated = self._simulate(one_hot)
    devices = structure @ self.structure_of + simulated @ self.simulated_of
    return Values(structure, devices, simulated)

  def _simulate(self, one_hot) -> np.ndarray:
    raw = _simulated_ms(
      self.spec, one_hot, self.fixed, self.per_op, self.semantics
    )
    if is_enumerable(self.spec):
      return np.log(raw) - self.unit
    return raw / self.unit - 1

  def linear(self, weights: Values) -> tuple[float, np.ndarray]:
    """A sum of the functions as constant and weights f[F] of the features.

    Args:
      weights: of the functions: f[F], f[D] and f[S].
    """
    assert not is_enumerable(self.spec)
    structure = weights.structure + self.structure_of @ weights.devices
    simulated = weights.simulated + self.simulated_of @ weights.devices
    slope = self.scale * structure
    shares = simulated / self.unit
    constant = self.fixed @ shares - simulated.sum() - self.center @ slope
    at = 0
    for costs in self.per_op.values():
      added = np.tensordot(shares, costs, 1)
      slope[at : at + added.size] += added.ravel()
      at += added.size
    return float(constant), slope


def link(spec: NetworkSpec, latency_ms: np.ndarray) -> np.ndarray:
  """Latencies in the scale in which they are compared, up to a constant."""
  if is_enumerable(spec):
    return np.log(latency_ms)
  return latency_ms / unit_ms(spec, latency_ms)


def unit_ms(spec: NetworkSpec, latency_ms: np.ndarray) -> float:
  """What 1 means after `link`, in ms."""
  return 1.0 if is_enumerable(spec) else float(np.median(latency_ms))


def semantics_of(spec: NetworkSpec) -> tuple[str, ...]:
  """The semantics that can differ in the space and that a predictor keeps."""
  dead = is_enumerable(spec) and liveness.has_dead_ops(spec)
  return liveness.SEMANTICS if dead else ('eager',)


def references(
  spec: NetworkSpec, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Connected architectures that stand for the space, f[N, E, O] by group."""
  if is_enumerable(spec):
    one_hot = corners(spec)
  else:
    even = discretize.uniform(spec)
    one_hot = sampling.draw(spec, even, _NUM_REFERENCES, rng)
  return take(one_hot, liveness.is_connected(spec, one_hot))


def make(
  spec: NetworkSpec, series: Mapping[str, Rows], rng: np.random.Generator
) -> Basis:
  """Returns the functions of a space, given other devices by name."""
  reference = references(spec, rng)
  raw = features(spec, reference)
  center = raw.mean(0)
  scale = 1 / math.sqrt(((raw - center) ** 2).sum(1).mean())
  fixed, per_op, semantics = _draw_devices(spec, reference, rng)
  simulated = _simulated_ms(spec, reference, fixed, per_op, semantics)
  if is_enumerable(spec):
    simulated = np.log(simulated)
  unit = simulated.mean(0)
  nothing = np.zeros((len(center), 0)), np.zeros((len(unit), 0))
  basis = Basis(spec, center, scale, *nothing, fixed, per_op, semantics, unit)
  if not series:
    return basis
  spread = math.sqrt((basis(reference).simulated ** 2).sum(1).mean())
  weights = _smooth_all(basis, list(series.values()), spread, rng)
  return dataclasses.replace(
    basis,
    structure_of=weights[: len(center)],
    simulated_of=weights[len(center) :],
  )


def features(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Ops and adjacent pairs that are paid for, f[N, F], under all semantics."""
  columns = []
  for semantics in semantics_of(spec):
    paid = liveness.paid_ops(spec, one_hot, semantics)
    count = len(next(iter(paid.values())))
    columns += [p.reshape(count, -1) for p in paid.values()]
    columns += [
      _PAIR_SCALE * p.reshape(count, -1)
      for p in features_lib.products(spec, paid)
    ]
  return np.concatenate(columns, axis=1)


def split_features(
  spec: NetworkSpec, weights: np.ndarray
) -> dict[str, np.ndarray]:
  """Weights f[F] of `features` as variables of the linear predictor."""
  variables, at, groups = {}, 0, spec.groups()
  for name, group in groups.items():
    size = math.prod(group.shape)
    variables[f'{name}_per_op'] = weights[at : at + size].reshape(group.shape)
    at += size
  for p in pairs.adjacent(spec):
    sizes = [groups[g].shape[1] for g in (p.left_group, p.right_group)]
    shape = len(p.left), *sizes
    part = weights[at : at + math.prod(shape)]
    variables[p.name] = _PAIR_SCALE * part.reshape(shape)
    at += part.size
  return variables


def take(one_hot: Mapping[str, np.ndarray], rows) -> dict[str, np.ndarray]:
  """Some of the architectures."""
  return {name: np.asarray(p)[rows] for name, p in one_hot.items()}


def _smooth_all(
  basis: Basis, series: Sequence[Rows], spread: float, rng
) -> np.ndarray:
  """Ridge regressions of all series; see `_smooth`. Weights f[F + S, D]."""
  alike: dict[bytes, list[int]] = {}
  orders = []
  for i, rows in enumerate(series):
    connected = np.flatnonzero(liveness.is_connected(basis.spec, rows.one_hot))
    orders.append(rng.permutation(connected)[:_MAX_SMOOTHED])
    text = b''.join(np.asarray(p).tobytes() for p in rows.one_hot.values())
    alike.setdefault(hashlib.sha256(text).digest(), []).append(i)
  columns: dict[int, np.ndarray] = {}
  # Devices on which the same networks were measured share the costly part.
  for members in alike.values():
    chosen = orders[members[0]]
    one_hot = take(series[members[0]].one_hot, chosen)
    latency_ms = [np.asarray(series[i].latency_ms)[chosen] for i in members]
    found = _smooth(basis, one_hot, np.stack(latency_ms, 1), spread)
    columns |= dict(zip(members, found.T, strict=True))
  return np.stack([columns[i] for i in range(len(series))], 1)


def _smooth(basis: Basis, one_hot, latency_ms, spread: float) -> np.ndarray:
  """Ridge regressions of series of the same networks.

  Args:
    basis: functions without devices.
    one_hot: the networks in random order, for each group f[N, E, O].
    latency_ms: one column a device, f[N, D].
    spread: root mean square norm of the simulated devices.

  Returns:
    Weights of features and simulated devices, f[F + S, D].
  """
  spec = basis.spec
  values = basis(one_hot)
  scales = np.repeat(
    [_STRUCTURE_SCALE, 1 / spread],
    [values.structure.shape[1], values.simulated.shape[1]],
  )
  x = scales * np.concatenate([values.structure, values.simulated], 1)
  y = np.stack([link(spec, ms) for ms in latency_ms.T], 1)
  test, train = np.split(np.arange(len(y)), [len(y) // 5])
  tried = _ridge(x[train], y[train], _PENALTIES)
  errors = [
    np.square(x[test] @ weights + constant - y[test]).mean(0)
    for constant, weights in tried.values()
  ]
  best = np.array(_PENALTIES)[np.argmin(errors, 0)]
  solved = _ridge(x, y, sorted(set(best.tolist())))
  columns = []
  for i, penalty in enumerate(best.tolist()):
    constant, weights = (part[..., i] for part in solved[penalty])
    # Of a linear latency only the shape matters: its mean is the unit.
    columns.append(weights if is_enumerable(spec) else weights / constant)
  return scales[:, None] * np.stack(columns, 1)


def _ridge(x: np.ndarray, y: np.ndarray, penalties) -> dict[float, tuple]:
  """For each penalty, constants f[D] and weights f[F, D] of y f[n, D]."""
  mean, shift = y.mean(0), x.mean(0)
  x = x - shift
  few_rows = len(x) < x.shape[1]  # then the other of the two forms is smaller
  gram = x @ x.T if few_rows else x.T @ x
  target = (y - mean) if few_rows else x.T @ (y - mean)
  found = {}
  for penalty in penalties:
    factor = linalg.cho_factor(gram + penalty * np.eye(len(gram)))
    weights = linalg.cho_solve(factor, target)
    weights = x.T @ weights if few_rows else weights
    found[penalty] = mean - shift @ weights, weights
  return found


def _draw_devices(spec, reference, rng):
  """Random devices: fixed f[S], per op f[S, E, O] by group, semantics i[S]."""
  count, groups = _NUM_SIMULATED, spec.groups()
  values = (cost.macs, _traffic, lambda site, op: 1.0)
  tables = [cost.tabulate(spec, value, '').per_op for value in values]
  names = sorted({op for group in groups.values() for op in group.ops})
  shares = rng.dirichlet([0.7] * len(tables), count)
  spreads = (0.5, 0.7, 0.7)
  per_op = {name: np.zeros((count, *g.shape)) for name, g in groups.items()}
  for k, (table, spread) in enumerate(zip(tables, spreads, strict=True)):
    mean = sum(
      np.einsum('neo,eo->n', reference[name], costs).mean()
      for name, costs in table.items()
    )
    speed = np.exp(spread * rng.normal(size=(count, len(names))))
    for name, group in groups.items():
      columns = [names.index(op) for op in group.ops]
      part = speed[:, None, columns] * table[name] / max(mean, 1e-9)
      per_op[name] += shares[:, k, None, None] * part
  discount = np.stack([_discount(op, count, rng) for op in names], 1)
  for name, group in groups.items():
    columns = [names.index(op) for op in group.ops]
    jitter = np.exp(0.1 * rng.normal(size=(count, *group.shape)))
    per_op[name] *= discount[:, None, columns] * jitter
  # Beside ops whose mean sum is about 1.
  fixed = rng.choice([0.05, 0.15, 0.5, 1.5], count)
  return fixed, per_op, np.arange(count) % len(semantics_of(spec))


def _discount(op, count, rng) -> np.ndarray:
  """Share of its cost that an op has on each device, f[S].

  Runtimes may spend next to nothing on ops that compute nothing.
  """
  if ops.is_zero(op):
    none = rng.choice([0.0, 0.1, 1.0], count, p=[0.25, 0.25, 0.5])
    return none * rng.choice([0.0, 0.1, 0.3, 1.0], count)
  if getattr(ops.get(op), 'is_skip', False):
    return rng.choice([0.0, 0.1, 0.3, 1.0], count)
  return np.ones(count)


def _traffic(site: Site, op: str) -> float:
  """Values read and written by an op, parameters among them."""
  size = math.prod(site.in_shape) + math.prod(site.out_shape)
  return float(size + cost.params(site, op))


def _simulated_ms(spec, one_hot, fixed, per_op, semantics) -> np.ndarray:
  """Latencies f[N, S] of simulated devices, in any unit."""
  count = len(next(iter(one_hot.values())))
  total = np.tile(fixed, (count, 1))
  for i, name_of in enumerate(semantics_of(spec)):
    paid = liveness.paid_ops(spec, one_hot, name_of)
    of = semantics == i
    for name, costs in per_op.items():
      total[:, of] += (
        paid[name].reshape(count, -1) @ costs[of].reshape(of.sum(), -1).T
      )
  return total
