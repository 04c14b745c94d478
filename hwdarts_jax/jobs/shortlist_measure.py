"""Measures the candidates of a shortlist before any of them is trained.

A predictor errs, and the networks that are worth a training lie near the bound.
So those that are predicted within it are measured on the device, the predictor
is corrected by what was found (`latency.correction`), those that are too slow
make room for the next, and so on, until all candidates are measured and fit or
the allowance is used up. What was measured elsewhere is taken as well: each
round is a list of genotypes for `python -m hwdarts_jax.harness --genotypes`,
and its table.

measure/000.json                     what was asked for in the first round
measure/<device>.<space>.000.json    its table, by the harness
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import pathlib
import tempfile
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import shortlist_candidates as candidates_lib
from hwdarts_jax.jobs.shortlist_candidates import Candidate, Target
from hwdarts_jax.latency import correction
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

FOLDER = 'measure'


class Outcome(NamedTuple):
  """What candidates remain.

  Attributes:
    candidates: of each target.
    ms: of all that were measured; None of those that failed.
  """

  candidates: list[list[Candidate]]
  ms: dict[Genotype, float | None]


class Wish(NamedTuple):
  """Which networks are to be measured, and how many.

  Attributes:
    size: candidates of each target.
    most: networks that may be measured, with all that were before.
    without: keys of networks that are wanted no more.
    ranking: of which they are the best; None: by score.
  """

  size: int
  most: int
  without: frozenset[str] = frozenset()
  ranking: candidates_lib.Ranking | None = None


class _Known(NamedTuple):
  """A network that was asked for: its genotype, and ms unless it failed."""

  genotype: Genotype
  ms: float | None


def check(settings: Any, targets: list[Target]) -> None:
  """Checks what can be told before anything is measured.

  Raises:
    UserError: nothing is to be measured for, or there is no such runner.
  """
  if not settings.max_measured:
    return
  if not any(latency_bound(t) for t in targets):
    raise workdir_lib.UserError(
      f'shortlist.max_measured is {settings.max_measured}, but no target has a '
      'bound on the latency: leave it 0, or give shortlist.targets_ms.'
    )
  if settings.runner:
    from hwdarts_jax.harness import runners

    try:
      with runners.make(settings.runner) as runner:
        dtypes = runner.dtypes
    except ValueError as e:
      told = str(e).replace('--runner', 'shortlist.runner', 1)
      raise workdir_lib.UserError(told) from e
    if settings.runner_dtype not in dtypes:
      raise workdir_lib.UserError(
        f'shortlist.runner_dtype is {settings.runner_dtype!r}; the runner '
        f'{settings.runner!r} measures {list(dtypes)}.'
      )


def refine(shortlist: Any, path: epath.Path) -> Outcome | None:
  """Candidates that were measured and fit; None if others have to measure.

  The same files give the same candidates, so that a run resumes.

  Args:
    shortlist: a `shortlist.Shortlist` that measures.
    path: the workdir.

  Raises:
    UserError: no measured network meets a target, or a table is another's.
  """
  settings = shortlist.config.shortlist
  measured = Measurements(shortlist, path)
  found = measured.refine(Wish(settings.size, settings.max_measured))
  if found is None:
    return None
  measured.check(found)
  return Outcome(found, measured.ms)


class Measurements:
  """What was measured of the networks of a space, turn after turn.

  Attributes:
    count: turns that were taken.
  """

  def __init__(self, shortlist: Any, path: epath.Path):
    self._shortlist, self._folder = shortlist, path / FOLDER
    self._known: dict[str, _Known] = {}
    self.count = 0

  @property
  def ms(self) -> dict[Genotype, float | None]:
    """Of all that were measured; None of those that failed."""
    return dict(self._known.values())

  def refine(self, wish: Wish) -> list[list[Candidate]] | None:
    """Measures until all that is wished for is; None if others have to."""
    while True:
      candidates = self._choose(wish)
      wanted = _unmeasured(self._shortlist.targets, candidates, self._known)
      left = max(wish.most - len(self._known), 0)
      wanted = dict(list(wanted.items())[:left])
      if not wanted:
        return self._choose(wish, is_last=True)
      asked = self._folder / f'{self.count:03d}.json'
      if not asked.exists():
        asked.parent.mkdir(exist_ok=True)
        request = _request(self._shortlist.specs.deploy, wanted)
        workdir_lib.write_json_atomic(asked, request)
      if not self._take(asked):
        return None

  def read(self, count: int) -> None:
    """Takes what was measured in the first turns.

    Args:
      count: how many there are in all.
    """
    while self.count < count:
      if not self._take(self._folder / f'{self.count:03d}.json'):
        raise workdir_lib.UserError(
          f'{self._folder} lacks a table that was there when later networks '
          'were chosen by it: put it back.'
        )

  def fitting(self, target: Target) -> dict[str, Genotype]:
    """Networks that were measured and meet a target, by their keys."""
    return {k: v.genotype for k, v in self._known.items() if _fits(target, v)}

  def check(self, candidates: list[list[Candidate]]) -> None:
    """Raises UserError if nothing is left for a target."""
    _check(self._shortlist.targets, candidates, self._known)

  def _take(self, asked: epath.Path) -> bool:
    """Takes a turn; whether its table is there."""
    wanted = _asked(asked)
    found = _measured(self._shortlist, asked, list(wanted.values()))
    if found is None:
      return False
    for key, genotype in wanted.items():
      self._known[key] = _Known(genotype, found.get(genotype))
    self.count += 1
    return True

  def _choose(self, wish: Wish, is_last: bool = False) -> list[list[Candidate]]:
    """For each target the best that fit, or, until the last, may fit."""
    deploy, known = self._shortlist.specs.deploy, self._known
    size, ranking = wish.size, wish.ranking
    measured = [k for k in known.values() if k.ms is not None]
    found = []
    for target in self._shortlist.targets:
      bound = latency_bound(target)
      if bound is None:
        found.append(
          candidates_lib.best(deploy, target, size, wish.without, ranking)
        )
        continue
      fit = [
        Candidate(g, key, candidates_lib.score(deploy, target.probs, g))
        for key, g in self.fitting(target).items()
        if key not in wish.without
      ]
      if not is_last:
        corrected = _corrected(deploy, target, bound, measured)
        seen = wish.without | set(known)
        fit += candidates_lib.best(deploy, corrected, size, seen, ranking)
      found.append(candidates_lib.ranked(deploy, fit, ranking)[:size])
    return found


def latency_bound(target: Target) -> bounds_lib.Bound | None:
  """The bound on the latency of a target, if it has one."""
  return next((b for b in target.bounds if b.name == bounds_lib.LATENCY), None)


def _fits(target: Target, known: _Known) -> bool:
  """Whether a measured network meets all bounds.

  Its latency needs no margin: that is for errors of a predictor.
  """
  bound = latency_bound(target)
  assert bound is not None
  return (
    known.ms is not None
    and known.ms <= bound.target
    and all(
      b.budget.of(known.genotype) <= b.aim
      for b in target.bounds
      if b is not bound
    )
  )


def _corrected(
  deploy: NetworkSpec,
  target: Target,
  bound: bounds_lib.Bound,
  measured: list[_Known],
) -> Target:
  """The target, with predictions as they are after measuring some networks."""
  if not measured:
    return target
  each = [discretize.one_hot(deploy, k.genotype) for k in measured]
  one_hot = {g: np.stack([p[g] for p in each]) for g in each[0]}
  ms = np.array([k.ms for k in measured], np.float64)
  budget = bound.budget
  factor = correction.fit(deploy, one_hot, ms, budget.costs(one_hot))
  better = dataclasses.replace(
    budget, exact=lambda some: budget.costs(some) * factor(some)
  )
  return target._replace(
    bounds=tuple(
      b._replace(budget=better) if b is bound else b for b in target.bounds
    )
  )


def _unmeasured(targets, candidates, known) -> dict[str, Genotype]:
  """What to measure: the first of all targets, then the second, and so on."""
  bounded = [
    some
    for target, some in zip(targets, candidates, strict=True)
    if latency_bound(target)
  ]
  every = candidates_lib.union(bounded)
  return {key: g for key, g in every.items() if key not in known}


def _request(
  deploy: NetworkSpec, wanted: Mapping[str, Genotype]
) -> dict[str, Any]:
  """The content of a list of networks to measure."""
  return {
    'space': deploy.space,
    'spec_hash': deploy.spec_hash(),
    'networks': list(wanted),
    'genotypes': [g.to_dict() for g in wanted.values()],
  }


def _asked(path: epath.Path) -> dict[str, Genotype]:
  """What was asked for, by the keys of networks."""
  content = workdir_lib.read_json(path)
  genotypes = map(Genotype.from_dict, content['genotypes'])
  return dict(zip(content['networks'], genotypes, strict=True))


def _measured(
  shortlist: Any, asked: epath.Path, genotypes: list[Genotype]
) -> dict[Genotype, float] | None:
  """Measured ms of those that could be; None if another machine has to."""
  config, deploy = shortlist.config, shortlist.specs.deploy
  device = shortlist.latency.device
  out = asked.parent / f'{device}.{deploy.space}.{asked.name}'
  if not out.exists():
    if not config.shortlist.runner:
      print(_command(config, asked, out, len(genotypes)))
      return None
    _run(shortlist, genotypes, out)
  rows = table_lib.load(str(out)).networks
  found = {
    r.genotype: r.value_ms for r in rows if r.spec_hash == deploy.spec_hash()
  }
  if not found.keys() & set(genotypes):
    raise workdir_lib.UserError(
      f'{out} has none of the {len(genotypes)} networks of {asked}, deployed '
      f'with spec hash {deploy.spec_hash()}: remove it, and measure these.'
    )
  lacking = [g for g in genotypes if g not in found]
  if lacking:
    print(f'{out} lacks {len(lacking)} networks, which are left out.')
  return found


def _run(shortlist: Any, genotypes: list[Genotype], out: epath.Path) -> None:
  """Measures networks by the harness; goes on where an earlier run stopped.

  A harness writes on this machine alone. For a workdir elsewhere its table is
  copied there when it is finished, so an interrupted round begins anew.
  """
  from hwdarts_jax.harness import plan, session

  settings, deploy = shortlist.config.shortlist, shortlist.specs.deploy
  print(f'{len(genotypes)} networks are measured by {settings.runner!r}.')
  with tempfile.TemporaryDirectory(prefix='hwdarts_jax-') as folder:
    local = workdir_lib.is_local(out)
    table = session.run(
      session.Request(
        plan=plan.of_networks(
          deploy, shortlist.config.space.deploy.to_dict(), genotypes
        ),
        out=pathlib.Path(out) if local else pathlib.Path(folder, out.name),
        runner=settings.runner,
        dtype=settings.runner_dtype,
        batch=settings.runner_batch,
        skip_failed=True,
      )
    )
  if not local:
    table_lib.save(table, out)


def _command(config: Any, asked: epath.Path, out: epath.Path, count: int):
  """What a user does next, where another machine measures."""
  batch = config.shortlist.runner_batch
  return '\n'.join(
    [
      f'{count} networks are to be measured on the device, which '
      'shortlist.runner does not name:',
      f'  python -m hwdarts_jax.harness --config={config.source} --runner=... '
      f'--dtype={config.shortlist.runner_dtype}'
      f'{f" --batch={batch}" if batch != 1 else ""} --genotypes={asked} '
      f'--out={out}',
      'Both files may travel. With the table in its place, start this job '
      'again in the same workdir.',
    ]
  )


def _check(targets, candidates, known: Mapping[str, _Known]) -> None:
  """Raises UserError if nothing is left for a target."""
  for target, some in zip(targets, candidates, strict=True):
    bound = latency_bound(target)
    if bound is None or some:
      continue
    ms = [k.ms for k in known.values() if k.ms is not None]
    least = f'; the fastest needs {min(ms):.4g}' if ms else ''
    raise workdir_lib.UserError(
      f'none of the {len(known)} networks that were measured meets '
      f'{bound.target:g} {bound.budget.unit}{least}: raise '
      'shortlist.max_measured, in a new workdir, or the target.'
    )
