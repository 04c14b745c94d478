"""Numbers and tables of `search_step`; neither jax nor torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import time
from typing import Any

import numpy as np

MIN_CALLS = 100  # below, a median is called a look and no result


def time_calls(
  call: Callable[[], None], warmup: int, calls: int
) -> tuple[list[float], list[float]]:
  """Seconds of every blocked call, those of the warm-up apart.

  Args:
    call: does the work and waits for it.
    warmup: calls before it counts.
    calls: calls that count.
  """
  seconds = []
  for _ in range(warmup + calls):
    begun = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - begun)
  return seconds[:warmup], seconds[warmup:]


def summarize(
  seconds: Sequence[float], steps_per_call: int, global_batch: int
) -> dict[str, Any]:
  """Median and spread in ms a step, and images a second.

  A step reads a train and a validation batch of `global_batch` images each;
  they count once, as in published figures.
  """
  ms = 1e3 * np.asarray(seconds) / steps_per_call
  median = float(np.median(ms))
  return {
    'median_ms': median,
    'p10_ms': float(np.percentile(ms, 10)),
    'p90_ms': float(np.percentile(ms, 90)),
    'calls': len(ms),
    'images_per_s': 1e3 * global_batch / median,
  }


def format_rows(rows: Sequence[tuple[str, Any]]) -> str:
  """Lines of a name and a value."""
  width = max(len(name) for name, _ in rows)
  return '\n'.join(f'{name:<{width}}  {_text(value)}' for name, value in rows)


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table whose columns are aligned."""
  cells = [list(header), *([_text(v) for v in row] for row in rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  cells.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    '| ' + ' | '.join(map(str.ljust, row, widths)) + ' |' for row in cells
  )


def describe(result: dict[str, Any]) -> str:
  """What is printed of the record that is written as JSON."""
  ours = result['ours']
  rows: list[tuple[str, Any]] = [
    (name.replace('_', ' '), ours[name])
    for name in ours
    if ours[name] is not None
  ]
  facts = ('command', 'date', 'device', 'num_devices', 'jax', 'setup_s')
  text = format_rows([(n, result[n]) for n in facts if n in result] + rows)
  if ours['calls'] < MIN_CALLS:
    text += f'\nOnly {ours["calls"]} calls: a look, not a result.'
  return text


def describe_peer(peer: Sequence[dict[str, Any]]) -> str:
  """The table of the variants of the peer, and how much faster we are."""
  columns = {
    'variant': 'variant',
    'ms/step': 'median_ms',
    'p10': 'p10_ms',
    'p90': 'p90_ms',
    'calls': 'calls',
    'images/s': 'images_per_s',
    'peak MiB': 'peak_mib',
    'ratio to ours': 'ratio',
  }
  return format_table(
    list(columns),
    [[row.get(field) for field in columns.values()] for row in peer],
  )


def _text(value: Any) -> str:
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.4g}' if abs(value) < 1e4 else f'{value:.3e}'
  return f'{value:,}' if type(value) is int else str(value)
