"""Measured networks as CSV files, and predictions as CSV text.

A file of measurements has a header with the columns ``genotype`` and
``latency_ms``; one of architectures to predict needs only ``genotype``. Other
columns are ignored, and so are empty lines. A genotype is written as
`spaces.to_text` does, or as JSON in one quoted cell. The text is UTF-8, with or
without a byte order mark; lines may end in any of the usual ways.

An architecture may be listed again with the same latency, and counts once. Two
latencies that differ are refused: which of them holds is not ours to guess.
Repeated measurements belong into one row, as their median or mean.

No jax is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import math
import reprlib
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec

GENOTYPE = 'genotype'
LATENCY = 'latency_ms'
PREDICTED = 'predicted_ms'
STD = 'std_ms'
# What no network needs: a sign that the unit is not the millisecond.
_LEAST_MS, _MOST_MS = 1e-6, 1e9
_SAME = 1e-6  # latencies that differ by less, relatively, were only rounded


class Architectures(NamedTuple):
  """The architectures of a file, in its order.

  Attributes:
    texts: genotypes as they stand in the file.
    one_hot: for each group f32[N, E, O].
  """

  texts: tuple[str, ...]
  one_hot: dict[str, np.ndarray]


class Measurements(NamedTuple):
  """Measured networks.

  Attributes:
    one_hot: for each group f32[N, E, O].
    latency_ms: f64[N].
  """

  one_hot: dict[str, np.ndarray]
  latency_ms: np.ndarray

  def take(self, rows: Any) -> Measurements:
    """Some of them: `rows` is i[M] or bool[N]."""
    return Measurements(
      {g: p[rows] for g, p in self.one_hot.items()}, self.latency_ms[rows]
    )


class _Row(NamedTuple):
  """A row of a file: where it stands, and its cells by column."""

  place: str
  cells: dict[str, str]


def read(
  path: epath.PathLike, spec: NetworkSpec, field: str = 'measurements'
) -> Measurements:
  """Reads measured networks; each architecture counts once.

  Args:
    path: a CSV file with the columns `GENOTYPE` and `LATENCY`.
    spec: the space.
    field: of the config that named the file, for messages.

  Raises:
    ValueError: the file cannot be read, or a row cannot be; the message names
      the row.
  """
  seen: dict[bytes, tuple[float, str]] = {}
  one_hots, values = [], []
  for row in _rows(path, (GENOTYPE, LATENCY), field):
    one_hot = _architecture(row, spec)
    ms = _latency(row)
    # Not the genotype, in which the same edges may stand in another order.
    key = b''.join(one_hot[name].tobytes() for name in sorted(one_hot))
    if key in seen:
      _check_same(row, ms, *seen[key])
      continue
    seen[key] = ms, row.place
    one_hots.append(one_hot)
    values.append(ms)
  return Measurements(_stack(spec, one_hots), np.array(values, np.float64))


def read_genotypes(
  path: epath.PathLike, spec: NetworkSpec, field: str = 'predict'
) -> Architectures:
  """Reads architectures; the same one may be listed more than once.

  Args:
    path: a CSV file with the column `GENOTYPE`.
    spec: the space.
    field: of the config that named the file, for messages.

  Raises:
    ValueError: the file cannot be read, has no rows, or a row cannot be; the
      message names the row.
  """
  texts, one_hots = [], []
  for row in _rows(path, (GENOTYPE,), field):
    texts.append(row.cells[GENOTYPE])
    one_hots.append(_architecture(row, spec))
  if not texts:
    raise ValueError(f'{path} has no rows; it needs at least 1.')
  return Architectures(tuple(texts), _stack(spec, one_hots))


def to_csv(columns: Mapping[str, Sequence[str | float]]) -> str:
  """CSV text of columns of equal length; numbers get 7 significant digits."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(columns)
  for cells in zip(*columns.values(), strict=True):
    writer.writerow(c if isinstance(c, str) else f'{c:.7g}' for c in cells)
  return buffer.getvalue()


