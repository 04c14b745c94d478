"""Which architectures to measure on a device of which nothing is known yet."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import NamedTuple

import numpy as np

from hwdarts_jax.latency import fewshot_basis as basis_lib
from hwdarts_jax.latency import fewshot_mixture as mixture
from hwdarts_jax.latency import liveness
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.latency.fewshot_basis import Rows, take
from hwdarts_jax.latency.fewshot_prior import prepare, Prior
from hwdarts_jax.spaces.spec import NetworkSpec

_NUM_JUDGES = 1000  # architectures whose uncertainty a suggestion lowers
_MAX_CANDIDATES = 4000


class Suggestion(NamedTuple):
  """Architectures to measure, the most helpful first.

  Attributes:
    one_hot: for each group f[count, E, O].
    indices: their rows among the candidates, i[count].
  """

  one_hot: dict[str, np.ndarray]
  indices: np.ndarray


def suggest(
  spec: NetworkSpec,
  prior: Prior | Mapping[str, Rows] | None = None,
  count: int = 10,
  measured: Mapping[str, np.ndarray] | None = None,
  candidates: Mapping[str, np.ndarray] | None = None,
  seed: int = 0,
) -> Suggestion:
  """Names the architectures whose measurement helps most.

  Greedy: each is the one that, added to those before it, lowers the mean
  variance of the space's architectures most. Only the prior is asked, no
  latency of the device.

  Args:
    spec: the space.
    prior: what `prepare` returns, or the series that it takes.
    count: how many.
    measured: networks that were already measured, for each group f[N, E, O].
    candidates: networks to choose from; None: those of the space.
    seed: of the architectures that stand for the space.

  Raises:
    ValueError: there are fewer candidates than `count`.
  """
  if not isinstance(prior, Prior):
    prior = prepare(spec, prior, seed)
  rng = np.random.default_rng(seed)
  if candidates is None:
    candidates = (
      corners(spec) if is_enumerable(spec) else basis_lib.references(spec, rng)
    )
  allowed = np.flatnonzero(liveness.is_connected(spec, candidates))
  allowed = np.sort(rng.permutation(allowed)[:_MAX_CANDIDATES])
  if measured is not None:
    allowed = allowed[~_among(take(candidates, allowed), measured)]
  if len(allowed) < count:
    raise ValueError(
      f'suggest is {count}, but only {len(allowed)} networks that connect '
      'input and output are left to choose from.'
    )
  space = basis_lib.references(spec, rng)
  size = len(next(iter(space.values())))
  judges = take(space, rng.permutation(size)[:_NUM_JUDGES])
  design = _Design(prior, take(candidates, allowed), judges)
  if measured is not None:
    design.condition_on(measured)
  chosen = allowed[[design.choose() for _ in range(count)]]
  return Suggestion(take(candidates, chosen), chosen)


class _Design:
  """What measurements would tell of the space, as they come in.

  Covariances are inner products of rows of two matrices; a measurement shrinks
  both along its own row.
  """

  def __init__(self, prior: Prior, candidates, judges):
    self._prior = prior
    belief = np.exp(prior.log_prior)
    self._factors = belief @ prior.model.factors
    self._variance = float(belief @ prior.model.noise**2)
    # That settings expect different things is a part of the uncertainty.
    self._anchors = np.bincount(
      prior.model.settings[1], belief, minlength=len(prior.model.anchors)
    )
    self._candidates = self._rows(candidates)
    self._judges = self._rows(judges)
    self._chosen: list[int] = []

  def _rows(self, one_hot) -> np.ndarray:
    """A matrix whose inner products are the prior covariance, f[N, *]."""
    values = self._prior.basis(one_hot)
    parts = self._prior.model.parts(values)
    scaled = [
      math.sqrt(f) * part
      for f, part in zip(self._factors, parts, strict=True)
      if f > 0
    ]
    means = values.devices @ self._prior.model.anchors.T
    spread = means - (means @ self._anchors)[:, None]
    spread = spread * np.sqrt(self._anchors)
    stretch = means * np.sqrt(mixture.SLOPE * self._anchors)
    return np.concatenate([*scaled, spread, stretch], axis=1)

  def condition_on(self, one_hot) -> None:
    """Takes measurements of architectures into account."""
    rows = self._rows(one_hot)
    for i in range(len(rows)):
      row = rows[i].copy()
      for matrix in (self._candidates, self._judges, rows):
        self._shrink(matrix, row)

  def choose(self) -> int:
    """The candidate that helps most; it counts as measured from now on."""
    cross = self._judges @ self._candidates.T
    own = np.einsum('nk,nk->n', self._candidates, self._candidates)
    gain = (cross**2).sum(0) / (own + self._variance)
    gain[self._chosen] = -np.inf
    best = int(gain.argmax())
    self._chosen.append(best)
    row = self._candidates[best].copy()
    for matrix in (self._candidates, self._judges):
      self._shrink(matrix, row)
    return best

  def _shrink(self, matrix: np.ndarray, row: np.ndarray) -> None:
    """Conditions the covariance on a measurement of an architecture."""
    own = row @ row
    if own > 0:
      kept = math.sqrt(self._variance / (own + self._variance))
      matrix -= np.outer(matrix @ row, (1 - kept) / own * row)


def _among(one_hot, others) -> np.ndarray:
  """bool[N]: architectures that are among others."""
  flat, other = (
    np.concatenate(
      [np.asarray(part[name]).reshape(len(part[name]), -1) for name in one_hot],
      axis=1,
    ).astype(np.int8)
    for part in (one_hot, others)
  )
  known = {row.tobytes() for row in other}
  return np.array([row.tobytes() in known for row in flat], bool)
