"""Times of kernels, read from profiles of a made-up GPU."""

import dataclasses

import pytest

from hwdarts_jax.harness import kernel_times


@dataclasses.dataclass
class _Event:
  start_ns: float
  duration_ns: float


@dataclasses.dataclass
class _Line:
  name: str
  events: list


@dataclasses.dataclass
class _Profile:
  """Looks like a profile, of which it is also the only plane."""

  name: str
  lines: list

  @property
  def planes(self):
    return [self]


def _profile(runs, plane='/device:GPU:0 (a GPU)'):
  """One run after the other; kernels take turns on two streams."""
  streams = [_Line('Stream #7(Kernel)', []), _Line('Stream #9(MemcpyD2D)', [])]
  now = 0.0
  for run in runs:
    for k, duration in enumerate(run):
      streams[k % 2].events.append(_Event(now, duration))
      now += duration + 1e5  # the host is slow to launch the next
  # The same once more, by the names of XLA's ops.
  ops = _Line('XLA Ops', [e for s in streams for e in s.events])
  return _Profile(plane, [*streams, ops])


def test_neither_gaps_nor_a_disturbed_kernel_count():
  runs = [[1e6, 2e6, 5e5]] * 5
  assert kernel_times.device_ms(_profile(runs), 5) == pytest.approx(3.5)
  runs = [[9e6, 2e6, 5e5], *runs[1:]]
  assert kernel_times.device_ms(_profile(runs), 5) == pytest.approx(3.5)


def test_runs_with_other_numbers_of_kernels_count_by_their_mean():
  runs = [[1e6, 1e6], [1e6]]
  assert kernel_times.device_ms(_profile(runs), 2) == pytest.approx(1.5)


def test_what_the_host_did_is_no_time_of_a_device():
  profile = _profile([[1e6]], plane='/host:CPU')
  assert kernel_times.device_ms(profile, 1) is None


@pytest.mark.parametrize(
  'kernels, runs', [(3, 60), (100, 60), (1000, 8), (10**4, 5)]
)
def test_calls_of_very_many_kernels_are_run_less_often(
  monkeypatch, kernels, runs
):
  """Reading their profile would take longer than all else."""
  monkeypatch.setattr(
    kernel_times, 'record', lambda _, runs: _profile([[1e3] * kernels] * runs)
  )
  assert kernel_times.affordable_runs(lambda: None, 60) == runs
