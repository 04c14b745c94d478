"""Data sets as uint8 arrays: one embedded, all others through TFDS.

`load` is the only way in. TFDS data sets must have been prepared as
array_record; they are read without TensorFlow and nothing is ever downloaded.
"""

from __future__ import annotations

from concurrent import futures
import dataclasses
import functools
import importlib.resources
import io
import os
import re
from typing import Any

from absl import logging
import numpy as np
from PIL import Image, ImageOps
import tqdm

from hwdarts_jax.data import order
from hwdarts_jax.data import prepared as prepared_lib

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
_SPLITS = ('train', 'test')
# TFDS splits that serve as test split, the first that exists. The test split
# of ImageNet has no labels.
_TEST_SPLITS = {'imagenet2012': ('validation',)}
_DEFAULT_TEST_SPLITS = ('test', 'validation')
_HELD_OUT_FRACTION = 0.2
_DIGITS_TEST_EXAMPLES = 360
_DIGITS_SEED = 10  # gives 33 to 38 test examples of every class
_DECODE_BLOCK = 256  # images that a thread decodes before it reports progress


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

  def take(self, indices: np.ndarray) -> Dataset:
    """Returns the examples at `indices`, i[M], in that order."""
    return dataclasses.replace(
      self, images=self.images[indices], labels=self.labels[indices]
    )


