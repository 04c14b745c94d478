"""Fits a latency predictor to measured networks, to op entries, or to both.

The latency of an architecture is a sum of random functions of what `features`
says of it, on top of a table of op entries where there is one (`gaussian`).
Errors are relative: every network counts by its error in per cent. In a space
whose architectures can be enumerated the functions may be of any shape, of the
ops that a runtime pays for under each of the semantics of `liveness`; in the
others all of them are linear in ops and in adjacent pairs of ops.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import optimize

from hwdarts_jax.latency import blas, gaussian, kernels, liveness, sums
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.latency.cost import CostTable
from hwdarts_jax.latency.gaussian import Tails
from hwdarts_jax.latency.judge import quality
from hwdarts_jax.latency.linear import Weights
from hwdarts_jax.spaces.spec import NetworkSpec

MIN_NETWORKS = 20
MIN_WITH_PRIOR = 5  # where they only correct a table of op entries
_MAX_ROWS = 2000  # more teach no more; the rest is left out
_CHUNK = 2000  # architectures predicted at a time
# From the mean of all rows to the most frequent value; see `gaussian.Tails`.
_TAILS = (Tails(),) * 2 + (Tails(width=0.1),) + (Tails(width=0.06),) * 2
_MAX_CHOICE_ROWS = 300  # of the choice of semantics
_WITHIN = 0.1  # relative error that counts as right
# Fewer rows than this cannot tell where the middle of the errors is.
_MIN_AIMED = 200
# Share of rows that a change of the factor by 1 has to gain.
_AIM_PRICE = 0.1


class HeldOut(NamedTuple):
  """Networks that a fit has not seen.

  Attributes:
    measured_ms: f[N].
    predicted_ms: f[N].
  """

  measured_ms: np.ndarray
  predicted_ms: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted predictor and what is known of its quality.

  Attributes:
    variables: of `LatencyPredictor`.
    card: JSON-able facts: rows, semantics, held-out errors.
    held_out: the networks that these errors are of, None if there are none.
  """

  variables: Any
  card: dict[str, Any]
  held_out: HeldOut | None = None


