"""Batches of sets on disk: decoded by workers, each process its own part.

A batch is a function of (seed, step) alone, augmentation included: a run that
resumes in mid-epoch, or goes on with other workers, processes or devices, sees
the images that it would have seen anyway, and nothing of this is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax
import numpy as np

from hwdarts_jax.data import parts, pipeline, workers
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.records import Records, stack


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Step -> the rows of its batch that this process needs."""

  records: Records
  batch_size: int
  seed: int
  rows: np.ndarray
  augment: Augment

  def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    examples = pipeline.batch_indices(
      self.records.num_examples, self.batch_size, self.seed, step
    )
    return stack(
      self.records.trained(
        int(examples[row]),
        self.seed,
        step * self.batch_size + int(row),
        self.augment,
      )
      for row in self.rows
    )


class Feed:
  """Gives the data of any steps, like `pipeline.Feed`.

  Attributes:
    resident: False.
    steps_per_epoch: batches that fit into one pass over the set.
  """

  resident = False

  def __init__(
    self,
    records: Records,
    batch_size: int,
    seed: int,
    augment: Augment,
    batch_sharding: jax.sharding.Sharding | None = None,
  ):
    """Starts nothing yet.

    Args:
      records: where the examples come from.
      batch_size: B, over all devices of all processes.
      seed: of the order, and of what workers vary.
      augment: of train images, of which the workers do their part.
      batch_sharding: of [K, B], split over B at most; None is the default
        device.

    Raises:
      ValueError: the batch size is out of range.
    """
    pipeline.check_batch(batch_size, records.num_examples, batch_sharding)
    self.steps_per_epoch = records.num_examples // batch_size
    self._size = batch_size
    self._sharding = batch_sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
    rows = parts.own_rows(self._sharding, batch_size, axis=1)
    self._task = _Batch(records, batch_size, seed, rows, augment)
    self._workers = records.workers
    self._results: Iterator[Any] | None = None
    self._next = -1  # step that `_results` has next
    self._last: tuple[tuple[int, int], pipeline.Chunk] | None = None

  def __call__(self, step: int, num_steps: int) -> pipeline.Chunk:
    """Returns the data of steps `step` to `step + num_steps - 1`.

    Steps in their order are ready sooner; others start the workers again.

    Raises:
      ValueError: `step` is negative or `num_steps` is not positive, or an image
        cannot be read.
    """
    pipeline.check_steps(step, num_steps)
    if self._last is not None and self._last[0] == (step, num_steps):
      return self._last[1]
    if self._results is None or step != self._next:
      self.close()
      self._results = workers.run(self._task, step, None, self._workers)
    steps = [next(self._results) for _ in range(num_steps)]
    self._next = step + num_steps
    images, labels = (np.stack(arrays) for arrays in zip(*steps, strict=True))
    chunk = pipeline.Chunk(
      self._put(images), self._put(labels), np.arange(num_steps, dtype=np.int32)
    )
    self._last = (step, num_steps), chunk
    return chunk

  def close(self) -> None:
    """Ends the workers."""
    if self._results is not None:
      self._results.close()  # type: ignore[attr-defined]
    self._results, self._last = None, None

  def _put(self, local: np.ndarray) -> jax.Array:
    """Rows [K, b, ...] of this process as an array [K, B, ...] of all."""
    rows = self._task.rows
    return parts.assemble(local, rows, self._sharding, self._size, axis=1)
