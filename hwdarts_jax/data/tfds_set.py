"""One set that TFDS has prepared as array_record, read image by image.

Pickled, it is opened again where it arrives: workers read the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import functools
import io
import os
import re
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
import tqdm

from hwdarts_jax.data import order, transforms
from hwdarts_jax.data import prepared as prepared_lib

# TFDS splits that serve as test split, the first that exists. The test split
# of ImageNet has no labels.
_TEST_SPLITS = {'imagenet2012': ('validation',)}
_DEFAULT_TEST_SPLITS = ('test', 'validation')
_HELD_OUT_FRACTION = 0.2
_DECODE_BLOCK = 256  # images that a thread decodes before it reports progress
# From an encoded image, opened, and its mode, to u8[H, W, C].
Decode = Callable[[Image.Image, str], np.ndarray]


class Prepared:
  """A set that TFDS has prepared on disk.

  Attributes:
    name: what it was opened as.
    image_size: that images are resized to; None: they stay as they are.
    image_shape: (height, width, channels) of its decoded images.
    num_classes: number of classes.
  """

  def __init__(self, name: str, data_dir: str, image_size: int | None):
    """Opens the set `name`; the arguments are those of `sources.load`.

    Raises:
      ValueError: see `sources.load`.
    """
    import tensorflow_datasets as tfds  # slow; the embedded set needs none

    self._arguments = (name, data_dir, image_size)
    self.name = name
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
    self.image_shape = prepared_lib.image_shape(
      name, features, tfds, image_size
    )
    self.image_size = image_size
    self.num_classes = features['label'].num_classes
    self._skip_decoding = {'image': tfds.decode.SkipDecoding()}
    self._sources: dict[str, Any] = {}

  def __reduce__(self):
    return Prepared, self._arguments

  def part(self, split: str) -> tuple[str, np.ndarray]:
    """Returns (TFDS split, its examples i64[N]) that make up `split`."""
    base = re.split('[/:]', self.name)[0]
    if 'train' not in self._splits:
      raise ValueError(
        f"data.name is {self.name!r}, which has no split 'train', only "
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
        self.name,
        num_test,
        num,
      )
    shuffled = order.permutation(num, 0, stream=order.HELD_OUT)
    part = shuffled[:num_test] if split == 'test' else shuffled[num_test:]
    return 'train', np.sort(part)

  def read(
    self, tfds_split: str, indices: np.ndarray, crop: float = 1.0
  ) -> tuple[np.ndarray, np.ndarray]:
    """Decodes examples, in threads, with a progress bar if it takes long.

    Args:
      tfds_split: split of TFDS.
      indices: i64[N], examples of that split.
      crop: share of the shorter side that is kept.

    Returns:
      images u8[N, H, W, C] and labels i32[N].

    Raises:
      ValueError: a file is missing or damaged, or the set does not fit.
    """
    shape = (len(indices), *self.image_shape)
    _check_memory(self.name, shape)
    images = np.empty(shape, np.uint8)
    labels = np.empty(len(indices), np.int32)
    decode = functools.partial(
      transforms.central, size=self.image_size, crop=crop
    )

    def decode_block(start: int) -> int:
      block = indices[start : start + _DECODE_BLOCK]
      for row, index in enumerate(block, start):
        images[row], labels[row] = self.example(tfds_split, int(index), decode)
      return len(block)

    bar = tqdm.tqdm(
      total=len(indices),
      desc=f'{self.name} {tfds_split}',
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

  def example(
    self, tfds_split: str, index: int, decode: Decode
  ) -> tuple[np.ndarray, int]:
    """Reads one example.

    Args:
      tfds_split: split of TFDS.
      index: of the example in that split.
      decode: what makes pixels of it.

    Returns:
      The pixels u8[H, W, C] and the label.

    Raises:
      ValueError: it is damaged, or not of the shape that the set has.
    """
    try:
      example = self._source(tfds_split)[index]
      image = Image.open(io.BytesIO(example['image']))
      pixels = decode(image, prepared_lib.PIL_MODES[self.image_shape[-1]])
      label = int(example['label'])
    except Exception as e:  # array_record, protobuf, Pillow: no common base
      raise ValueError(
        f'Example {index} of {self._file(tfds_split, index)!r} cannot be read '
        f'({prepared_lib.first_line(e)}); prepare {self.name!r} again.'
      ) from e
    if pixels.shape != self.image_shape:
      raise ValueError(
        f'Example {index} of {self._file(tfds_split, index)!r} has shape '
        f'{pixels.shape}, not {self.image_shape} as its features say; set '
        'data.image_size to resize all images.'
      )
    if not 0 <= label < self.num_classes:
      raise ValueError(
        f'Example {index} of {self._file(tfds_split, index)!r} has the label '
        f'{label}, which is not in 0..{self.num_classes - 1}.'
      )
    return pixels, label

  def _source(self, tfds_split: str) -> Any:
    """The encoded examples of a split; opened at most once."""
    if tfds_split not in self._sources:
      self._sources[tfds_split] = self._builder.as_data_source(
        tfds_split, decoders=self._skip_decoding
      )
    return self._sources[tfds_split]

  def _file(self, tfds_split: str, index: int) -> str:
    """Path of the shard that holds an example."""
    for shard in self._splits[tfds_split].file_instructions:
      if index < shard.take:
        return str(shard.filename)
      index -= shard.take
    return str(self._directory)


@functools.cache
def memory_bytes() -> int:
  """Memory of this machine."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _check_memory(name: str, shape: tuple[int, ...]) -> None:
  # Untouched pages cost nothing: without the check a set that is too large
  # would be decoded for hours before the process is killed without a word.
  needed, total = int(np.prod(shape, dtype=np.int64)), memory_bytes()
  if needed > total:
    raise ValueError(
      f'data.name {name!r} needs {needed / 2**30:.0f} GiB as an array of shape '
      f'{shape}, more than the {total / 2**30:.0f} GiB of this machine; set a '
      'smaller data.image_size.'
    )
