"""Gaussian processes over architectures, and how much each is believed.

A `Setting` says which functions of a `Basis` the latency of a device is made
of, how freely, and how noisy its measurements are. Each is a Gaussian process;
there are some thousands of them, and the measured rows say by their likelihood
how much each is believed. Beforehand they are believed as far as they explain
the devices that are already known, each held against the others.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
from scipy import linalg, special

from hwdarts_jax.latency.fewshot_basis import Values

_CONSTANT = 4.0  # prior variance of the level, about which little is known
SLOPE = 0.09  # prior variance of how far a device stretches another's range
_CHUNK = 2**22  # numbers of a stack of covariances made at a time
# Rows whose likelihood decides between the settings.
_MAX_JUDGED = 60
PSEUDO_ROWS = 15
PSEUDO_REPEATS = 2
# How many devices' worth of doubt there is about what devices are like.
_DOUBT = 5.0


class Kind(NamedTuple):
  """Standard deviations of the parts of a latency.

  Attributes:
    anchor: what the latency is expected to look like: 'none', 'all' (the mean
      of the devices), 'one' (any of them) or 'two' (the mean of any two).
    semantics: block of simulated devices, of which 0 are all.
    devices: how freely other devices mix.
    simulated: how freely simulated devices mix.
    structure: how freely single ops and pairs deviate.
    noise: of a measurement.
  """

  anchor: str
  semantics: int
  devices: float
  simulated: float
  structure: float
  noise: float


def kinds(num_devices: int, num_semantics: int) -> list[Kind]:
  """All kinds of settings that are tried."""
  blocks = range(num_semantics + 1 if num_semantics > 1 else 1)
  noise = (0.02, 0.05, 0.1, 0.2)
  found = []
  for anchor, semantics, devices, simulated, structure in (
    ('none', blocks, (0.0, 0.3, 1.0), (0.5, 1.0), (0.02, 0.08, 0.25)),
    ('all', blocks, (0.0, 0.3, 1.0), (0.1, 0.4, 1.0), (0.02, 0.08, 0.25)),
    ('one', blocks, (0.0, 0.3), (0.1, 0.4), (0.02, 0.08)),
    ('two', (0,), (0.0,), (0.1, 0.4), (0.02, 0.08)),
  ):
    if not num_devices and anchor == 'none':
      devices = (0.0,)
    if num_devices > (anchor == 'two') or anchor == 'none':
      found += [
        Kind(anchor, *values)
        for values in itertools.product(
          semantics, devices, simulated, structure, noise
        )
      ]
  return found


def anchors(num_devices: int) -> dict[str, np.ndarray]:
  """Shares of the devices in each anchor of a kind, f[A, D]."""
  one = np.eye(num_devices)
  left, right = np.triu_indices(num_devices, 1)
  return {
    'none': np.zeros((1, num_devices)),
    'all': np.full((1, num_devices), 1 / max(num_devices, 1)),
    'one': one,
    'two': (one[left] + one[right]) / 2,
  }


@dataclasses.dataclass(frozen=True)
class Model:
  """All settings for a number of devices.

  Attributes:
    num_devices: D.
    semantics: of each simulated device, i[S].
  """

  num_devices: int
  semantics: tuple[int, ...]

  @functools.cached_property
  def kinds(self) -> list[Kind]:
    """See `Kind`."""
    return kinds(self.num_devices, len(set(self.semantics)))

  @functools.cached_property
  def settings(self) -> tuple[np.ndarray, np.ndarray]:
    """For each setting its kind i[M], and its row of `anchors`, i[M]."""
    kind: list[int] = []
    anchor: list[int] = []
    at, start = 0, {}
    for name, rows in anchors(self.num_devices).items():
      start[name] = range(at, at + len(rows))
      at += len(rows)
    for i, k in enumerate(self.kinds):
      kind += [i] * len(start[k.anchor])
      anchor += start[k.anchor]
    return np.array(kind), np.array(anchor)

  @functools.cached_property
  def anchors(self) -> np.ndarray:
    """Shares of the devices in every anchor, f[A, D]."""
    return np.concatenate(list(anchors(self.num_devices).values()))

  @functools.cached_property
  def noise(self) -> np.ndarray:
    """Standard deviation of a measurement under each setting, f[M]."""
    return np.array([self.kinds[k].noise for k in self.settings[0]])

  @functools.cached_property
  def _blocks(self) -> list[np.ndarray]:
    """Columns of the simulated devices of each block."""
    of = np.array(self.semantics)
    every = sorted(set(self.semantics))
    parts = [np.flatnonzero(of == i) for i in every] if len(every) > 1 else []
    return [np.arange(len(of)), *parts]

  @functools.cached_property
  def factors(self) -> np.ndarray:
    """Of each component in each setting, f[M, C]."""
    rows = np.zeros((len(self.kinds), 3 + 2 * len(self._blocks)))
    for row, kind in zip(rows, self.kinds, strict=True):
      row[:3] = _CONSTANT, kind.structure**2, kind.devices**2
      block = 3 + 2 * kind.semantics
      row[block] = kind.simulated**2
      # Without a device to look like, it looks like simulated ones.
      row[block + 1] = kind.simulated**2 * (kind.anchor == 'none')
    return rows[self.settings[0]]

  def parts(self, values: Values) -> list[np.ndarray]:
    """Matrices f[N, *] whose inner products are the components."""
    count = len(values.structure)
    parts = [
      np.ones((count, 1)),
      values.structure,
      self._centred(values) / np.sqrt(max(self.num_devices, 1)),
    ]
    for columns in self._blocks:
      block = values.simulated[:, columns]
      mid = block.mean(1, keepdims=True)
      parts += [(block - mid) / np.sqrt(len(columns)), mid]
    return parts

  def _centred(self, values: Values) -> np.ndarray:
    if not self.num_devices:
      return values.devices
    return values.devices - values.devices.mean(1, keepdims=True)

  def means(self, values: Values) -> np.ndarray:
    """What each setting expects before any row, f[M, N].

    The range of a device is stretched by a factor around 1, so that the inner
    product of this with itself is one more component.
    """
    return (self.anchors @ values.devices.T)[self.settings[1]]

  def weights(self, setting: int, values: Values, dual: np.ndarray) -> Values:
    """Weights of the functions in the mean that rows give a setting.

    Args:
      setting: its number.
      values: the functions at the rows.
      dual: inverse covariance times residuals of the rows, f[n].

    Returns:
      Weights f[F], f[D], f[S].
    """
    kind = self.kinds[self.settings[0][setting]]
    anchor = self.anchors[self.settings[1][setting]]
    structure = kind.structure**2 * (values.structure.T @ dual)
    stretch = 1 + SLOPE * (anchor @ values.devices.T @ dual)
    devices = stretch * anchor
    if self.num_devices:
      centred = self._centred(values)
      devices += kind.devices**2 / self.num_devices * (centred.T @ dual)
    columns = self._blocks[kind.semantics]
    block = values.simulated[:, columns]
    mid = block.mean(1)
    simulated = np.zeros(len(self.semantics))
    share = kind.simulated**2 / len(columns)
    simulated[columns] = share * ((block - mid[:, None]).T @ dual)
    if kind.anchor == 'none':
      simulated[columns] += share * (mid @ dual)
    return Values(structure, devices, simulated)

  def log_likelihood(self, values: Values, y: np.ndarray) -> np.ndarray:
    """Of rows y f[n] of mean about 0 under each setting, f[M]."""
    n = len(y)
    stack = components(self.parts(values), self.parts(values))
    flat = stack.reshape(len(stack), -1)
    means = self.means(values)
    residuals = y - means
    found = np.zeros(len(self.noise))
    size = max(1, _CHUNK // (n * n))
    for start in range(0, len(found), size):
      part = slice(start, start + size)
      cov = (self.factors[part] @ flat).reshape(-1, n, n)
      cov += self.noise[part, None, None] ** 2 * np.eye(n)
      cov += SLOPE * means[part, :, None] * means[part, None, :]
      chol = np.linalg.cholesky(cov)
      z = np.linalg.solve(chol, residuals[part, :, None])[..., 0]
      found[part] = -0.5 * (z**2).sum(1) - np.log(
        np.diagonal(chol, axis1=1, axis2=2)
      ).sum(1)
    return found - 0.5 * n * np.log(2 * np.pi)

  def by_kind(self, log_likelihood: np.ndarray) -> np.ndarray:
    """Of each kind, the mean over its settings, f[K] from f[M]."""
    kind, _ = self.settings
    top = log_likelihood.max()
    total = np.bincount(kind, np.exp(log_likelihood - top))
    floor = np.finfo(float).tiny
    return np.log(np.maximum(total / np.bincount(kind), floor)) + top

  def log_prior(self, kind_weights: np.ndarray) -> np.ndarray:
    """Of each setting, from the weights f[K] of their kinds."""
    kind, _ = self.settings
    return np.log(kind_weights / np.bincount(kind))[kind]


def components(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
  """Inner products of two `Model.parts`, f[C, n, m]."""
  return np.stack([a @ b.T for a, b in zip(left, right, strict=True)])


def diagonals(parts: list[np.ndarray]) -> np.ndarray:
  """Inner products of `Model.parts` with themselves, f[C, n]."""
  return np.stack([np.einsum('nk,nk->n', p, p) for p in parts])


def learn_kinds(
  semantics: tuple[int, ...],
  devices: Iterator[tuple[Values, np.ndarray]],
  num_devices: int,
) -> np.ndarray:
  """How far each kind explains known devices from the others, f[K].

  The kinds are the components of a mixture from which devices are drawn; their
  weights are found by expectation maximization.

  Args:
    semantics: of the simulated devices.
    devices: for each known device several times its functions at some rows,
      itself left out, and their latencies in the link's scale.
    num_devices: of the model that the weights are for.
  """
  model = Model(num_devices - 1, semantics)
  evidence = np.array(
    [
      model.by_kind(model.log_likelihood(values, y - y.mean()))
      for values, y in devices
    ]
  )
  count = evidence.shape[1]
  weights = np.full(count, 1 / count)
  for _ in range(30):
    share = special.softmax(evidence + np.log(weights), axis=1).sum(0)
    weights = share / PSEUDO_REPEATS + _DOUBT / count
    weights /= weights.sum()
  return weights


def posterior(
  model: Model,
  log_prior: np.ndarray,
  values: Values,
  y: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """How much each setting is believed once rows are known, f[M]."""
  judged = rng.permutation(len(y))[:_MAX_JUDGED]
  likelihood = model.log_likelihood(values.take(judged), y[judged])
  return special.softmax(log_prior + likelihood)


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
  """One setting, conditioned on rows.

  Attributes:
    factors: of the components, f[C].
    shares: of the devices in what is expected before any row, f[D].
    anchor: what is expected at the rows, f[n].
    chol: lower Cholesky factor of the rows' covariance, f[n, n].
    dual: inverse covariance times residuals, f[n].
    noise: standard deviation of a measurement.
  """

  factors: np.ndarray
  shares: np.ndarray
  anchor: np.ndarray
  chol: np.ndarray
  dual: np.ndarray
  noise: float

  @property
  def constant(self) -> float:
    """The part of the mean that is the same for all architectures."""
    return float(self.factors[0] * self.dual.sum())

  def variance(
    self, cross: np.ndarray, diagonal: np.ndarray, devices: np.ndarray
  ) -> np.ndarray:
    """Of measurements at m architectures, f[m].

    Args:
      cross: components between the rows and them, f[C, n, m].
      diagonal: components of them, f[C, m].
      devices: other devices at them, f[m, D].
    """
    anchor = devices @ self.shares
    covariance = np.tensordot(self.factors, cross, 1)
    covariance += SLOPE * np.outer(self.anchor, anchor)
    z = linalg.solve_triangular(self.chol, covariance, lower=True)
    prior = self.factors @ diagonal + SLOPE * anchor**2
    left = prior - (z**2).sum(0)
    return np.maximum(left, 0) + self.noise**2

  def leave_one_out(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each row given all others, f[n] and f[n]."""
    inverse = linalg.cho_solve((self.chol, True), np.eye(len(y)))
    variance = 1 / np.diag(inverse)
    return y - self.dual * variance, variance


def solve(model: Model, setting: int, values: Values, y: np.ndarray) -> Solved:
  """Conditions a setting on rows y f[n] of mean about 0."""
  parts = model.parts(values)
  factors, noise = model.factors[setting], model.noise[setting]
  covariance = np.tensordot(factors, components(parts, parts), 1)
  shares = model.anchors[model.settings[1][setting]]
  anchor = values.devices @ shares
  covariance += SLOPE * np.outer(anchor, anchor)
  covariance[np.diag_indices(len(y))] += noise**2
  chol = np.linalg.cholesky(covariance)
  dual = linalg.cho_solve((chol, True), y - anchor)
  return Solved(factors, shares, anchor, chol, dual, float(noise))
