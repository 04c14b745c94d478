"""Latency tables: what a device was measured to need, as JSON.

One file holds the measurements of one device: entries of single operations,
keyed by `Site.key`, and latencies of whole networks. Either may be missing.
Nothing is ever filled in: an unknown key is an error that names the key and
the command that measures it, and a fact the source does not state is None.

Whole networks come in two forms. A `NetworkRow` names its genotype. A `Series`
is the compact form for a space that is measured throughout: one number for
each cell of the space in the order of `enumerate_ops`, None where the cell was
not measured. Both are read through `LatencyTable.measured_networks` and
`LatencyTable.networks_one_hot`. The format is described in
``latency_tables/README.md``.

No jax is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import datetime
import functools
import gzip
import hashlib
import io
import json
import reprlib
import sys
import sysconfig
from typing import Any
import uuid
import zlib

from etils import epath
import numpy as np

from hwdarts_jax.spaces import discretize, nasbench201
from hwdarts_jax.spaces.spec import Choice, Genotype, GroupSpec, NetworkSpec

SCHEMA = 1
KINDS = ('measured', 'published', 'estimated')
MAX_BYTES = 64 * 2**20  # of uncompressed JSON
MEASURE_COMMAND = (
  'python -m hwdarts_jax.harness --config=... --runner=... --out=...'
)

_SUFFIXES = ('.json.gz', '.json')
_TEXTS = (
  'soc',
  'runtime',
  'runtime_version',
  'delegate',
  'affinity',
  'dtype',
  'date',
)
# Spaces whose cells can be numbered: each edge takes any op, in one group.
_ENUMERATED = {
  'nasbench201': (
    nasbench201.GROUP,
    GroupSpec(nasbench201.OPS, nasbench201.EDGES),
  )
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """The latency of one operation.

  Attributes:
    value_ms: milliseconds; 0 where the runtime drops the operation.
    repeats: timed runs, or None if unknown.
    rounds: shuffled rounds the runs were spread over, or None if unknown.
    spread_ms: difference between the slowest and the fastest round in
      milliseconds, or None if unknown.
    noisy: whether the rounds still disagreed after all re-measurements.
  """

  value_ms: float
  repeats: int | None
  rounds: int | None
  spread_ms: float | None
  noisy: bool = False


@dataclasses.dataclass(frozen=True)
class NetworkRow:
  """The latency of one whole network.

  Attributes:
    genotype: the network.
    value_ms: milliseconds.
    repeats: timed runs, or None if unknown.
    spread_ms: as in `Entry`.
    spec_hash: `NetworkSpec.spec_hash` of the space it was deployed from.
  """

  genotype: Genotype
  value_ms: float
  repeats: int | None
  spread_ms: float | None
  spec_hash: str


@dataclasses.dataclass(frozen=True)
class Series:
  """The latencies of all cells of the table's space, deployed by its spec.

  Attributes:
    value_ms: milliseconds in the order of `enumerate_ops`; None where the cell
      was not measured.
    repeats: timed runs of each, or None if unknown.
    spread_ms: as in `Entry`, typical of the series, or None if unknown.
  """

  value_ms: tuple[float | None, ...]
  repeats: int | None = None
  spread_ms: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyTable:
  """All measurements of one device. Whatever is not known is None.

  Attributes:
    device: name of the device; file names begin with it.
    kind: 'measured' by our harness, 'published' by others, or 'estimated'.
    source: where the numbers come from, as JSON-able data.
    soc: the chip.
    runtime: what ran the networks.
    runtime_version: its version.
    delegate: accelerator back end of the runtime.
    threads: number of CPU threads.
    affinity: CPU cores the process was pinned to.
    dtype: number format of the deployed networks.
    date: ISO 8601 date of the measurement.
    unit: always 'ms'.
    space: name of the space that was measured, or '' for several.
    spec_hash: hash of the deployed spec that was measured.
    notes: what a reader of the numbers has to know.
    schema: version of the format.
    entries: latencies of operations by `Site.key`.
    networks: latencies of whole networks, one by one.
    series: latencies of whole networks, as a numbered series.

  Raises:
    ValueError: see `validate`.
  """

  device: str
  kind: str
  source: Mapping[str, Any]
  soc: str | None = None
  runtime: str | None = None
  runtime_version: str | None = None
  delegate: str | None = None
  threads: int | None = None
  affinity: str | None = None
  dtype: str | None = None
  date: str | None = None
  unit: str = 'ms'
  space: str = ''
  spec_hash: str | None = None
  notes: tuple[str, ...] = ()
  schema: int = SCHEMA
  entries: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
  networks: tuple[NetworkRow, ...] = ()
  series: Series | None = None

  def __post_init__(self):
    validate(self)

  def __hash__(self) -> int:
    return hash(self.table_hash())

  def lookup(self, key: str) -> Entry:
    """Returns the entry of an operation.

    Args:
      key: what `Site.key` returns.

    Raises:
      ValueError: the table has no such entry; the message says how to
        measure it.
    """
    if key not in self.entries:
      raise ValueError(
        f'the latency table of {self.device!r} has no entry {key!r} (it has '
        f'{len(self.entries)} entries). Measure it: {MEASURE_COMMAND}'
      )
    return self.entries[key]

  def missing_keys(self, spec: NetworkSpec) -> tuple[str, ...]:
    """The keys of all ops of all sites of `spec` that have no entry, sorted."""
    keys = {s.key(op) for s in spec.sites() for op in s.ops}
    return tuple(sorted(keys - set(self.entries)))

  def has_networks(self, spec: NetworkSpec) -> bool:
    """Whether whole networks of `spec` were measured."""
    wanted = spec.spec_hash()
    return self._series_is_of(spec) or any(
      r.spec_hash == wanted for r in self.networks
    )

  def check_covers(self, spec: NetworkSpec) -> None:
    """Checks that the table can tell what networks of `spec` cost.

    Either it has an entry for each op of each site, or whole networks of this
    very spec.

    Args:
      spec: the spec that is deployed.

    Raises:
      ValueError: it has neither; the message names what is missing and how to
        measure it.
    """
    missing = self.missing_keys(spec)
    if missing and not self.has_networks(spec):
      hashes = {r.spec_hash for r in self.networks}
      if self.series is not None and self.spec_hash is not None:
        hashes.add(self.spec_hash)
      shown = ', '.join(map(repr, missing[:3]))
      raise ValueError(
        f'the latency table of {self.device!r} does not cover space '
        f'{spec.space!r} with spec hash {spec.spec_hash()}: {len(missing)} '
        f'entries are missing ({shown}{", ..." if missing[3:] else ""}), and '
        f'its whole networks are of spec hashes {sorted(hashes)}. Measure '
        f'them: {MEASURE_COMMAND}'
      )

  def measured_networks(
    self, spec: NetworkSpec
  ) -> tuple[tuple[Genotype, ...], np.ndarray]:
    """Returns the measured networks of `spec`: genotypes and f64[N] ms.

    Raises:
      ValueError: there are none; the message says how to measure them.
    """
    self._check_networks(spec)
    rows = self._rows(spec)
    genotypes = tuple(r.genotype for r in rows)
    values = np.array([r.value_ms for r in rows], np.float64)
    if self._series_is_of(spec):
      genotypes = decode(self.space, self._measured_indices) + genotypes
      values = np.concatenate([self.network_ms, values])
    return genotypes, values

  def networks_one_hot(
    self, spec: NetworkSpec
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the measured networks of `spec` as gates.

    Returns:
      For each group, gates f32[N, E, O] with 1 where a network has an op; and
      latencies f64[N] in milliseconds. The order is that of
      `measured_networks`.

    Raises:
      ValueError: there are none; the message says how to measure them.
    """
    self._check_networks(spec)
    rows = self._rows(spec)
    one_hots = [discretize.one_hot(spec, r.genotype) for r in rows]
    gates = {
      name: np.array([h[name] for h in one_hots], np.float32).reshape(
        -1, *group.shape
      )
      for name, group in spec.groups().items()
    }
    values = np.array([r.value_ms for r in rows], np.float64)
    if self._series_is_of(spec):
      name, group = _enumerated(self.space)
      series = np.eye(len(group.ops), dtype=np.float32)[self.network_ops]
      gates[name] = np.concatenate([series, gates[name]])
      values = np.concatenate([self.network_ms, values])
    return gates, values

  @functools.cached_property
  def series_ms(self) -> np.ndarray:
    """The whole series, f64[cells of the space] ms; NaN: not measured."""
    values = () if self.series is None else self.series.value_ms
    return _read_only(np.array(values, np.float64))

  @functools.cached_property
  def network_ops(self) -> np.ndarray:
    """The measured cells of the series: columns of their ops, i8[N, E]."""
    if self.series is None:
      return _read_only(np.zeros((0, 0), np.int8))
    return _read_only(enumerate_ops(self.space)[self._measured_indices])

  @functools.cached_property
  def network_ms(self) -> np.ndarray:
    """The latencies of `network_ops`, f64[N] milliseconds."""
    return _read_only(self.series_ms[self._measured_indices])

  def to_dict(self) -> dict[str, Any]:
    """A JSON-able dict; `from_dict` is its inverse."""
    data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    data['source'] = dict(self.source)
    data['notes'] = list(self.notes)
    data['entries'] = {
      k: _row_to_dict(self.entries[k]) for k in sorted(self.entries)
    }
    data['networks'] = [
      {**_row_to_dict(r), 'genotype': r.genotype.to_dict()}
      for r in self.networks
    ]
    if self.series is not None:
      data['series'] = {
        **_layout(self.space),
        **_row_to_dict(self.series),
        'value_ms': [_shortest(v) for v in self.series.value_ms],
      }
    return data

  @classmethod
  def from_dict(cls, data: Any) -> LatencyTable:
    """Inverse of `to_dict`.

    Raises:
      ValueError: the data are not a table; the message names the place.
    """
    _check(isinstance(data, Mapping), 'table', data, 'a JSON object')
    # First of all, since another version may well have other fields.
    _check(
      _is_int(data.get('schema')) and data['schema'] == SCHEMA,
      'schema',
      data.get('schema'),
      f'{SCHEMA}, the version that this program reads',
    )
    data = dict(_fields(cls, data, 'table'))
    for name, kind in (
      ('entries', Mapping),
      ('networks', list),
      ('notes', list),
    ):
      _check(
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
      _row_from_dict(v, f'networks[{i}]')
      for i, v in enumerate(data['networks'])
    )
    if data['series'] is not None:
      data['series'] = _series_from_dict(data['series'], data['space'])
    return cls(**data)

  def table_hash(self) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON."""
    return self._hash

  @functools.cached_property
  def _hash(self) -> str:
    text = json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @functools.cached_property
  def _measured_indices(self) -> np.ndarray:
    return np.flatnonzero(~np.isnan(self.series_ms))

  def _rows(self, spec: NetworkSpec) -> list[NetworkRow]:
    wanted = spec.spec_hash()
    return [r for r in self.networks if r.spec_hash == wanted]

  def _series_is_of(self, spec: NetworkSpec) -> bool:
    return self.series is not None and self.spec_hash == spec.spec_hash()

  def _check_networks(self, spec: NetworkSpec) -> None:
    if not self.has_networks(spec):
      raise ValueError(
        f'the latency table of {self.device!r} has no whole networks of '
        f'space {spec.space!r} with spec hash {spec.spec_hash()}. Measure '
        f'some: {MEASURE_COMMAND}'
      )


def load(name_or_path: str | epath.PathLike) -> LatencyTable:
  """Reads a table.

  Args:
    name_or_path: path of a ``.json`` or ``.json.gz`` file, or the name of a
      shipped table: a device (``pixel4_cpu``), with its space where there is
      more than one (``pixel4_cpu.nasbench201``).

  Raises:
    ValueError: there is no such shipped table, or the file is not a valid
      table.
    OSError: the file cannot be read.
  """
  path = _resolve(name_or_path)
  try:
    return LatencyTable.from_dict(_parse(_read(path)))
  except ValueError as e:
    raise ValueError(f'latency table {path}: {e}') from e


def save(table: LatencyTable, path: epath.PathLike) -> None:
  """Writes a table; the file is either complete or not there.

  The same table always makes the same bytes with the same zlib.

  Args:
    table: the table.
    path: ends in ``.json`` or ``.json.gz``; its folder is made if need be.

  Raises:
    ValueError: the name ends otherwise, or the file would be too large to
      load.
    OSError: the file cannot be written.
  """
  path = epath.Path(path)
  _check(
    path.name.endswith(_SUFFIXES),
    'path',
    str(path),
    f'a name that ends in one of {_SUFFIXES}',
  )
  data = _to_text(table.to_dict()).encode()
  _check_size(len(data))
  if path.name.endswith('.gz'):
    buffer = io.BytesIO()
    with gzip.GzipFile('', 'wb', 9, buffer, mtime=0) as f:
      f.write(data)
    data = buffer.getvalue()
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}.tmp'
  try:
    temporary.write_bytes(data)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def available(space: str | None = None) -> tuple[str, ...]:
  """Names ``device.space`` of the shipped tables, sorted.

  Args:
    space: name of a space, to list only its tables.
  """
  return tuple(
    sorted(n for n in _shipped() if space is None or n.endswith(f'.{space}'))
  )


def validate(table: LatencyTable) -> None:
  """Checks every value of a table; every `LatencyTable` has passed it.

  Raises:
    ValueError: a value is missing, negative, not finite or of another type;
      the message names the place.
  """
  _check_header(table)
  _check(
    isinstance(table.entries, Mapping),
    'entries',
    table.entries,
    'a mapping from Site.key to Entry',
  )
  for key, entry in table.entries.items():
    _check(isinstance(key, str) and bool(key), 'entries', key, 'a Site.key')
    _check_entry(entry, f'entries[{key!r}]')
  _check(
    isinstance(table.networks, tuple),
    'networks',
    table.networks,
    'a tuple of NetworkRow',
  )
  for i, row in enumerate(table.networks):
    _check_row(row, f'networks[{i}]')
  if table.series is not None:
    _check_series(table, table.series)


@functools.cache
def enumerate_ops(space: str) -> np.ndarray:
  """All cells of an enumerated space, in the order of a `Series`.

  Cell number n has as its ops the digits of n written in base O, the first
  edge being the most significant digit.

  Args:
    space: name of the space.

  Returns:
    Columns of the ops on the edges of each cell, i8[O**E, E]; read-only.

  Raises:
    ValueError: the cells of the space are not numbered.
  """
  group = _enumerated(space)[1]
  num_edges, num_ops = group.shape
  numbers = np.arange(num_ops**num_edges)[:, None]
  powers = num_ops ** np.arange(num_edges)[::-1]
  return _read_only((numbers // powers % num_ops).astype(np.int8))


def decode(space: str, indices: np.ndarray) -> tuple[Genotype, ...]:
  """Genotypes of the cells with these numbers.

  Args:
    space: name of an enumerated space.
    indices: integers [N], rows of `enumerate_ops`.

  Raises:
    ValueError: the cells of the space are not numbered.
  """
  name, group = _enumerated(space)
  choices = [[Choice(op, *edge) for op in group.ops] for edge in group.edges]
  return tuple(
    Genotype(
      space, {name: tuple(c[o] for c, o in zip(choices, ops, strict=True))}
    )
    for ops in enumerate_ops(space)[indices].tolist()
  )


def _enumerated(space: str) -> tuple[str, GroupSpec]:
  _check(
    space in _ENUMERATED,
    'space of a series',
    space,
    f'one of {sorted(_ENUMERATED)}',
  )
  return _ENUMERATED[space]


def _layout(space: str) -> dict[str, Any]:
  """What the digits of a cell's number mean, for the reader of a file."""
  group = _enumerated(space)[1]
  return {'edges': [list(e) for e in group.edges], 'ops': list(group.ops)}


