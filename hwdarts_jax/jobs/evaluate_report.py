"""What an evaluation says, read from its workdir."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath
import numpy as np

from hwdarts_jax import front, oracle
from hwdarts_jax.runtime import front_plot
from hwdarts_jax.runtime import workdir as workdir_lib

RESULT = 'evaluate.json'
PICTURE = 'evaluate.png'
DRAWN = 'cifar10'  # the data set of the picture


def draw(
  path: epath.Path,
  device: str,
  named: Sequence[front_plot.Points],
  title: str,
  budget_ms: float | None = None,
) -> None:
  """Draws evaluate.png: what is judged beside all cells and the true front.

  Args:
    path: the workdir.
    device: whose measurements are drawn.
    named: what is judged, and what it is compared with.
    title: goes on after the space, the device and the data set.
    budget_ms: a line, if there is a budget.
  """
  values, ms = oracle.accuracies(DRAWN), oracle.latencies(device)
  cells = np.flatnonzero(oracle.candidates(device))
  true = front.of(DRAWN, device)
  front_plot.plot_front(
    front_plot.Points(f'{len(cells)} cells', ms[cells], values[cells]),
    front_plot.Points('true front', ms[true], values[true]),
    named,
    path / PICTURE,
    f'{oracle.SPACE} on {device}, {DRAWN}{title}',
    budget_ms,
  )


def of(path: epath.Path) -> str:
  """The text of a finished evaluation."""
  record = workdir_lib.read_json(path / RESULT)
  judged = record['judged']
  device = judged['device']
  measured = sum(ms is not None for ms in record['latency_ms'].values())
  lines = ['', f'What NAS-Bench-201 knows of {record["text"]}:']
  lines += ['  test accuracy      ' + _accuracies(record['accuracy'])]
  lines += [
    f'  latency            measured on {measured} of '
    f'{len(record["latency_ms"])} devices, see {RESULT}'
  ]
  if not judged['is_what_was_found']:
    within = (
      ', of those within its bounds' if judged['bounds_of_search'] else ''
    )
    lines += [
      f'It was not measured on {device}; of the cells that were, its search '
      f'holds this one most probable{within}:',
      f'  {judged["text"]}',
      '  test accuracy      ' + _accuracies(judged['accuracy']),
    ]
  lines.append(f'On {device}, {judged["latency_ms"]:.2f} ms:')
  for dataset, verdict in judged['within_own_latency'].items():
    lines.append(f'  {dataset:<18} {_verdict(verdict)}')
  budget = judged['within_budget']
  if budget is not None:
    lines.append(f'Within {budget["budget_ms"]:g} ms, {budget["source"]}:')
    for dataset in judged['within_own_latency']:
      lines.append(f'  {dataset:<18} {_verdict(budget[dataset])}')
  lines.append('Beside the true front:')
  for dataset, place in judged['front'].items():
    lines.append(f'  {dataset:<18} {_place(place)}')
  lines.append('For comparison, CIFAR-10:')
  for name, cell in record['references']['cifar10'].items():
    ms = cell['latency_ms']
    time = 'not measured' if ms is None else f'{ms:.2f} ms'
    lines.append(f'  {name:<18} {cell["accuracy"]:.2f} %, {time}')
  lines.append(f'Everything is in {path}: {RESULT}, evaluate.png, config.json')
  return '\n'.join(lines)


def _accuracies(accuracy: dict[str, float]) -> str:
  return ', '.join(f'{d} {a:.2f} %' for d, a in accuracy.items())


def _verdict(verdict: dict[str, Any]) -> str:
  best = f'{verdict["best_accuracy"]:.2f} % in {verdict["best_latency_ms"]:.2f}'
  if not verdict['meets_budget']:
    return f'FAILED: too slow; the best within it has {best} ms'
  return (
    f'regret {verdict["regret"]:.2f} points, rank {verdict["rank"]} of '
    f'{verdict["num_ranked"]} as fast; the best has {best} ms'
  )


def _place(place: dict[str, Any]) -> str:
  if place['is_on_front']:
    return f'on it, one of {place["num_on_front"]}'
  return (
    f'{place["excess_latency_percent"]:.1f} % slower than the fastest cell as '
    f'accurate ({place["fastest_as_accurate_ms"]:.2f} ms)'
  )
