"""The folder of a run: one config, one writer, no half-written files.

Everything goes through `etils.epath`, so that a workdir may also live in a
bucket. What only a file system can do, fsync and the lock, is done on local
paths and left out on others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import socket
from typing import Any

from absl import logging
from etils import epath
import jax

import hwdarts_jax

CONFIG = 'config.json'
_LOCK = '.lock'
_TMP = '.tmp-'
_MISSING = '(absent)'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_MAX_SHOWN = 5
_MAX_BYTES = 64 * 2**20  # of a JSON file


class UserError(ValueError):
  """An error that the user can mend: main prints it and exits with 2."""


def first_lines(lines: list[str]) -> list[str]:
  """The first few lines of a message, and how many are left out."""
  more = len(lines) - _MAX_SHOWN
  return lines[:_MAX_SHOWN] + ([f'  and {more} more'] if more > 0 else [])


def is_local(path: epath.PathLike) -> bool:
  """Whether `path` is on a file system of this machine, not in a bucket."""
  return '://' not in os.fspath(epath.Path(path))


def write_bytes_atomic(path: epath.PathLike, data: bytes) -> None:
  """Replaces a file; killed at any moment, it holds the old or the new bytes.

  Args:
    path: file to write; its folder must exist.
    data: the new content.

  Raises:
    OSError: the file cannot be written, for example on a full disk. The old
      content is untouched.
  """
  path = epath.Path(path)
  if not is_local(path):
    path.write_bytes(data)  # object stores replace whole objects at once
    return
  tmp = path.parent / f'{_TMP}{path.name}-{os.getpid()}-{secrets.token_hex(4)}'
  try:
    with tmp.open('wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    tmp.replace(path)
    _sync_folder(path.parent)
  except OSError as e:
    with contextlib.suppress(OSError):
      tmp.unlink(missing_ok=True)
    raise OSError(
      e.errno,
      f'Cannot write {path}: {e.strerror}. It still holds what it held before',
    ) from e


def write_text_atomic(path: epath.PathLike, text: str) -> None:
  """`write_bytes_atomic` of UTF-8 text."""
  write_bytes_atomic(path, text.encode())


def write_json_atomic(path: epath.PathLike, obj: Any) -> None:
  """`write_bytes_atomic` of indented JSON."""
  write_text_atomic(path, json.dumps(obj, indent=2) + '\n')


def read_json(path: epath.PathLike) -> Any:
  """The JSON value in a file that may come from anybody.

  Raises:
    ValueError: it is no JSON, nested too deep, or too large; the message does
      not name the file.
    OSError: it cannot be read.
  """
  with epath.Path(path).open('rb') as f:
    data = f.read(_MAX_BYTES + 1)
  if len(data) > _MAX_BYTES:
    raise ValueError(
      f'more than {_MAX_BYTES >> 20} MiB, the most that such a file may have'
    )
  try:
    return json.loads(data)
  except RecursionError as e:
    raise ValueError('nested too deep') from e


def prepare(
  workdir: epath.PathLike,
  config: Mapping[str, Any],
  ignore: Iterable[str] = (),
  hashes: Mapping[str, str] | None = None,
) -> epath.Path:
  """Makes a workdir that belongs to `config`, or checks that it already does.

  The first use writes `config.json`: the config, versions of packages and
  `hashes`. A later use must have the same config and hashes; other versions
  only raise a warning in the log. Only process 0 reads or writes. Call it
  inside `lock`, so that two new runs cannot both be first.

  Args:
    workdir: folder; created where it is missing.
    config: the resolved config, JSON-able.
    ignore: dotted names of fields, or of whole sections, that may change.
    hashes: digests of what the config only names, for example latency tables.

  Returns:
    The path of the workdir.

  Raises:
    UserError: the workdir belongs to something else; the message says what
      differs and what to do.
  """
  workdir = epath.Path(workdir).expanduser()
  if jax.process_index() != 0:
    return workdir
  _make_own(workdir)
  record = {
    'config': _plain(config),
    'versions': _versions(),
    'hashes': _plain(hashes or {}),
  }
  path = workdir / CONFIG
  if path.exists():
    _check_same(workdir, _read_record(path), record, tuple(ignore))
  else:
    write_json_atomic(path, record)
  return workdir


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
  """Holds the workdir for this process; on remote paths nothing does.

  The lock belongs to the process, not to a file: it ends with the process,
  however that ends. Leftovers of writes that were killed are removed. In a run
  of many processes only process 0 locks. Object stores have no such locks, and
  a lease would outlive a killed run: there it is for the user to start no
  second one.

  Raises:
    UserError: another run holds the workdir, or the folder is not ours.
  """
  workdir = epath.Path(workdir).expanduser()
  if jax.process_index() != 0 or not is_local(workdir):
    yield
    return
  _make_own(workdir)
  path = workdir / _LOCK
  with path.open('ab') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      holder = path.read_text().strip() or 'another process'
      raise UserError(
        f'{workdir} is in use by {holder}. Wait until it ends, stop it, or '
        'choose another --workdir.'
      ) from e
    except OSError as e:
      # Some network file systems have no locks. The run can go on.
      logging.warning('Cannot lock %s (%s): start no second run.', workdir, e)
    f.truncate(0)
    f.write(f'process {os.getpid()} on {socket.gethostname()}\n'.encode())
    f.flush()
    _remove_leftovers(workdir)
    yield  # the file stays: to unlink a lock file is to have two locks


def _make_own(workdir: epath.Path) -> None:
  """Creates the folder, or checks that it is empty or one of ours."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(
      f'Cannot make the folder {workdir}: {e.strerror}. Choose another '
      '--workdir.'
    ) from e
  # Without objects a folder of a bucket does not exist, made or not.
  names = {p.name for p in workdir.iterdir()} if workdir.exists() else set()
  foreign = sorted(n for n in names if n != _LOCK and not n.startswith(_TMP))
  if foreign and CONFIG not in names:
    shown = ', '.join(foreign[:_MAX_SHOWN])
    raise UserError(
      f'{workdir} is not empty ({shown}) and has no {CONFIG}, so no run of '
      'ours made it. Choose a new --workdir.'
    )


