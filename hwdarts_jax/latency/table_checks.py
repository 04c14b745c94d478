"""Which values a latency table may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

from hwdarts_jax.latency.checks import (
  check,
  is_date,
  is_hash,
  is_json,
  is_number,
)
from hwdarts_jax.latency.series import enumerated
from hwdarts_jax.latency.table_types import (
  Entry,
  KINDS,
  NetworkRow,
  SCHEMA,
  Series,
)
from hwdarts_jax.spaces.checks import is_int
from hwdarts_jax.spaces.spec import Genotype

if TYPE_CHECKING:
  from hwdarts_jax.latency.table import LatencyTable

_TEXTS = (
  'soc',
  'runtime',
  'runtime_version',
  'delegate',
  'affinity',
  'dtype',
  'date',
)


def validate(table: LatencyTable) -> None:
  """Checks every value of a table; every `LatencyTable` has passed it.

  Raises:
    ValueError: a value is missing, negative, not finite or of another type;
      the message names the place.
  """
  _check_header(table)
  check(
    isinstance(table.entries, Mapping),
    'entries',
    table.entries,
    'a mapping from Site.key to Entry',
  )
  for key, entry in table.entries.items():
    check(isinstance(key, str) and bool(key), 'entries', key, 'a Site.key')
    _check_entry(entry, f'entries[{key!r}]')
  check(
    isinstance(table.networks, tuple),
    'networks',
    table.networks,
    'a tuple of NetworkRow',
  )
  for i, row in enumerate(table.networks):
    _check_row(row, f'networks[{i}]')
  if table.series is not None:
    _check_series(table, table.series)


def _check_header(table: LatencyTable) -> None:
  check(table.schema == SCHEMA, 'schema', table.schema, f'{SCHEMA}')
  check(
    isinstance(table.device, str) and bool(table.device),
    'device',
    table.device,
    'a name',
  )
  check(table.kind in KINDS, 'kind', table.kind, f'one of {KINDS}')
  check(table.unit == 'ms', 'unit', table.unit, "'ms'")
  check(
    isinstance(table.space, str),
    'space',
    table.space,
    "the name of a space or ''",
  )
  for name in _TEXTS:
    value = getattr(table, name)
    check(
      value is None or isinstance(value, str),
      name,
      value,
      'a text, or null if it is not known',
    )
  check(
    table.date is None or is_date(table.date),
    'date',
    table.date,
    'an ISO 8601 date such as 2024-05-31, or null if it is not known',
  )
  _check_count(table.threads, 'threads')
  check(
    table.spec_hash is None or is_hash(table.spec_hash),
    'spec_hash',
    table.spec_hash,
    '12 hex digits, or null',
  )
  check(
    isinstance(table.source, Mapping) and is_json(dict(table.source)),
    'source',
    table.source,
    'a JSON object',
  )
  check(
    isinstance(table.notes, tuple)
    and all(isinstance(n, str) for n in table.notes),
    'notes',
    table.notes,
    'texts',
  )


def _check_entry(entry: Entry, where: str) -> None:
  check(isinstance(entry, Entry), where, entry, 'an Entry')
  check(
    is_number(entry.value_ms),
    f'{where}.value_ms',
    entry.value_ms,
    'a finite number of milliseconds, at least 0',
  )
  _check_energy(entry.energy_mj, f'{where}.energy_mj')
  _check_count(entry.repeats, f'{where}.repeats')
  _check_count(entry.rounds, f'{where}.rounds')
  _check_spread(entry.spread_ms, f'{where}.spread_ms')
  check(
    isinstance(entry.noisy, bool),
    f'{where}.noisy',
    entry.noisy,
    'true or false',
  )


def _check_row(row: NetworkRow, where: str) -> None:
  check(
    isinstance(row, NetworkRow) and isinstance(row.genotype, Genotype),
    where,
    row,
    'a NetworkRow',
  )
  _check_network_ms(row.value_ms, f'{where}.value_ms')
  _check_energy(row.energy_mj, f'{where}.energy_mj')
  _check_count(row.repeats, f'{where}.repeats')
  _check_spread(row.spread_ms, f'{where}.spread_ms')
  check(
    is_hash(row.spec_hash), f'{where}.spec_hash', row.spec_hash, '12 hex digits'
  )


def _check_series(table: LatencyTable, series: Series) -> None:
  check(isinstance(series, Series), 'series', series, 'a Series')
  check(
    table.spec_hash is not None,
    'spec_hash',
    table.spec_hash,
    'that of the deployed spec, since there is a series',
  )
  group = enumerated(table.space)[1]
  count = len(group.ops) ** len(group.edges)
  check(
    isinstance(series.value_ms, tuple) and len(series.value_ms) == count,
    'length of series.value_ms',
    len(series.value_ms),
    f'{count}, the cells of {table.space!r}',
  )
  for i, value in enumerate(series.value_ms):
    if value is not None:
      _check_network_ms(value, f'series.value_ms[{i}]')
  check(
    any(v is not None for v in series.value_ms),
    'series.value_ms',
    'all null',
    'a measurement in at least one place',
  )
  if series.energy_mj is not None:
    check(
      len(series.energy_mj) == count,
      'length of series.energy_mj',
      len(series.energy_mj),
      f'{count}, like that of series.value_ms',
    )
    for i, energy in enumerate(series.energy_mj):
      _check_energy(energy, f'series.energy_mj[{i}]')
  _check_count(series.repeats, 'series.repeats')
  _check_spread(series.spread_ms, 'series.spread_ms')


def _check_network_ms(value: Any, where: str) -> None:
  # A table of 15,625 numbers calls this: build the place only on failure.
  if not (is_number(value) and value > 0):
    check(False, where, value, 'a finite number of milliseconds, above 0')


def _check_energy(value: Any, where: str) -> None:
  check(
    value is None or is_number(value),
    where,
    value,
    'a finite number of millijoules, at least 0, or null if it is not known',
  )


def _check_count(value: Any, where: str) -> None:
  check(
    value is None or (is_int(value) and value >= 1),
    where,
    value,
    'a whole number of at least 1, or null if it is not known',
  )


def _check_spread(value: Any, where: str) -> None:
  check(
    value is None or is_number(value),
    where,
    value,
    'a finite number of at least 0, or null if it is not known',
  )