@dataclasses.dataclass(frozen=True)
class _Corner:
  """Latency of an architecture.

  Attributes:
    spec: the space.
    semantics: which ops cost anything, as far as one can say.
    counted: the same for the ops whose costs `prior` adds up.
    prior: costs of ops that the rest comes on top of, or None.
    regression: the rest.
    scales: of linear kernels, by name.
    factor: that the whole is multiplied by.
    floor_ms: of a network without ops; no architecture is faster.
  """

  spec: NetworkSpec
  semantics: str
  counted: str
  prior: CostTable | None
  regression: gaussian.Regression
  scales: Mapping[str, float]
  factor: float
  floor_ms: float

  def __call__(self, one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns ms f[N] for f[N, E, O] of each group."""
    count = len(next(iter(one_hot.values())))
    parts = []
    for at in range(0, count, _CHUNK):
      part = _take(one_hot, slice(at, at + _CHUNK))
      found = kernels.make(self.spec, part, self.semantics, self.scales)
      base = _base(self.spec, part, self.counted, self.prior)
      parts.append(self.regression.predict(found, base))
    # Far from the measured networks the model may fall below.
    return np.maximum(self.factor * np.concatenate(parts), self.floor_ms)


def from_table(spec: NetworkSpec, table: CostTable, rows: int = 0) -> Fit:
  """The additive predictor that a table of op entries gives by itself.

  Args:
    spec: the space.
    table: costs of ops, in ms.
    rows: whole networks that `table` was calibrated on, for the card.
  """
  card = {
    'model': 'sum of table entries',
    'semantics': 'eager',
    'rows': rows,
    'held_out': None,
  }
  if is_enumerable(spec):
    ms = sums.sum_costs(spec, table, corners(spec), 'eager')
    return Fit({'params': {'corners_ms': jnp.asarray(ms, jnp.float32)}}, card)
  weights = Weights(spec)
  weights.add_table(sums.with_fixed(spec, table), 'eager')
  return Fit(weights.variables(), card)


@blas.by_one_thread
def fit(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  prior: CostTable | None = None,
  held_out: float = 0.1,
  seed: int = 0,
) -> Fit:
  """Fits the predictor to measured networks.

  Networks in which nothing connects input and output are left out: some
  runtimes delete them whole, and a per-cent error of nothing means nothing.
  All choices are made by predicting training rows from the other ones; the
  reported errors are those on rows that no fit has seen.

  Args:
    spec: the space.
    one_hot: for each group f[N, E, O].
    latency_ms: f[N], positive.
    prior: op entries to start from, scaled by `calibrate`; None: no such.
    held_out: share of the rows kept for the report; 0: none, no report.
    seed: of the split.

  Returns:
    The fit; its card has 'held_out' with the figures of `judge.quality`.

  Raises:
    ValueError: there are too few rows: see `MIN_NETWORKS`, `MIN_WITH_PRIOR`.
  """
  connected = liveness.is_connected(spec, one_hot)
  one_hot = _take(one_hot, connected)
  latency_ms = np.asarray(latency_ms, np.float64)[connected]
  count = len(latency_ms)
  _check_count(count, MIN_NETWORKS if prior is None else MIN_WITH_PRIOR)
  order = np.random.default_rng(seed).permutation(count)
  num_test = max(5, round(held_out * count)) if held_out else 0
  test, train = order[:num_test], order[num_test:][:_MAX_ROWS]
  part, ms = _take(one_hot, train), latency_ms[train]
  corner, noise = _fit_corner(spec, part, ms, prior, seed)
  report = rows = None
  if num_test:
    rows = HeldOut(latency_ms[test], corner(_take(one_hot, test)))
    report = quality(rows.predicted_ms, rows.measured_ms)
  card = {
    'model': 'Gaussian process over ops, pairs and the graph of live ops',
    'semantics': corner.semantics,
    'rows': len(train),
    'held_out_rows': len(test),
    'surplus_rows_left_out': count - len(test) - len(train),
    'disconnected_rows_left_out': int((~connected).sum()),
    'noise_percent': noise,
    'table_scale': _ratio(prior, corner.prior),
    'floor_ms': corner.floor_ms if is_enumerable(spec) else None,
    'measured_ms': [float(latency_ms.min()), float(latency_ms.max())],
    'held_out': report,
  }
  return Fit(_variables(corner), card, rows)


def _check_count(count: int, least: int) -> None:
  if count < least:
    raise ValueError(
      f'the latency predictor has {count} measured networks that connect '
      f'input and output; it needs at least {least}.'
    )


def _fit_corner(spec, one_hot, ms, prior, seed) -> tuple[_Corner, float]:
  """Returns the corner model and the noise it sees, in per cent."""
  rng = np.random.default_rng(seed)
  if prior is None or not is_enumerable(spec):
    counted = semantics = _choose_semantics(spec, one_hot, ms, prior, rng)
  else:  # a few networks tell by the sums
    counted = sums.counted_ops(spec, one_hot, ms, prior)
    semantics = 'compiled' if counted == liveness.MERGED else counted
  if prior is not None:
    if not is_enumerable(spec):
      prior = sums.with_fixed(spec, prior)
    prior = sums.calibrate(spec, prior, one_hot, ms, counted)
  found = kernels.make(spec, one_hot, semantics)
  base = _base(spec, one_hot, counted, prior)
  regression = gaussian.Regression(found, ms, base, rng)
  best, most = regression, -1.0
  for tails in _TAILS:
    regression = regression.refine(tails)
    share = _share_within(regression.left_out_ms, ms)
    if share > most:
      best, most = regression, share
  corner = _Corner(
    spec,
    semantics,
    counted,
    prior,
    best,
    {name: kernel.scale for name, kernel in found.items()},
    _aim(best.left_out_ms, ms),
    _floor_ms(spec, one_hot, ms, prior) if is_enumerable(spec) else -np.inf,
  )
  return corner, float(100 * np.sqrt(best.noise))


def _choose_semantics(spec, one_hot, ms, prior, rng) -> str:
  """Returns the semantics under which rows predict each other best.

  Of those whose errors differ by less than a standard error the one under
  which fewest ops cost anything: it errs least on architectures unlike the
  measured ones.
  """
  candidates = kernels.semantics(spec)
  if len(candidates) == 1:
    return candidates[0]
  rows = rng.permutation(len(ms))[:_MAX_CHOICE_ROWS]
  one_hot, ms = _take(one_hot, rows), ms[rows]
  errors = {}
  for name in candidates:
    found = kernels.make(spec, one_hot, name, alone=True)
    base = None
    if prior is not None:
      scaled = sums.calibrate(spec, prior, one_hot, ms, name)
      base = _base(spec, one_hot, name, scaled)
    regression = gaussian.Regression(found, ms, base, rng).refine(Tails())
    errors[name] = np.abs(regression.left_out_ms / ms - 1)
  return sums.fewest(errors)


def _floor_ms(spec, one_hot, ms, prior) -> float:
  """What no op accounts for: the surest bound of any latency.

  A table says it. Without one it is the most where only ops on a path cost
  anything, and costs are not negative.
  """
  if prior is not None:
    return float(min(prior.fixed, ms.min()))
  paid = liveness.paid_ops(spec, one_hot, 'compiled')
  flat = [p.reshape(len(ms), -1) for p in paid.values()]
  x = np.concatenate([np.ones((len(ms), 1)), *flat], axis=1)
  costs, _ = optimize.nnls(x / ms[:, None], np.ones(len(ms)))
  return float(min(costs[0], ms.min()))


def _aim(left_out_ms: np.ndarray, ms: np.ndarray) -> float:
  """A factor near 1 with which most rows are predicted well enough.

  Errors are often skewed: slower is more frequent than faster. Shares are
  counted over a range of limits, so that the factor is no accident.
  """
  if len(ms) < _MIN_AIMED:
    return 1.0
  factors = np.linspace(0.98, 1.02, 9)
  limits = np.linspace(0.8, 1.2, 9) * _WITHIN
  shares = [
    np.mean([_share_within(f * left_out_ms, ms, limit) for limit in limits])
    - _AIM_PRICE * abs(f - 1)
    for f in factors
  ]
  return float(factors[int(np.argmax(shares))])


def _share_within(predicted, ms, limit: float = _WITHIN) -> float:
  return float((np.abs(predicted / ms - 1) <= limit).mean())


def _variables(corner: _Corner) -> dict[str, Any]:
  """Variables of `LatencyPredictor` that evaluate a corner model."""
  spec = corner.spec
  if is_enumerable(spec):
    ms = corner(corners(spec))
    return {'params': {'corners_ms': jnp.asarray(ms, jnp.float32)}}
  weights = Weights(spec)
  if corner.prior is not None:
    weights.add_table(corner.prior, corner.semantics)
  constant, by_kernel = corner.regression.linear_weights()
  weights.fixed += constant
  for name, values in by_kernel.items():
    weights.add(name, values)
  return weights.variables(corner.factor)


def _base(spec, one_hot, semantics, prior) -> np.ndarray | None:
  """What a table says of architectures, f[N] ms."""
  if prior is None:
    return None
  return sums.sum_costs(spec, prior, one_hot, semantics)


def _ratio(table: CostTable | None, scaled: CostTable | None) -> float | None:
  """What `calibrate` multiplied a table by."""
  if table is None or scaled is None:
    return None
  before, after = (
    sum(float(c.sum()) for c in costs.per_op.values())
    for costs in (table, scaled)
  )
  return after / before


def _take(one_hot: Mapping[str, np.ndarray], rows) -> dict[str, np.ndarray]:
  return {name: np.asarray(p)[rows] for name, p in one_hot.items()}