def load(
  name: str, split: str, data_dir: str = '', image_size: int | None = None
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

  Raises:
    ValueError: the set is unknown, not prepared, in another file format,
      damaged, or not one of labelled images; or an argument is out of range.
      The message names the config field or the file.
  """
  if split not in _SPLITS:
    raise ValueError(f'split is {split!r}; it must be one of {_SPLITS}.')
  if image_size is not None and image_size < 1:
    raise ValueError(
      f'data.image_size is {image_size!r}; it must be a positive number of '
      'pixels, or None to keep the images as they are.'
    )
  if name in prepared_lib.EMBEDDED:
    dataset = _load_digits(split, image_size)
  else:
    dataset = _load_tfds(name, split, data_dir, image_size)
  logging.info(
    'Data set %s, %s: %d images of %s, %d classes.',
    name,
    split,
    dataset.num_examples,
    dataset.image_shape,
    dataset.num_classes,
  )
  return dataset


def _load_digits(split: str, image_size: int | None) -> Dataset:
  path = importlib.resources.files('hwdarts_jax.data') / 'digits.npz'
  with path.open('rb') as f, np.load(f) as arrays:
    images, labels = arrays['images'], arrays['labels']
  shuffled = order.permutation(len(images), _DIGITS_SEED, stream=order.HELD_OUT)
  train = np.sort(shuffled[:-_DIGITS_TEST_EXAMPLES])
  mean, std = _channel_stats(images[train])
  if image_size is not None:
    images = np.stack(
      [_pixels(Image.fromarray(i[..., 0]), 'L', image_size) for i in images]
    )
  dataset = Dataset('digits', images, labels, 10, mean, std)
  test = np.sort(shuffled[-_DIGITS_TEST_EXAMPLES:])
  return dataset.take(train if split == 'train' else test)


def _load_tfds(
  name: str, split: str, data_dir: str, image_size: int | None
) -> Dataset:
  prepared = _Prepared(name, data_dir, image_size)
  parts = {s: prepared.part(s) for s in _SPLITS}
  images, labels = prepared.read(*parts[split])
  known = _KNOWN_STATS.get(re.split('[/:]', name)[0])
  if known is not None and len(known[0]) == images.shape[-1]:
    mean, std = known
  else:
    tfds_split, indices = parts['train']
    sample = _spread(len(indices))
    if split == 'train':
      mean, std = _channel_stats(images[sample])
    else:
      mean, std = _channel_stats(prepared.read(tfds_split, indices[sample])[0])
  return Dataset(name, images, labels, prepared.num_classes, mean, std)


class _Prepared:
  """A set that TFDS has prepared on disk.

  Attributes:
    num_classes: number of classes.
  """

  def __init__(self, name: str, data_dir: str, image_size: int | None):
    """Opens the set `name`; the arguments are those of `load`.

    Raises:
      ValueError: see `load`.
    """
    import tensorflow_datasets as tfds  # slow; the embedded set needs none

    self._name = name
    self._directory = prepared_lib.find_version(
      name, data_dir or tfds.core.constants.DATA_DIR
    )
    prepared_lib.check_format(name, self._directory)
    try:
      self._builder = tfds.builder_from_directory(self._directory)
      features = self._builder.info.features
      self._splits = dict(self._builder.info.splits)
    except Exception as e:  # TFDS passes on whatever its parsers raise
      raise ValueError(
        f'data.name is {name!r}, whose metadata in {str(self._directory)!r} '
        f'cannot be read ({prepared_lib.first_line(e)}).'
      ) from e
    self._shape = prepared_lib.image_shape(name, features, tfds, image_size)
    self._resize_to = image_size
    self.num_classes = features['label'].num_classes
    self._skip_decoding = {'image': tfds.decode.SkipDecoding()}

  def part(self, split: str) -> tuple[str, np.ndarray]:
    """Returns (TFDS split, its examples i64[N]) that make up `split`."""
    base = re.split('[/:]', self._name)[0]
    if 'train' not in self._splits:
      raise ValueError(
        f"data.name is {self._name!r}, which has no split 'train', only "
        f'{sorted(self._splits)}.'
      )
    if split == 'test':
      for test in _TEST_SPLITS.get(base, _DEFAULT_TEST_SPLITS):
        if test in self._splits:
          return test, np.arange(self._splits[test].num_examples)
    num = self._splits['train'].num_examples
    if any(t in self._splits for t in _DEFAULT_TEST_SPLITS):
      return 'train', np.arange(num)
    num_test = round(num * _HELD_OUT_FRACTION)
    if split == 'test':
      logging.info(
        '%s has no test split: %d of its %d train examples, always the same '
        'ones, are held out as such.',
        self._name,
        num_test,
        num,
      )
    shuffled = order.permutation(num, 0, stream=order.HELD_OUT)
    part = shuffled[:num_test] if split == 'test' else shuffled[num_test:]
    return 'train', np.sort(part)

  def read(
    self, tfds_split: str, indices: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Decodes examples, in threads, with a progress bar if it takes long.

    Args:
      tfds_split: split of TFDS.
      indices: i64[N], examples of that split.

    Returns:
      images u8[N, H, W, C] and labels i32[N].

    Raises:
      ValueError: a file is missing or damaged, or the set does not fit.
    """
    source = self._builder.as_data_source(
      tfds_split, decoders=self._skip_decoding
    )
    shape = (len(indices), *self._shape)
    _check_memory(self._name, shape)
    images = np.empty(shape, np.uint8)
    labels = np.empty(len(indices), np.int32)

    def decode_block(start: int) -> int:
      block = indices[start : start + _DECODE_BLOCK]
      for row, index in enumerate(block, start):
        images[row], labels[row] = self._example(source, tfds_split, int(index))
      return len(block)

    bar = tqdm.tqdm(
      total=len(indices),
      desc=f'{self._name} {tfds_split}',
      unit='image',
      delay=2,
      leave=False,
      disable=None,
    )
    pool = futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
      starts = range(0, len(indices), _DECODE_BLOCK)
      for num in pool.map(decode_block, starts):
        bar.update(num)
    finally:
      pool.shutdown(cancel_futures=True)
      bar.close()
    return images, labels

  def _example(
    self, source: Any, tfds_split: str, index: int
  ) -> tuple[np.ndarray, int]:
    try:
      example = source[index]
      image = Image.open(io.BytesIO(example['image']))
      pixels = _pixels(
        image, prepared_lib.PIL_MODES[self._shape[-1]], self._resize_to
      )
      label = int(example['label'])
    except Exception as e:  # array_record, protobuf, Pillow: no common base
      raise ValueError(
        f'Example {index} of {self._file(tfds_split, index)!r} cannot be read '
        f'({prepared_lib.first_line(e)}); prepare {self._name!r} again.'
      ) from e
    if pixels.shape != self._shape:
      raise ValueError(
        f'Example {index} of {self._file(tfds_split, index)!r} has shape '
        f'{pixels.shape}, not {self._shape} as its features say; set '
        'data.image_size to resize all images.'
      )
    if not 0 <= label < self.num_classes:
      raise ValueError(
        f'Example {index} of {self._file(tfds_split, index)!r} has the label '
        f'{label}, which is not in 0..{self.num_classes - 1}.'
      )
    return pixels, label

  def _file(self, tfds_split: str, index: int) -> str:
    """Path of the shard that holds an example."""
    for shard in self._splits[tfds_split].file_instructions:
      if index < shard.take:
        return str(shard.filename)
      index -= shard.take
    return str(self._directory)


def _pixels(image: Image.Image, mode: str, size: int | None) -> np.ndarray:
  """Decodes, resizes and crops; returns u8[H, W, C]."""
  image = image.convert(mode)
  if size is not None and image.size != (size, size):
    image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(image.height, image.width, -1)


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


@functools.cache
def _memory_bytes() -> int:
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _check_memory(name: str, shape: tuple[int, ...]) -> None:
  # Untouched pages cost nothing: without the check a set that is too large
  # would be decoded for hours before the process is killed without a word.
  needed, total = int(np.prod(shape, dtype=np.int64)), _memory_bytes()
  if needed > total:
    raise ValueError(
      f'data.name {name!r} needs {needed / 2**30:.0f} GiB as an array of shape '
      f'{shape}, more than the {total / 2**30:.0f} GiB of this machine; set a '
      'smaller data.image_size.'
    )
