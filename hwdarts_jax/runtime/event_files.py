"""TensorBoard's event files in a bucket, through `etils.epath` like all else.

tensorboardX writes to gs:// and s3:// by client libraries of its own, which
need not be those that read the workdir. An object cannot be appended to, so a
file there is what it holds, written again at every flush.
"""

from __future__ import annotations

import io

from etils import epath
from tensorboardX import record_writer

_SCHEMES = ('gs', 's3', 'az')


class _Object:
  """An event file in a bucket."""

  def __init__(self, path: str):
    self._path = epath.Path(path)
    self._buffer = io.BytesIO()
    self._flushed = 0  # bytes

  def write(self, data: bytes) -> None:
    """Keeps data for the next flush."""
    self._buffer.write(data)

  def flush(self) -> None:
    """Writes the whole object, if there is more than before."""
    if self._buffer.tell() > self._flushed:
      self._path.write_bytes(self._buffer.getvalue())
      self._flushed = self._buffer.tell()

  def close(self) -> None:
    """Writes what is left."""
    self.flush()


class _Factory:
  """What tensorboardX asks for a scheme."""

  def open(self, path: str) -> _Object:
    """Opens an event file."""
    return _Object(path)

  def directory_check(self, path: str) -> None:
    """Nothing: folders of a bucket need not be made."""


def use_epath() -> None:
  """Makes tensorboardX write to buckets by `etils.epath`."""
  for scheme in _SCHEMES:
    record_writer.register_writer_factory(scheme, _Factory())
