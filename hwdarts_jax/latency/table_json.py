"""Latency tables to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from typing import Any, TYPE_CHECKING

from hwdarts_jax.latency.checks import check
from hwdarts_jax.latency.series import layout
from hwdarts_jax.latency.table_types import Entry, NetworkRow, SCHEMA, Series
from hwdarts_jax.spaces.checks import is_int
from hwdarts_jax.spaces.spec import Genotype

if TYPE_CHECKING:
  from hwdarts_jax.latency.table import LatencyTable

ENERGY = 'energy_mj'  # the one column that a file may lack


def parse(data: bytes) -> Any:
  """The JSON value in `data`; ValueError if there is none."""
  try:
    return json.loads(data.decode(), object_pairs_hook=_object)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f'not JSON ({e}).') from e


def to_text(data: Mapping[str, Any]) -> str:
  """JSON with a line for each field, entry and network, good for diffs."""

  def compact(value: Any) -> str:
    return json.dumps(value, separators=(',', ':'), allow_nan=False)

  lines = []
  for name, value in data.items():
    if name == 'entries' and value:
      rows = [f'{compact(k)}: {compact(v)}' for k, v in value.items()]
      text = '{\n  ' + ',\n  '.join(rows) + '\n }'
    elif name in ('networks', 'notes') and value:
      text = '[\n  ' + ',\n  '.join(map(compact, value)) + '\n ]'
    else:
      text = compact(value)
    lines.append(f' {compact(name)}: {text}')
  return '{\n' + ',\n'.join(lines) + '\n}\n'


def to_dict(table: LatencyTable) -> dict[str, Any]:
  """See `LatencyTable.to_dict`."""
  data = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
  data['source'] = dict(table.source)
  data['notes'] = list(table.notes)
  data['entries'] = {
    k: _row_to_dict(table.entries[k]) for k in sorted(table.entries)
  }
  data['networks'] = [
    {**_row_to_dict(r), 'genotype': r.genotype.to_dict()}
    for r in table.networks
  ]
  if table.series is not None:
    data['series'] = {
      **layout(table.space),
      **_row_to_dict(table.series),
      'value_ms': [_shortest(v) for v in table.series.value_ms],
    }
    if table.series.energy_mj is not None:
      data['series'][ENERGY] = [_shortest(v) for v in table.series.energy_mj]
  return data


def from_dict(cls: type[LatencyTable], data: Any) -> LatencyTable:
  """See `LatencyTable.from_dict`."""
  check(isinstance(data, Mapping), 'table', data, 'a JSON object')
  # First of all, since another version may well have other fields.
  check(
    is_int(data.get('schema')) and data['schema'] == SCHEMA,
    'schema',
    data.get('schema'),
    f'{SCHEMA}, the version that this program reads',
  )
  data = dict(_fields(cls, data, 'table'))
  for name, kind in (('entries', Mapping), ('networks', list), ('notes', list)):
    check(
      isinstance(data[name], kind),
      name,
      data[name],
      'a JSON object' if kind is Mapping else 'a list',
    )
  data['notes'] = tuple(data['notes'])
  data['entries'] = {
    k: Entry(**_fields(Entry, v, f'entries[{k!r}]'))
    for k, v in data['entries'].items()
  }
  data['networks'] = tuple(
    _row_from_dict(v, f'networks[{i}]') for i, v in enumerate(data['networks'])
  )
  if data['series'] is not None:
    data['series'] = _series_from_dict(data['series'], data['space'])
  return cls(**data)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A dict; JSON itself would let the last of two equal keys win silently."""
  result = dict(pairs)
  if len(result) < len(pairs):
    keys = [k for k, _ in pairs]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    raise ValueError(f'keys {twice} occur twice in one object.')
  return result


def _row_to_dict(row: Entry | NetworkRow | Series) -> dict[str, Any]:
  return {
    f.name: _shortest(getattr(row, f.name))
    for f in dataclasses.fields(row)
    # Most tables have no such column, and are what they were without it.
    if f.name != ENERGY or row.energy_mj is not None
  }


def _shortest(value: Any) -> Any:
  """The number such that 5 and 5.0 are written, and hashed, alike."""
  if isinstance(value, float):
    value = float(value)  # numpy's float64 prints its type
    return int(value) if value.is_integer() else value
  return value


def _row_from_dict(data: Any, where: str) -> NetworkRow:
  data = dict(_fields(NetworkRow, data, where))
  try:
    data['genotype'] = Genotype.from_dict(data['genotype'])
  except ValueError as e:
    raise ValueError(f'{where}: {e}') from e
  return NetworkRow(**data)


def _series_from_dict(data: Any, space: str) -> Series:
  expected = layout(space)
  check(isinstance(data, Mapping), 'series', data, 'a JSON object')
  for name, want in expected.items():
    check(data.get(name) == want, f'series.{name}', data.get(name), repr(want))
  data = {k: v for k, v in data.items() if k not in expected}
  data = dict(_fields(Series, data, 'series'))
  check(
    isinstance(data['value_ms'], list),
    'series.value_ms',
    data['value_ms'],
    'a list',
  )
  data['value_ms'] = tuple(data['value_ms'])
  if data.get(ENERGY) is not None:
    check(
      isinstance(data[ENERGY], list), f'series.{ENERGY}', data[ENERGY], 'a list'
    )
    data[ENERGY] = tuple(data[ENERGY])
  return Series(**data)


def _fields(cls: type, data: Any, where: str) -> Mapping[str, Any]:
  """Returns `data` if it has the fields of a dataclass and no others."""
  names = {f.name for f in dataclasses.fields(cls)}
  check(isinstance(data, Mapping), where, data, 'a JSON object')
  missing = sorted(names - set(data) - {ENERGY})
  unknown = sorted(set(data) - names)
  if missing or unknown:
    raise ValueError(
      f'{where} lacks the fields {missing} and has the unknown '
      f'fields {unknown}.'
    )
  return data