def _remove_leftovers(workdir: epath.Path) -> None:
  for path in workdir.iterdir():
    if path.name.startswith(_TMP):
      path.unlink(missing_ok=True)


def _sync_folder(folder: epath.Path) -> None:
  """Makes a rename outlive a power cut."""
  fd = os.open(os.fspath(folder), os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
  """What JSON makes of `data`, so that tuples equal the lists they become."""
  return json.loads(json.dumps(dict(data)))


def _versions() -> dict[str, str]:
  versions = {
    'python': platform.python_version(),
    'hwdarts_jax': hwdarts_jax.__version__,
  }
  for package in _PACKAGES:
    name = 'orbax' if package == 'orbax-checkpoint' else package
    versions[name] = importlib.metadata.version(package)
  return versions


def _read_record(path: epath.Path) -> dict[str, Any]:
  try:
    record = read_json(path)
    parts = [record[k] for k in ('config', 'versions', 'hashes')]
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{path} is damaged ({type(e).__name__}: {e}). Put it back from a copy, '
      'or choose another --workdir.'
    ) from e
  if not all(isinstance(p, dict) for p in parts):
    raise UserError(
      f'{path} is damaged: config, versions and hashes must be objects. Put '
      'it back from a copy, or choose another --workdir.'
    )
  return record


def _check_same(
  workdir: epath.Path,
  old: dict[str, Any],
  new: dict[str, Any],
  ignore: tuple[str, ...],
) -> None:
  """Raises UserError unless config and hashes of two records agree."""
  for name, was, now in _differences(old['versions'], new['versions']):
    logging.warning(
      '%s was made with %s %s, now it is %s: results may differ in the last '
      'bits.',
      workdir,
      name,
      was,
      now,
    )
  differing = [
    d
    for d in _differences(old['config'], new['config'])
    if not any(d[0] == i or d[0].startswith(f'{i}.') for i in ignore)
  ]
  differing += [
    (f'hash of {name}', was, now)
    for name, was, now in _differences(old['hashes'], new['hashes'])
  ]
  if not differing:
    return
  lines = [f'  {n}: {was} there, {now} now' for n, was, now in differing]
  raise UserError(
    '\n'.join(
      [f'{workdir} belongs to a run with other settings:']
      + first_lines(lines)
      + ['Choose another --workdir, or use the original settings.']
    )
  )


def _differences(old: Any, new: Any) -> list[tuple[str, str, str]]:
  """(dotted name, old JSON, new JSON) of each leaf that differs."""
  was, now = dict(_flatten(old)), dict(_flatten(new))
  return [
    (name, was.get(name, _MISSING), now.get(name, _MISSING))
    for name in sorted(was | now)
    if was.get(name) != now.get(name)
  ]


def _flatten(data: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
  """Yields (dotted name, JSON) of the leaves; an empty section is a leaf."""
  if isinstance(data, dict) and data:
    for key, value in data.items():
      yield from _flatten(value, f'{prefix}.{key}' if prefix else key)
  else:
    yield prefix, json.dumps(data)
