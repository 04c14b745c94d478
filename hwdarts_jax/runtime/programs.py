"""Traced programs, kept for the next start.

The persistent cache of JAX spares a second start the compilation of a program,
but not its tracing, which takes Python many seconds for a large supernet. Here
the traced program is kept as well, as `jax.export` serializes it, beside the
compiled ones: a program is found again by the digest of all that went into it,
and is neither traced nor lowered again. Whether it was found or has just been
traced, what is compiled is the same, and so are the results.

What is trusted: the folder, which must belong to the user of this process, like
the compiled programs of JAX in it. Nothing is unpickled, and what was changed
by accident is told from its checksum; but a program that somebody else may
write there is run. Files of other users are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import sysconfig
from typing import Any

from absl import logging
import jax
from jax import export
import numpy as np

from hwdarts_jax.runtime import sharding
from hwdarts_jax.runtime import workdir as workdir_lib

_FOLDER = 'traced'
_MOST_KEPT = 100  # programs; the ones longest unused are deleted
_VERSIONS = ('flax', 'jax', 'jaxlib', 'ml_collections', 'numpy', 'optax')
_SETTINGS_OF_CACHES = 'cache'  # in names of settings that change no program
_CHECKSUM = hashlib.sha256().digest_size


def find_or_trace(
  function: Any, args: tuple[Any, ...], facts: Mapping[str, Any] | None
) -> Any:
  """Returns the lowered program of a jitted function.

  Args:
    function: jitted; (state, *data) -> (state, metrics), or -> an array. It
      may donate its state if it returns one.
    args: example arguments; leaves of the state are on their devices.
    facts: JSON-able, all that the function depends on besides its arguments,
      the sources, versions and devices; None to trace it in any case. It is
      traced as well on several devices, and where no cache is kept.

  Returns:
    What ``function.lower(*args)`` does.
  """
  folder = _folder()
  if facts is None or folder is None or len(_devices(args)) != 1:
    return function.lower(*args)
  path = folder / digest({'facts': facts, 'args': _shapes(args), **_world()})
  exported = _read(path)
  if exported is None:
    trace = export.export(jax.jit(_flat(function, args)))
    try:
      exported = trace(jax.tree.leaves(args))
    except ValueError as e:  # such as calls of libraries without a promise
      logging.info('%s is not kept: %s', path, e)
      return function.lower(*args)
    _keep(path, bytes(exported.serialize()))
  return _call(exported, args).lower(*args)


def digest(facts: Any) -> str:
  """Of JSON-able facts."""
  text = json.dumps(facts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def digest_of_arrays(tree: Any) -> str:
  """Of the structure, types, shapes and values of a pytree of arrays."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    value = np.asarray(leaf)
    name = f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'
    found.update(name.encode() + value.tobytes())
  return found.hexdigest()


def digest_of_modules(names: Iterable[str]) -> str | None:
  """Of the sources of loaded modules; None if one has no file."""
  files = [
    getattr(sys.modules.get(name), '__file__', None) for name in set(names)
  ]
  if not all(files):
    return None
  return digest(sorted(_file_digest(pathlib.Path(f)) for f in files if f))


def _folder() -> pathlib.Path | None:
  """Beside the compiled programs of JAX; None where these are not local."""
  cache = jax.config.values['jax_compilation_cache_dir']
  if not cache or '://' in cache or jax.process_count() > 1:
    return None
  return pathlib.Path(cache) / _FOLDER


def _devices(args: Any) -> set[Any]:
  arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
  return {device for array in arrays for device in array.devices()}


def _flat(function: Any, args: tuple[Any, ...]) -> Any:
  """The function from leaves to leaves, as programs know no types of ours."""
  structure: Any = jax.tree.structure(args)

  def call(leaves):
    result = function(*structure.unflatten(leaves))
    if not isinstance(result, tuple):
      return result
    state, metrics = result
    return jax.tree.leaves(state), metrics

  return call


def _call(exported: export.Exported, args: tuple[Any, ...]) -> Any:
  """The inverse of `_flat`, jitted."""
  structure: Any = jax.tree.structure(args[0])
  results: Any = exported.out_tree
  returns_state = results.num_leaves > 1

  def call(*args):
    result = exported.call(jax.tree.leaves(args))
    if not returns_state:
      return result
    leaves, metrics = result
    return structure.unflatten(leaves), metrics

  (device,) = _devices(args)
  mesh = jax.sharding.Mesh(np.array([device]), (sharding.AXIS,))
  return jax.jit(
    call,
    donate_argnums=0 if returns_state else (),
    out_shardings=sharding.replicated(mesh),
  )


def _shapes(args: Any) -> list[str]:
  """What tracing sees of the arguments."""

  def shape(path, leaf):
    aval = jax.typeof(leaf)
    return f'{jax.tree_util.keystr(path)} {aval} {aval.weak_type}'

  leaves = jax.tree_util.tree_leaves_with_path(args)
  return [str(jax.tree.structure(args)), *(shape(*leaf) for leaf in leaves)]


def _world() -> dict[str, Any]:
  """Versions, sources, devices and settings of JAX."""
  device = jax.devices()[0]
  return {
    'versions': [importlib.metadata.version(name) for name in _VERSIONS],
    'python': sys.version,
    'device': [device.platform, device.device_kind],
    'settings': {
      name: str(getattr(jax.config, name, value))
      for name, value in jax.config.values.items()
      if _SETTINGS_OF_CACHES not in name
    },
    'sources': _sources(),
  }


def _sources() -> str:
  """Digest of this package, and of all modules that no package manager put."""
  here = pathlib.Path(__file__).parents[1]
  files = {*here.rglob('*.py'), *_own_files(list(sys.modules.values()))}
  return digest([_file_digest(file) for file in sorted(files)])


def _own_files(modules: Iterable[Any]) -> set[pathlib.Path]:
  """Files of modules outside the folders where packages are installed.

  Some modules name a file that never was, such as PyTorch's `torch.classes`.
  """
  kept = {'stdlib', 'platstdlib', 'purelib', 'platlib'}
  installed = tuple(sysconfig.get_path(name) for name in kept)
  names = {getattr(module, '__file__', None) or '' for module in modules}
  files = {
    pathlib.Path(name).resolve()
    for name in names
    if name.endswith('.py') and not name.startswith(installed)
  }
  return {file for file in files if file.is_file()}


@functools.cache
def _file_digest(file: pathlib.Path) -> str:
  return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(path: pathlib.Path) -> export.Exported | None:
  """The program in a file; None if there is none that may be run."""
  try:
    if path.stat().st_uid != os.getuid():
      logging.warning('%s belongs to another user; it is not read.', path)
      return None
    data = path.read_bytes()
    os.utime(path)
  except OSError:
    return None
  checksum, program = data[:_CHECKSUM], data[_CHECKSUM:]
  if hashlib.sha256(program).digest() != checksum:
    print(f'{path} is damaged; the program is traced again.')
    return None
  return export.deserialize(bytearray(program))


def _keep(path: pathlib.Path, program: bytes) -> None:
  """Writes a program; where that fails, the next start traces again."""
  try:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = hashlib.sha256(program).digest() + program
    workdir_lib.write_bytes_atomic(path, data)
    kept = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime)
    for old in kept[:-_MOST_KEPT]:
      old.unlink(missing_ok=True)
  except OSError as e:
    logging.warning('The traced program is not kept: %s', e)
