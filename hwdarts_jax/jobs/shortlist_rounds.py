"""Rounds of a shortlist, in which trainings teach which networks to train next.

The first round is that of the most probable networks. Before every later one a
process is fitted to all that were trained so far (`surrogate`), in this run or
for another shortlist whose pool is taken, and the next networks of each target
are those of the highest expected accuracy that meet it and were not trained
yet. At the end the same process smooths the noise of the trainings. What each
round trains is written down before it is trained, so that a run resumes:

rounds/000.json    the networks of the first round, of each target
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from hwdarts_jax import surrogate
from hwdarts_jax.jobs import shortlist_candidates as candidates_lib
from hwdarts_jax.jobs import shortlist_measure as measure_lib
from hwdarts_jax.jobs import shortlist_report
from hwdarts_jax.jobs.shortlist_candidates import Candidate, Target
from hwdarts_jax.latency import gaussian, projection
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype

FOLDER = 'rounds'
_STARTS = 6  # best networks so far whose neighbours are looked at
_AT_ONCE = 4096  # networks that the process is asked about

# Networks by their keys -> their accuracies, None if that was stopped.
Train = Callable[[Mapping[str, Genotype]], dict[str, float] | None]


class _Round(NamedTuple):
  """What a round trains.

  Attributes:
    candidates: of each target.
    turns: of measuring that were taken before it, all in all.
  """

  candidates: list[list[Candidate]]
  turns: int


class _Trained(NamedTuple):
  """A network that was trained.

  Attributes:
    genotypes: that stand for it.
    accuracy: after its training.
    round: that trained it first, from 1; 0 if it came with a pool.
  """

  genotypes: tuple[Genotype, ...]
  accuracy: float
  round: int


def play(
  shortlist: Any, path: epath.Path, train: Train
) -> shortlist_report.Found | None:
  """Plays all rounds; None if it was stopped, or others have to measure.

  Args:
    shortlist: a `shortlist.Shortlist`.
    path: the workdir.
    train: what trains networks.

  Raises:
    UserError: no network that was measured meets a target.
  """
  settings = shortlist.config.shortlist
  measured = measure_lib.Measurements(shortlist, path)
  mind = _Mind(shortlist)
  sizes = []
  for number in range(settings.rounds):
    round_ = _round(shortlist, path, number, measured, mind)
    if round_ is None:
      return None
    wanted = candidates_lib.union(round_.candidates)
    sizes.append(len(wanted))
    print(f'Round {number + 1} of {settings.rounds}:', end=' ')
    accuracies = train(wanted)
    if accuracies is None:
      return None
    mind.learn(round_.candidates, accuracies, number + 1)
  candidates = [_final(shortlist, t, measured, mind) for t in shortlist.targets]
  if settings.max_measured:
    measured.check(candidates)
  shown = {c.key for some in candidates for c in some}
  return shortlist_report.Found(
    candidates,
    {key: mind.trained[key].accuracy for key in shown},
    measured.ms,
    shortlist_report.Rounds(
      {k: v for k, v in mind.smoothed().items() if k in shown},
      {key: mind.trained[key].round for key in shown},
      sizes,
    ),
  )


class _Mind:
  """What is known of accuracies.

  Attributes:
    trained: by the keys of networks.
  """

  def __init__(self, shortlist: Any):
    """Begins with the networks of the pool."""
    self._spec = shortlist.specs.deploy
    pool = shortlist.pool
    self.trained = {
      key: _Trained((genotype,), pool.accuracies[key], 0)
      for key, genotype in pool.genotypes.items()
      if key in pool.accuracies
    }
    # Of the networks that are trained, which deploy may have in another size.
    self._likeness = surrogate.Likeness(
      shortlist.proxy, [t.probs for t in shortlist.targets]
    )
    self._fitted: tuple[list[str], surrogate.Surrogate] | None = None

  def learn(
    self,
    candidates: list[list[Candidate]],
    accuracies: Mapping[str, float],
    number: int,
  ) -> None:
    """Remembers what a round, from 1, trained."""
    for candidate in (c for some in candidates for c in some):
      key = candidate.key
      before = self.trained.get(key)
      genotypes = before.genotypes if before else ()
      if candidate.genotype not in genotypes:
        genotypes = (*genotypes, candidate.genotype)
      first = before.round if before else number
      self.trained[key] = _Trained(genotypes, accuracies[key], first)
    self._fitted = None

  def smoothed(self) -> dict[str, float]:
    """What all trained networks are worth, without the noise."""
    keys, found = self._fit()
    return dict(zip(keys, found.smoothed.tolist(), strict=True))

  def ranking(self) -> candidates_lib.Ranking | None:
    """By expected accuracy; None where nothing was trained yet."""
    if not self.trained:
      return None
    _, found = self._fit()
    values = self.smoothed()
    best = sorted(values, key=lambda k: (-values[k], k))[:_STARTS]
    starts = tuple(self.trained[key].genotypes[0] for key in best)

    def expected(one_hot):
      count = len(next(iter(one_hot.values())))
      parts = [
        {g: p[at : at + _AT_ONCE] for g, p in one_hot.items()}
        for at in range(0, count, _AT_ONCE)
      ]
      return np.concatenate([found.predict(self._kernels(p)) for p in parts])

    return candidates_lib.Ranking(expected, starts)

  def _fit(self) -> tuple[list[str], surrogate.Surrogate]:
    """The keys of trained networks, and what they taught."""
    if self._fitted is None:
      # In an order that does not tell when each was trained, or by whom.
      keys = sorted(self.trained)
      genotypes = [self.trained[key].genotypes[0] for key in keys]
      one_hot = candidates_lib.stack(self._spec, genotypes)
      accuracies = np.array([self.trained[key].accuracy for key in keys])
      found = surrogate.fit(self._kernels(one_hot), accuracies)
      self._fitted = keys, found
    return self._fitted

  def _kernels(self, one_hot: candidates_lib.Probs) -> gaussian.Kernels:
    return self._likeness.kernels(one_hot)


def _round(
  shortlist: Any,
  path: epath.Path,
  number: int,
  measured: measure_lib.Measurements,
  mind: _Mind,
) -> _Round | None:
  """A round as it was written down, or a new one; None if others measure."""
  file = path / FOLDER / f'{number:03d}.json'
  if file.exists():
    found = _read(file)
    measured.read(found.turns)
    return found
  settings = shortlist.config.shortlist
  size, ranking, without = (
    settings.more,
    mind.ranking(),
    frozenset(mind.trained),
  )
  if number == 0:
    size, ranking, without = settings.size, None, frozenset()
  if settings.max_measured:
    most = _allowance(settings, number)
    wish = measure_lib.Wish(size, most, without, ranking)
    candidates = measured.refine(wish)
    if candidates is None:
      return None
  else:
    candidates = [
      candidates_lib.best(shortlist.specs.deploy, t, size, without, ranking)
      for t in shortlist.targets
    ]
  found = _Round(candidates, measured.count)
  file.parent.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_json_atomic(file, _record(found))
  return found


def _allowance(settings: Any, number: int) -> int:
  """Networks that may be measured up to a round: its share, by trainings."""
  in_all = settings.size + (settings.rounds - 1) * settings.more
  so_far = settings.size + number * settings.more
  return -(-settings.max_measured * so_far // in_all)


def _final(
  shortlist: Any,
  target: Target,
  measured: measure_lib.Measurements,
  mind: _Mind,
) -> list[Candidate]:
  """All trained networks that meet a target, the most probable first."""
  deploy = shortlist.specs.deploy
  must_fit = measure_lib.latency_bound(target) is not None
  if shortlist.config.shortlist.max_measured and must_fit:
    fitting = measured.fitting(target)
    every = [(k, g) for k, g in fitting.items() if k in mind.trained]
  else:
    every = [(k, g) for k, t in mind.trained.items() for g in t.genotypes]
    if every:
      one_hot = candidates_lib.stack(deploy, [g for _, g in every])
      limits = [b.limit for b in target.bounds]
      allowed = projection.violation(deploy, one_hot, limits) == 0
      every = [pair for pair, fits in zip(every, allowed, strict=True) if fits]
  candidates = [
    Candidate(g, key, candidates_lib.score(deploy, target.probs, g))
    for key, g in every
  ]
  found: dict[str, Candidate] = {}
  for candidate in sorted(candidates, key=lambda c: (-c.score, c.key)):
    found.setdefault(candidate.key, candidate)
  return list(found.values())


def _record(round_: _Round) -> dict[str, Any]:
  return {
    'turns': round_.turns,
    'targets': [
      [
        {'genotype': c.genotype.to_dict(), 'network': c.key, 'score': c.score}
        for c in some
      ]
      for some in round_.candidates
    ],
  }


def _read(file: epath.Path) -> _Round:
  content = workdir_lib.read_json(file)
  return _Round(
    [
      [
        Candidate(Genotype.from_dict(c['genotype']), c['network'], c['score'])
        for c in some
      ]
      for some in content['targets']
    ],
    content['turns'],
  )
