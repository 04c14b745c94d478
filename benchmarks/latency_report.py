"""Means and spreads of `latency_model`, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence
import json
import pathlib
import platform
from typing import Any

import numpy as np

_KEYS = ('table', 'device', 'method', 'rows')
# Name in a row, title of the column, digits.
FIGURES = (
  ('within_10_percent', 'within 10 %', 1),
  ('within_5_percent', 'within 5 %', 1),
  ('mape_percent', 'mean error, %', 2),
  ('spearman', 'Spearman', 3),
  ('kendall_tau', 'Kendall tau', 3),
  ('in_90_interval_percent', 'in 90 % interval', 1),
  ('interior_error_percent', 'error inside, %', 2),
  ('gradient_cosine', 'gradient cosine', 3),
)


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """One entry for each table, device, method and number of rows.

  Returns:
    Entries with the values of all seeds of each figure, and the mean over
    devices (device 'mean') of methods that were tried on more than one.
  """
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[k] for k in _KEYS), []).append(row)
  entries = []
  for key, group in groups.items():
    entry = dict(zip(_KEYS, key, strict=True))
    entry['seeds'] = [r['seed'] for r in group]
    for name in ('tested', 'seconds', *(f[0] for f in FIGURES)):
      if name in group[0]:
        entry[name] = [float(f'{r[name]:.6g}') for r in group]
    entries.append(entry)
  return entries + _means(entries)


def _means(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Means over devices, seed by seed, of methods seen on several."""
  # HELP's pool has another size on each device.
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for e in entries:
    rows = e['rows'] if e['table'] != 'help' else 0
    groups.setdefault((e['table'], e['method'], rows), []).append(e)
  means = []
  for (table, method, rows), group in groups.items():
    if len(group) < 2 or len({tuple(e['seeds']) for e in group}) > 1:
      continue
    mean = {
      'table': table,
      'device': f'mean of {len(group)}',
      'method': method,
      'rows': rows or group[0]['rows'],
      'seeds': group[0]['seeds'],
    }
    for name, _, _ in FIGURES:
      if all(name in e for e in group):
        mean[name] = np.mean([e[name] for e in group], 0).round(6).tolist()
    means.append(mean)
  return means


def to_markdown(entries: list[dict[str, Any]]) -> str:
  """A table for each of the benchmark's: mean ± standard deviation."""
  lines = []
  for table in dict.fromkeys(e['table'] for e in entries):
    mine = [e for e in entries if e['table'] == table]
    shown = [f for f in FIGURES if any(f[0] in e for e in mine)]
    titles = ['device', 'rows', 'method', *(f[1] for f in shown)]
    lines += ['', f'## {table}', '', '| ' + ' | '.join(titles) + ' |']
    lines.append('|---' * len(titles) + '|')
    for e in mine:
      cells = [f'`{e["device"]}`', str(e['rows']), e['method']]
      cells += [_cell(e.get(name), digits) for name, _, digits in shown]
      lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _cell(values: list[float] | None, digits: int) -> str:
  if values is None:
    return ''
  mean = f'{np.mean(values):.{digits}f}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {np.std(values):.{digits}f}'


def to_json(facts: dict[str, Any], entries: list[dict[str, Any]]) -> str:
  """JSON with an entry a line."""
  lines = ',\n'.join(f'  {json.dumps(e)}' for e in entries)
  return f'{{"facts": {json.dumps(facts)},\n "entries": [\n{lines}\n]}}\n'


def cpu_name() -> str:
  """What the processor calls itself."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [x.partition(':')[2] for x in lines if x.startswith('model name')]
  return names[0].strip() if names else platform.processor()
