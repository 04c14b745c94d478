"""How good a latency predictor is, and what simpler ones achieve.

A predictor that a search follows is judged at three places: at architectures
that no fit has seen (`quality`); inside, at soft gates, where its value must
be the expectation of what it says of the architectures; and in its gradient
there (`interior`). The baselines are what a user would do without this
project: sum up ops (`additive`), or train a network on one-hot architectures
(`mlp`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from hwdarts_jax.latency import corner as corner_lib
from hwdarts_jax.latency import liveness, sampling
from hwdarts_jax.spaces.spec import NetworkSpec

# Gates f[..., E, O] of each group to expected ms f[...]; jax-traceable.
Predict = Callable[[Mapping[str, Any]], jax.Array]
# One-hot architectures f[N, E, O] of each group to ms f[N].
Corner = Callable[[Mapping[str, np.ndarray]], np.ndarray]

# Spread of the logits of random gates: from a search that has just begun to
# one that has nearly settled.
_SCALES = (0.1, 0.5, 1.0, 2.0, 4.0)
_MIN_CONTEXTS = 50  # of the values of one choice
_CHUNK = 4096  # architectures predicted at a time


def quality(
  predicted_ms: np.ndarray, measured_ms: np.ndarray
) -> dict[str, float]:
  """Errors of predictions f[N] in per cent, and correlations of their ranks.

  'slower_p99_percent' is by how much a further measurement exceeds its
  prediction in one case of 100 at most, if it is like these: the order
  statistic of conformal prediction (Vovk et al. 2005, section 2.2), or the
  largest where N is below 99.
  """
  slower = np.sort(100 * (measured_ms / predicted_ms - 1))
  rank = min(math.ceil(0.99 * (len(slower) + 1)), len(slower))
  error = 100 * np.abs(predicted_ms / measured_ms - 1)
  return {
    'mape_percent': float(error.mean()),
    'within_5_percent': float(100 * (error <= 5).mean()),
    'within_10_percent': float(100 * (error <= 10).mean()),
    'slower_p99_percent': float(slower[rank - 1]),
    'spearman': float(stats.spearmanr(predicted_ms, measured_ms).statistic),
    'kendall_tau': float(stats.kendalltau(predicted_ms, measured_ms).statistic),
  }


def interior(
  spec: NetworkSpec,
  predict: Predict,
  count: int = 20,
  seed: int = 0,
  num_samples: int = 20_000,
  corner: Corner | None = None,
) -> dict[str, float | bool]:
  """Holds a predictor at random soft gates against its own architectures.

  Enumerates all architectures where `corner.is_enumerable`, else draws
  them: then the figures have the sampling error of `num_samples`.

  Args:
    spec: the space.
    predict: the predictor.
    count: how many gates.
    seed: of the gates and samples.
    num_samples: architectures drawn for the expectation at each gates.
    corner: what is said of architectures, where `predict` says otherwise.

  Returns:
    'interior_error_percent', the mean relative error of the value;
    'gradient_cosine', the mean cosine of the gradients along the simplex;
    'interior_is_exact', whether all architectures were enumerated.
  """
  rng = np.random.default_rng(seed)
  exact = corner_lib.is_enumerable(spec)
  at_corners = corner or functools.partial(corner_ms, predict)
  ms = at_corners(corner_lib.corners(spec)) if exact else None
  slope_of = jax.jit(jax.value_and_grad(predict))
  errors, cosines = [], []
  for i in range(count):
    gates = _random_gates(spec, _SCALES[i % len(_SCALES)], rng)
    got, slope = slope_of(gates)
    if ms is None:
      want, truth = _sampled(spec, at_corners, gates, num_samples, rng)
    else:
      want, truth = _enumerated(spec, ms, gates)
    errors.append(abs(float(got) / want - 1))
    cosines.append(_cosine(spec, slope, truth, gates))
  return {
    'interior_error_percent': float(100 * np.mean(errors)),
    'gradient_cosine': float(np.mean(cosines)),
    'interior_is_exact': exact,
  }


def corner_ms(
  predict: Predict, one_hot: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Predictions f64[N] at architectures, for each group f[N, E, O]."""
  jitted = jax.jit(predict)
  count = len(next(iter(one_hot.values())))
  parts = []
  for at in range(0, count, _CHUNK):
    rows = slice(at, at + _CHUNK)
    part = {g: p[rows].astype(np.float32) for g, p in one_hot.items()}
    parts.append(np.asarray(jitted(part), np.float64))
  return np.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Additive:
  """A sum of op costs: a `Corner`.

  Attributes:
    spec: the space.
    semantics: which ops of an architecture are summed; see `liveness`.
    weights: ms of everything else, then of each op of each group.
  """

  spec: NetworkSpec
  semantics: str
  weights: np.ndarray

  def __call__(self, one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns ms f[N] for architectures f[N, E, O] of each group."""
    paid = liveness.paid_ops(self.spec, one_hot, self.semantics)
    return _columns(self.spec, paid) @ self.weights

  def at_gates(self, gates: Mapping[str, Any]) -> jax.Array:
    """Returns ms f[]: the sum weighted by gates f[E, O], where all ops live.

    What a search makes of a table of costs: it knows no dead ops at soft gates.
    """
    flat = jnp.concatenate(
      [jnp.ones(1), *(gates[name].reshape(-1) for name in self.spec.groups())]
    )
    return flat @ jnp.asarray(self.weights, flat.dtype)


def additive(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  semantics: str = 'eager',
) -> Additive:
  """The least-squares sum of op costs: one number an op, and a constant.

  Args:
    spec: the space.
    one_hot: measured architectures, for each group f[N, E, O].
    latency_ms: f[N].
    semantics: which ops are summed: 'eager' all, 'compiled' only those on a
      path from input to output; see `liveness`.
  """
  paid = liveness.paid_ops(spec, one_hot, semantics)
  weights = np.linalg.lstsq(_columns(spec, paid), latency_ms, rcond=None)[0]
  return Additive(spec, semantics, weights)


def _columns(spec: NetworkSpec, paid: Mapping[str, np.ndarray]) -> np.ndarray:
  """A column of ones, and one for each op of each group."""
  flat = [paid[name].reshape(len(paid[name]), -1) for name in spec.groups()]
  return np.concatenate([np.ones((len(flat[0]), 1)), *flat], axis=1)


def twins_ms(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  semantics: str,
  least: int = 5,
) -> np.ndarray:
  """What other rows with the same live ops say of each row: the noise.

  A runtime with these semantics runs the same program for all of them, so no
  predictor that follows it does better than the value that is within 10 % of
  most of the others.

  Args:
    spec: the space.
    one_hot: measured architectures, for each group f[N, E, O].
    latency_ms: f[N].
    semantics: see `liveness`; which ops are live.
    least: rows with fewer twins than this, themselves counted, have none.

  Returns:
    f[N] ms, NaN for rows without twins.
  """
  paid = liveness.paid_ops(spec, one_hot, semantics)
  flat = np.concatenate([p.reshape(len(p), -1) for p in paid.values()], 1)
  _, kinds = np.unique(flat, axis=0, return_inverse=True)
  found = np.full(len(latency_ms), np.nan)
  order = np.argsort(kinds, kind='stable')
  cuts = np.flatnonzero(np.diff(kinds[order])) + 1
  for rows in np.split(order, cuts):
    if len(rows) >= least:
      for row in rows:
        found[row] = _most_frequent(latency_ms[rows[rows != row]])
  return found


def _most_frequent(ms: np.ndarray) -> float:
  """The value f[] that is within 10 % of most of `ms` f[N]."""
  values = np.outer(ms, np.linspace(0.92, 1.08, 9)).ravel()
  counts = (np.abs(values[:, None] / ms - 1) <= 0.1).sum(1)
  return float(np.median(values[counts == counts.max()]))


class Mlp(nn.Module):
  """Gates, flattened, to one number: nothing is known of the space.

  Attributes:
    features: widths of the hidden layers.
  """

  features: tuple[int, ...] = (256, 256)

  @nn.compact
  def __call__(self, gates: Mapping[str, jax.Array]) -> jax.Array:
    """Returns f[...] for gates f[..., E, O] of each group."""
    x = jnp.concatenate(
      [p.reshape((*p.shape[:-2], -1)) for p in gates.values()], -1
    )
    for width in self.features:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(1)(x)[..., 0]


def mlp(
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  seed: int = 0,
  num_steps: int = 3000,
) -> Predict:
  """A perceptron trained on architectures, as published predictors are.

  Full-batch AdamW under a cosine schedule on the logarithm of the latency;
  of its params those are kept that err least on a tenth of the rows.

  Args:
    one_hot: measured architectures, for each group f[N, E, O].
    latency_ms: f[N].
    seed: of the split and the params.
    num_steps: of the optimizer.
  """
  order = np.random.default_rng(seed).permutation(len(latency_ms))
  validation, train = np.split(order, [max(1, len(order) // 10)])
  logs = np.log(latency_ms)
  mean, std = float(logs[train].mean()), float(logs[train].std())
  model = Mlp()

  def predict(params, gates):
    logs = cast(jax.Array, model.apply(params, gates))
    return jnp.exp(mean + std * logs)

  def rows(index):
    x = {g: jnp.asarray(p[index], jnp.float32) for g, p in one_hot.items()}
    return x, jnp.asarray((logs[index] - mean) / std, jnp.float32)

  def loss(params, part):
    return jnp.square(model.apply(params, part[0]) - part[1]).mean()

  optimizer = optax.adamw(
    optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=1e-2
  )
  params = model.init(jax.random.key(seed), rows(train)[0])

  @jax.jit
  def chunk(params, opt_state, part, held_out):
    def step(carry, _):
      params, opt_state = carry
      slope = jax.grad(loss)(params, part)
      updates, opt_state = optimizer.update(slope, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    carry, _ = jax.lax.scan(step, (params, opt_state), length=100)
    return *carry, loss(carry[0], held_out)

  best, least = params, np.inf
  opt_state = optimizer.init(params)
  part, held_out = rows(train), rows(validation)
  for _ in range(num_steps // 100):
    params, opt_state, error = chunk(params, opt_state, part, held_out)
    if error < least:
      best, least = params, float(error)
  return lambda gates: predict(best, gates)


def _random_gates(spec, scale, rng) -> dict[str, np.ndarray]:
  gates = {}
  for name, group in spec.groups().items():
    e = np.exp(rng.normal(scale=scale, size=group.shape))
    gates[name] = (e / e.sum(1, keepdims=True)).astype(np.float32)
  return gates


def _enumerated(spec, ms, gates):
  """The mean over all corners f[N], and its gradient f[E, O] of each group."""
  hots = corner_lib.corners(spec)
  chosen = {g: (hots[g] * gates[g]).sum(-1) for g in hots}
  flat = np.concatenate(list(chosen.values()), axis=1)
  slope = {g: np.zeros(p.shape) for g, p in gates.items()}
  at = 0
  for name in hots:
    for row in range(hots[name].shape[1]):
      # The product of the others, so that a gate of zero is no trouble.
      others = np.delete(flat, at, 1).prod(1)
      slope[name][row] = (others * ms) @ hots[name][:, row]
      at += 1
  return float(flat.prod(1) @ ms), slope


def _sampled(spec, at_corners, gates, count, rng):
  """An estimate of the mean over all architectures, and of its gradient.

  In the gradient each independent choice is summed up over all its values
  while the others are drawn, which leaves little to chance.
  """
  drawn = sampling.draw(spec, gates, count, rng)
  value = float(at_corners(drawn).mean())
  slope = {g: np.zeros(p.shape) for g, p in gates.items()}
  for block in sampling.blocks(spec):
    values = sampling.choices(spec, block)
    contexts = min(count, max(_MIN_CONTEXTS, count // len(values)))
    part = {g: p[:contexts] for g, p in drawn.items()}
    many = {g: np.repeat(p, len(values), 0) for g, p in part.items()}
    rows = list(block.rows)
    many[block.group][:, rows] = np.tile(values, (contexts, 1, 1))
    ms = at_corners(many).reshape(contexts, -1).mean(0)
    probs = gates[block.group][rows].astype(np.float64)
    weight = sampling.chances(values, probs)
    # d log chance = values / probs, less its mean.
    log_slope = np.tensordot(weight * (ms - weight @ ms), values, axes=1)
    slope[block.group][rows] = log_slope / probs
  return value, slope


def _cosine(spec, slope, truth, gates) -> float:
  """Cosine of two gradients by the logits whose softmax is `gates`."""

  def by_logits(slope):
    parts = []
    for g, p in gates.items():
      s = np.asarray(slope[g], np.float64)
      parts.append((p * (s - (p * s).sum(1, keepdims=True))).ravel())
    return np.concatenate(parts)

  a, b = by_logits(slope), by_logits(truth)
  return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
