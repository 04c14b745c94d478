"""Means and spreads of `latency_model`, as JSON and as tables.

    python -m benchmarks.latency_report benchmarks/latency_model.json

prints the tables of `latency_tables/README.md` again.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import pathlib
import platform
import sys
from typing import Any, NamedTuple

import numpy as np

_KEYS = ('table', 'device', 'method', 'rows')
# Figure of a row -> digits.
FIGURES = {
  'within_10_percent': 1,
  'within_5_percent': 1,
  'mape_percent': 1,
  'spearman': 3,
  'kendall_tau': 3,
  'in_90_interval_percent': 0,
  'interior_error_percent': 2,
  'gradient_cosine': 3,
}


class Shown(NamedTuple):
  """A table that is printed: a row for each device, a column for each method.

  Attributes:
    title: what stands above it.
    table: of the benchmark.
    figures: in each cell.
    rows: only models of so many rows; 0: of any number.
    devices: only these; empty: all.
    methods: only these; empty: all.
  """

  title: str
  table: str
  figures: tuple[str, ...]
  rows: int = 0
  devices: tuple[str, ...] = ()
  methods: tuple[str, ...] = ()


# Methods as they are called in print.
_TITLES = {
  'additive': 'sum of ops',
  'pruned': 'sum, dead removed',
  'forward': 'sum, unread removed',
  'predictor': '**ours**',
  'few-shot': '**ours**, few-shot',
  'mlp': 'perceptron',
  'no device': '**ours**, no other device',
  'all devices': '**ours**, all others',
  'all devices, suggested': '**ours**, all others, suggested rows',
  'HELP devices': "**ours**, HELP's devices",
  'HELP devices, and its 10 references': '**ours**, and its 10 references',
  'HELP devices, suggested': '**ours**, suggested rows',
  'additive, pool': 'sum of ops, whole pool',
  '3 server GPUs': '**ours**, 3 server GPUs',
  '6 server GPUs': '**ours**, 6 server GPUs',
}
_SMALL = ('pixel4_cpu', 'intel_ncs2')
_RANKS = ('spearman', 'kendall_tau')
_ERRORS = ('within_10_percent', 'within_5_percent', 'mape_percent')
_ALL = 'Spearman / mean error, % / % within 10'
SHOWN = (
  *(
    Shown(f'{rows} rows: {title}', 'fit', figures, rows)
    for rows in (900, 100, 20)
    for title, figures in (
      ('% within 10 / % within 5 / mean error, %', _ERRORS),
      ('Spearman / Kendall tau', _RANKS),
    )
  ),
  Shown(
    'Inside: mean error, % / gradient cosine',
    'inside',
    ('interior_error_percent', 'gradient_cosine'),
  ),
  Shown('HELP, 10 samples: Spearman', 'help', ('spearman',)),
  Shown('NASFLAT, 20 samples: Spearman', 'nasflat', ('spearman',)),
  *(
    Shown(
      f'{rows} rows at random: {_ALL}',
      'others',
      ('spearman', 'mape_percent', 'within_10_percent'),
      rows,
      _SMALL,
    )
    for rows in (10, 20)
  ),
  *(
    Shown(f'{rows} rows at random: Spearman', 'others', ('spearman',), rows)
    for rows in (10, 20)
  ),
  *(
    Shown(f'{rows} rows: % within 10', 'others', ('within_10_percent',), rows)
    for rows in (10, 20)
  ),
  Shown(
    '% in the 90 % interval',
    'others',
    ('in_90_interval_percent',),
    methods=('all devices', 'no device'),
  ),
  Shown(
    'Ceiling: % within 10 / % within 5 / mean error, %', 'ceiling', _ERRORS
  ),
)


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """One entry for each table, device, method and number of rows.

  Returns:
    Entries with the values of all seeds of each figure, and the mean over
    devices (device 'mean') of methods that were tried on more than one.
  """
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(_key(row), []).append(row)
  entries = []
  for key, group in groups.items():
    entry = dict(zip(_KEYS, key, strict=True))
    entry['rows'] = max(row['rows'] for row in group)
    entry['seeds'] = [r['seed'] for r in group]
    for name in ('tested', 'seconds', *FIGURES):
      if name in group[0]:
        entry[name] = [float(f'{r[name]:.6g}') for r in group]
    entries.append(entry)
  return entries + _means(entries)


def _key(row: dict[str, Any]) -> tuple:
  """What the rows of all seeds share.

  HELP's samples may be among its references, so that a seed has fewer rows.
  """
  is_help = row['table'] == 'help'
  return tuple(0 if k == 'rows' and is_help else row[k] for k in _KEYS)


def _means(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Means over devices, seed by seed, of methods seen on several."""
  # HELP's pool has another size on each device.
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for e in entries:
    if e['table'] == 'ceiling':
      continue
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
    for name in FIGURES:
      if all(name in e for e in group):
        mean[name] = np.mean([e[name] for e in group], 0).round(6).tolist()
    means.append(mean)
  return means


def to_markdown(entries: list[dict[str, Any]]) -> str:
  """All of `SHOWN` of which there is something."""
  return '\n\n'.join(t for t in (_table(entries, s) for s in SHOWN) if t)


def _table(entries: list[dict[str, Any]], shown: Shown) -> str:
  """Markdown: mean ± standard deviation over seeds of each figure."""
  mine = [
    e
    for e in entries
    if e['table'] == shown.table
    and (not shown.rows or e['rows'] == shown.rows)
    and (not shown.devices or e['device'] in shown.devices)
    and (not shown.methods or e['method'] in shown.methods)
    and shown.figures[0] in e
  ]
  if not mine:
    return ''
  columns = list(dict.fromkeys((e['method'], e['rows']) for e in mine))
  if shown.table == 'help' or len({rows for _, rows in columns}) == 1:
    columns = [(m, 0) for m in dict.fromkeys(m for m, _ in columns)]
  titles = [
    _TITLES.get(m, m) + (f', {rows} rows' if rows else '')
    for m, rows in columns
  ]
  lines = ['| device | ' + ' | '.join(titles) + ' |']
  lines.append('|---' * (len(titles) + 1) + '|')
  for device in dict.fromkeys(e['device'] for e in mine):
    cells = []
    for method, rows in columns:
      found = [
        e
        for e in mine
        if (e['device'], e['method']) == (device, method)
        and rows in (0, e['rows'])
      ]
      texts = [_cell(found[0][f], FIGURES[f]) for f in shown.figures if found]
      cells.append(' / '.join(texts))
    lines.append(f'| {device} | ' + ' | '.join(cells) + ' |')
  return f'**{shown.title}**\n\n' + '\n'.join(lines)


def _cell(values: list[float], digits: int) -> str:
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


def main() -> None:
  """Prints the tables of the file that is named."""
  text = pathlib.Path(sys.argv[1]).read_text()
  print(to_markdown(json.loads(text)['entries']))


if __name__ == '__main__':
  main()
