"""Checkpoints that survive a kill, a full disk and a flipped bit.

A thin layer over Orbax's `CheckpointManager`, which writes in the background
and commits by a rename. Orbax does not notice every changed bit (array chunks
carry no checksum), so each checkpoint also holds a SHA-256 digest of its
leaves, taken before the save returns and compared after a restore. On local
disks there are also digests of its files, so that a damaged one is found before
Orbax stumbles over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import hashlib
import json
from typing import Any, NamedTuple, TypeVar

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from hwdarts_jax.runtime import workdir as workdir_lib

_STATE = 'state'
_INFO = 'info'
_DIGESTS = 'digests.json'
_TMP = '.orbax-checkpoint-tmp'  # what Orbax adds to a step until the commit

State = TypeVar('State')

# What says more about this moment than about the file: never a reason to give
# a checkpoint up.
_PASSING = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    step: step it was saved at.
    state: pytree like the template.
    extra: the JSON-able dict saved with it.
  """

  step: int
  state: Any
  extra: dict[str, Any]


class _DamagedError(Exception):
  """The bytes of a checkpoint are not those that were saved."""


class Checkpoints:
  """The newest checkpoints of one run.

  All processes must make the same calls. `save` returns as soon as the arrays
  are copied to the host: the buffers may be donated at once.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    keep: int = 3,
    save_every_steps: int = 1,
    read_only: bool = False,
  ):
    """Opens a folder of checkpoints, and cleans it of unfinished ones.

    Args:
      directory: the folder; created where it is missing.
      keep: how many of the newest checkpoints are kept.
      save_every_steps: `save` skips other steps, unless forced.
      read_only: change nothing in the folder, for use beside a running job.

    Raises:
      ValueError: `keep` or `save_every_steps` is not positive.
    """
    for field, value in (
      ('keep', keep),
      ('save_every_steps', save_every_steps),
    ):
      if value < 1:
        raise ValueError(f'{field} is {value!r}; it must be at least 1.')
    path = epath.Path(directory).expanduser()
    self.directory = path.resolve() if workdir_lib.is_local(path) else path
    self._every = save_every_steps
    self._read_only = read_only
    self._saving = -1  # step of the newest save, for the background thread
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_names=(_STATE, _INFO),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._record_files
        ),
      ),
    )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any] | None = None,
    force: bool = False,
  ) -> bool:
    """Starts to save; errors of the background come with the next call.

    Args:
      step: step of the run; must be later than any saved before.
      state: pytree of arrays; typed PRNG keys and None are fine.
      extra: JSON-able dict to keep with it.
      force: save even if `step` is no multiple of `save_every_steps`.

    Returns:
      Whether a checkpoint is being written; False where the step is not due or
      is already saved.

    Raises:
      ValueError: an array of the state has no values.
    """
    if not self.is_due(step, force):
      return False
    info = _info(step, state, extra or {})
    self.wait()  # Orbax would, but the thread still needs the old `_saving`
    self._saving = step
    return self._manager.save(
      step,
      args=ocp.args.Composite(
        **{_STATE: ocp.args.StandardSave(state), _INFO: ocp.args.JsonSave(info)}
      ),
      force=True,
    )

  def is_due(self, step: int, force: bool = False) -> bool:
    """Whether `save` would write a checkpoint of `step`."""
    return (force or step % self._every == 0) and step not in self.steps()

  def steps(self) -> list[int]:
    """Steps with a committed checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def restore_latest(self, template: State) -> Restored | None:
    """Restores the newest checkpoint that is whole.

    A damaged one is set aside as `<step>.corrupt` and the one before it is
    taken instead, with a warning in the log.

    Args:
      template: pytree of arrays or `jax.ShapeDtypeStruct` with the structure,
        shapes, dtypes and shardings that the state shall have.

    Returns:
      The checkpoint, equal to the bit to what was saved; None if there is none.

    Raises:
      ValueError: the template does not fit, or every checkpoint is damaged.
    """
    self.wait()
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      restored, problem = self._restore(step, template)
      if _on_every_process(restored is not None):
        self._set_aside(damaged, step)
        return restored
      damaged[step] = problem or 'damaged for another process'
    if not damaged:
      return None
    reasons = ''.join(f'\n  {s}: {why}' for s, why in damaged.items())
    raise ValueError(
      f'No checkpoint in {self.directory} can be restored:{reasons}\n'
      'Put the folder back from a copy, or delete it to start again.'
    )

  def wait(self) -> None:
    """Returns when all saves are on disk; raises what went wrong there."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """`wait`, then stops the background threads."""
    self._manager.close()

  def _restore(self, step: int, template: Any) -> tuple[Restored | None, str]:
    """A restored checkpoint, or None and the reason in words."""
    try:
      self._check_files(step)
      info = self._read_info(step)
      _check_template(self.directory / str(step), info['leaves'], template)
      state = self._read_state(step, template)
      if _digest(state) != info['digest']:
        raise _DamagedError('the values are not those that were saved')
    except _DamagedError as e:
      return None, str(e)
    return Restored(step, state, info['extra']), ''

  def _record_files(self) -> None:
    """Writes the digests of a checkpoint; Orbax calls it before the commit."""
    if jax.process_index() != 0 or not workdir_lib.is_local(self.directory):
      return  # object stores have checksums of their own
    for folder in self.directory.glob(f'{self._saving}{_TMP}*'):
      files = _file_digests(folder)
      workdir_lib.write_json_atomic(
        folder / _DIGESTS, {'files': files, 'header': _sha256(files)}
      )

  def _check_files(self, step: int) -> None:
    """Raises _DamagedError if a file is not what it was when recorded."""
    folder = self.directory / str(step)
    try:
      record = workdir_lib.read_json(folder / _DIGESTS)
      files = record['files']
      known = record['header'] == _sha256(files)
    except (OSError, ValueError, KeyError, TypeError):
      known = False
    if not known:
      return  # in a bucket, or damaged itself: the leaves have their digest
    now = _file_digests(folder)
    changed = [n for n in sorted({*files, *now}) if files.get(n) != now.get(n)]
    if changed:
      raise _DamagedError(f'its file {changed[0]} was changed')

  def _read_info(self, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(**{_INFO: ocp.args.JsonRestore()})
    try:
      info = self._manager.restore(step, args=args)[_INFO]
      header = info.pop('header')
      whole = header == _sha256(info) and info['step'] == step
    except _PASSING:
      raise
    except Exception as e:  # Orbax lets through whatever its layers raise
      raise _DamagedError(_first_line(e)) from e
    if not whole:
      raise _DamagedError(f'its {_INFO} item was changed')
    return info

  def _read_state(self, step: int, template: Any) -> Any:
    abstract = jax.tree.map(_abstract, template)
    args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract)})
    try:
      return self._manager.restore(step, args=args)[_STATE]
    except _PASSING:
      raise
    except Exception as e:  # the template fits, so the files are at fault
      raise _DamagedError(_first_line(e)) from e

  def _set_aside(self, damaged: Mapping[int, str], good: int) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    for step, why in damaged.items():
      aside = self.directory / f'{step}.corrupt'
      logging.warning(
        'Checkpoint %d in %s is damaged (%s); falling back to checkpoint %d. '
        'The damaged one is kept as %s.',
        step,
        self.directory,
        why,
        good,
        aside.name,
      )
      if self._read_only:
        continue
      if jax.process_index() == 0:
        if aside.exists():
          aside.rmtree()
        (self.directory / str(step)).rename(aside)
    if damaged and not self._read_only:
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices('checkpoints set aside')
      self._manager.reload()


def _info(step: int, state: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
  """What is needed to judge a checkpoint: its leaves, digest and own hash."""
  info = {
    'step': int(step),
    'extra': dict(extra),
    'leaves': _describe(state),
    'digest': _digest(state),
  }
  info = json.loads(json.dumps(info))  # as it will be read: tuples are lists
  return info | {'header': _sha256(info)}


def _sha256(data: Any) -> str:
  text = json.dumps(data, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _file_digests(folder: epath.Path) -> dict[str, str]:
  """SHA-256 of each file of the items of a local checkpoint, by its path.

  Files beside the items hold times; Orbax writes them again after the commit.
  """
  paths = sorted(
    root / name
    for root, _, names in folder.walk()
    for name in names
    if root != folder
  )
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in paths
  }


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path), leaf


def _describe(tree: Any) -> dict[str, str]:
  """Dtype and shape of each leaf, by path, in words."""
  result = {}
  for path, leaf in _leaves(tree):
    leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    if not leaf.size:
      # Orbax would say so too, but its threads then wait five minutes.
      raise ValueError(
        f'state{path} has shape {leaf.shape}; arrays of a checkpoint must not '
        'be empty.'
      )
    shape = ', '.join(map(str, leaf.shape))
    result[path] = f'{leaf.dtype}[{shape}]'
  return result


def _digest(tree: Any) -> str:
  """SHA-256 over the bytes of all leaves, in order."""
  digest = hashlib.sha256()
  for _, leaf in _leaves(tree):
    flat = np.ascontiguousarray(_on_host(leaf)).reshape(-1)
    digest.update(flat.view(np.uint8).data)
  return digest.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
  """The whole value of a leaf, also if other processes hold parts of it."""
  if not isinstance(leaf, jax.Array):
    return np.asarray(leaf)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.is_fully_replicated:
    return np.asarray(leaf.addressable_data(0))
  if leaf.is_fully_addressable:
    return np.asarray(leaf)
  return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _abstract(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return leaf
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_template(
  path: epath.Path, saved: Mapping[str, str], template: Any
) -> None:
  """Raises ValueError unless the leaves of a checkpoint fit the template."""
  wanted = _describe(template)
  lines = [
    f'  {p}: {saved.get(p, "absent")} there, {wanted.get(p, "absent")} now'
    for p in sorted({*saved, *wanted})
    if saved.get(p) != wanted.get(p)
  ]
  if not lines:
    return
  raise ValueError(
    '\n'.join(
      [f'The checkpoint {path} was saved by another model or optimizer:']
      + workdir_lib.first_lines(lines)
      + ['Choose another --workdir, or use the original settings.']
    )
  )


def _on_every_process(ok: bool) -> bool:
  if jax.process_count() == 1:
    return ok
  return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def _first_line(error: Exception) -> str:
  lines = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:200]}'
