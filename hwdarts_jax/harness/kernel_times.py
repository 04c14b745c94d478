"""How long kernels ran on a device, by JAX's profiler.

A small model on a fast device is over before the host has launched the next
kernel, so that a clock measures the host. The profiler's stamps come from the
device.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import tempfile
from typing import Any

import jax
from jax.profiler import ProfileData, ProfileOptions

_PLANE = '/device:GPU:'
_LINE = 'Stream'  # other lines tell of the same events in other ways
# Of one profile: more tell no more, and have to be written and read.
_MAX_EVENTS = 8_000
_MIN_RUNS = 5


def affordable_runs(call: Callable[[], Any], runs: int) -> int:
  """How many runs of a call one profile shall hold, found by a profile of one.

  Args:
    call: what to time; compiled, and warm.
    runs: how many are wanted; fewer, down to 5, of a call of very many kernels.

  Returns:
    0 where nothing ran on a GPU.
  """
  kernels = len(_events(record(call, 1)))
  if not kernels:
    return 0
  return min(runs, max(_MIN_RUNS, _MAX_EVENTS // kernels))


def record(call: Callable[[], Any], runs: int) -> ProfileData:
  """The profile of `runs` calls, each waiting for the one before."""
  options = ProfileOptions()
  options.host_tracer_level = 0
  options.python_tracer_level = 0
  options.enable_hlo_proto = False
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      for _ in range(runs):
        jax.block_until_ready(call())
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    return ProfileData.from_file(str(path))


def device_ms(profile: Any, runs: int) -> float | None:
  """Milliseconds that kernels and copies took on GPUs in one of `runs` calls.

  Kernels of one call that differ in how long they took in other calls do so by
  chance: of each, the median over the calls counts. Where the calls did not
  launch the same number of kernels, the mean of all calls counts.

  Args:
    profile: a `ProfileData`, or what looks like one.
    runs: how many calls it holds.

  Returns:
    None where nothing ran on a GPU.
  """
  events = sorted(_events(profile))
  if not events:
    return None
  durations = [duration for _, duration in events]
  if len(durations) % runs:
    return sum(durations) / runs / 1e6
  of_each = len(durations) // runs
  return sum(_median(durations[k::of_each]) for k in range(of_each)) / 1e6


def _events(profile: Any) -> list[tuple[float, float]]:
  """Start and duration of all kernels and copies, in nanoseconds."""
  return [
    (event.start_ns, event.duration_ns)
    for plane in profile.planes
    if plane.name.startswith(_PLANE)
    for line in plane.lines
    if line.name.startswith(_LINE)
    for event in line.events
  ]


def _median(values: list[float]) -> float:
  ordered = sorted(values)
  middle = len(ordered) // 2
  return (ordered[middle] + ordered[~middle]) / 2
