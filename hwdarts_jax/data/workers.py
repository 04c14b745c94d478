"""Runs a function of a step number ahead of time, in order, by grain.

What comes out does not depend on the number of workers: a step is one task,
and tasks are pure functions of their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import os
from typing import Any

from absl import flags
import numpy as np

_MANY = 2**31  # steps, where there is no end
_THREADS = 8
_BUFFER = 2  # results that each process keeps ready


@dataclasses.dataclass(frozen=True)
class _Tasks:
  """What grain reads from: task `start + index` at `index`."""

  task: Callable[[int], Any]
  start: int
  end: int

  def __len__(self) -> int:
    return self.end - self.start

  def __getitem__(self, index: int) -> Any:
    return self.task(self.start + index)


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0))


def run(
  task: Callable[[int], Any], start: int, end: int | None, workers: int
) -> Iterator[Any]:
  """Yields task(start), task(start + 1) and so on, computed ahead.

  Args:
    task: pure, number -> tuple of arrays; must be picklable, if there are
      processes.
    start: first number.
    end: number after the last; None: there is no end.
    workers: how many processes run tasks; 0: threads of this one.

  Raises:
    ValueError: of a task.
  """
  import grain  # slow; sets in memory need none

  if not flags.FLAGS.is_parsed():  # where no command line was: grain reads some
    flags.FLAGS.mark_as_parsed()
  tasks = _Tasks(task, start, start + _MANY if end is None else end)
  threads = 1 if workers else min(_THREADS, cores())
  dataset = grain.MapDataset.source(tasks).to_iter_dataset(
    grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(_BUFFER, threads)
    )
  )
  if workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=_BUFFER
      )
    )
  iterator = iter(dataset)
  try:
    for result in iterator:
      # Copies, since arrays of processes lie in memory that is given back.
      yield tuple(np.array(r) for r in result) if workers else result
  finally:
    iterator.close()
