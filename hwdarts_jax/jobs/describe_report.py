"""What the job `describe` prints, from describe.json."""

from __future__ import annotations

from typing import Any

from etils import epath

from hwdarts_jax.runtime import workdir as workdir_lib

RESULT = 'describe.json'
_HEADER = ('site', 'op', 'input', 'output', 'stride', 'params', 'MACs')
_LEFT = 2  # columns of text; those of numbers end at the same place


def of(path: epath.Path) -> str:
  """The description in a workdir, as text."""
  record = workdir_lib.read_json(path / RESULT)
  settings = ', '.join(f'{k} {v}' for k, v in record['settings'].items())
  sets = _candidates(record['sites'])
  lines = ['', f'{record["space"]} ({record["role"]} spec: {settings}):']
  if record['text'] is not None:
    lines.append(f'  {record["text"]}')
  lines += _table([_HEADER, *(_row(s, sets) for s in record['sites'])])
  for ops, letter in sets.items():
    lines.append(f'  {letter}, {len(ops)} ops: {", ".join(ops)}')
  count = record['num_architectures']
  if count > 1:
    shown = f'{count:,}' if count < 10**9 else f'{count:.2e}'
    lines.append(f'  architectures  {shown}')
  lines += [
    f'  parameters     {_text(record["params"])}',
    f'  MACs           {_text(record["macs"])}',
    f'Everything is in {path}: {RESULT}, config.json',
  ]
  return '\n'.join(lines)


def _candidates(sites: list[dict[str, Any]]) -> dict[tuple[str, ...], str]:
  """A letter for each set of ops to choose from."""
  sets = dict.fromkeys(tuple(s['ops']) for s in sites if len(s['ops']) > 1)
  return {ops: _letters(i) for i, ops in enumerate(sets)}


def _letters(index: int) -> str:
  """A, B, ..., Z, AA, AB, ..."""
  before = _letters(index // 26 - 1) if index >= 26 else ''
  return before + chr(ord('A') + index % 26)


def _row(
  site: dict[str, Any], sets: dict[tuple[str, ...], str]
) -> tuple[str, ...]:
  ops = tuple(site['ops'])
  op = ops[0] if len(ops) == 1 else f'one of {sets[ops]}'
  shapes = ('x'.join(map(str, site[k])) for k in ('in_shape', 'out_shape'))
  costs = (_text(site[k]) for k in ('params', 'macs'))
  return (site['path'], op, *shapes, str(site['stride']), *costs)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
  """Lines with columns below each other."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '
    + '  '.join(
      cell.ljust(width) if i < _LEFT else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]


def _text(value: Any) -> str:
  """A number or, of a choice, the least and the most."""
  if isinstance(value, dict):
    return f'{value["min"]:,} to {value["max"]:,}'
  return f'{value:,}'
