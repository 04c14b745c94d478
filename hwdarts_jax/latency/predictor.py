"""Differentiable latency predictor: gates to expected milliseconds.

The latency of an architecture is modelled as a prior plus a learned correction:

    ms(a) = prior(a) + bias + sum_e w[e, a_e] + sum_(e, f) v[e, f, a_e, a_f]

over the edges e of the space and the pairs (e, f) of edges that share a node.
The pair terms are what an additive table cannot express: runtimes fuse
neighbours and drop dead branches. The model is at most linear in the gates of
each edge, so that for independent edges its value at soft gates *is* its
expected value over architectures: there is no gap between the corners it was
trained on and the interior where the search lives.

The prior is the sum of a table of op entries where there is one, scaled to
whole networks; otherwise zero.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import expectation
from hwdarts_jax.latency.cost import CostTable
from hwdarts_jax.spaces.spec import NetworkSpec

# Ridge penalties tried by `fit`, relative to the mean latency.
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
# A pair is a finer effect than an op; its features are scaled down, which is
# the same as a larger penalty on its weights.
_PAIR_SCALE = 0.5
_BIAS_SCALE = 30.0
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
    probs = expectation.marginals(self.spec, gates)
    ms = self.param('bias', nn.initializers.zeros, ())
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


def adjacent_edges(edges) -> tuple[np.ndarray, np.ndarray]:
  """Rows of all pairs of edges that share a node, as two i[P]."""
  pairs = [
    (i, j)
    for i in range(len(edges))
    for j in range(i + 1, len(edges))
    if set(edges[i]) & set(edges[j])
  ]
  both = np.array(pairs, int).reshape(-1, 2)
  return both[:, 0], both[:, 1]


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted predictor and what is known of its quality.

  Attributes:
    variables: of `LatencyPredictor`.
    card: JSON-able facts: rows, penalty, held-out errors.
  """

  variables: Any
  card: dict[str, Any]


def from_table(spec: NetworkSpec, table: CostTable) -> Fit:
  """The additive predictor that a table of op entries gives by itself."""
  params: dict[str, Any] = {'bias': jnp.asarray(table.fixed, jnp.float32)}
  for name, group in spec.groups().items():
    params[f'{name}_per_op'] = jnp.asarray(table.per_op[name], jnp.float32)
    left, _ = adjacent_edges(group.edges)
    if len(left):
      params[f'{name}_pair'] = jnp.zeros((len(left),) + group.shape[1:] * 2)
  return Fit(
    {'params': params},
    {'model': 'sum of table entries', 'rows': 0, 'held_out': None},
  )


def fit(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  prior: CostTable | None = None,
  held_out: float = 0.1,
  seed: int = 0,
) -> Fit:
  """Fits the predictor to measured networks by ridge regression.

  Errors are relative: every network counts by its error in per cent. The
  penalty is the one with the smallest error on a tenth of the training rows;
  the reported errors are those on rows that no fit has seen.

  Args:
    spec: the space.
    one_hot: for each group f[N, E, O].
    latency_ms: f[N], positive.
    prior: op entries to start from; scaled by the median ratio of measured to
      summed latency.
    held_out: share of the rows kept for the report.
    seed: of the split.

  Returns:
    The fit; its card has 'held_out' with 'mape_percent', 'within_5_percent',
    'within_10_percent' and 'spearman'.

  Raises:
    ValueError: there are fewer than `MIN_NETWORKS` rows.
  """
  count = len(latency_ms)
  if count < MIN_NETWORKS:
    raise ValueError(
      f'the latency predictor has {count} measured networks; '
      f'it needs at least {MIN_NETWORKS}.'
    )
  features, scale = _features(spec, one_hot)
  base = np.zeros(count)
  ratio = 1.0
  if prior is not None:
    sums = prior.fixed + sum(
      np.einsum('neo,eo->n', one_hot[g], c) for g, c in prior.per_op.items()
    )
    ratio = float(np.median(latency_ms / sums))
    base = ratio * sums
  order = np.random.default_rng(seed).permutation(count)
  num_test = max(5, round(held_out * count))
  num_val = max(5, round(0.1 * (count - num_test)))
  test, val, train = np.split(order, [num_test, num_test + num_val])
  error = {}
  for penalty in _PENALTIES:
    weights = _ridge(features, latency_ms, base, train, penalty)
    error[penalty] = _mape(base + features @ weights, latency_ms, val)
  penalty = min(error, key=lambda p: error[p])
  rest = np.concatenate([val, train])
  weights = _ridge(features, latency_ms, base, rest, penalty)
  report = quality(base[test] + features[test] @ weights, latency_ms[test])
  card = {
    'model': 'additive and adjacent pairs',
    'rows': len(rest),
    'held_out_rows': len(test),
    'penalty': penalty,
    'prior_ratio': ratio if prior is not None else None,
    'held_out': report,
  }
  return Fit({'params': _to_params(spec, weights * scale, prior, ratio)}, card)


