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
import functools
import hashlib
import json
from typing import Any

from etils import epath
import numpy as np

from hwdarts_jax.latency import table_files, table_json
from hwdarts_jax.latency.series import (
  decode,
  enumerate_ops,
  enumerated,
  read_only,
)
from hwdarts_jax.latency.table_checks import validate
from hwdarts_jax.latency.table_files import available, MAX_BYTES
from hwdarts_jax.latency.table_types import (
  Entry,
  KINDS,
  MEASURE_COMMAND,
  NetworkRow,
  SCHEMA,
  Series,
)
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

__all__ = (
  'available',
  'decode',
  'Entry',
  'enumerate_ops',
  'KINDS',
  'LatencyTable',
  'load',
  'MAX_BYTES',
  'MEASURE_COMMAND',
  'NetworkRow',
  'save',
  'SCHEMA',
  'Series',
  'validate',
  'with_series',
)


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

  def energy(self) -> LatencyTable:
    """The table of the millijoules that were measured, as if they were ms.

    Raises:
      ValueError: none were.
    """
    entries = {
      key: dataclasses.replace(e, value_ms=e.energy_mj)
      for key, e in self.entries.items()
      if e.energy_mj is not None
    }
    networks = tuple(
      dataclasses.replace(r, value_ms=r.energy_mj)
      for r in self.networks
      if r.energy_mj is not None
    )
    series = self.series
    if series is not None:
      energy = series.energy_mj or ()
      has_any = any(e is not None for e in energy)
      series = dataclasses.replace(series, value_ms=energy) if has_any else None
    if not (entries or networks or series):
      raise ValueError(
        f'energy_mj cannot be bounded on {self.device!r}: its latency table '
        'has no column energy_mj. Nothing here measures energy; enter what a '
        'power meter says for the entries, networks or series of the table.'
      )
    return dataclasses.replace(
      self, entries=entries, networks=networks, series=series
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
      name, group = enumerated(self.space)
      series = np.eye(len(group.ops), dtype=np.float32)[self.network_ops]
      gates[name] = np.concatenate([series, gates[name]])
      values = np.concatenate([self.network_ms, values])
    return gates, values

  @functools.cached_property
  def series_ms(self) -> np.ndarray:
    """The whole series, f64[cells of the space] ms; NaN: not measured."""
    values = () if self.series is None else self.series.value_ms
    return read_only(np.array(values, np.float64))

  @functools.cached_property
  def network_ops(self) -> np.ndarray:
    """The measured cells of the series: columns of their ops, i8[N, E]."""
    if self.series is None:
      return read_only(np.zeros((0, 0), np.int8))
    return read_only(enumerate_ops(self.space)[self._measured_indices])

  @functools.cached_property
  def network_ms(self) -> np.ndarray:
    """The latencies of `network_ops`, f64[N] milliseconds."""
    return read_only(self.series_ms[self._measured_indices])

  def to_dict(self) -> dict[str, Any]:
    """A JSON-able dict; `from_dict` is its inverse."""
    return table_json.to_dict(self)

  @classmethod
  def from_dict(cls, data: Any) -> LatencyTable:
    """Inverse of `to_dict`.

    Raises:
      ValueError: the data are not a table; the message names the place.
    """
    return table_json.from_dict(cls, data)

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
  path = table_files.resolve(name_or_path)
  try:
    return LatencyTable.from_dict(table_json.parse(table_files.read(path)))
  except ValueError as e:
    raise ValueError(f'latency table {path}: {e}') from e


def with_series(space: str) -> dict[str, LatencyTable]:
  """The shipped tables that have a series over a space, by device."""
  tables = {name: load(name) for name in table_files.available(space)}
  return {
    name.removesuffix(f'.{space}'): table
    for name, table in tables.items()
    if table.series is not None
  }


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
  table_files.write(path, table_json.to_text(table.to_dict()).encode())
