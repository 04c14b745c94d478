"""Where the device spends a step: a profile, summed up by kernel.

While a profiler listens, XLA launches kernels one by one and not as CUDA
graphs, so gaps between kernels are longer than in a timed step; the durations
of the kernels are not.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import tempfile
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks import search_step_report as report

NUM_SHOWN = 40
_PLANE = '/device:GPU:'
_LINE = 'Stream'


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
    'idle_share' of the span, 'kernels' (how many) and 'top', the kernels that
    last longest: name, ms, count, share of 'device_ms'. None where the profile
    has no GPU.
  """
  planes = [p for p in data.planes if p.name.startswith(_PLANE)]
  if not planes:
    return None
  total_ns: dict[str, float] = {}
  count: dict[str, int] = {}
  busy_ns = span_ns = 0.0
  for plane in planes:
    spans = []
    for line in plane.lines:
      if not line.name.startswith(_LINE):
        continue
      for event in line.events:
        name, length = event.name, event.duration_ns
        total_ns[name] = total_ns.get(name, 0.0) + length
        count[name] = count.get(name, 0) + 1
        spans.append((event.start_ns, event.start_ns + length))
    busy_ns += _covered(spans)
    if spans:
      span_ns += max(e for _, e in spans) - min(s for s, _ in spans)
  unit = 1e6 * steps * len(planes)  # ns of all steps to ms of one
  device_ms = sum(total_ns.values()) / unit
  longest = sorted(total_ns, key=total_ns.__getitem__, reverse=True)
  return {
    'steps': steps,
    'device_ms': device_ms,
    'busy_ms': busy_ns / unit,
    'span_ms': span_ns / unit,
    'idle_share': 1 - busy_ns / span_ns if span_ns else None,
    'kernels': sum(count.values()) / steps / len(planes),
    'distinct_kernels': len(count),
    'top': [
      {
        'name': name,
        'ms': total_ns[name] / unit,
        'count': count[name] / steps / len(planes),
        'share': total_ns[name] / unit / device_ms if device_ms else 0.0,
      }
      for name in longest[:NUM_SHOWN]
    ],
  }


def describe(profile: dict[str, Any] | None) -> str:
  """What is printed of `aggregate`."""
  if profile is None:
    return 'The profile has no device plane: this is no GPU.'
  names = ('device_ms', 'busy_ms', 'span_ms', 'idle_share', 'kernels')
  facts = report.format_rows([(n, profile[n]) for n in names])
  rows = [
    (k['ms'], k['count'], 100 * k['share'], k['name'][:60])
    for k in profile['top']
  ]
  table = report.format_table(('ms/step', 'count/step', '%', 'kernel'), rows)
  return f'Profile of {profile["steps"]} steps:\n{facts}\n{table}'


def _covered(spans: list[tuple[float, float]]) -> float:
  """Length of the union of intervals."""
  total, until = 0.0, float('-inf')
  for start, end in sorted(spans):
    total += max(0.0, end - max(start, until))
    until = max(until, end)
  return total
