"""Differentiable latency predictor: gates to expected milliseconds.

The latency of one architecture is modelled as a physical prior plus a learned
correction,

    ms(a) = fixed + sum_e cost[e, a_e] + sum_e w[e, a_e]
          + sum_(e, f) v[e, f, a_e, a_f]

over the edges e whose op the runtime pays for (`liveness`; which of its
semantics a device follows is found by the fit) and the pairs (e, f) of them
that share a node. Costs are not negative: they come from a table of op entries
scaled to whole networks, or are fitted. The correction w, v is a ridge
regression; it holds what an additive table cannot, such as fusion.

What the search needs is the *expected* latency of a soft architecture. A space
with few architectures (`is_enumerable`) keeps ms(a) of every one and the
predictor contracts them with the gates: the exact expectation, whatever the
model. Otherwise nothing is dead, the model is evaluated at the marginals of
the random architecture, and is exact for independent edges since it is at most
linear in the gates of each.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from hwdarts_jax.latency import expectation, liveness
from hwdarts_jax.latency.corner import adjacent_edges, corners, is_enumerable
from hwdarts_jax.latency.cost import CostTable
from hwdarts_jax.latency.judge import quality
from hwdarts_jax.spaces.spec import NetworkSpec

__all__ = (
  'adjacent_edges',
  'calibrate',
  'corners',
  'fit',
  'Fit',
  'from_table',
  'is_enumerable',
  'LatencyPredictor',
  'MIN_NETWORKS',
  'quality',
)

# Ridge penalties tried by `fit`, relative to the mean latency.
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# A pair is a finer effect than an op; its features are scaled down, which is
# the same as a larger penalty on its weights.
_PAIR_SCALE = 0.5
_NUM_FOLDS = 5
_MAX_VALIDATED = 3000  # rows of the cross-validation
MIN_NETWORKS = 20


class LatencyPredictor(nn.Module):
  """The model of this file; see its docstring.

  Attributes:
    spec: the space whose gates it reads.
  """

  spec: NetworkSpec

  @nn.compact
  def __call__(self, gates: Mapping[str, jax.Array]) -> jax.Array:
    """Returns expected ms f[...] for gates f[..., E, O] of each group."""
    if is_enumerable(self.spec):
      return self._contract(gates)
    probs = expectation.marginals(self.spec, gates)
    ms = self.param('fixed', nn.initializers.zeros, ())
    for name, group in self.spec.groups().items():
      num_edges, num_ops = group.shape
      p = probs[name]
      per_op = self.param(
        f'{name}_per_op', nn.initializers.zeros, (num_edges, num_ops)
      )
      ms = ms + jnp.einsum('...eo,eo->...', p, per_op)
      left, right = adjacent_edges(group.edges)
      if len(left):
        pair = self.param(
          f'{name}_pair', nn.initializers.zeros, (len(left), num_ops, num_ops)
        )
        ms = ms + jnp.einsum(
          '...po,...pq,poq->...', p[..., left, :], p[..., right, :], pair
        )
    return ms

  def _contract(self, gates: Mapping[str, jax.Array]) -> jax.Array:
    """Sum over a of ms(a) * prod over e of gates[e, a_e]."""
    rows = [
      gates[name][..., row, :]
      for name, group in self.spec.groups().items()
      for row in range(group.shape[0])
    ]
    sizes = tuple(r.shape[-1] for r in rows)
    ms = self.param('corners_ms', nn.initializers.zeros, (math.prod(sizes),))
    ms = jnp.tensordot(rows[0], ms.reshape(sizes[0], -1), axes=1)
    for row in rows[1:]:
      ms = ms.reshape(*ms.shape[:-1], row.shape[-1], -1)
      ms = jnp.einsum('...o,...ok->...k', row, ms)
    return ms.reshape(ms.shape[:-1])


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted predictor and what is known of its quality.

  Attributes:
    variables: of `LatencyPredictor`.
    card: JSON-able facts: rows, semantics, penalty, held-out errors.
  """

  variables: Any
  card: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Corner:
  """ms(a) of one architecture: additive costs and a linear correction.

  Attributes:
    spec: the space.
    semantics: which ops cost anything.
    fixed: ms of everything that is not searched, at least 0.
    per_op: for each group f[E, O], at least 0.
    weights: of `_features`.
    floor_ms: of a network without ops; no architecture is faster.
  """

  spec: NetworkSpec
  semantics: str
  fixed: float
  per_op: Mapping[str, np.ndarray]
  weights: np.ndarray
  floor_ms: float

  def __call__(self, one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    paid = liveness.paid_ops(self.spec, one_hot, self.semantics)
    ms = _prior_ms(self.fixed, self.per_op, paid)
    if self.weights.any():
      ms = ms + _features(self.spec, paid) @ self.weights
    # Far from the measured networks the model may fall below.
    return np.maximum(ms, self.floor_ms)


def from_table(spec: NetworkSpec, table: CostTable, rows: int = 0) -> Fit:
  """The additive predictor that a table of op entries gives by itself.

  Args:
    spec: the space.
    table: costs of ops, in ms.
    rows: whole networks that `table` was calibrated on, for the card.
  """
  corner = _Corner(spec, 'eager', table.fixed, table.per_op, np.zeros(1), 0.0)
  card = {
    'model': 'sum of table entries',
    'semantics': 'eager',
    'rows': rows,
    'held_out': None,
  }
  return Fit(_variables(corner), card)


def calibrate(
  table: CostTable, one_hot: Mapping[str, np.ndarray], latency_ms: np.ndarray
) -> CostTable:
  """Scales a table by the median of measured over summed latency.

  Args:
    table: costs of ops.
    one_hot: whole networks: for each group f[N, E, O].
    latency_ms: what they were measured at, f[N].
  """
  sums = _prior_ms(table.fixed, table.per_op, one_hot)
  ratio = float(np.median(latency_ms / sums))
  scaled = {name: ratio * costs for name, costs in table.per_op.items()}
  return CostTable(per_op=scaled, fixed=ratio * table.fixed, unit=table.unit)


def fit(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  prior: CostTable | None = None,
  held_out: float = 0.1,
  seed: int = 0,
) -> Fit:
  """Fits the predictor to measured networks.

  Errors are relative: every network counts by its error in per cent. Networks
  in which nothing connects input and output are left out: some runtimes delete
  them whole, and a per-cent error of nothing means nothing. The semantics and
  the penalty are chosen by cross-validation on the training rows; the reported
  errors are those on rows that no fit has seen.

  Args:
    spec: the space.
    one_hot: for each group f[N, E, O].
    latency_ms: f[N], positive.
    prior: op entries to start from; scaled by the median ratio of measured to
      summed latency. None fits the costs too.
    held_out: share of the rows kept for the report.
    seed: of the split.

  Returns:
    The fit; its card has 'held_out' with 'mape_percent', 'within_5_percent',
    'within_10_percent' and 'spearman'.

  Raises:
    ValueError: there are fewer than `MIN_NETWORKS` rows.
  """
  connected = liveness.is_connected(spec, one_hot)
  one_hot = _take(one_hot, connected)
  latency_ms = np.asarray(latency_ms, np.float64)[connected]
  count = len(latency_ms)
  if count < MIN_NETWORKS:
    raise ValueError(
      f'the latency predictor has {count} measured networks that connect '
      f'input and output; it needs at least {MIN_NETWORKS}.'
    )
  order = np.random.default_rng(seed).permutation(count)
  num_test = max(5, round(held_out * count))
  test, train = np.split(order, [num_test])
  semantics, penalty = _choose(spec, one_hot, latency_ms, prior, train)
  data = _Data(spec, semantics, one_hot, latency_ms, prior)
  corner = data.fit(train, (penalty,))[penalty]
  report = quality(corner(_take(one_hot, test)), latency_ms[test])
  card = {
    'model': 'non-negative op costs and a correction by adjacent pairs',
    'semantics': semantics,
    'rows': len(train),
    'held_out_rows': len(test),
    'disconnected_rows_left_out': int((~connected).sum()),
    'penalty': penalty,
    'fixed_ms': corner.fixed,
    'floor_ms': corner.floor_ms if is_enumerable(spec) else None,
    'measured_ms': [float(latency_ms.min()), float(latency_ms.max())],
    'held_out': report,
  }
  return Fit(_variables(corner), card)


def _choose(spec, one_hot, latency_ms, prior, rows) -> tuple[str, float]:
  """Returns the semantics and the penalty that predict unseen rows best.

  Of choices whose errors differ by less than one standard error the one with
  the least to say is taken: the one under which fewer ops cost anything, then
  the larger penalty. It errs least on architectures unlike the measured ones.
  """
  # Only an enumerable space keeps one figure for each architecture; what the
  # other form of the predictor evaluates has no dead ops.
  dead = is_enumerable(spec) and liveness.has_dead_ops(spec)
  candidates = liveness.SEMANTICS if dead else ('eager',)
  folds = np.array_split(rows[:_MAX_VALIDATED], _NUM_FOLDS)
  errors: dict[tuple[str, float], list[np.ndarray]] = {}
  for semantics in candidates:
    data = _Data(spec, semantics, one_hot, latency_ms, prior)
    for i, fold in enumerate(folds):
      rest = np.concatenate([f for j, f in enumerate(folds) if j != i])
      for penalty, corner in data.fit(rest, _PENALTIES).items():
        error = np.abs(corner(_take(one_hot, fold)) / latency_ms[fold] - 1)
        errors.setdefault((semantics, penalty), []).append(error)
  flat = {choice: np.concatenate(e) for choice, e in errors.items()}
  best = min(flat.values(), key=lambda e: e.mean())
  for semantics in reversed(candidates):
    for penalty in reversed(_PENALTIES):
      worse = flat[semantics, penalty] - best
      if worse.mean() <= worse.std() / math.sqrt(len(worse)):
        return semantics, penalty
  raise AssertionError('the best choice is within its own error')


class _Data:
  """Measured networks as seen by one semantics; fits corner models to them."""

  def __init__(self, spec, semantics, one_hot, latency_ms, prior):
    self._spec, self._semantics, self._prior = spec, semantics, prior
    self._paid = liveness.paid_ops(spec, one_hot, semantics)
    self._on_path = liveness.paid_ops(spec, one_hot, 'compiled')
    self._features = _features(spec, self._paid)
    self._ms = latency_ms

  def fit(self, rows: np.ndarray, penalties) -> dict[float, _Corner]:
    """Fits to some rows, once for each penalty."""
    # Rows are weighted so that errors count in per cent, at the mean's scale.
    unit = self._ms[rows].mean() / self._ms[rows]
    fixed, per_op = self._costs(rows, unit, self._paid)
    # What is left over belongs to no op: the most of it, and so the surest
    # floor, where only ops on a path cost anything.
    least, _ = self._costs(rows, unit, self._on_path)
    floor_ms = max(fixed, min(least, float(self._ms[rows].min())))
    if not is_enumerable(self._spec):
      floor_ms = -np.inf  # a maximum is not linear in the gates
    rest = self._ms[rows] - _prior_ms(fixed, per_op, _take(self._paid, rows))
    x, y = self._features[rows] * unit[:, None], rest * unit
    return {
      penalty: _Corner(
        self._spec, self._semantics, fixed, per_op, weights, floor_ms
      )
      for penalty, weights in _ridge(x, y, penalties).items()
    }

  def _costs(self, rows, unit, all_paid):
    """Costs that are not negative: scaled from the prior, or fitted."""
    paid = _take(all_paid, rows)
    if self._prior is not None:
      scaled = calibrate(self._prior, paid, self._ms[rows])
      return scaled.fixed, scaled.per_op
    flat = [p.reshape(len(rows), -1) for p in paid.values()]
    x = np.concatenate([np.ones((len(rows), 1)), *flat], axis=1)
    solution, _ = optimize.nnls(x * unit[:, None], self._ms[rows] * unit)
    per_op, at = {}, 1
    for name, group in self._spec.groups().items():
      size = math.prod(group.shape)
      per_op[name] = solution[at : at + size].reshape(group.shape)
      at += size
    return float(solution[0]), per_op


def _variables(corner: _Corner) -> dict[str, Any]:
  """Variables of `LatencyPredictor` that evaluate a corner model."""
  if is_enumerable(corner.spec):
    ms = corner(corners(corner.spec))
    return {'params': {'corners_ms': jnp.asarray(ms, jnp.float32)}}
  params: dict[str, Any] = {'fixed': jnp.asarray(corner.fixed, jnp.float32)}
  weights, at = corner.weights, 0
  for name, group in corner.spec.groups().items():
    num_edges, num_ops = group.shape
    left, _ = adjacent_edges(group.edges)
    per_op = np.array(corner.per_op[name], np.float64)
    pair = np.zeros((len(left), num_ops, num_ops))
    if weights.any():
      per_op += weights[at : at + per_op.size].reshape(per_op.shape)
      at += per_op.size
      pair += _PAIR_SCALE * weights[at : at + pair.size].reshape(pair.shape)
      at += pair.size
    params[f'{name}_per_op'] = jnp.asarray(per_op, jnp.float32)
    if len(left):
      params[f'{name}_pair'] = jnp.asarray(pair, jnp.float32)
  return {'params': params}


def _features(spec: NetworkSpec, paid: Mapping[str, np.ndarray]) -> np.ndarray:
  """Columns f[N, F] of the correction: for each group its ops and its pairs."""
  columns = []
  for name, group in spec.groups().items():
    p = paid[name]
    left, right = adjacent_edges(group.edges)
    pairs = p[:, left, :, None] * p[:, right, None, :]
    columns += [p.reshape(len(p), -1), _PAIR_SCALE * pairs.reshape(len(p), -1)]
  return np.concatenate(columns, axis=1)


def _prior_ms(
  fixed: float, per_op: Mapping[str, np.ndarray], paid: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Sums of costs f[N]."""
  return fixed + sum(
    np.einsum('neo,eo->n', paid[name], costs) for name, costs in per_op.items()
  )


def _ridge(x: np.ndarray, y: np.ndarray, penalties) -> dict[float, np.ndarray]:
  """For each penalty, the w that minimizes |y - x w|^2 + penalty |w|^2."""
  few_rows = len(x) < x.shape[1]  # then the other of the two forms is smaller
  values, vectors = np.linalg.eigh(x @ x.T if few_rows else x.T @ x)
  target = vectors.T @ (y if few_rows else x.T @ y)
  solutions = {p: vectors @ (target / (values + p)) for p in penalties}
  return {p: x.T @ w if few_rows else w for p, w in solutions.items()}


def _take(one_hot: Mapping[str, np.ndarray], rows) -> dict[str, np.ndarray]:
  return {name: np.asarray(p)[rows] for name, p in one_hot.items()}
