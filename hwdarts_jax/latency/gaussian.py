"""Regression by a Gaussian process whose noise may have heavy tails.

The latency is a sum of random functions, one for each kernel; how much each
contributes is found by maximum marginal likelihood. Some devices measure a few
networks far too slow (another clock, another process): rows are weighted by
how well the other rows predict them, in turns with the likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping
import copy
import dataclasses

import numpy as np
from scipy import linalg, optimize

# Rows that the marginal likelihood reads, and that carry the functions.
_LIKELIHOOD_ROWS = 450
_MAX_INDUCING = 1000
_MAX_STEPS = 25, 12  # of the first turn, and of later ones
_CONSTANT = 100.0  # prior variance of the mean, relative to it
_START = 0.01, 0.003  # variance of a function, and of the noise
_PRIOR_WIDTH = 4.0  # standard deviation of the logarithm of a variance
_LEAST, _MOST = np.exp(-16.0), np.exp(3.0)
_MIN_SHARE = 1e-6  # functions of a smaller variance are left out
_NUM_REWEIGHTED = 3
_JITTER = 1e-9


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Features of rows, and how alike two rows are.

  Attributes:
    values: f[N, F].
    length: distance at which `exp(-(distance / length)^2 / 2)` fades; 0 for
      the inner product of the features. Matches of one-hot features fade as
      `exp(-mismatches / length^2)`.
    scale: of the inner product; what it comes to on average over rows.
  """

  values: np.ndarray
  length: float = 0.0
  scale: float = 1.0

  def gram(self, other: Kernel) -> np.ndarray:
    """f[N, M] for the rows of another."""
    a, b = self.values, other.values
    inner = a @ b.T
    if not self.length:
      return inner / self.scale
    square = (
      np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * inner
    )
    return np.exp(-0.5 / self.length**2 * np.maximum(square, 0))


Kernels = Mapping[str, Kernel]


@dataclasses.dataclass(frozen=True)
class Tails:
  """How rows far off are weighted.

  Attributes:
    freedom: of Student's t; used where `width` is 0.
    width: relative error at which a row no longer counts, as in Welsch's loss:
      the fit then follows the most frequent value, not the mean.
  """

  freedom: float = 4.0
  width: float = 0.0

  def weights(self, error, variance, noise) -> np.ndarray:
    """Of rows with a relative error f[N] when predicted by the others."""
    if self.width:
      w = np.exp(-0.5 * np.square(error) / (self.width**2 + variance))
    else:
      square = np.square(error) / (noise + variance)
      w = (self.freedom + 1) / (self.freedom + square)
    return np.maximum(w, 1e-3)


