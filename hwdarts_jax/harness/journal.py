"""What a run has done so far: it outlives kill -9, and the next run goes on.

A folder beside the table, `<out>.partial/`:

    config.json       what is measured, and how; another run must have the same
    models/           converted models
    models.jsonl      a line for each of them, when it is complete
    readings.jsonl    a line for each reading

Lines are appended and synced one by one. A last line without its end, of a run
that was killed while it wrote, is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

from hwdarts_jax.harness.convert import Converted
from hwdarts_jax.runtime import workdir
from hwdarts_jax.runtime.workdir import UserError

_MODELS, _READINGS = 'models.jsonl', 'readings.jsonl'


class Journal:
  """The folder of one run; see `begin`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._models = {
      line['file']: int(line['num_ops']) for line in self._read(_MODELS)
    }
    self.readings = list(self._read(_READINGS))

  def model_path(self, file: str) -> pathlib.Path:
    """Path of a converted model."""
    return self.folder / 'models' / file

  def num_ops(self, file: str) -> int | None:
    """Operations of a converted model; None if it is still to be converted."""
    if file in self._models and self.model_path(file).exists():
      return self._models[file]
    return None

  def add_model(self, file: str, converted: Converted) -> None:
    """Keeps a converted model."""
    with _saving(self.folder):
      path = self.model_path(file)
      path.parent.mkdir(exist_ok=True)
      workdir.write_bytes_atomic(path, converted.data)
      self._append(_MODELS, {'file': file, 'num_ops': converted.num_ops})
    self._models[file] = converted.num_ops

  def add_reading(self, reading: Mapping[str, Any]) -> None:
    """Keeps a reading, a JSON-able dict."""
    with _saving(self.folder):
      self._append(_READINGS, reading)
    self.readings.append(dict(reading))

  def remove(self) -> None:
    """Removes the folder; the table is written."""
    shutil.rmtree(self.folder, ignore_errors=True)

  def _append(self, name: str, line: Mapping[str, Any]) -> None:
    path = self.folder / name
    size = path.stat().st_size if path.exists() else 0
    data = json.dumps(line).encode() + b'\n'
    try:
      with path.open('ab') as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    except OSError:
      with contextlib.suppress(OSError):
        os.truncate(path, size)
      raise

  def _read(self, name: str) -> Iterator[dict[str, Any]]:
    path = self.folder / name
    if not path.exists():
      return
    data = path.read_bytes()
    whole = data[: data.rfind(b'\n') + 1]
    if len(whole) < len(data):
      os.truncate(path, len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
      try:
        yield json.loads(line)
      except ValueError as e:
        raise UserError(
          f'line {number} of {path} is damaged. Remove that line, or remove '
          f'{self.folder} to begin anew.'
        ) from e


@contextlib.contextmanager
def reserved(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the folder of a table's journal; no other run has it meanwhile.

  Raises:
    UserError: a run that is still going on has it.
  """
  folder = out.with_name(f'{out.name}.partial')
  with contextlib.ExitStack() as stack:
    with _explaining(folder):
      stack.enter_context(workdir.lock(folder))
    yield folder


def begin(folder: pathlib.Path, settings: Mapping[str, Any]) -> Journal:
  """Opens the journal in a folder that is reserved.

  Args:
    folder: of the journal.
    settings: all that the readings depend on, JSON-able.

  Raises:
    UserError: the folder belongs to a run with other settings.
  """
  with _explaining(folder):
    workdir.prepare(folder, settings)
  return Journal(folder)


@contextlib.contextmanager
def _explaining(folder: pathlib.Path) -> Iterator[None]:
  """Says what to do in terms of the harness."""
  try:
    with _saving(folder):
      yield
  except UserError as e:
    text = str(e).replace(
      'Choose another --workdir, or use',
      f'Remove {folder} to begin anew, choose another --out, or use',
    )
    raise UserError(text.replace('--workdir', '--out')) from e


@contextlib.contextmanager
def _saving(folder: pathlib.Path) -> Iterator[None]:
  """Tells what cannot be written, and that nothing is lost."""
  try:
    yield
  except OSError as e:
    raise UserError(
      f'Cannot write to {folder}: {os.strerror(e.errno or 0)}. All that was '
      'measured before is kept; make room and start the same command again.'
    ) from e
