"""A bucket that is a folder: what gs:// does, without the network.

Paths go through `etils.epath` and its fsspec back end, as they do with `gcsfs`,
to a file system that behaves like an object store: no folders but those of
objects, no appending, and a write is there when the file is closed. Orbax does
what it does in a bucket; only its native driver is sent to the same folder.
"""

from __future__ import annotations

import os
import pathlib

from etils.epath import backend, gpath
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils

_PREFIX = 'gs://'


class _Bucket(DirFileSystem):
  """Objects as files below `root`."""

  protocol = ('gs', 'gcs')
  cachable = False

  def __init__(self, root: pathlib.Path):
    super().__init__(path=str(root), fs=LocalFileSystem(auto_mkdir=True))

  def _join(self, path):
    if isinstance(path, str):
      path = path.removeprefix(_PREFIX).strip('/')
    elif isinstance(path, os.PathLike):
      return self._join(os.fspath(path))
    return super()._join(path)

  def mkdir(self, path, *args, **kwargs):
    """Nothing: a prefix exists when an object has it."""

  def makedirs(self, path, *args, **kwargs):
    """Nothing, likewise."""

  def isdir(self, path):
    return any(p.is_file() for p in pathlib.Path(self._join(path)).rglob('*'))

  def exists(self, path):
    return pathlib.Path(self._join(path)).is_file() or self.isdir(path)

  def listdir(self, path, detail=True, **kwargs):
    if not self.isdir(path):
      raise FileNotFoundError(path)
    return super().listdir(path, detail=detail, **kwargs)

  def open(self, path, *args, mode='rb', **kwargs):
    if 'a' in mode or '+' in mode:
      raise NotImplementedError(f'no object can be opened by {mode!r}')
    return super().open(path, *args, mode=mode, **kwargs)


def install(monkeypatch, root: pathlib.Path) -> None:
  """Sends every gs:// path below `root`, until the test ends."""
  bucket = _Bucket(root)
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', backend.fsspec_backend)
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(backend.fsspec_backend, 'fs', lambda path: bucket)
  # Asked of Google's client library before a folder is deleted.
  monkeypatch.setattr(
    gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False
  )
  monkeypatch.setattr(
    gcs_utils,
    'get_kvstore_for_gcs',
    lambda path: {
      'driver': 'file',
      'path': f'{root}/{path.removeprefix(_PREFIX)}',
    },
  )
