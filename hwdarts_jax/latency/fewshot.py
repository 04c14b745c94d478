"""The latency of a new device from a few measurements and other devices.

    prior = fewshot.prepare(spec, {'pixel3': fewshot.Rows(one_hot, ms), ...})
    which = fewshot.suggest(spec, prior, count=10)     # measure these
    model = fewshot.fit(spec, which.one_hot, measured_ms, prior)
    mean_ms, std_ms = model.predict(one_hot)

The latency of the new device is a sum of functions that are known before it is
measured (`fewshot_basis`), with Gaussian weights of which many settings are
tried (`fewshot_mixture`). What is known of other devices decides which
settings are believed beforehand, the measurements which are believed
afterwards; a device unlike all others needs a few of them to say so. Without
other devices the simulated ones remain.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from hwdarts_jax.latency import blas, liveness
from hwdarts_jax.latency import fewshot_basis as basis_lib
from hwdarts_jax.latency import fewshot_mixture as mixture
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.latency.fewshot_basis import Rows, take, Values
from hwdarts_jax.latency.fewshot_design import suggest, Suggestion
from hwdarts_jax.latency.fewshot_prior import prepare, Prior
from hwdarts_jax.latency.predictor import Fit, quality
from hwdarts_jax.spaces.spec import NetworkSpec

__all__ = (
  'fit',
  'FewShot',
  'MAX_ROWS',
  'MIN_ROWS',
  'Prediction',
  'prepare',
  'Prior',
  'Rows',
  'suggest',
  'Suggestion',
)

MIN_ROWS = 3
MAX_ROWS = 1000  # beyond, the cost grows too fast; see `predictor.fit`
_NUM_SOLVED = 100  # settings that are believed most, and so evaluated
_LEAST_BELIEF = 1e-4  # beside that of the best setting
_CHUNK = 2**23  # numbers of a stack of covariances made at a time


class Prediction(NamedTuple):
  """Latencies of architectures.

  Attributes:
    mean_ms: f[N]; in enumerable spaces the median of the distribution.
    std_ms: of one measurement, noise included, f[N].
  """

  mean_ms: np.ndarray
  std_ms: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FewShot:
  """A fitted few-shot model.

  Attributes:
    prior: what it began with.
    fit: variables of `LatencyPredictor` that give the same latencies, and a
      JSON-able card.
  """

  prior: Prior
  fit: Fit
  _rows: Values
  _level: float
  _unit_ms: float
  _solved: tuple[tuple[float, mixture.Solved, Values], ...]

  def predict(self, one_hot: Mapping[str, np.ndarray]) -> Prediction:
    """Returns latencies of architectures, for each group f[N, E, O]."""
    count = len(next(iter(one_hot.values())))
    num_components = self.prior.model.factors.shape[1]
    size = max(1, _CHUNK // (num_components * len(self._rows.structure)))
    parts = [
      self._predict(take(one_hot, slice(start, start + size)))
      for start in range(0, count, size)
    ]
    mean, std = (np.concatenate(p) for p in zip(*parts, strict=True))
    if is_enumerable(self.prior.spec):
      return Prediction(np.exp(mean), np.exp(mean) * std)
    return Prediction(self._unit_ms * mean, self._unit_ms * std)

  @blas.by_one_thread
  def _predict(self, one_hot) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in the link's scale."""
    values = self.prior.basis(one_hot)
    model = self.prior.model
    parts = model.parts(values)
    cross = mixture.components(model.parts(self._rows), parts)
    diagonal = mixture.diagonals(parts)
    mean = np.zeros(len(values.structure))
    square = np.zeros_like(mean)
    for belief, solved, weights in self._solved:
      each = self._level + solved.constant + _contract(values, weights)
      mean += belief * each
      variance = solved.variance(cross, diagonal, values.devices)
      square += belief * (variance + each**2)
    return mean, np.sqrt(square - mean**2)


