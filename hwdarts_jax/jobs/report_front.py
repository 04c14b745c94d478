"""The points of a report: accuracy against latency, over several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import os
from typing import Any

from etils import epath
import numpy as np

from hwdarts_jax import front, oracle
from hwdarts_jax.jobs import pareto_report, report_read, report_shortlist
from hwdarts_jax.jobs.report_architecture import (
  Facts,
  predicted_ms,
  Subject,
  subject,
)
from hwdarts_jax.jobs.report_read import Family, Run
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype

TRUTH = 'cifar10'  # the data set of NAS-Bench-201 that is drawn
# What an accuracy is of, the most telling first.
KINDS = {
  'retrained': 'test accuracy, trained on its own (%)',
  'truth': 'CIFAR-10 test accuracy, NAS-Bench-201 (%)',
  'brief': 'validation accuracy, trained briefly (%)',
  'shared': 'validation accuracy, params shared by members (%)',
  'supernet': 'validation accuracy of the supernet (%)',
}
_MAX_CLOUD = 1500  # cells in the background
_MAX_RUNS = 500


def compared(workdirs: Sequence[str]) -> list[Run]:
  """The runs that are compared; a folder of runs stands for all of them.

  Raises:
    UserError: a folder is no workdir, and none of its folders is one.
  """
  found: list[Run] = []
  for name in workdirs:
    path = epath.Path(name).expanduser()
    if (path / report_read.CONFIG).exists() or not path.is_dir():
      found.append(report_read.read(path))
      continue
    inner = sorted(path.iterdir(), key=lambda p: p.name)[:_MAX_RUNS]
    runs = [p for p in inner if (p / report_read.CONFIG).exists()]
    if not runs:
      report_read.read(path)  # raises
    found += [run for p in runs if (run := _read_or_none(p)) is not None]
  return found


def _read_or_none(path: epath.Path) -> Run | None:
  """A run of a folder of many, where one may be of another job."""
  try:
    return report_read.read(path)
  except workdir_lib.UserError:
    return None


def points(families: Sequence[Family], device: str) -> tuple[list[Facts], int]:
  """Architectures of runs for one device.

  Args:
    families: of the run that the report is about, then of the compared ones.
    device: others cannot be compared in milliseconds.

  Returns:
    For each architecture its name, run, text, predicted ms, accuracies in per
    cent by kind, and what else is known; and how many were of other devices.
  """
  found: dict[tuple[str, str], Facts] = {}
  others = 0
  for i, family in enumerate(families):
    about = subject(family)
    if about is None:
      continue
    if about.deploy['device'] != device:
      others += len(about.found)
      continue
    for point in _points(family, about, is_own=i == 0):
      key = point['run'], point['text']
      first = found.setdefault(key, point)
      # A training that was named alone tells more of what is there already.
      first['accuracy'] = {
        k: v
        for k in KINDS
        if (v := point['accuracy'].get(k, first['accuracy'].get(k))) is not None
      }
  shown = [p for p in found.values() if p['ms'] is not None and p['accuracy']]
  return shown, others


def _points(family: Family, about: Subject, is_own: bool) -> Iterator[Facts]:
  """Yields those that were found, and the other candidates of a shortlist."""
  for number in range(len(about.found)):
    yield _point(family, about, number, is_own)
  others, names = report_shortlist.candidates(family, about)
  for number, name in enumerate(names):
    point = _point(family, others, number, is_own=False)
    yield point | {'name': f'{os.path.basename(point["run"])} {name}'}


def _point(family: Family, about: Subject, number: int, is_own: bool) -> Facts:
  record = about.found[number]
  chosen = report_shortlist.record(family) is not None
  jobs = ('shortlist', *report_read.RESULTS) if chosen else report_read.RESULTS
  run = next(family[j] for j in jobs if j in family)
  name = run.path.name
  many = len(about.found) > 1
  costs = record.get('deploy', record)
  return {
    'name': f'{name} {number:02d}' if many else name,
    'run': os.fspath(run.path),
    'number': number,
    'own': is_own,
    'text': record['text'],
    'ms': predicted_ms(about, number),
    'target_ms': _target(record),
    'macs': costs.get('macs'),
    'params': costs.get('params'),
    'accuracy': accuracies(family, about, number),
  }


def _target(record: Facts) -> float | None:
  if 'target_ms' in record:
    return record['target_ms']
  bounds = record.get('deploy', {}).get('bounds') or {}
  return bounds.get('latency_ms', {}).get('target')


def accuracies(family: Family, about: Subject, number: int) -> dict[str, float]:
  """Accuracies of an architecture in per cent, by the keys of `KINDS`."""
  record = about.found[number]
  found = {}
  trained = family.get('retrain')
  result = None if trained is None else trained.result
  if result is not None and result['text'] == record['text']:
    found['retrained'] = 100 * result['trained']['test_accuracy_of_average']
  if about.spec.space == oracle.SPACE:
    genotype = Genotype.from_dict(record['genotype'])
    found['truth'] = oracle.accuracy(genotype, TRUTH)
  if 'shortlist' in record:
    found['brief'] = 100 * record['shortlist']['val_accuracy']
  if 'supernet_val_accuracy' in record:
    found['shared'] = 100 * record['supernet_val_accuracy']
  elif 'search' in record:
    found['supernet'] = 100 * record['search']['supernet_val_accuracy']
  return {k: found[k] for k in KINDS if k in found}


def best(shown: Sequence[Facts], kind: str) -> list[int]:
  """Numbers of the points that no other one beats, from the fastest on."""
  known = [i for i, p in enumerate(shown) if kind in p['accuracy']]
  members = [
    {
      'predicted_ms': shown[i]['ms'],
      'supernet_val_accuracy': shown[i]['accuracy'][kind],
    }
    for i in known
  ]
  return [known[i] for i in pareto_report.on_front(members)]


def background(space: str, device: str) -> dict[str, Any] | None:
  """What NAS-Bench-201 knows of a device: its cells, and their true front.

  Returns:
    Pairs (measured ms, per cent) of some cells and of the front; None where
    the space or the device is another one.
  """
  if space != oracle.SPACE or device not in oracle.devices():
    return None
  values, ms = oracle.accuracies(TRUTH), oracle.latencies(device)
  cells = np.flatnonzero(oracle.candidates(device))
  true = front.of(TRUTH, device)
  rng = np.random.default_rng(0)
  some = rng.permutation(cells)[:_MAX_CLOUD]
  return {
    'count': len(cells),
    'cells': _pairs(ms[some], values[some]),
    'front': _pairs(ms[true], values[true]),
  }


def _pairs(ms: np.ndarray, values: np.ndarray) -> list[list[float]]:
  return [
    [float(f'{x:.4g}'), float(f'{y:.4g}')]
    for x, y in zip(ms, values, strict=True)
  ]


def of(families: Sequence[Family], about: Subject) -> Facts:
  """The whole section of the front."""
  device = about.deploy['device']
  shown, others = points(families, device)
  kinds = {
    k: t for k, t in KINDS.items() if any(k in p['accuracy'] for p in shown)
  }
  return {
    'points': shown,
    'others': others,
    # The one that most architectures have comes first.
    'kinds': sorted(
      (
        {'key': key, 'title': title, 'front': best(shown, key)}
        for key, title in kinds.items()
      ),
      key=lambda kind: -sum(kind['key'] in p['accuracy'] for p in shown),
    ),
    'background': background(about.spec.space, device),
  }
