"""Search under budgets by turns: measure candidates, train networks, learn.

Nothing here reads a true accuracy. What is known of accuracies are results of
brief trainings, one for each network (`sameness`), shared by all devices and
budgets; what is known of latencies are the rows that a predictor was fitted to
and the candidates that were measured since, within one allowance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from scipy import stats

from hwdarts_jax import oracle
from hwdarts_jax import surrogate as surrogate_lib
from hwdarts_jax.latency import cost, gaussian, liveness, sameness
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.spaces import nasbench201

_LEAST_SPREAD = 0.02  # of measured over predicted latencies
_MATCH_LENGTH = 1.5  # ops that may differ where errors are alike
_OUTLIER = 3.0  # spreads; rows further off count less


class Space(NamedTuple):
  """What is known of all cells beforehand.

  Attributes:
    keys: of networks, sorted.
    network: which of these each cell is, i64[15625].
    cell: of each network the one with fewest live ops, i64[N].
    live: the live ops of each cell, f[15625, 30].
    macs: of live ops, f[15625].
    kernels: of networks, in the order of `keys`.
  """

  keys: list[str]
  network: np.ndarray
  cell: np.ndarray
  live: np.ndarray
  macs: np.ndarray
  kernels: gaussian.Kernels


@functools.cache
def space() -> Space:
  """The cells of NAS-Bench-201."""
  spec, every = nasbench201.make(), corners(nasbench201.make())
  texts = sameness.keys(
    spec, [oracle.genotype(i) for i in range(oracle.NUM_CELLS)]
  )
  keys, network = np.unique(texts, return_inverse=True)
  paid = liveness.paid_ops(spec, every, 'compiled')
  per_op = cost.tabulate(spec, cost.macs, 'macs').per_op
  macs = sum(np.einsum('neo,eo->n', paid[g], per_op[g]) for g in paid)
  live = np.concatenate([p.reshape(len(texts), -1) for p in paid.values()], 1)
  order = np.argsort(live.sum(1), kind='stable')
  _, first = np.unique(network[order], return_index=True)
  cell = order[first]
  found = surrogate_lib.Likeness(spec).kernels(
    {g: p[cell] for g, p in every.items()}
  )
  return Space(
    list(keys), network, cell, live.astype(float), np.asarray(macs), found
  )


@dataclasses.dataclass
class Draw:
  """One device whose latencies are known of some rows, drawn by seed.

  Attributes:
    device: its name.
    seed: of the rows.
    budgets: ms of each quantile.
    predicted: log ms of all cells by the first fit, f[15625].
    allowance: candidates that may be measured.
    known: cells whose measured latency is known, bool[15625].
    measured: candidates, in the order in which they were measured.
  """

  device: str
  seed: int
  budgets: dict[float, float]
  predicted: np.ndarray
  allowance: int
  known: np.ndarray
  measured: list[int] = dataclasses.field(default_factory=list)

  @property
  def name(self) -> str:
    """Of the draw."""
    return f'{self.device}/{self.seed}'

  def take(self, cells: list[int]) -> None:
    """Measures cells; what is measured already stays."""
    self.measured += [c for c in cells if not self.known[c]]
    self.known[cells] = True
    assert len(self.measured) <= self.allowance

  def within(self, budget_ms: float) -> np.ndarray:
    """Connected cells that were measured within a budget, i64[K]."""
    ms = oracle.latencies(self.device)
    known = self.known & oracle.candidates(self.device)
    return np.flatnonzero(known & (ms <= budget_ms))

  def estimate(self) -> tuple[np.ndarray, float]:
    """Log ms of all cells, corrected by the candidates, and its spread."""
    cells = np.array(self.measured, int)
    if len(cells) < 5:
      return self.predicted, 2 * _LEAST_SPREAD
    ms = oracle.latencies(self.device)[cells]
    error = np.clip(np.log(ms) - self.predicted[cells], -0.5, 0.5)
    spread = max(1.48 * float(np.median(np.abs(error))), _LEAST_SPREAD / 2)
    x = space().live
    weight = np.minimum(
      1, (_OUTLIER * spread / np.maximum(np.abs(error), 1e-6)) ** 2
    )
    cov = gaussian.Kernel(x[cells], _MATCH_LENGTH)
    among = cov.gram(cov) + np.diag(1 / np.maximum(weight, 0.05))
    dual = np.linalg.solve(among, error)
    every = gaussian.Kernel(x, _MATCH_LENGTH).gram(cov)
    return self.predicted + every @ dual, spread


def surrogate(accuracies: Mapping[str, float]) -> np.ndarray:
  """Accuracy of all networks, f[N] per cent, by those that were trained.

  Without any, the more MACs the better.

  Args:
    accuracies: shares of right answers, by the keys of networks.
  """
  known = space()
  if not accuracies:
    return known.macs[known.cell]
  place = {key: i for i, key in enumerate(known.keys)}
  rows = np.array([place[k] for k in accuracies])
  some = {
    name: dataclasses.replace(k, values=k.values[rows])
    for name, k in known.kernels.items()
  }
  found = surrogate_lib.fit(some, np.array(list(accuracies.values())))
  values = found.predict(known.kernels)
  values[rows] = found.smoothed
  return 100 * values


def measure(draw: Draw, values: np.ndarray, each: int) -> None:
  """Measures the most promising candidates of each budget of a draw.

  By the gain over the best network that is known to fit, times the chance that
  the candidate fits.

  Args:
    draw: changed in place.
    values: of networks, f[N]; higher is better.
    each: candidates for a budget.
  """
  by_cell = values[space().network]
  possible = oracle.candidates(draw.device)
  log_ms, spread = draw.estimate()
  for budget in draw.budgets.values():
    fits = stats.norm.cdf((np.log(budget) - log_ms) / spread)
    for _ in range(min(each, draw.allowance - len(draw.measured))):
      within = draw.within(budget)
      best = by_cell[within].max() if len(within) else by_cell.min() - 1
      gain = np.maximum(by_cell - best, 0) * fits
      gain[draw.known | ~possible] = 0
      cell = int(gain.argmax())
      if gain[cell] <= 0:
        break
      draw.take([cell])


def propose(
  draws: list[Draw], values: np.ndarray, trained: Mapping[str, float], size: int
) -> list[str]:
  """Which networks to train next: the best of all budgets, then the second.

  Args:
    draws: with what was measured.
    values: of networks, f[N].
    trained: those that need no training.
    size: how many.
  """
  known = space()
  lists = []
  for draw, _, budget in cases(draws):
    networks = np.unique(known.network[draw.within(budget)])
    order = networks[np.argsort(-values[networks], kind='stable')]
    ranked = [k for k in map(known.keys.__getitem__, order) if k not in trained]
    lists.append(ranked[:size])
  found: dict[str, None] = {}
  for rank in range(max(map(len, lists), default=0)):
    for ranked in lists:
      if rank < len(ranked) and len(found) < size:
        found.setdefault(ranked[rank])
  return list(found)


def answers(
  draws: list[Draw], values: np.ndarray, trained: Mapping[str, float]
) -> dict[str, int]:
  """The cell that is chosen for each draw and quantile.

  Of the networks that were trained and measured within the budget the one of
  the highest value; where none was trained, of those that were measured. A
  budget within which nothing was measured has no answer.
  """
  known = space()
  has = np.array([key in trained for key in known.keys])
  found = {}
  for draw, quantile, budget in cases(draws):
    cells = draw.within(budget)
    seen = cells[has[known.network[cells]]]
    cells = seen if len(seen) else cells
    if len(cells):
      best = cells[values[known.network[cells]].argmax()]
      found[f'{draw.name}/{quantile}'] = int(best)
  return found


def cases(draws: list[Draw]) -> Iterator[tuple[Draw, float, float]]:
  """Every draw with each of its quantiles and budgets in ms."""
  for draw in draws:
    for quantile, budget in draw.budgets.items():
      yield draw, quantile, budget