def quality(
  predicted_ms: np.ndarray, measured_ms: np.ndarray
) -> dict[str, float]:
  """Error figures of predictions, in per cent; and Spearman's rho."""
  error = 100 * np.abs(predicted_ms / measured_ms - 1)
  ranks = np.stack(
    [_average_ranks(np.asarray(v)) for v in (predicted_ms, measured_ms)]
  )
  return {
    'mape_percent': float(error.mean()),
    'within_5_percent': float(100 * (error <= 5).mean()),
    'within_10_percent': float(100 * (error <= 10).mean()),
    'spearman': float(np.corrcoef(ranks)[0, 1]),
  }


def _average_ranks(values: np.ndarray) -> np.ndarray:
  """Ranks, the mean of their places where values tie."""
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _features(spec, one_hot) -> tuple[np.ndarray, np.ndarray]:
  """Design matrix f[N, F] of the model's terms, and the scale of its columns.

  The order of the columns is that of `_to_params`.
  """
  count = len(next(iter(one_hot.values())))
  columns, scales = [np.full((count, 1), _BIAS_SCALE)], [_BIAS_SCALE]
  widths = [1]
  probs = {g: np.asarray(p, np.float64) for g, p in one_hot.items()}
  for name, group in spec.groups().items():
    p = probs[name]
    left, right = adjacent_edges(group.edges)
    pairs = p[:, left, :, None] * p[:, right, None, :]
    for block, scale in ((p, 1.0), (pairs, _PAIR_SCALE)):
      columns.append(block.reshape(count, -1) * scale)
      widths.append(columns[-1].shape[1])
      scales.append(scale)
  return np.concatenate(columns, 1), np.repeat(scales, widths)


def _to_params(spec, weights, prior, ratio) -> dict[str, Any]:
  """Cuts the weight vector into the parameters of `LatencyPredictor`."""
  fixed = 0.0 if prior is None else ratio * prior.fixed
  params: dict[str, Any] = {
    'bias': jnp.asarray(weights[0] + fixed, jnp.float32)
  }
  at = 1
  for name, group in spec.groups().items():
    num_edges, num_ops = group.shape
    left, _ = adjacent_edges(group.edges)
    per_op = weights[at : at + num_edges * num_ops].reshape(num_edges, num_ops)
    at += per_op.size
    if prior is not None:
      per_op = per_op + ratio * prior.per_op[name]
    params[f'{name}_per_op'] = jnp.asarray(per_op, jnp.float32)
    if len(left):
      pair = weights[at : at + len(left) * num_ops**2]
      at += pair.size
      params[f'{name}_pair'] = jnp.asarray(
        pair.reshape(len(left), num_ops, num_ops), jnp.float32
      )
  return params


def _ridge(features, latency_ms, base, rows, penalty) -> np.ndarray:
  """Weights that minimize the squared relative error plus the penalty."""
  unit = latency_ms[rows].mean() / latency_ms[rows]
  x = features[rows] * unit[:, None]
  y = (latency_ms[rows] - base[rows]) * unit
  if len(rows) < x.shape[1]:  # the smaller of the two systems
    dual = np.linalg.solve(x @ x.T + penalty * np.eye(len(rows)), y)
    return x.T @ dual
  return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def _mape(predicted_ms, latency_ms, rows) -> float:
  return float(np.abs(predicted_ms[rows] / latency_ms[rows] - 1).mean())