class Regression:
  """A process and what it has learned from rows.

  Attributes:
    variances: of the function of each kernel.
    noise: variance of the relative error.
    weights: of the rows, f[N].
    left_out_ms: prediction of each row by the others, f[N].
  """

  variances: dict[str, float]
  noise: float
  left_out_ms: np.ndarray

  def __init__(
    self,
    kernels: Kernels,
    ms: np.ndarray,
    base_ms: np.ndarray | None,
    rng: np.random.Generator,
  ):
    """Knows of rows; call `refine` to fit to them.

    Args:
      kernels: of the N rows.
      ms: what was measured, f[N], positive.
      base_ms: what is known before, f[N]; None for nothing.
      rng: draws the rows that the likelihood reads.
    """
    self._kernels, self._rng = kernels, rng
    self._unit = ms.mean()
    self._constant = _CONSTANT if base_ms is None else 0.0
    self._base = np.zeros(len(ms)) if base_ms is None else base_ms / self._unit
    self._target = ms / self._unit - self._base
    chosen = rng.permutation(len(ms))[:_MAX_INDUCING]
    self._inducing = {k: _take(v, chosen) for k, v in kernels.items()}
    self.weights, self._scale = np.ones(len(ms)), ms / self._unit
    logs = [_START[0]] * len(kernels) + [_START[1]]
    self._logs, self._turns = np.log(logs), 0

  def refine(self, tails: Tails) -> Regression:
    """Returns one more turn of likelihood and weights."""
    new = copy.copy(self)
    new._maximize()
    new._turns += 1
    values = np.exp(new._logs)
    new.variances = dict(zip(self._kernels, values[:-1], strict=True))
    new.noise = float(values[-1])
    basis = new._basis()
    for _ in range(_NUM_REWEIGHTED):
      mean, variance = new._solve(basis)
      new._scale = np.maximum(self._base + mean, 0.05)
      error = (self._target - mean) / new._scale
      new.weights = tails.weights(
        error, variance / np.square(new._scale), new.noise
      )
    mean, _ = new._solve(basis)
    new.left_out_ms = self._unit * (self._base + mean)
    return new

  def predict(self, kernels: Kernels, base_ms: np.ndarray | None) -> np.ndarray:
    """Latency f[N] ms of rows with these kernels."""
    found = self._unit * (self._cross(kernels) @ self._dual)
    return found if base_ms is None else base_ms + found

  def linear_weights(self) -> tuple[float, dict[str, np.ndarray]]:
    """Constant in ms, and for each linear kernel its weights f[F] in ms."""
    weights = {
      name: self._unit
      * self.variances[name]
      / kernel.scale
      * (kernel.values.T @ self._dual)
      for name, kernel in self._inducing.items()
    }
    return float(self._unit * self._constant * self._dual.sum()), weights

  def _cross(self, kernels: Kernels) -> np.ndarray:
    """Covariance f[N, M] of rows with the inducing ones."""
    rows = len(next(iter(kernels.values())).values)
    columns = len(next(iter(self._inducing.values())).values)
    total = np.full((rows, columns), self._constant)
    for name, kernel in kernels.items():
      if self.variances[name] > _MIN_SHARE:
        total += self.variances[name] * kernel.gram(self._inducing[name])
    return total

  def _basis(self) -> np.ndarray:
    """Functions f[N, M] with independent weights of unit variance."""
    among = self._cross(self._inducing)
    among[np.diag_indices(len(among))] += _JITTER * max(among.max(), 1e-6)
    self._root = linalg.cholesky(among, lower=True)
    cross = self._cross(self._kernels)
    return linalg.solve_triangular(self._root, cross.T, lower=True).T

  def _solve(self, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance f[N] of each row, given all others."""
    noise = self.noise * np.square(self._scale) / self.weights
    scaled = basis / np.sqrt(noise)[:, None]
    inner = scaled.T @ scaled
    inner[np.diag_indices(len(inner))] += 1
    factor = linalg.cholesky(inner, lower=True)
    target = self._target
    weights = linalg.cho_solve(
      (factor, True), scaled.T @ (target / np.sqrt(noise))
    )
    self._dual = linalg.solve_triangular(
      self._root, weights, lower=True, trans='T'
    )
    half = linalg.solve_triangular(factor, scaled.T, lower=True)
    leverage = np.minimum(np.square(half).sum(0), 1 - 1e-6)
    mean = (basis @ weights - leverage * target) / (1 - leverage)
    return mean, noise * leverage / (1 - leverage)

  def _maximize(self) -> None:
    """Sets the variances under which the rows are likeliest."""
    rows = self._rng.permutation(len(self._target))[:_LIKELIHOOD_ROWS]
    some = {k: _take(v, rows) for k, v in self._kernels.items()}
    # What the first turn has ruled out stays so.
    least = np.log(_MIN_SHARE) if self._turns else -np.inf
    names = [
      k for k, log in zip(some, self._logs[:-1], strict=True) if log > least
    ]
    active = [*(list(some).index(k) for k in names), -1]
    grams = np.array([some[n].gram(some[n]) for n in names])
    grams = grams.reshape(len(names), len(rows), len(rows))
    noise = (np.square(self._scale) / self.weights)[rows]
    y = self._target[rows]
    center = np.log([_START[0]] * len(names) + [_START[1]])

    def loss(logs):
      values = np.exp(logs)
      cov = np.tensordot(values[:-1], grams, 1) + self._constant
      cov[np.diag_indices(len(y))] += values[-1] * noise
      root = linalg.cholesky(cov, lower=True)
      inverse, _ = linalg.lapack.dpotri(root, lower=True)
      inverse += np.tril(inverse, -1).T  # only the lower half is filled in
      dual = inverse @ y
      outer = np.outer(dual, dual) - inverse
      slope = -0.5 * np.append(
        grams.reshape(len(grams), outer.size) @ outer.ravel(),
        np.diag(outer) @ noise,
      )
      away = (logs - center) / _PRIOR_WIDTH
      value = 0.5 * y @ dual + np.log(np.diag(root)).sum() + away @ away / 2
      return value, slope * values + away / _PRIOR_WIDTH

    found = optimize.minimize(
      loss,
      self._logs[active],
      jac=True,
      method='L-BFGS-B',
      bounds=[(np.log(_LEAST), np.log(_MOST))] * len(active),
      options={'maxiter': _MAX_STEPS[min(self._turns, 1)]},
    )
    self._logs = np.full(len(self._logs), np.log(_LEAST))
    self._logs[active] = found.x


def _take(kernel: Kernel, rows: np.ndarray) -> Kernel:
  return dataclasses.replace(kernel, values=kernel.values[rows])