def _resolve(name_or_path: str | epath.PathLike) -> epath.Path:
  text = str(name_or_path)
  if (
    '/' in text or text.endswith(_SUFFIXES) or not isinstance(name_or_path, str)
  ):
    path = epath.Path(name_or_path)
    _check(
      path.name.endswith(_SUFFIXES),
      'path of a latency table',
      str(path),
      f'a name that ends in one of {_SUFFIXES}',
    )
    return path
  shipped = _shipped()
  names = [n for n in shipped if text in (n, n.rpartition('.')[0])]
  if len(names) == 1:
    return shipped[names[0]]
  raise ValueError(
    f'there is {"no" if not names else "more than one"} latency table of '
    f'device {text!r}; available are {names or sorted(shipped)}. Give a '
    f'path, or measure your own: {MEASURE_COMMAND}'
  )


def _shipped() -> dict[str, epath.Path]:
  """Paths of the shipped tables by ``device.space``."""
  root = epath.Path(__file__).parents[2]
  folders = (
    epath.Path(sysconfig.get_path('data')) / 'share' / 'hwdarts_jax',
    root / 'share' / 'hwdarts_jax',  # after `pip install --target`
    root,  # in a checkout, which comes first
  )
  found = {}
  for folder in (f / 'latency_tables' for f in folders):
    for path in folder.iterdir() if folder.is_dir() else ():
      for suffix in _SUFFIXES:
        if path.name.endswith(suffix) and not path.name.startswith('.'):
          found[path.name.removesuffix(suffix)] = path
          break
  return found


