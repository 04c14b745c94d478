"""What the points of a sweep found: one table, and the front among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
from typing import Any

from etils import epath
import numpy as np

from hwdarts_jax.runtime import front_plot
from hwdarts_jax.runtime import workdir as workdir_lib

FINISHED = 'finished'
MISSING = 'not run, or not to its end'
# The file that each job writes last.
RESULTS = {
  'search': 'genotype.json',
  'pareto': 'front.json',
  'shortlist': 'shortlist.json',
  'retrain': 'retrain.json',
  'evaluate': 'evaluate.json',
  'describe': 'describe.json',
  'predictor': 'metrics.json',
  'export': 'export.json',
}
# Result: the file beside it that has the columns, if there is one target.
_FOUND = {'shortlist.json': 'genotype.json'}
# Column: where a run has it, by dotted name; first found.
_COLUMNS = {
  'predicted_ms': ('deploy.predicted_ms',),
  'accuracy': (
    'trained.test_accuracy_of_average',
    'search.supernet_val_accuracy',
    'shortlist.val_accuracy',
  ),
  'macs': ('deploy.macs',),
  'params': ('deploy.params',),
  'device': ('deploy.device',),
  'text': ('text',),
}
_LAST = ('is_on_front', 'status', 'workdir')


def is_finished(workdir: epath.PathLike) -> bool:
  """Whether the run of a workdir came to its end."""
  return _result(epath.Path(workdir)) is not None


def row(
  values: Mapping[str, Any], workdir: epath.PathLike, failure: str = ''
) -> dict[str, Any]:
  """One row of the table.

  Args:
    values: swept fields.
    workdir: of the point.
    failure: why it failed, if it was tried now.

  Returns:
    The fields, what was found, the status and the workdir.
  """
  path = epath.Path(workdir)
  result = _result(path)
  record: Any = {}
  status = failure or MISSING
  if result is not None:
    status = FINISHED
    found = _with_columns(result)
    try:
      record = workdir_lib.read_json(found)
    except ValueError as e:
      status = f'{found.name} is damaged: {e}'
  flat = dict(_flatten(record))
  columns = {
    name: next((flat[p] for p in places if p in flat), None)
    for name, places in _COLUMNS.items()
  }
  return {**values, **columns, 'status': status, 'workdir': str(path)}


def write(folder: epath.PathLike, rows: Sequence[dict[str, Any]]) -> str:
  """Writes sweep.csv, sweep.json and front.png; returns a summary.

  Args:
    folder: of the sweep; it need not exist.
    rows: of all points; those on the front are marked.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  judged = [r for r in rows if None not in (r['predicted_ms'], r['accuracy'])]
  front = _front(judged)
  for r in rows:
    r['is_on_front'] = r in front
  names = [
    n for n in dict.fromkeys(n for r in rows for n in r) if n not in _LAST
  ]
  text = io.StringIO(newline='')
  table = csv.DictWriter(text, [*names, *_LAST], lineterminator='\n')
  table.writeheader()
  table.writerows(rows)
  workdir_lib.write_text_atomic(folder / 'sweep.csv', text.getvalue())
  workdir_lib.write_json_atomic(folder / 'sweep.json', {'rows': list(rows)})
  files = 'sweep.csv, sweep.json'
  if judged:
    _draw(folder / 'front.png', judged, front)
    files += ', front.png'
  done = sum(r['status'] == FINISHED for r in rows)
  lines = [f'{done} of {len(rows)} points are finished; on the front are:']
  lines += [
    f'  {r["predicted_ms"]:8.2f} ms  {100 * r["accuracy"]:5.1f} %  {r["text"]}'
    f'  {r["workdir"]}'
    for r in front
  ]
  return '\n'.join([*lines, f'Everything is in {folder}: {files}'])


def _result(path: epath.Path) -> epath.Path | None:
  """The file that the job of a workdir writes last, if it is there."""
  config = path / 'config.json'
  if not config.exists():
    return None
  try:
    job = workdir_lib.read_json(config)['config']['job']
  except (ValueError, KeyError, TypeError):
    return None
  found = path / RESULTS[job] if job in RESULTS else None
  return found if found is not None and found.exists() else None


def _with_columns(result: epath.Path) -> epath.Path:
  """The file beside a result that has the columns, or the result."""
  other = result.parent / _FOUND.get(result.name, result.name)
  return other if other.exists() else result


def _flatten(record: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  if isinstance(record, dict):
    for name, value in record.items():
      yield from _flatten(value, f'{prefix}.{name}' if prefix else name)
  else:
    yield prefix, record


def _front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Those that no other one beats, from the fastest on."""
  found: list[dict[str, Any]] = []
  best = -np.inf
  for r in sorted(rows, key=lambda r: (r['predicted_ms'], -r['accuracy'])):
    if r['accuracy'] > best:
      found.append(r)
      best = r['accuracy']
  return found


def _draw(
  path: epath.Path,
  rows: Sequence[dict[str, Any]],
  front: Sequence[dict[str, Any]],
) -> None:
  def points(label, some):
    return front_plot.Points(
      label,
      [r['predicted_ms'] for r in some],
      [100 * r['accuracy'] for r in some],
    )

  devices = sorted({str(r['device']) for r in rows})
  front_plot.plot_front(
    points(f'{len(rows)} points', rows),
    points('their front', front),
    [points(f'{len(rows)} points', rows)],
    path,
    f'Sweep for {", ".join(devices)}',
    labels=('predicted latency (ms)', 'accuracy (%)'),
  )