@blas.by_one_thread
def fit(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  prior: Prior | Mapping[str, Rows] | None = None,
  seed: int = 0,
) -> FewShot:
  """Fits the latency of a device to a few measured networks.

  Networks in which nothing connects input and output are left out.

  Args:
    spec: the space.
    one_hot: the measured networks, for each group f[N, E, O].
    latency_ms: f[N], positive.
    prior: what `prepare` returns, or the series that it takes.
    seed: see `prepare`.

  Raises:
    ValueError: there are fewer than `MIN_ROWS` or more than `MAX_ROWS` rows.
  """
  if not isinstance(prior, Prior):
    prior = prepare(spec, prior, seed)
  connected = liveness.is_connected(spec, one_hot)
  latency_ms = np.asarray(latency_ms, np.float64)[connected]
  if not MIN_ROWS <= len(latency_ms) <= MAX_ROWS:
    raise ValueError(
      f'the few-shot model has {len(latency_ms)} measured networks that '
      f'connect input and output; it needs from {MIN_ROWS} to {MAX_ROWS}. '
      'With more, fit them without a prior.'
    )
  y = basis_lib.link(spec, latency_ms)
  level = float(y.mean())
  rows = prior.basis(take(one_hot, connected))
  rng = np.random.default_rng(seed)
  model = prior.model
  belief = mixture.posterior(model, prior.log_prior, rows, y - level, rng)
  best = np.argsort(-belief)[: _num_solved(len(y))]
  best = best[belief[best] >= _LEAST_BELIEF * belief[best[0]]]
  share = belief[best] / belief[best].sum()
  solved = []
  for b, setting in zip(share, best, strict=True):
    found = mixture.solve(model, setting, rows, y - level)
    weights = model.weights(setting, rows, found.dual)
    solved.append((float(b), found, weights))
  unit_ms = basis_lib.unit_ms(spec, latency_ms)
  variables = _variables(prior, level, unit_ms, solved)
  card = _card(prior, belief, solved, y - level, latency_ms)
  card['disconnected_rows_left_out'] = int((~connected).sum())
  return FewShot(
    prior, Fit(variables, card), rows, level, unit_ms, tuple(solved)
  )


def _num_solved(count: int) -> int:
  """Settings that are evaluated; fewer where rows make each expensive."""
  return _NUM_SOLVED if count <= 100 else 8


def _contract(values: Values, weights: Values) -> np.ndarray:
  """The sum of functions with these weights, f[N]."""
  return sum(
    (v @ w for v, w in zip(values, weights, strict=True)),
    np.zeros(len(values.structure)),
  )


def _variables(prior: Prior, level, unit_ms, solved) -> dict[str, Any]:
  """Variables of `LatencyPredictor` that give the same latencies."""
  spec, basis = prior.spec, prior.basis
  level += sum(belief * each.constant for belief, each, _ in solved)
  mean = Values(
    *(
      sum(belief * weights[i] for belief, _, weights in solved)
      for i in range(len(Values._fields))
    )
  )
  if is_enumerable(spec):
    ms = np.exp(level + _contract(basis(corners(spec)), mean))
    return {'params': {'corners_ms': jnp.asarray(ms, jnp.float32)}}
  constant, slope = basis.linear(mean)
  made = basis_lib.split_features(spec, unit_ms * slope)
  made['fixed'] = np.array(unit_ms * (level + constant))
  return {'params': {k: jnp.asarray(v, jnp.float32) for k, v in made.items()}}


def _card(prior: Prior, belief, solved, y, latency_ms) -> dict[str, Any]:
  """What is known of a fit; JSON-able."""
  model = prior.model
  kind, anchor = model.settings
  named = np.array([k.anchor in ('one', 'two') for k in model.kinds])[kind]
  alike = (belief * named) @ model.anchors[anchor]
  return {
    'model': 'mixture of Gaussian processes over known and simulated devices',
    'rows': len(y),
    'prior_devices': list(prior.devices),
    'alike': {
      name: float(share)
      for name, share in zip(prior.devices, alike, strict=True)
      if share >= 0.01
    },
    'noise_percent': 100 * float(np.sqrt(belief @ model.noise**2)),
    'measured_ms': [float(latency_ms.min()), float(latency_ms.max())],
    'held_out': _leave_one_out(prior.spec, solved, y, latency_ms),
  }


def _leave_one_out(spec, solved, y, latency_ms) -> dict[str, float]:
  """Errors of each row when predicted from all others."""
  each = [s.leave_one_out(y) for _, s, _ in solved]
  mean, variance = (np.stack(v) for v in zip(*each, strict=True))
  # How much each setting would be believed without the row.
  log_density = -0.5 * (np.log(variance) + (y - mean) ** 2 / variance)
  beliefs = np.array([b for b, _, _ in solved])
  prior = np.log(np.maximum(beliefs, np.finfo(float).tiny))[:, None]
  belief = special.softmax(prior - log_density, axis=0)
  center = (belief * mean).sum(0)
  std = np.sqrt((belief * (variance + mean**2)).sum(0) - center**2)
  error = center - y
  if is_enumerable(spec):
    predicted = latency_ms * np.exp(error)
  else:
    predicted = latency_ms + basis_lib.unit_ms(spec, latency_ms) * error
  covered = np.abs(error) <= stats.norm.ppf(0.95) * std
  report = quality(predicted, latency_ms)
  return {**report, 'inside_90_percent_interval': float(100 * covered.mean())}