def _rows(
  path: epath.PathLike, columns: Sequence[str], field: str
) -> Iterator[_Row]:
  """Yields the rows of a file that has these columns."""
  reader = csv.reader(io.StringIO(_text(path, field), newline=''), strict=True)
  header: list[str] = []
  count = 0
  while True:
    line = reader.line_num + 1
    try:
      cells = next(reader, None)
    except csv.Error as e:
      raise ValueError(f'{path}, line {line}: not CSV ({e}).') from e
    if cells is None:
      break
    if not any(c.strip() for c in cells):
      continue
    if not header:
      header = [c.strip() for c in cells]
      _check_header(path, header, columns)
      continue
    count += 1
    place = f'{path}, row {count} (line {line})'
    if len(cells) != len(header):
      raise ValueError(
        f'{place} has {len(cells)} cells where the header has {len(header)}; a '
        'cell with commas, such as JSON, must be in quotes, and quotes inside '
        'it doubled.'
      )
    yield _Row(place, dict(zip(header, cells, strict=True)))
  if not header:
    raise ValueError(
      f'{path} is empty; it needs a header with {" and ".join(columns)}.'
    )


def _text(path: epath.PathLike, field: str) -> str:
  try:
    data = epath.Path(path).expanduser().read_bytes()
  except OSError as e:
    raise ValueError(
      f'{field} is {str(path)!r}, which cannot be read ({e.strerror}); give '
      'the path of a CSV file.'
    ) from e
  try:
    text = data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path} is not UTF-8 (byte {e.start} is 0x{data[e.start]:02x}); save '
      'it as CSV in UTF-8.'
    ) from e
  if '\0' in text:
    raise ValueError(
      f'{path} has zero bytes, so it is no CSV text in UTF-8; save it as such.'
    )
  return text


def _check_header(
  path: epath.PathLike, header: list[str], columns: Sequence[str]
) -> None:
  missing = [c for c in columns if c not in header]
  if missing:
    raise ValueError(
      f'{path} has no column {" and no column ".join(map(repr, missing))}: its '
      f'first line is {reprlib.repr(header)}, and must name '
      f'{" and ".join(columns)}, separated by commas.'
    )
  twice = [c for c in columns if header.count(c) > 1]
  if twice:
    raise ValueError(f'{path} has the column {twice[0]!r} more than once.')


def _architecture(row: _Row, spec: NetworkSpec) -> dict[str, np.ndarray]:
  try:
    genotype = spaces.from_text(spec.space, row.cells[GENOTYPE])
    return discretize.one_hot(spec, genotype)
  except ValueError as e:
    raise ValueError(f'{row.place}: {e}') from e


def _latency(row: _Row) -> float:
  text = row.cells[LATENCY].strip()
  try:
    ms = float(text) if '_' not in text else math.nan
  except ValueError:
    ms = math.nan
  if not _LEAST_MS <= ms <= _MOST_MS:
    raise ValueError(
      f'{row.place}: {LATENCY} is {reprlib.repr(text)}; it must be a number '
      f'of milliseconds above 0, from {_LEAST_MS:g} to {_MOST_MS:g}, with a '
      'decimal point.'
    )
  return ms


def _check_same(row: _Row, ms: float, before: float, place: str) -> None:
  if not math.isclose(ms, before, rel_tol=_SAME):
    raise ValueError(
      f'{row.place}: {LATENCY} is {ms:g}, but {before:g} for the same '
      f'architecture in{place.rpartition(",")[2]}; keep one row for each, with '
      'the median of repeated measurements.'
    )


def _stack(
  spec: NetworkSpec, one_hots: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  return {
    name: np.array([h[name] for h in one_hots], np.float32).reshape(
      -1, *group.shape
    )
    for name, group in spec.groups().items()
  }
