"""What a shortlist takes from a finished search: distributions and targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_collections
import numpy as np

from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common, diagnose, report_read
from hwdarts_jax.jobs.shortlist_candidates import Probs, Target
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import NetworkSpec

_JOBS = ('search', 'pareto')
_FIELD = 'shortlist.targets_ms'


class Source(NamedTuple):
  """A finished search or population.

  Attributes:
    run: its workdir.
    probs: that it ends with, of each member.
    targets_ms: of each member, None where it had none.
  """

  run: report_read.Run
  probs: list[Probs]
  targets_ms: list[float | None]


def read(workdir: str) -> Source:
  """Reads the workdir of a finished search or population.

  Raises:
    UserError: it is none.
  """
  if not workdir:
    raise workdir_lib.UserError(
      'shortlist.search_workdir is empty: name the workdir of a finished '
      'search or population.'
    )
  run = report_read.read(workdir)
  if run.job not in _JOBS or run.result is None or not run.rows:
    raise workdir_lib.UserError(
      f'shortlist.search_workdir is {workdir!r}, of job {run.job!r}'
      f'{"" if run.result else ", which is not finished"}: name that of a '
      f'finished one of {", ".join(_JOBS)}.'
    )
  stop = diagnose.stop_step(run.rows)
  (row,) = (
    run.rows[-1:]
    if stop is None
    else [r for r in run.rows if r['step'] == stop]
  )
  last = {
    name.removeprefix('gates/'): np.asarray(value, np.float64)
    for name, value in row.items()
    if name.startswith('gates/')
  }
  if run.job == 'search':
    objective = run.config['objective']
    found = bounds_lib.targets(objective).get(bounds_lib.LATENCY)
    return Source(run, [last], [found[0] if found else None])
  members = run.result['members']
  return Source(
    run,
    [{g: p[i] for g, p in last.items()} for i in range(len(members))],
    [member['target_ms'] for member in members],
  )


def targets(
  source: Source,
  config: ml_collections.ConfigDict,
  deploy: NetworkSpec,
  latency: common.LatencyModel,
) -> list[Target]:
  """What candidates are wanted for.

  Those of `shortlist.targets_ms`, or else of the search. Of a population each
  takes the mean distribution of the members whose target is nearest. Other
  bounds of a search hold for all; the margin is that of this config.

  Args:
    source: the search.
    config: of the shortlist.
    deploy: the networks whose costs are bounded.
    latency: of these.

  Raises:
    UserError: the search was of other networks, or for another device and no
      targets are given.
    ValueError: no architecture meets a target.
  """
  _check_same(source, config, deploy, latency)
  given = [float(ms) for ms in config.shortlist.targets_ms]
  known = [ms for ms in source.targets_ms if ms is not None]
  others: dict[str, Any] = {}
  if source.run.job == 'search':
    others = dict(source.run.config['objective']['constraints'])
    others.pop(bounds_lib.LATENCY, None)
  wanted: list[float | None] = [*(given or sorted(set(known)))]
  found = []
  for ms in wanted or [None]:
    objective = {
      'target_ms': ms or 0.0,
      'constraints': others,
      'margin': config.objective.margin,
    }
    try:
      bounds = bounds_lib.make(objective, deploy, latency)
    except ValueError as e:
      if not given:
        raise
      told = str(e).replace('objective.target_ms', _FIELD)
      raise workdir_lib.UserError(told) from e
    found.append(Target(bounds, _nearest(source, ms)))
  return found


def _check_same(source: Source, config, deploy: NetworkSpec, latency) -> None:
  """Checks that architectures of the search are those of this config."""
  assert source.run.result is not None
  theirs = source.run.result['deploy']
  if theirs['spec_hash'] != deploy.spec_hash():
    raise workdir_lib.UserError(
      f'{source.run.path} searched for networks with spec hash '
      f'{theirs["spec_hash"]}, but those of space.deploy have '
      f'{deploy.spec_hash()}: give the config of that search.'
    )
  if not config.shortlist.targets_ms and theirs['device'] != latency.device:
    raise workdir_lib.UserError(
      f'{source.run.path} searched for {theirs["device"]!r}, but the latencies '
      f'are those of {latency.device!r}: give targets for that device, '
      '--config.shortlist.targets_ms="(8.0, 10.0)".'
    )


def _nearest(source: Source, ms: float | None) -> Probs:
  """The mean distribution of the members whose target is nearest."""
  apart = [
    0.0 if ms is None or own is None else abs(np.log(own / ms))
    for own in source.targets_ms
  ]
  some = [
    probs
    for probs, d in zip(source.probs, apart, strict=True)
    if d == min(apart)
  ]
  return {g: np.mean([p[g] for p in some], 0) for g in some[0]}
