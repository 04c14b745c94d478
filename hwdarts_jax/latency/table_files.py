"""Files of latency tables: found by name, read and written within bounds."""

from __future__ import annotations

import gzip
import io
import uuid
import zlib

from etils import epath

from hwdarts_jax.latency.checks import check
from hwdarts_jax.latency.table_types import MEASURE_COMMAND

MAX_BYTES = 64 * 2**20  # of uncompressed JSON
_SUFFIXES = ('.json.gz', '.json')


def available(space: str | None = None) -> tuple[str, ...]:
  """Names ``device.space`` of the shipped tables, sorted.

  Args:
    space: name of a space, to list only its tables.
  """
  return tuple(
    sorted(n for n in _shipped() if space is None or n.endswith(f'.{space}'))
  )


def resolve(name_or_path: str | epath.PathLike) -> epath.Path:
  """Path of a table, given as in `table.load`; ValueError if none is meant."""
  text = str(name_or_path)
  if (
    '/' in text or text.endswith(_SUFFIXES) or not isinstance(name_or_path, str)
  ):
    path = epath.Path(name_or_path)
    check(
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


def read(path: epath.Path) -> bytes:
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


def write(path: epath.PathLike, data: bytes) -> None:
  """Writes JSON; the file is either complete or not there.

  Raises:
    ValueError: the name has another ending, or the data are too many to read.
    OSError: the file cannot be written.
  """
  path = epath.Path(path)
  check(
    path.name.endswith(_SUFFIXES),
    'path',
    str(path),
    f'a name that ends in one of {_SUFFIXES}',
  )
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


def _shipped() -> dict[str, epath.Path]:
  """Paths of the shipped tables by ``device.space``."""
  # In a checkout this is a link to the folder at its root.
  folder = epath.Path(__file__).parents[1] / 'latency_tables'
  return {
    path.name.removesuffix(suffix): path
    for path in folder.iterdir()
    for suffix in _SUFFIXES
    if path.name.endswith(suffix) and not path.name.startswith('.')
  }


def _check_size(size: int) -> None:
  if size > MAX_BYTES:
    raise ValueError(
      f'more than {MAX_BYTES >> 20} MiB, the most that a table may have.'
    )
