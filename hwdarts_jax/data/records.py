"""Sets that stay on disk: images are decoded when they are needed.

For what does not fit into memory, and for augmentations that need the images
as they were stored. `Records` is used like `sources.Dataset`; it has no
`images`, but `stream.Feed` and `blocks` decode them in workers.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np

from hwdarts_jax.data import order, prepared, sources, tfds_set, transforms
from hwdarts_jax.data import workers as workers_lib
from hwdarts_jax.data.augment import Augment


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """Labelled images on disk. Other attributes are those of `Dataset`.

  Attributes:
    files: the prepared set.
    tfds_split: split of TFDS that the examples are of.
    indices: i64[N], which of that split.
    crop: share of the shorter side that evaluation sees.
    workers: how many processes decode; 0: threads of this one.
  """

  name: str
  files: tfds_set.Prepared
  tfds_split: str
  indices: np.ndarray
  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop: float = 1.0
  workers: int = 0

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return self.files.num_classes

  @property
  def num_examples(self) -> int:
    """Number of images."""
    return len(self.indices)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of every decoded image."""
    return self.files.image_shape

  def take(self, indices: np.ndarray) -> Records:
    """Returns the examples at `indices`, i[M], in that order."""
    return dataclasses.replace(self, indices=self.indices[indices])

  def evaluated(self, index: int) -> tuple[np.ndarray, int]:
    """One example as it is evaluated: u8[H, W, C] and its label."""
    decode = functools.partial(
      transforms.central, size=self.files.image_size, crop=self.crop
    )
    return self.files.example(self.tfds_split, self._record(index), decode)

  def trained(
    self, index: int, seed: int, position: int, augment: Augment
  ) -> tuple[np.ndarray, int]:
    """One example as it is trained on.

    Args:
      index: of the example.
      seed: of the order of the examples.
      position: of the example in that order, counted over all epochs.
      augment: of which the workers' part is applied.

    Returns:
      u8[H, W, C] and its label.
    """
    decode = functools.partial(
      transforms.random,
      draws=order.Draws(seed, position),
      size=self.files.image_size,
      **augment.of_workers(),
    )
    return self.files.example(self.tfds_split, self._record(index), decode)

  def _record(self, index: int) -> int:
    return int(self.indices[index])

  def blocks(
    self, size: int, rows: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `sources.Dataset.blocks`; nothing else is decoded."""
    count = -(-self.num_examples // size)
    task = _Block(self, size, rows)
    yield from workers_lib.run(task, 0, count, self.workers)

  def in_memory(self) -> sources.Dataset:
    """Decodes all of it, as it is evaluated."""
    images, labels = self.files.read(self.tfds_split, self.indices, self.crop)
    return sources.Dataset(
      self.name, images, labels, self.num_classes, self.mean, self.std
    )


Images = sources.Dataset | Records


@dataclasses.dataclass(frozen=True)
class _Block:
  """Number -> rows of the examples `number * size` and on, as evaluated."""

  records: Records
  size: int
  rows: np.ndarray

  def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    wanted = sources.rows_of_block(
      number * self.size, self.rows, self.records.num_examples
    )
    found = [self.records.evaluated(int(i)) for i in wanted]
    return stack(found) if found else self._nothing()

  def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
    """Of the end of a set that other processes hold."""
    shape = (0, *self.records.image_shape)
    return np.zeros(shape, np.uint8), np.zeros(0, np.int32)


def stack(examples: Any) -> tuple[np.ndarray, np.ndarray]:
  """Examples as images u8[N, H, W, C] and labels i32[N]."""
  images, labels = zip(*examples, strict=True)
  return np.stack(images), np.array(labels, np.int32)


def open_records(
  name: str,
  split: str,
  data_dir: str = '',
  image_size: int | None = None,
  crop: float = 1.0,
  workers: int = 0,
) -> Records:
  """Opens one split of a set; nothing but its statistics is decoded.

  Args:
    name: of TFDS, as for `sources.load`.
    split: `'train'` or `'test'`.
    data_dir: as for `sources.load`.
    image_size: as for `sources.load`.
    crop: share of the shorter side that evaluation sees.
    workers: how many processes decode; 0: threads of this one.

  Raises:
    ValueError: as `sources.load`; or the set is embedded.
  """
  sources.check(split, image_size)
  if name in prepared.EMBEDDED:
    raise ValueError(
      f'data.name is {name!r}, which is embedded and read into memory: '
      "data.resident 'disk' and augment.crop_area, colour and rand_ops need "
      'a set that TFDS has prepared.'
    )
  files = tfds_set.Prepared(name, data_dir, image_size)
  tfds_split, indices = files.part(split)
  mean, std = sources.statistics(files)
  logging.info(
    'Data set %s, %s: %d images on disk, decoded to %s by %d workers.',
    name,
    split,
    len(indices),
    files.image_shape,
    workers,
  )
  return Records(name, files, tfds_split, indices, mean, std, crop, workers)


def is_large(
  name: str, split: str, data_dir: str, image_size: int | None
) -> bool:
  """Whether a split, decoded, takes more than half of the memory."""
  files = tfds_set.Prepared(name, data_dir, image_size)
  num = len(files.part(split)[1])
  bytes_ = num * np.prod(files.image_shape, dtype=np.int64)
  return bool(bytes_ > tfds_set.memory_bytes() / 2)
