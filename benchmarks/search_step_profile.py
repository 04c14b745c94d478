"""Where the device spends a step: a profile, summed up by kernel.

While a profiler listens, XLA launches kernels one by one and not as CUDA
graphs, so gaps between kernels are longer than in a timed step; the durations
of the kernels are not.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import re
import tempfile
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks import search_step_report as report

NUM_SHOWN = 40
NUM_FAMILIES = 15
_PLANE = '/device:GPU:'
_LINE = 'Stream'
_LAST_NUMBER = re.compile(r'[._]?\d+$')


def record(call: Callable[[], None], calls: int) -> ProfileData:
  """The profile of `calls` calls, each of which waits for its end."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(calls):
        call()
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    return ProfileData.from_file(str(path))


def aggregate(data: ProfileData, steps: int) -> dict[str, Any] | None:
  """Sums up a profile of `steps` steps.

  Returns:
    Means over devices and steps: 'device_ms' (sum over all kernels), 'busy_ms'
    (time with at least one kernel), 'span_ms' (from the first to the last),
    'idle_share' of the span, 'kernels' (how many), 'top', the kernels that last
    longest (name, ms, count, share of 'device_ms'), and 'families', the same
    with kernels together whose names differ in a last number. None where the
    profile has no GPU.
  """
  planes = [p for p in data.planes if p.name.startswith(_PLANE)]
  if not planes:
    return None
  kernels = _Sums()
  families = _Sums()
  busy_ns = span_ns = 0.0
  for plane in planes:
    spans = []
    for line in plane.lines:
      if not line.name.startswith(_LINE):
        continue
      for event in line.events:
        kernels.add(event.name, event.duration_ns)
        families.add(_LAST_NUMBER.sub('', event.name), event.duration_ns)
        spans.append((event.start_ns, event.start_ns + event.duration_ns))
    busy_ns += _covered(spans)
    if spans:
      span_ns += max(e for _, e in spans) - min(s for s, _ in spans)
  times = steps * len(planes)
  return {
    'steps': steps,
    'device_ms': sum(kernels.ns.values()) / times / 1e6,
    'busy_ms': busy_ns / times / 1e6,
    'span_ms': span_ns / times / 1e6,
    'idle_share': 1 - busy_ns / span_ns if span_ns else None,
    'kernels': sum(kernels.count.values()) / times,
    'distinct_kernels': len(kernels.count),
    'top': kernels.longest(times),
    'families': families.longest(times),
  }


class _Sums:
  """Durations by name."""

  def __init__(self):
    self.ns: dict[str, float] = {}
    self.count: dict[str, int] = {}

  def add(self, name: str, ns: float) -> None:
    """Counts one event."""
    self.ns[name] = self.ns.get(name, 0.0) + ns
    self.count[name] = self.count.get(name, 0) + 1

  def longest(self, times: int) -> list[dict[str, Any]]:
    """The names with most time, as means over `times`."""
    total = sum(self.ns.values()) or 1.0
    order = sorted(self.ns, key=self.ns.__getitem__, reverse=True)
    return [
      {
        'name': name,
        'ms': self.ns[name] / times / 1e6,
        'count': self.count[name] / times,
        'share': self.ns[name] / total,
      }
      for name in order[:NUM_SHOWN]
    ]


def describe(profile: dict[str, Any] | None) -> str:
  """What is printed of `aggregate`."""
  if profile is None:
    return 'The profile has no device plane: this is no GPU.'
  names = ('device_ms', 'busy_ms', 'span_ms', 'idle_share', 'kernels')
  facts = report.format_rows([(n, profile[n]) for n in names])
  tables = (
    report.format_table(
      ('ms/step', 'count/step', '%', name),
      [(k['ms'], k['count'], 100 * k['share'], k['name'][:60]) for k in some],
    )
    for name, some in (
      ('family', profile['families'][:NUM_FAMILIES]),
      ('kernel', profile['top']),
    )
  )
  return '\n'.join([f'Profile of {profile["steps"]} steps:', facts, *tables])


def _covered(spans: list[tuple[float, float]]) -> float:
  """Length of the union of intervals."""
  total, until = 0.0, float('-inf')
  for start, end in sorted(spans):
    total += max(0.0, end - max(start, until))
    until = max(until, end)
  return total
