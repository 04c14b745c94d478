"""The loop of every training job: resume, step, log, checkpoint, stop.

A run that is killed at any moment and started again goes through the same
states, to the bit: the data order is a function of (seed, step), a checkpoint
holds the whole state, and rows of metrics that a checkpoint does not know yet
are dropped and written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import math
import signal
import time
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.jobs import feeding
from hwdarts_jax.runtime import distributed, packing, programs
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.checkpoints import Checkpoints

_AHEAD = 8  # calls that may be in flight
State = Any
Row = dict[str, Any]


class NonFiniteError(workdir_lib.UserError):
  """A loss or gradient is no longer a number."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When things happen, in steps.

  Attributes:
    num_steps: length of the run.
    log_every_steps: steps of one row of metrics.
    checkpoint_every_steps: steps between checkpoints.
    steps_per_call: steps that one call of the compiled update makes.
    keep_checkpoints: how many of the newest are kept.
  """

  num_steps: int
  log_every_steps: int
  checkpoint_every_steps: int
  steps_per_call: int = 1
  keep_checkpoints: int = 3

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not isinstance(value, int) or value < 1:
        raise ValueError(
          f'{field.name} is {value!r}; it must be a whole number, at least 1.'
        )
    # A row must not straddle a checkpoint, nor a call a row.
    for large, small in (
      ('num_steps', 'log_every_steps'),
      ('checkpoint_every_steps', 'log_every_steps'),
      ('log_every_steps', 'steps_per_call'),
    ):
      big, unit = getattr(self, large), getattr(self, small)
      if big % unit:
        raise ValueError(
          f'{large} is {big}; it must be a multiple of {small} = {unit}.'
        )


@dataclasses.dataclass(frozen=True)
class Loop:
  """What the loop calls.

  Attributes:
    name: of the job, for the screen.
    schedule: when things happen.
    compile: (state, chunks) -> step; ``step(state, *chunks) -> (state,
      metrics)`` may donate its state.
    feeds: sources of the chunks.
    on_row: (state, step, row) -> values to add to the row, such as an
      evaluation.
    shown: keys of the row that the progress bar shows.
    advice: what to change when a loss is not finite.
    ended: row -> whether the run ends with it, before its last step.
    packs: fields of the state that are packed, if that pays here, in calls of
      `compile`, `on_row` and steps, which must be `packing.transparent`.
  """

  name: str
  schedule: Schedule
  compile: Callable[..., Callable[..., tuple[State, Any]]]
  feeds: Sequence[feeding.Feed]
  on_row: Callable[[State, int, Row], Mapping[str, Any]]
  shown: tuple[str, ...]
  advice: str
  ended: Callable[[Row], bool] = lambda row: False
  packs: tuple[str, ...] = ()

  def run(self, path: epath.Path, state: State) -> tuple[State, bool]:
    """Runs from the newest checkpoint, or from `state`, to the end.

    SIGTERM ends it after the step in flight, with a checkpoint; of many
    processes, whichever gets it, all end after the next row of metrics.

    Args:
      path: the workdir.
      state: at step 0.

    Returns:
      The last state, and whether it is that of the end: of the last step, or
      of the row that `ended` the run.

    Raises:
      NonFiniteError: a metric is not finite; checkpoints of the time before
        are kept.
      ValueError: all checkpoints are damaged.
    """
    schedule = self.schedule
    with (
      StopSignal() as stop,
      Checkpoints(
        path / 'checkpoints',
        schedule.keep_checkpoints,
        schedule.checkpoint_every_steps,
      ) as checkpoints,
    ):
      restored = checkpoints.restore_latest(state)
      start, pending = 0, []
      if restored is not None:
        start, state = restored.step, restored.state
        pending = restored.extra['pending']
        print(f'Resuming {path} at step {start} of {schedule.num_steps}.')
      with metrics_lib.MetricsWriter(path, start or None) as writer:
        done = start >= schedule.num_steps or self._has_ended(path, start)
        step = start
        if not done:
          try:
            state, step, done = self._steps(
              state, start, pending, checkpoints, writer, stop
            )
          finally:
            for feed in self.feeds:
              feed.close()
    distributed.barrier('all rows are written')
    if not done:
      print(
        f'Stopped at step {step} of {schedule.num_steps}; the same command '
        'goes on from there.'
      )
    return state, done

  def _has_ended(self, path: epath.Path, start: int) -> bool:
    """Whether the row of the restored step ended the run."""
    rows = [r for r in metrics_lib.read(path) if r['step'] == start]
    return any(map(self.ended, rows))

  def _steps(self, state, start, pending, checkpoints, writer, stop):
    """Returns the last state, its step, and whether the run is done."""
    schedule, size = self.schedule, self.schedule.steps_per_call
    if self.packs and packing.pays():
      state = packing.packed(state, self.packs)
    compiled = self.compile(state, [f(start, size) for f in self.feeds])
    begun, step, done = time.monotonic(), start, False
    stopped = self._stops(stop, step)
    calls: list[tuple[int, Any]] = []
    with metrics_lib.Progress(schedule.num_steps, start, self.name) as progress:
      while not done and not stopped:
        state, metrics = compiled(state, *(f(step, size) for f in self.feeds))
        calls.append((step, metrics))
        step += size
        if len(calls) > _AHEAD:
          # Or the data of all steps up to the next row would wait on devices.
          jax.block_until_ready(calls[-_AHEAD][1])
        if step % schedule.log_every_steps:
          stopped = self._stops(stop, step)
          continue
        pending += self._fetch(calls, checkpoints)
        row: Row = {
          k: float(np.mean([r[k] for r in pending])) for k in pending[0]
        }
        row |= self.on_row(state, step, row)
        calls, pending = [], []
        writer.write(step, row)
        progress.update(
          schedule.log_every_steps, {k: row[k] for k in self.shown}
        )
        done = step == schedule.num_steps or self.ended(row)
        self._save(step, state, [], checkpoints, done)
        stopped = self._stops(stop, step)
    if stopped and not done:
      pending += self._fetch(calls, checkpoints)
      self._save(step, state, pending, checkpoints, True)
    checkpoints.wait()
    logging.info(
      '%s: %d steps in %.1f s',
      self.name,
      step - start,
      time.monotonic() - begun,
    )
    return packing.unpacked(state), step, done

  def _stops(self, stop: StopSignal, step: int) -> bool:
    """Whether to end after `step`; all processes must decide the same."""
    if jax.process_count() == 1:
      return stop.received
    if step % self.schedule.log_every_steps:
      return False
    return distributed.any_process(stop.received)

  def _fetch(self, calls, checkpoints: Checkpoints) -> list[dict[str, float]]:
    """Waits for metrics; raises at the first call with one not finite."""
    rows = []
    for step, metrics in calls:
      row = {k: float(v) for k, v in jax.device_get(metrics).items()}
      bad = sorted(k for k, v in row.items() if not math.isfinite(v))
      if bad:
        raise self._not_finite(', '.join(bad), step, checkpoints)
      rows.append(row)
    return rows

  def _save(
    self, step, state, pending, checkpoints: Checkpoints, force
  ) -> None:
    """Saves if due, but never a state from which no run can go on.

    Params may overflow in the very step whose loss was finite.
    """
    if not checkpoints.is_due(step, force):
      return
    state = packing.unpacked(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
      is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
      if is_float and not np.isfinite(leaf.addressable_data(0)).all():
        name = jax.tree_util.keystr(path).lstrip('.')
        raise self._not_finite(name, step, checkpoints)
    checkpoints.save(step, state, {'pending': pending}, force=force)

  def _not_finite(self, what: str, step: int, checkpoints: Checkpoints):
    """The error that says where it happened and what is left."""
    checkpoints.wait()  # a save in flight is not listed
    last = max(checkpoints.steps(), default=None)
    kept = (
      'there is no checkpoint yet'
      if last is None
      else f'the last good checkpoint, of step {last}, is kept'
    )
    return NonFiniteError(
      f'{what} is not finite at step {step}; {kept}. {self.advice}'
    )


class StopSignal:
  """Remembers that SIGTERM came, so that a loop can save and end.

  Attributes:
    received: whether it came.
  """

  def __init__(self):
    self.received = False
    self._old: Any = None

  def __enter__(self) -> StopSignal:
    def handle(signum, frame):
      del signum, frame
      self.received = True

    self._old = signal.signal(signal.SIGTERM, handle)
    return self

  def __exit__(self, *unused: Any) -> None:
    signal.signal(signal.SIGTERM, self._old)


def compile_together(
  message: str,
  jobs: Sequence[tuple[Any, tuple[Any, ...]]],
  deterministic: bool,
  facts: Sequence[Mapping[str, Any] | None] = (),
) -> list[Any]:
  """Compiles several functions side by side, with a sign of life.

  Args:
    message: shown while it lasts.
    jobs: pairs of a jitted function and its example arguments, the one that
      takes longest first.
    deterministic: whether a GPU must add numbers up in the same order always.
    facts: of each function, what `programs.find_or_trace` finds it by; none for
      functions that are traced at every start.

  Returns:
    The compiled functions.
  """
  options: dict[str, Any] = {}
  if deterministic and jax.default_backend() == 'gpu':
    options['xla_gpu_deterministic_ops'] = True
  begun = time.monotonic()
  with (
    metrics_lib.heartbeat(message),
    concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool,
  ):
    # Tracing holds the interpreter lock, compiling does not: what is traced is
    # compiled while the next is traced, at last the largest.
    futures = []
    for i, (function, args) in reversed([*enumerate(jobs)]):
      lowered = programs.find_or_trace(
        function, args, facts[i] if facts else None
      )
      futures.append(pool.submit(lowered.compile, compiler_options=options))
    compiled = [future.result() for future in reversed(futures)]
  logging.info('%s: %.1f s', message, time.monotonic() - begun)
  return compiled


@contextlib.contextmanager
def opened(
  config: Any, workdir: str, hashes: Mapping[str, str]
) -> Iterator[epath.Path]:
  """The workdir of a run, held while its processes are in it.

  Args:
    config: of the run.
    workdir: the folder; see `workdir.prepare`.
    hashes: of what the config only names.
  """
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(workdir, config.to_dict(), hashes=hashes)
    distributed.check_shared(path)
    _keep_compiled(path, config.deterministic)
    yield path


def _keep_compiled(path: epath.Path, deterministic: bool) -> None:
  """Keeps compiled programs in the workdir, if a run must be deterministic.

  A GPU compiler times alternatives and may choose another the next time; a
  resumed run takes the very program that the first one compiled.
  """
  if not deterministic:
    return
  jax.config.update('jax_compilation_cache_dir', str(path / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  compilation_cache.reset_cache()  # the cache of before is already open


def count_correct(count, state, images, batch_size: int, mesh) -> float:
  """Accuracy on a whole split, over all devices of all processes.

  Args:
    count: compiled (state, batch) -> i32[], the right answers of all rows.
    state: what it takes.
    images: the split.
    batch_size: see `feeding.eval_batches`.
    mesh: devices.
  """
  batches = feeding.eval_batches(images, batch_size, mesh)
  right = sum_one_by_one(count(state, batch) for batch in batches)
  return int(right) / images.num_examples


def sum_one_by_one(results) -> np.ndarray:
  """Sums arrays of programs on several devices, each waited for.

  Where devices are threads of a CPU, programs whose devices meet, started one
  on the other's heels, may wait for each other for ever.
  """
  return sum((np.asarray(result) for result in results), np.zeros((), int))
