"""Data sets as uint8 arrays: one embedded, all others through TFDS.

`load` reads a whole split into memory; sets that are too large for it stay on
disk (`records`). TFDS data sets must have been prepared as
array_record; they are read without TensorFlow and nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import importlib.resources
import re
from typing import TYPE_CHECKING

from absl import logging
import numpy as np
from PIL import Image

from hwdarts_jax.data import order, transforms
from hwdarts_jax.data import prepared as prepared_lib

if TYPE_CHECKING:
  from hwdarts_jax.data import tfds_set

SPLITS = ('train', 'test')
# Mean and standard deviation of each channel over the train images, in 0..1,
# as published with the sets or common in the field.
_KNOWN_STATS = {
  'cifar10': (
    (0.49139968, 0.48215827, 0.44653124),
    (0.24703233, 0.24348505, 0.26158768),
  ),
  'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
  'fashion_mnist': ((0.2860,), (0.3530,)),
  'imagenet2012': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'mnist': ((0.1307,), (0.3081,)),
}
_MAX_STATS_IMAGES = 10_000
_DIGITS_TEST_EXAMPLES = 360
_DIGITS_SEED = 10  # gives 33 to 38 test examples of every class


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Labelled images in memory.

  Attributes:
    name: what `load` was asked for.
    images: u8[N, H, W, C].
    labels: i32[N], each in 0..num_classes-1.
    num_classes: number of classes, whether or not all of them occur.
    mean: mean of each channel over the train images, in 0..1.
    std: standard deviation of each channel, in 0..1; never 0.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @property
  def num_examples(self) -> int:
    """Number of images."""
    return len(self.images)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of every image."""
    height, width, channels = self.images.shape[1:]
    return height, width, channels

  def blocks(
    self, size: int, rows: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images and labels in their order, `size` of them at a time.

    Args:
      size: examples of a block; the last may have fewer.
      rows: i[R], those of each block that are wanted, ascending.

    Yields:
      u8[<=R, H, W, C] and i32[<=R].
    """
    for start in range(0, self.num_examples, size):
      wanted = rows_of_block(start, rows, self.num_examples)
      yield self.images[wanted], self.labels[wanted]

  def in_memory(self) -> Dataset:
    """Returns itself: what sets on disk have to decode first."""
    return self

  def take(self, indices: np.ndarray) -> Dataset:
    """Returns the examples at `indices`, i[M], in that order."""
    return dataclasses.replace(
      self, images=self.images[indices], labels=self.labels[indices]
    )


def rows_of_block(start: int, rows: np.ndarray, num: int) -> np.ndarray:
  """Those examples at `start + rows` that are among the first `num`."""
  wanted = start + rows
  return wanted[wanted < num]


def load(
  name: str,
  split: str,
  data_dir: str = '',
  image_size: int | None = None,
  crop: float = 1.0,
) -> Dataset:
  """Loads one split of an image classification set into memory.

  Args:
    name: `'digits'` (embedded), or a TFDS name such as `'cifar10'`,
      `'imagenette/160px-v2'` or `'cifar10:3.0.2'`.
    split: `'train'` or `'test'`. Where TFDS has no test split, its validation
      split takes that part; where it has neither, a fixed fifth of train does.
    data_dir: directory of the prepared TFDS sets; '' is the default of TFDS,
      ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
    image_size: height and width of the images in pixels: the shorter side is
      resized to it (bilinear with antialiasing) and the centre cropped. None
      keeps images as they are, which must then all have one size.
    crop: share of the shorter side that is kept where images are resized.

  Raises:
    ValueError: the set is unknown, not prepared, in another file format,
      damaged, or not one of labelled images; or an argument is out of range.
      The message names the config field or the file.
  """
  check(split, image_size)
  if name in prepared_lib.EMBEDDED:
    dataset = _load_digits(split, image_size, crop)
  else:
    dataset = _load_tfds(name, split, data_dir, image_size, crop)
  logging.info(
    'Data set %s, %s: %d images of %s, %d classes.',
    name,
    split,
    dataset.num_examples,
    dataset.image_shape,
    dataset.num_classes,
  )
  return dataset


def check(split: str, image_size: int | None) -> None:
  """Raises ValueError if an argument of `load` is out of range."""
  if split not in SPLITS:
    raise ValueError(f'split is {split!r}; it must be one of {SPLITS}.')
  if image_size is not None and image_size < 1:
    raise ValueError(
      f'data.image_size is {image_size!r}; it must be a positive number of '
      'pixels, or None to keep the images as they are.'
    )


def _load_digits(split: str, image_size: int | None, crop: float) -> Dataset:
  path = importlib.resources.files('hwdarts_jax.data') / 'digits.npz'
  with path.open('rb') as f, np.load(f, allow_pickle=False) as arrays:
    images, labels = arrays['images'], arrays['labels']
  shuffled = order.permutation(len(images), _DIGITS_SEED, stream=order.HELD_OUT)
  train = np.sort(shuffled[:-_DIGITS_TEST_EXAMPLES])
  mean, std = _channel_stats(images[train])
  if image_size is not None:
    images = np.stack(
      [
        transforms.central(Image.fromarray(i[..., 0]), 'L', image_size, crop)
        for i in images
      ]
    )
  dataset = Dataset('digits', images, labels, 10, mean, std)
  test = np.sort(shuffled[-_DIGITS_TEST_EXAMPLES:])
  return dataset.take(train if split == 'train' else test)


def _load_tfds(
  name: str, split: str, data_dir: str, image_size: int | None, crop: float
) -> Dataset:
  from hwdarts_jax.data import tfds_set  # slow; the embedded set needs none

  prepared = tfds_set.Prepared(name, data_dir, image_size)
  images, labels = prepared.read(*prepared.part(split), crop)
  whole_train = images if split == 'train' and crop == 1 else None
  mean, std = statistics(prepared, whole_train)
  return Dataset(name, images, labels, prepared.num_classes, mean, std)


def known_statistics(
  name: str,
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
  """Mean and standard deviation that are published with a set, if any are."""
  return _KNOWN_STATS.get(re.split('[/:]', name)[0])


def statistics(
  prepared: tfds_set.Prepared, train_images: np.ndarray | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation of each channel over the train images.

  Args:
    prepared: the set.
    train_images: u8[N, H, W, C], all of them, where they are decoded already.
  """
  known = known_statistics(prepared.name)
  if known is not None and len(known[0]) == prepared.image_shape[-1]:
    return known
  tfds_split, indices = prepared.part('train')
  sample = _spread(len(indices))
  if train_images is not None:
    return _channel_stats(train_images[sample])
  return _channel_stats(prepared.read(tfds_split, indices[sample])[0])


def _spread(num: int) -> np.ndarray:
  """At most `_MAX_STATS_IMAGES` of 0..num-1, evenly spread."""
  size = min(num, _MAX_STATS_IMAGES)
  return np.arange(size) * num // max(size, 1)


def _channel_stats(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation of u8[N, H, W, C] by channel, in 0..1."""
  means, stds = [], []
  for channel in range(images.shape[-1]):
    # Moments of the 256 values are exact and need no float copy of the images.
    counts = np.bincount(images[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    std = np.sqrt(np.average((values - mean) ** 2, weights=counts))
    means.append(round(float(mean), 6))
    stds.append(round(max(float(std), 1 / 255), 6))
  return tuple(means), tuple(stds)
