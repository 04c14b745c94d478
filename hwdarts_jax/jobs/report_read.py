"""Reads workdirs for a report: what each holds, and which belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import os
from typing import Any, NamedTuple

from etils import epath

from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib

CONFIG = 'config.json'
# What a finished job writes last, and the field that names what it began from.
RESULTS = {
  'search': 'genotype.json',
  'pareto': 'front.json',
  'shortlist': 'shortlist.json',
  'retrain': 'retrain.json',
  'export': 'export.json',
  'evaluate': 'evaluate.json',
}
_ORIGINS = {
  'shortlist': ('search_workdir',),
  'retrain': ('search_workdir', 'genotype'),
  'export': ('retrain_workdir',),
  'evaluate': ('search_workdir', 'genotype'),
}
# What is made of an architecture; an export comes of a training, so after it.
_MADE = ('retrain', 'export', 'evaluate')
_MAX_NEIGHBOURS = 1000


class Run(NamedTuple):
  """A workdir.

  Attributes:
    path: the folder.
    job: that made it.
    config: resolved, as nested dicts.
    versions: of packages.
    hashes: of what the config only names.
    result: content of the file that the job ends with; None if it has not.
    rows: of its metrics.
  """

  path: epath.Path
  job: str
  config: dict[str, Any]
  versions: dict[str, str]
  hashes: dict[str, str]
  result: dict[str, Any] | None
  rows: list[dict[str, Any]]


Family = dict[str, Run]


def read(workdir: epath.PathLike) -> Run:
  """Reads a workdir of one of the jobs in `RESULTS`.

  Raises:
    UserError: it is none, or a file of it is damaged.
  """
  path = epath.Path(workdir).expanduser()
  if not (path / CONFIG).exists():
    raise workdir_lib.UserError(
      f'{path} has no {CONFIG}, so it is no workdir of a run: give the folder '
      'of a search as --workdir, or separated by commas as --compare.'
    )
  content = _json(path / CONFIG)
  config, versions, hashes = (
    content.get(k, {}) for k in ('config', 'versions', 'hashes')
  )
  if not all(isinstance(d, dict) for d in (config, versions, hashes)):
    raise _damaged(path / CONFIG, 'config, versions and hashes are no objects')
  job = config.get('job')
  if job not in RESULTS:
    raise workdir_lib.UserError(
      f'{path} is of job {job!r}; reports are made of {", ".join(RESULTS)}.'
    )
  file = path / RESULTS[job]
  result = _json(file) if file.exists() else None
  rows = metrics_lib.read(path)
  return Run(path, job, config, versions, hashes, result, rows)


def _json(path: epath.Path) -> dict[str, Any]:
  try:
    content = workdir_lib.read_json(path)
  except ValueError as e:
    raise _damaged(path, f'{type(e).__name__}: {e}') from e
  if not isinstance(content, dict):
    raise _damaged(path, 'it is no JSON object')
  return content


def _damaged(path: epath.Path, why: str) -> workdir_lib.UserError:
  return workdir_lib.UserError(
    f'{path} is damaged ({why}): put it back from a copy, or make the run '
    'again with another --workdir.'
  )


def family(run: Run, others: Sequence[Run] = ()) -> Family:
  """The run, what it began from, and what was made of it, by job.

  What was made of it is looked for among `others`, and beside it, in the same
  parent folder. A shortlist is a subject of its own, which the report of its
  search leaves out.
  """
  found = {run.job: run}
  _add_origins(run, found)
  neighbours = [r for r in others if r.result is not None]
  neighbours += _neighbours(run)
  for job in _MADE:
    for other in neighbours:
      if other.job == job and job not in found and _is_of(other, found):
        found[job] = other
  return found


def _add_origins(run: Run, found: Family) -> None:
  for path in origins(run):
    try:
      origin = read(path)
    except (workdir_lib.UserError, OSError):
      continue  # it was moved or deleted; the report does without
    if origin.job not in found:
      found[origin.job] = origin
      _add_origins(origin, found)


def origins(run: Run) -> list[epath.Path]:
  """Folders that a run may have begun from."""
  section = run.config.get(run.job, {})
  found = []
  for field in _ORIGINS.get(run.job, ()):
    named = section.get(field)
    if isinstance(named, str) and named:
      path = epath.Path(named).expanduser()
      if field == 'genotype':  # W/genotype.json, or W/members/07.json
        path = path.parent
        path = path.parent if path.name == 'members' else path
      # Made in another current folder, or moved together with its origin.
      found += [path, run.path.parent / path.name]
  return found


def _neighbours(run: Run) -> Iterator[Run]:
  """Finished runs in the same parent folder, in the order of their names."""
  folders = sorted(run.path.parent.iterdir(), key=lambda p: p.name)
  for path in folders[:_MAX_NEIGHBOURS]:
    if not (path / CONFIG).exists():
      continue
    try:
      other = read(path)
    except (workdir_lib.UserError, OSError):
      continue
    if other.result is not None:
      yield other


def _is_of(other: Run, found: Family) -> bool:
  """Whether a run began from the last one of the family that it could."""
  # A shortlist has chosen what its search has not.
  last = 'shortlist' if 'shortlist' in found else None
  last = 'retrain' if other.job == 'export' else last
  sources = [found.get(last)] if last else [found.get(j) for j in RESULTS]
  paths = [_real(s.path) for s in sources if s is not None]
  return any(_real(path) in paths for path in origins(other))


def _real(path: epath.Path) -> str:
  """A name that is the same for all ways to write a folder."""
  text = os.fspath(path)
  return os.path.realpath(text) if workdir_lib.is_local(path) else text
