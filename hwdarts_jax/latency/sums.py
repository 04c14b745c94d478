"""Sums of op costs, as a runtime that drops some of them pays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwdarts_jax.latency import liveness, sampling
from hwdarts_jax.latency.cost import CostTable
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec

_DRAWN = 256  # architectures that sums of edges are counted in


def sum_costs(
  spec: NetworkSpec,
  table: CostTable,
  one_hot: Mapping[str, np.ndarray],
  counted: str,
) -> np.ndarray:
  """Returns costs f[N] of the ops that count, and of adding up edges.

  Args:
    spec: the space.
    table: costs of ops.
    one_hot: for each group f[N, E, O].
    counted: which ops are summed; see `liveness.paid_ops`.
  """
  paid = liveness.paid_ops(spec, one_hot, counted)
  total = table.fixed + sum(
    np.einsum('neo,eo->n', paid[name], costs)
    for name, costs in table.per_op.items()
  )
  if table.per_sum:
    counts = liveness.sums(spec, one_hot)
    total += sum(ms * counts[name] for name, ms in table.per_sum.items())
  return total


def calibrate(
  spec: NetworkSpec,
  table: CostTable,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  counted: str = 'eager',
) -> CostTable:
  """Scales a table by the median of measured over summed latency.

  Args:
    spec: the space.
    table: costs of ops.
    one_hot: whole networks: for each group f[N, E, O].
    latency_ms: what they were measured at, f[N].
    counted: which ops are summed; see `liveness.paid_ops`.
  """
  sums = sum_costs(spec, table, one_hot, counted)
  return table.scaled(float(np.median(latency_ms / sums)))


def counted_ops(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  table: CostTable,
) -> str:
  """Which ops of architectures to add up, so that a table tells their latency.

  Args:
    spec: the space.
    one_hot: measured networks: for each group f[N, E, O].
    latency_ms: what they were measured at, f[N].
    table: costs of ops.

  Returns:
    One of `liveness.SEMANTICS` or `liveness.MERGED`: of those whose sums,
    calibrated, are least off, up to a standard error, the one that counts
    fewest, as a few networks may lack what tells two apart.
  """
  errors = {}
  for name in (*liveness.SEMANTICS, liveness.MERGED):
    scaled = calibrate(spec, table, one_hot, latency_ms, name)
    total = sum_costs(spec, scaled, one_hot, name)
    errors[name] = np.abs(total / latency_ms - 1)
  return fewest(errors)


def fewest(errors: dict[str, np.ndarray]) -> str:
  """The last name whose errors f[N] are not more than the least ones.

  Unless they are by over a standard error.
  """
  best = min(errors.values(), key=lambda e: float(e.mean()))
  for name in reversed(errors):
    worse = errors[name] - best
    if worse.mean() <= worse.std() / np.sqrt(len(worse)):
      return name
  raise AssertionError('the best choice is within its own error')


def with_fixed(spec: NetworkSpec, table: CostTable) -> CostTable:
  """Counts sums of edges as often as they are in a random architecture.

  Linear models cannot count them. Without zero ops their number never differs.
  """
  if not table.per_sum:
    return table
  gates = discretize.uniform(spec)
  drawn = sampling.draw(spec, gates, _DRAWN, np.random.default_rng(0))
  counts = liveness.sums(spec, drawn)
  extra = sum(ms * counts[name].mean() for name, ms in table.per_sum.items())
  return CostTable(table.per_op, table.fixed + float(extra), table.unit)
