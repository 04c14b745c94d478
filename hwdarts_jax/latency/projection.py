"""The most probable architecture within budgets.

The probability of an architecture is, up to a factor, the product of the gates
of its ops (`expectation`), so that without budgets it is what
`discretize.derive` returns. Where all architectures can be enumerated the
answer is exact. In other spaces it is that of a search over the independent
choices of the space (`sampling.blocks`): ascent by one choice at a time of

    log probability - weight * excess over the budgets

from the most probable architecture, for weights of growing size (Lagrangian
relaxation by an exact penalty), and of the best feasible one found then ascent
by one and by two choices at a time within the budgets. What is found is within
the budgets always, but need not be the most probable one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hwdarts_jax.latency import liveness, sampling
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

OneHot = Mapping[str, np.ndarray]

# Costs are float32: they shall fit whoever adds them up, in whatever order.
_ROUNDING = 1e-6
_WEIGHTS = np.geomspace(0.1, 1e4, 11)  # of the excess, in nats
_MAX_MOVES = 200
_PAIRED = 48  # first choices that are tried with every second one
_STARTS = 4  # at random, where the most probable one leads nowhere


class Limit(NamedTuple):
  """A budget that an architecture has to meet.

  Attributes:
    name: of the cost.
    costs: costs f[N] of architectures f[N, E, O] of each group.
    most: what the cost may be.
  """

  name: str
  costs: Callable[[OneHot], np.ndarray]
  most: float


class Projection(NamedTuple):
  """What was found.

  Attributes:
    genotype: the most probable architecture within the limits, or the nearest
      to them if there is none.
    is_feasible: whether it is within the limits and connects input and output.
    has_moved: whether it is another than without limits.
    is_exact: whether every architecture was looked at.
  """

  genotype: Genotype
  is_feasible: bool
  has_moved: bool
  is_exact: bool


def project(
  spec: NetworkSpec, probs: Mapping[str, np.ndarray], limits: Sequence[Limit]
) -> Projection:
  """Derives the most probable architecture that is connected and in budget.

  Args:
    spec: the space.
    probs: for each group f[E, O], positive.
    limits: what it has to meet; none: only to connect input and output.
  """
  logs = {
    name: np.log(np.maximum(np.asarray(p, np.float64), 1e-30))
    for name, p in probs.items()
  }
  first = discretize.derive(spec, logs)
  one_hot = {g: p[None] for g, p in discretize.one_hot(spec, first).items()}
  exact = is_enumerable(spec)
  if violation(spec, one_hot, limits)[0] == 0:
    return Projection(first, True, False, exact)
  if exact:
    every = corners(spec)
    excess = violation(spec, every, limits)
    score = sum(np.einsum('neo,eo->n', every[g], a) for g, a in logs.items())
    score = np.where(excess == excess.min(), score, -np.inf)
    best = int(np.argmax(score))
    chosen = {g: c[best] for g, c in every.items()}
    least = float(excess[best])
  else:
    chosen, least = _Search(spec, logs, limits).run()
  genotype = to_genotype(spec, chosen)
  return Projection(genotype, least == 0, genotype != first, exact)


def violation(
  spec: NetworkSpec, one_hot: OneHot, limits: Sequence[Limit]
) -> np.ndarray:
  """By which shares f64[N] the limits are exceeded in sum; 0: all are met.

  Infinite where nothing connects input and output.
  """
  excess = np.zeros(len(next(iter(one_hot.values()))))
  for limit in limits:
    costs = np.asarray(limit.costs(one_hot), np.float64)
    excess += np.maximum(costs / (limit.most * (1 - _ROUNDING)) - 1, 0)
  return np.where(liveness.is_connected(spec, one_hot), excess, np.inf)


class _Search:
  """Over the choices of a space; architectures are rows i[N, B] of them."""

  def __init__(self, spec, logs, limits):
    self._spec, self._limits = spec, limits
    self._blocks = sampling.blocks(spec)
    self._values = [sampling.choices(spec, b) for b in self._blocks]
    self._scores = [
      np.einsum('cro,ro->c', v, logs[b.group][list(b.rows)])
      for b, v in zip(self._blocks, self._values, strict=True)
    ]
    self._best: np.ndarray | None = None  # feasible
    self._nearest: np.ndarray | None = None
    self._least = np.inf

  def run(self) -> tuple[dict[str, np.ndarray], float]:
    """Returns an architecture f[E, O] of each group, and its violation."""
    rng = np.random.default_rng(0)
    first = np.array([int(s.argmax()) for s in self._scores])
    for weight in _WEIGHTS:
      self._ascend(first, weight)
    for _ in range(_STARTS if self._best is None else 0):
      start = np.array([rng.integers(len(s)) for s in self._scores])
      self._ascend(start, _WEIGHTS[-1])
    if self._best is not None:
      self._polish()
      return self._architecture(self._best), 0.0
    assert self._nearest is not None
    return self._architecture(self._nearest), self._least

  def _ascend(self, row: np.ndarray, weight: float) -> None:
    """Changes the choice that gains most, until none gains."""
    value = -np.inf
    for _ in range(_MAX_MOVES):
      swaps = self._swaps(row)
      score, excess = self._judge(swaps)
      gained = score - weight * np.where(np.isinf(excess), 1e6, excess)
      if gained.max() <= value:
        return
      value, row = gained.max(), swaps[gained.argmax()]

  def _polish(self) -> None:
    """One and two choices at a time, within the limits."""
    for _ in range(_MAX_MOVES):
      before = self._best
      assert before is not None
      swaps = self._swaps(before)
      score, _ = self._judge(swaps)
      if self._best is before:
        for i in np.argsort(-score, kind='stable')[:_PAIRED]:
          self._judge(self._swaps(swaps[i]))
      if self._best is before:
        return

  def _swaps(self, row: np.ndarray) -> np.ndarray:
    """All rows that differ from `row` in one choice, and itself."""
    found = []
    for i, scores in enumerate(self._scores):
      rows = np.repeat(row[None], len(scores), 0)
      rows[:, i] = np.arange(len(scores))
      found.append(rows)
    return np.concatenate(found)

  def _judge(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and violations f[N]; remembers the best row."""
    score = self._score(rows)
    excess = violation(self._spec, self._one_hot(rows), self._limits)
    if excess.min() < self._least:
      self._least, self._nearest = excess.min(), rows[excess.argmin()]
    feasible = np.where(excess == 0, score, -np.inf)
    i = int(feasible.argmax())
    known = -np.inf if self._best is None else self._score(self._best[None])[0]
    if feasible[i] > known:
      self._best = rows[i]
    return score, excess

  def _score(self, rows: np.ndarray) -> np.ndarray:
    return np.stack([s[rows[:, i]] for i, s in enumerate(self._scores)]).sum(0)

  def _one_hot(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    one_hot = {
      name: np.zeros((len(rows), *group.shape), np.float32)
      for name, group in self._spec.groups().items()
    }
    for i, (block, values) in enumerate(
      zip(self._blocks, self._values, strict=True)
    ):
      one_hot[block.group][:, list(block.rows)] = values[rows[:, i]]
    return one_hot

  def _architecture(self, row: np.ndarray) -> dict[str, np.ndarray]:
    return {g: p[0] for g, p in self._one_hot(row[None]).items()}


def to_genotype(spec: NetworkSpec, chosen: OneHot) -> Genotype:
  """The genotype of one-hot rows f[E, O]; rows of dropped edges are zero."""
  # Choices far below all others; an op that may not win stays below a dropped
  # edge's other ops.
  return discretize.derive(spec, {g: 100.0 * c for g, c in chosen.items()})
