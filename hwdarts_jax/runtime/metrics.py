"""Rows of numbers on disk, and what a waiting person sees meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import sys
import threading
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import tensorboardX
import tqdm

from hwdarts_jax.runtime import event_files
from hwdarts_jax.runtime import workdir as workdir_lib

_FILE = 'metrics.jsonl'
_TENSORBOARD = 'tensorboard'
_PLAIN_SECONDS = 10.0  # between two lines where there is no terminal


class MetricsWriter:
  """Appends one row a step to `metrics.jsonl` and to TensorBoard's files.

  A row is on disk when `write` returns, so that a checkpoint saved after it
  never knows more than the file. (In a bucket, which cannot append, it is
  there after `flush`: call that before a checkpoint is saved.) Only process 0
  writes.
  """

  def __init__(self, workdir: epath.PathLike, resume_step: int | None = None):
    """Opens the file and forgets what the run will do again.

    Args:
      workdir: folder of the run.
      resume_step: step of the checkpoint that was restored; rows after it are
        dropped. None, a run from the start, drops all rows.
    """
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self._path = epath.Path(workdir).expanduser() / _FILE
    last = -1 if resume_step is None else resume_step
    rows = [r for r in _rows(self._path) if r['step'] <= last]
    self._last = rows[-1]['step'] if rows else -1
    text = ''.join(json.dumps(r) + '\n' for r in rows)
    workdir_lib.write_text_atomic(self._path, text)
    self._local = workdir_lib.is_local(self._path)
    self._text = [] if self._local else [text]
    self._file = self._path.open('ab') if self._local else None
    event_files.use_epath()
    self._tensorboard = tensorboardX.SummaryWriter(
      str(self._path.parent / _TENSORBOARD),
      purge_step=last + 1,
      # Names hold whole seconds: a quick second run would overwrite the first.
      filename_suffix=f'.{time.time_ns()}',
    )

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes the row of a step.

    Args:
      step: must be later than that of the last row.
      values: numbers, strings, or arrays of them, by name. NaN and infinities
        become null. Numbers also go to TensorBoard.

    Raises:
      ValueError: the step already has a row, or a value is no metric.
      OSError: the row cannot be written, for example on a full disk.
    """
    if not self._active:
      return
    if step <= self._last:
      raise ValueError(
        f'step is {step}; it must be later than {self._last}, the last row of '
        f'{self._path}: every step has one row.'
      )
    row = {'step': int(step)} | {k: _plain(k, v) for k, v in values.items()}
    self._append(json.dumps(row, allow_nan=False) + '\n')
    self._last = step
    for name, value in row.items():
      if name != 'step' and isinstance(value, int | float):
        self._tensorboard.add_scalar(name, float(value), step)

  def flush(self) -> None:
    """Brings everything to disk."""
    if not self._active:
      return
    if not self._local:
      workdir_lib.write_text_atomic(self._path, ''.join(self._text))
    self._tensorboard.flush()

  def close(self) -> None:
    """`flush`, then closes the files."""
    if not self._active:
      return
    self.flush()
    if self._file is not None:
      self._file.close()
    self._tensorboard.close()
    self._active = False

  def _append(self, line: str) -> None:
    if self._file is None:
      self._text.append(line)
      return
    try:
      self._file.write(line.encode())
      self._file.flush()
    except OSError as e:
      raise OSError(
        e.errno, f'Cannot write a row to {self._path}: {e.strerror}'
      ) from e


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The rows of a run, oldest first; what was no finite number is NaN."""
  nan = float('nan')
  return [
    {k: nan if v is None else v for k, v in row.items()}
    for row in _rows(epath.Path(workdir).expanduser() / _FILE)
  ]


def _rows(path: epath.Path) -> list[dict[str, Any]]:
  """Parsed rows, without those that a kill or a bad disk tore."""
  if not path.exists():
    return []
  rows = []
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      rows.append(row | {'step': int(row['step'])})
    except (ValueError, KeyError, TypeError):
      if number < len(lines):  # a torn last line is what a kill leaves
        logging.warning('%s: line %d is no row; dropped.', path, number)
  return rows


def _plain(name: str, value: Any) -> Any:
  """A JSON value: arrays as lists, what is not finite as None."""
  if hasattr(value, 'dtype'):
    value = np.asarray(value).tolist()
  if isinstance(value, list | tuple):
    return [_plain(name, v) for v in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, bool | int | str):
    return value
  raise ValueError(
    f'metric {name!r} is {value!r}; it must be a number, a string, or an '
    'array of them.'
  )


class Progress:
  """How far a run is, with the time left and the last values.

  A bar on a terminal; elsewhere a plain line at most every ten seconds, with a
  rate that leaves out the first update, which compiles.
  """

  def __init__(self, total: int, initial: int = 0, desc: str = ''):
    """Starts to show.

    Args:
      total: steps of the whole run.
      initial: steps that are already done.
      desc: name of the work.
    """
    self._total, self._done, self._desc = total, initial, desc
    self._bar: tqdm.tqdm | None = None
    self._plain = False
    self._started: tuple[float, int] | None = None
    self._shown = time.monotonic()
    if jax.process_index() != 0:
      return
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total, initial=initial, desc=desc, dynamic_ncols=True
      )
    else:
      self._plain = True

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def update(
    self, steps: int = 1, values: Mapping[str, Any] | None = None
  ) -> None:
    """Counts steps and shows values, for example loss, accuracy and ms.

    Args:
      steps: how many were done since the last call.
      values: numbers or words by name; floats are rounded.
    """
    self._done += steps
    shown = {k: _short(v) for k, v in (values or {}).items()}
    if self._bar is not None:
      self._bar.set_postfix(shown, refresh=False)
      self._bar.update(steps)
    now = time.monotonic()
    if self._started is None:
      self._started = (now, self._done)
    last = self._done >= self._total
    if self._plain and (last or now - self._shown >= _PLAIN_SECONDS):
      self._shown = now
      print(self._line(now, shown), file=sys.stderr, flush=True)

  def close(self) -> None:
    """Leaves the last state on the screen."""
    if self._bar is not None:
      self._bar.close()

  def _line(self, now: float, shown: Mapping[str, str]) -> str:
    share = 100 * self._done / max(self._total, 1)
    parts = [f'{self._desc} {self._done}/{self._total} ({share:.0f} %)'.strip()]
    assert self._started is not None
    since, first = self._started
    if self._done > first and now > since:
      rate = (self._done - first) / (now - since)
      left = max(self._total - self._done, 0) / rate
      parts += [f'{rate:.3g} steps/s', f'{_clock(left)} left']
    return ', '.join(parts + [f'{k} {v}' for k, v in shown.items()])


@contextlib.contextmanager
def heartbeat(message: str) -> Iterator[None]:
  """Shows that long work without steps, such as compiling, is alive.

  On a terminal the seconds count up in place; elsewhere a line comes every ten
  seconds. Work of less than a second shows nothing.

  Args:
    message: what is done, for example 'compiling the bilevel update'.
  """
  if jax.process_index() != 0:
    yield
    return
  start = time.monotonic()
  stop = threading.Event()
  terminal = sys.stderr.isatty()

  def beat() -> None:
    while not stop.wait(1.0 if terminal else _PLAIN_SECONDS):
      _show(f'{message}... {time.monotonic() - start:.0f} s', terminal)

  thread = threading.Thread(target=beat, name='heartbeat', daemon=True)
  thread.start()
  try:
    yield
  except BaseException:
    stop.set()
    thread.join()
    if terminal:
      print(file=sys.stderr)
    raise
  stop.set()
  thread.join()
  seconds = time.monotonic() - start
  if seconds >= 1.0:
    _show(f'{message}: done in {seconds:.0f} s', terminal, last=True)


def _show(line: str, terminal: bool, last: bool = False) -> None:
  """Prints a line, on a terminal over the one before it."""
  text = f'\r\x1b[K{line}' if terminal else line
  end = '' if terminal and not last else '\n'
  print(text, end=end, file=sys.stderr, flush=True)


def _short(value: Any) -> str:
  return value if isinstance(value, str) else f'{float(value):.4g}'


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'
