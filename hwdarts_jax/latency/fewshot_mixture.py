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
_SLOPE = 0.09  # prior variance of how far a device stretches another's range
_CHUNK = 2**22  # numbers of a stack of covariances made at a time
# Rows whose likelihood decides between the settings.
_MAX_JUDGED = 60
PSEUDO_ROWS = 15
PSEUDO_REPEATS = 2
# How many devices' worth of doubt there is about what devices are like.
_DOUBT = 2.0
NO_ANCHOR, ALL_DEVICES = -2, -1


class Kind(NamedTuple):
  """Standard deviations of the parts of a latency.

  Attributes:
    anchor: 'none', 'all' (the mean of the devices) or 'one' (any of them):
      what the latency is expected to look like.
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
  structure, noise = (0.02, 0.08, 0.25), (0.02, 0.05, 0.1, 0.2)
  found = []
  for anchor, devices, simulated in (
    ('none', (0.0, 0.3, 1.0) if num_devices else (0.0,), (0.5, 1.0)),
    ('all', (0.0, 0.3, 1.0), (0.1, 0.4, 1.0)),
    ('one', (0.0, 0.3), (0.1, 0.4)),
  ):
    if num_devices or anchor == 'none':
      found += [
        Kind(anchor, *values)
        for values in itertools.product(
          blocks, devices, simulated, structure, noise
        )
      ]
  return found


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
    """For each setting its kind and its anchor, i[M] and i[M]."""
    kind, anchor = [], []
    for i, k in enumerate(self.kinds):
      anchors = {
        'none': [NO_ANCHOR],
        'all': [ALL_DEVICES],
        'one': list(range(self.num_devices)),
      }[k.anchor]
      kind += [i] * len(anchors)
      anchor += anchors
    return np.array(kind), np.array(anchor)

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
    num_blocks, rows = len(self._blocks), []
    for i, anchor in zip(*self.settings, strict=True):
      kind = self.kinds[i]
      row = np.zeros(3 + 2 * num_blocks + 1 + self.num_devices)
      row[:3] = _CONSTANT, kind.structure**2, kind.devices**2
      block = 3 + 2 * kind.semantics
      row[block] = kind.simulated**2
      if anchor == NO_ANCHOR:
        row[block + 1] = kind.simulated**2
      else:
        row[3 + 2 * num_blocks + 1 + anchor] = _SLOPE
      rows.append(row)
    return np.stack(rows)

  def parts(self, values: Values) -> list[np.ndarray]:
    """Matrices f[N, *] whose inner products are the components."""
    count = len(values.structure)
    mean, centred = self._device_mean(values)
    parts = [
      np.ones((count, 1)),
      values.structure,
      centred / np.sqrt(max(self.num_devices, 1)),
    ]
    for columns in self._blocks:
      block = values.simulated[:, columns]
      mid = block.mean(1, keepdims=True)
      parts += [(block - mid) / np.sqrt(len(columns)), mid]
    return [*parts, mean, *(d[:, None] for d in values.devices.T)]

  def _device_mean(self, values: Values) -> tuple[np.ndarray, np.ndarray]:
    if not self.num_devices:
      return np.zeros((len(values.structure), 1)), values.devices
    mean = values.devices.mean(1, keepdims=True)
    return mean, values.devices - mean

  def means(self, values: Values) -> np.ndarray:
    """What each setting expects before any row, f[M, N]."""
    mean, _ = self._device_mean(values)
    table = np.concatenate(
      [values.devices, np.zeros((len(mean), 1)), mean], axis=1
    )
    # Columns -1 and -2 are the mean and nothing.
    return table.T[self.settings[1]]

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
    anchor = self.settings[1][setting]
    structure = kind.structure**2 * (values.structure.T @ dual)
    mean, centred = self._device_mean(values)
    devices = np.zeros(self.num_devices)
    if self.num_devices:
      devices += kind.devices**2 / self.num_devices * (centred.T @ dual)
    if anchor == ALL_DEVICES:
      devices += (1 + _SLOPE * (mean[:, 0] @ dual)) / self.num_devices
    elif anchor != NO_ANCHOR:
      devices[anchor] += 1 + _SLOPE * (values.devices[:, anchor] @ dual)
    columns = self._blocks[kind.semantics]
    block = values.simulated[:, columns]
    mid = block.mean(1)
    simulated = np.zeros(len(self.semantics))
    share = kind.simulated**2 / len(columns)
    simulated[columns] = share * ((block - mid[:, None]).T @ dual)
    if anchor == NO_ANCHOR:
      simulated[columns] += share * (mid @ dual)
    return Values(structure, devices, simulated)

  def log_likelihood(self, values: Values, y: np.ndarray) -> np.ndarray:
    """Of rows y f[n] of mean about 0 under each setting, f[M]."""
    n = len(y)
    stack = components(self.parts(values), self.parts(values))
    flat = stack.reshape(len(stack), -1)
    residuals = y - self.means(values)
    found = np.zeros(len(self.noise))
    size = max(1, _CHUNK // (n * n))
    for start in range(0, len(found), size):
      part = slice(start, start + size)
      cov = (self.factors[part] @ flat).reshape(-1, n, n)
      cov += self.noise[part, None, None] ** 2 * np.eye(n)
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
    chol: lower Cholesky factor of the rows' covariance, f[n, n].
    dual: inverse covariance times residuals, f[n].
    noise: standard deviation of a measurement.
  """

  factors: np.ndarray
  chol: np.ndarray
  dual: np.ndarray
  noise: float

  @property
  def constant(self) -> float:
    """The part of the mean that is the same for all architectures."""
    return float(self.factors[0] * self.dual.sum())

  def variance(self, cross: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Of measurements at m architectures, f[m].

    Args:
      cross: components between the rows and them, f[C, n, m].
      diagonal: components of them, f[C, m].
    """
    covariance = np.tensordot(self.factors, cross, 1)
    z = linalg.solve_triangular(self.chol, covariance, lower=True)
    left = self.factors @ diagonal - (z**2).sum(0)
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
  covariance[np.diag_indices(len(y))] += noise**2
  chol = np.linalg.cholesky(covariance)
  residuals = y - model.means(values)[setting]
  dual = linalg.cho_solve((chol, True), residuals)
  return Solved(factors, chol, dual, float(noise))
