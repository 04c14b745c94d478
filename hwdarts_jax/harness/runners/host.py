"""This machine's CPU, by LiteRT in this process.

    --runner=host                  one thread, on the last core
    --runner=host:threads=4        four threads, on the last four cores
    --runner=host:core=0           one thread, on the first core

With one thread a reading is the median of the thread's CPU time, which another
process cannot lengthen by taking the core; with several it is the minimum of
wall time. What the call of the runtime takes is measured by a model of a single
addition and subtracted, since a network pays it once, not for each op.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import time
from typing import Any

import numpy as np

from hwdarts_jax.harness.runners import (
  Description,
  DeviceError,
  Model,
  ModelError,
  Protocol,
  Reading,
  Runner,
)
from hwdarts_jax.harness.runners._empty_model import call_ms

# Runs are timed in batches of about this long, so that reading the clock, which
# takes a microsecond, is no part of what is measured.
_BATCH_S = 3e-4
_BUSY = 0.5  # load beside us, in processes, from which a remark is made


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the host is measured.

  Attributes:
    threads: of the runtime.
    core: first core to run on; -1: the last ones.
  """

  threads: int = 1
  core: int = -1

  def __post_init__(self):
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= self.threads <= len(cores):
      raise ValueError(
        f'threads is {self.threads}; it must be from 1 to {len(cores)}, the '
        'cores of this machine.'
      )
    last = len(cores) - self.threads
    if not (self.core == -1 or self.core in cores[: last + 1]):
      raise ValueError(
        f'core is {self.core}; for {self.threads} threads it must be one of '
        f'{cores[: last + 1]}, or -1 for the last ones.'
      )

  @property
  def cores(self) -> tuple[int, ...]:
    """The cores to run on."""
    cores = sorted(os.sched_getaffinity(0))
    at = len(cores) - self.threads if self.core < 0 else cores.index(self.core)
    return tuple(cores[at : at + self.threads])


class HostRunner(Runner):
  """Times models in this process."""

  overhead_s = 0.01

  def __init__(self, settings: Settings):
    self._settings = settings
    self._cores = settings.cores
    self._before = os.sched_getaffinity(0)
    self._interpreter: Any = None
    self._rng = np.random.default_rng()
    self._call_ms = 0.0

  def prepare(self) -> Description:
    """See `Runner.prepare`."""
    try:
      module = importlib.import_module('ai_edge_litert.interpreter')
      version = importlib.metadata.version('ai-edge-litert')
    except ImportError as e:
      raise DeviceError(
        'LiteRT is not installed (the package ai-edge-litert). Run '
        "pip install 'hwdarts_jax[tflite]'."
      ) from e
    self._interpreter = module.Interpreter
    self._call_ms = 0.0  # while that is measured
    self._call_ms = call_ms(self.measure)
    one = self._settings.threads == 1
    clock = 'median of CPU time' if one else 'minimum of wall time'
    return Description(
      soc=cpu_name(),
      runtime='LiteRT',
      runtime_version=version,
      delegate='XNNPACK',
      threads=self._settings.threads,
      affinity=f'core {", ".join(map(str, self._cores))}',
      statistic=f'{clock}, less that of an empty model',
      facts={
        'empty_model_ms': round(self._call_ms, 6),
        'cores': os.cpu_count(),
        'machine': platform.machine(),
        'system': f'{platform.system()} {platform.release()}',
        'governor': _governor(self._cores[0]),
      },
      remarks=_busy('at the start', 0),
    )

  def measure(self, model: Model, protocol: Protocol) -> Reading:
    """See `Runner.measure`."""
    os.sched_setaffinity(0, self._cores)
    # Where memory lies is a part of the noise, and would be the same in every
    # round: one op was seen to need a third more in all of a run. So something
    # of another size lies before it each time, in the heap and in pages.
    sizes = self._rng.integers(1, 512, 2) * (64, 4096)
    held = [np.ones(size, np.uint8) for size in sizes]
    try:
      interpreter = self._interpreter(
        model_path=str(model.path), num_threads=self._settings.threads
      )
      interpreter.allocate_tensors()
      for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail['index'], _image(detail))
      reading = self._time(interpreter.invoke, protocol, model)
      ms = max(reading.ms - self._call_ms, 0.0)
      return dataclasses.replace(reading, ms=ms)
    except (RuntimeError, ValueError) as e:
      raise ModelError(f'LiteRT does not run {model.name}: {e}.') from e
    finally:
      del held
      os.sched_setaffinity(0, self._before)

  def finish(self) -> tuple[str, ...]:
    """See `Runner.finish`."""
    return _busy('at the end', self._settings.threads)

  def _time(self, invoke: Any, protocol: Protocol, model: Model) -> Reading:
    one = self._settings.threads == 1
    clock = time.thread_time if one else time.perf_counter
    deadline = time.monotonic() + protocol.timeout_s
    first = _seconds(invoke, clock, 1)
    for _ in range(protocol.warmup_runs - 1):
      first = min(first, _seconds(invoke, clock, 1))
    batch = max(1, round(_BATCH_S / max(first, 1e-7)))
    samples: list[float] = []
    total = 0.0
    while (
      len(samples) * batch < protocol.min_runs or total * 1e3 < protocol.min_ms
    ):
      seconds = _seconds(invoke, clock, batch)
      samples.append(seconds / batch)
      total += seconds
      if time.monotonic() > deadline:
        raise ModelError(
          f'{model.name} took longer than {protocol.timeout_s:g} s.'
        )
    value = statistics.median(samples) if one else min(samples)
    return Reading(value * 1e3, len(samples) * batch)


def cpu_name() -> str | None:
  """Name of the processor, if the system tells it."""
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/cpuinfo').read_text()
    found = re.search(r'(?m)^(?:model name|Model|Hardware)\s*:\s*(.+)$', text)
    if found:
      return ' '.join(found[1].split())
  return platform.processor() or None


def _seconds(invoke: Any, clock: Any, count: int) -> float:
  start = clock()
  for _ in range(count):
    invoke()
  return clock() - start


def _image(detail: Any) -> np.ndarray:
  rng = np.random.default_rng(0)
  if np.issubdtype(detail['dtype'], np.integer):
    return rng.integers(-127, 127, detail['shape']).astype(detail['dtype'])
  return rng.normal(size=detail['shape']).astype(detail['dtype'])


def _governor(core: int) -> str | None:
  path = pathlib.Path(f'/sys/devices/system/cpu/cpu{core}/cpufreq')
  with contextlib.suppress(OSError):
    return (path / 'scaling_governor').read_text().strip()
  return None


def _busy(when: str, own: int) -> tuple[str, ...]:
  """A remark if others than `own` threads keep the machine busy."""
  load = os.getloadavg()[0] - own
  if load < _BUSY:
    return ()
  return (f'The machine was busy {when}: load {load:.1f} beside us.',)


def make(settings: Settings) -> HostRunner:
  """Makes the runner."""
  return HostRunner(settings)