def _read(path: epath.Path) -> bytes:
  """Returns at most `MAX_BYTES` of JSON; what a file holds is not trusted."""
  with path.open('rb') as f:
    data = f.read(MAX_BYTES + 1)
  _check_size(len(data))
  if path.name.endswith('.gz'):
    try:
      with gzip.GzipFile(fileobj=io.BytesIO(data)) as f:
        data = f.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as e:
      raise ValueError(f'not a complete gzip file ({e}).') from e
    _check_size(len(data))
  return data


def _check_size(size: int) -> None:
  if size > MAX_BYTES:
    raise ValueError(
      f'more than {MAX_BYTES >> 20} MiB, the most that a table may have.'
    )


def _parse(data: bytes) -> Any:
  try:
    return json.loads(data.decode(), object_pairs_hook=_object)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f'not JSON ({e}).') from e


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A dict; JSON itself would let the last of two equal keys win silently."""
  result = dict(pairs)
  if len(result) < len(pairs):
    keys = [k for k, _ in pairs]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    raise ValueError(f'keys {twice} occur twice in one object.')
  return result


def _to_text(data: Mapping[str, Any]) -> str:
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


def _row_to_dict(row: Entry | NetworkRow | Series) -> dict[str, Any]:
  return {
    f.name: _shortest(getattr(row, f.name)) for f in dataclasses.fields(row)
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
  layout = _layout(space)
  _check(isinstance(data, Mapping), 'series', data, 'a JSON object')
  for name, want in layout.items():
    _check(data.get(name) == want, f'series.{name}', data.get(name), repr(want))
  data = {k: v for k, v in data.items() if k not in layout}
  data = dict(_fields(Series, data, 'series'))
  _check(
    isinstance(data['value_ms'], list),
    'series.value_ms',
    data['value_ms'],
    'a list',
  )
  data['value_ms'] = tuple(data['value_ms'])
  return Series(**data)


def _fields(cls: type, data: Any, where: str) -> Mapping[str, Any]:
  """Returns `data` if it has the fields of a dataclass and no others."""
  names = {f.name for f in dataclasses.fields(cls)}
  _check(isinstance(data, Mapping), where, data, 'a JSON object')
  missing, unknown = sorted(names - set(data)), sorted(set(data) - names)
  if missing or unknown:
    raise ValueError(
      f'{where} lacks the fields {missing} and has the unknown '
      f'fields {unknown}.'
    )
  return data


def _check_header(table: LatencyTable) -> None:
  _check(table.schema == SCHEMA, 'schema', table.schema, f'{SCHEMA}')
  _check(
    isinstance(table.device, str) and bool(table.device),
    'device',
    table.device,
    'a name',
  )
  _check(table.kind in KINDS, 'kind', table.kind, f'one of {KINDS}')
  _check(table.unit == 'ms', 'unit', table.unit, "'ms'")
  _check(
    isinstance(table.space, str),
    'space',
    table.space,
    "the name of a space or ''",
  )
  for name in _TEXTS:
    value = getattr(table, name)
    _check(
      value is None or isinstance(value, str),
      name,
      value,
      'a text, or null if it is not known',
    )
  _check(
    table.date is None or _is_date(table.date),
    'date',
    table.date,
    'an ISO 8601 date such as 2024-05-31, or null if it is not known',
  )
  _check_count(table.threads, 'threads')
  _check(
    table.spec_hash is None or _is_hash(table.spec_hash),
    'spec_hash',
    table.spec_hash,
    '12 hex digits, or null',
  )
  _check(
    isinstance(table.source, Mapping) and _is_json(dict(table.source)),
    'source',
    table.source,
    'a JSON object',
  )
  _check(
    isinstance(table.notes, tuple)
    and all(isinstance(n, str) for n in table.notes),
    'notes',
    table.notes,
    'texts',
  )


def _check_entry(entry: Entry, where: str) -> None:
  _check(isinstance(entry, Entry), where, entry, 'an Entry')
  _check(
    _is_number(entry.value_ms),
    f'{where}.value_ms',
    entry.value_ms,
    'a finite number of milliseconds, at least 0',
  )
  _check_count(entry.repeats, f'{where}.repeats')
  _check_count(entry.rounds, f'{where}.rounds')
  _check_spread(entry.spread_ms, f'{where}.spread_ms')
  _check(
    isinstance(entry.noisy, bool),
    f'{where}.noisy',
    entry.noisy,
    'true or false',
  )


def _check_row(row: NetworkRow, where: str) -> None:
  _check(
    isinstance(row, NetworkRow) and isinstance(row.genotype, Genotype),
    where,
    row,
    'a NetworkRow',
  )
  _check_network_ms(row.value_ms, f'{where}.value_ms')
  _check_count(row.repeats, f'{where}.repeats')
  _check_spread(row.spread_ms, f'{where}.spread_ms')
  _check(
    _is_hash(row.spec_hash),
    f'{where}.spec_hash',
    row.spec_hash,
    '12 hex digits',
  )


def _check_series(table: LatencyTable, series: Series) -> None:
  _check(isinstance(series, Series), 'series', series, 'a Series')
  _check(
    table.spec_hash is not None,
    'spec_hash',
    table.spec_hash,
    'that of the deployed spec, since there is a series',
  )
  group = _enumerated(table.space)[1]
  count = len(group.ops) ** len(group.edges)
  _check(
    isinstance(series.value_ms, tuple) and len(series.value_ms) == count,
    'length of series.value_ms',
    len(series.value_ms),
    f'{count}, the cells of {table.space!r}',
  )
  for i, value in enumerate(series.value_ms):
    if value is not None:
      _check_network_ms(value, f'series.value_ms[{i}]')
  _check(
    any(v is not None for v in series.value_ms),
    'series.value_ms',
    'all null',
    'a measurement in at least one place',
  )
  _check_count(series.repeats, 'series.repeats')
  _check_spread(series.spread_ms, 'series.spread_ms')


def _check_network_ms(value: Any, where: str) -> None:
  # A table of 15,625 numbers calls this: build the place only on failure.
  if not (_is_number(value) and value > 0):
    _check(False, where, value, 'a finite number of milliseconds, above 0')


def _check_count(value: Any, where: str) -> None:
  _check(
    value is None or (_is_int(value) and value >= 1),
    where,
    value,
    'a whole number of at least 1, or null if it is not known',
  )


def _check_spread(value: Any, where: str) -> None:
  _check(
    value is None or _is_number(value),
    where,
    value,
    'a finite number of at least 0, or null if it is not known',
  )


def _is_number(value: Any) -> bool:
  """Whether `value` is a finite float or int of at least 0."""
  return (
    isinstance(value, float | int)
    and not isinstance(value, bool)
    and 0 <= value <= sys.float_info.max
  )  # false for NaN as well


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_hash(value: Any) -> bool:
  return (
    isinstance(value, str)
    and len(value) == 12
    and set(value) <= set('0123456789abcdef')
  )


def _is_date(value: str) -> bool:
  try:
    datetime.datetime.fromisoformat(value)
  except ValueError:
    return False
  return True


def _is_json(value: Any) -> bool:
  """Whether JSON gives `value` back as it is."""
  try:
    return json.loads(json.dumps(value, allow_nan=False)) == value
  except (TypeError, ValueError, RecursionError):
    return False


def _check(ok: bool, field: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{field} is {reprlib.repr(value)}; it must be {allowed}.')


def _read_only(array: np.ndarray) -> np.ndarray:
  array.setflags(write=False)
  return array
