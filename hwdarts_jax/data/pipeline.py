"""From a data set to batches: what comes next, where it lives, how it varies.

The order of the examples is a pure function of (seed, step), so a run that
resumes, or one on other devices, sees the batches it would have seen anyway.

A small set lives on the devices as uint8 and only indices travel (resident); of
a large one only the rows of the next steps travel, to each device its own
(streaming). Both are a `Chunk`, so the compiled update does not know which it
gets:

    chunk = feed(step, num_steps)
    for indices in chunk.indices:  # inside jit, or in a lax.scan
      batch = make_batch(chunk.images, chunk.labels, indices, rng, ...)
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.data import order, parts
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.records import Images
from hwdarts_jax.data.sources import Dataset

Batch = dict[str, Any]


class Chunk(NamedTuple):
  """The data of K steps with B examples each.

  Attributes:
    images: u8[N, H, W, C], the whole set; or the batches that are used, ready,
      u8[K, B, H, W, C], split over B.
    labels: i32[N], or i32[K, B].
    indices: i32[K, B], rows of `images` for each step, or i32[K], batches.
  """

  images: jax.Array
  labels: jax.Array
  indices: jax.Array | np.ndarray


def batch_indices(
  num_examples: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
  """Returns the examples i32[B] of a step.

  Every epoch visits an example at most once, in an order of its own; the
  remainder that does not fill a batch is left out of that epoch.

  Args:
    num_examples: size of the set.
    batch_size: B.
    seed: seed of the order.
    step: global step, from 0.

  Raises:
    ValueError: `batch_size` or `step` is out of range.
  """
  _check_batch_size(batch_size, num_examples)
  check_steps(step, 1)
  epoch, position = divmod(step, num_examples // batch_size)
  shuffled = _epoch_order(num_examples, seed, epoch)
  return shuffled[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=8)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  shuffled = order.permutation(
    num_examples, seed, stream=order.EPOCH, epoch=epoch
  ).astype(np.int32)
  shuffled.setflags(write=False)  # batches are views of the cached array
  return shuffled


def check_steps(step: int, num_steps: int) -> None:
  """Raises ValueError if there are no such steps."""
  if step < 0:
    raise ValueError(f'step is {step!r}; it must be at least 0.')
  if num_steps < 1:
    raise ValueError(f'num_steps is {num_steps!r}; it must be at least 1.')


def check_batch(
  batch_size: int,
  num_examples: int,
  batch_sharding: jax.sharding.Sharding | None,
) -> None:
  """Raises ValueError if a batch does not fit the set or the devices."""
  _check_batch_size(batch_size, num_examples)
  if batch_sharding is not None:
    _check_divides(batch_size, batch_sharding)


def _check_batch_size(batch_size: int, num_examples: int) -> None:
  if not 0 < batch_size <= num_examples:
    raise ValueError(
      f'batch_size is {batch_size!r}; it must be between 1 and the '
      f'{num_examples} examples of the set.'
    )


class Feed:
  """Gives the data of any steps, resident on the devices or streamed.

  In memory every process holds the whole set: its devices need any of its rows
  in every epoch. On the devices it is whole on each, where it is resident, and
  not split over them: it is small by definition (`max_resident_mb`, of which
  weights and activations of a step take many times as much), while batches from
  a split set would wait for a collective between all hosts in every step. What
  is streamed is split: a device gets the rows of its part of a batch.

  Attributes:
    resident: whether the whole set lives on the devices.
    steps_per_epoch: batches that fit into one pass over the set.
  """

  def __init__(
    self,
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    resident: bool | str = 'auto',
    max_resident_mb: float = 2048,
    replicated: jax.sharding.Sharding | None = None,
    batch_sharding: jax.sharding.Sharding | None = None,
  ):
    """Moves the set to the devices if it is to be resident.

    Every process of a multi-process run must hold the same `dataset`.

    Args:
      dataset: where the examples come from.
      batch_size: B, over all devices.
      seed: seed of the order. Two feeds over sets of one size want two seeds,
        or they walk in step.
      resident: True, False, or 'auto' to decide by size.
      max_resident_mb: largest set in MiB (2**20 bytes) that 'auto' makes
        resident; a device holds all of it.
      replicated: sharding of images and labels; None is the default device.
      batch_sharding: sharding of [K, B], split over B at most; None is the
        default device.

    Raises:
      ValueError: an argument is out of range.
    """
    check_batch(batch_size, dataset.num_examples, batch_sharding)
    if resident not in ('auto', True, False):
      raise ValueError(
        f"resident is {resident!r}; it must be 'auto', True or False."
      )
    self._dataset = dataset
    self._batch_size = batch_size
    self._seed = seed
    self._batch_sharding = batch_sharding
    self.steps_per_epoch = dataset.num_examples // batch_size
    if resident == 'auto':
      resident = dataset.images.nbytes <= max_resident_mb * 2**20
    self.resident = bool(resident)
    self._on_device: tuple[jax.Array, jax.Array] | None = None
    if self.resident:
      self._on_device = (
        _put(dataset.images, replicated),
        _put(dataset.labels, replicated),
      )

  def __call__(self, step: int, num_steps: int) -> Chunk:
    """Returns the data of steps `step` to `step + num_steps - 1`.

    Raises:
      ValueError: `step` is negative or `num_steps` is not positive.
    """
    check_steps(step, num_steps)
    examples = np.stack(
      [
        batch_indices(
          self._dataset.num_examples, self._batch_size, self._seed, step + k
        )
        for k in range(num_steps)
      ]
    )
    if self._on_device is not None:
      return Chunk(*self._on_device, _put(examples, self._batch_sharding))
    split = self._batch_sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
    rows = parts.own_rows(split, self._batch_size, axis=1)
    images, labels = (
      parts.assemble(
        a[examples[:, rows]], rows, split, self._batch_size, axis=1
      )
      for a in (self._dataset.images, self._dataset.labels)
    )
    return Chunk(images, labels, np.arange(num_steps, dtype=np.int32))

  def close(self) -> None:
    """Ends nothing: this feed has no workers."""


def _check_divides(batch_size: int, sharding: jax.sharding.Sharding) -> None:
  try:
    sharding.shard_shape((1, batch_size))
  except ValueError as e:
    raise ValueError(
      f'batch_size is {batch_size!r}; the sharding of the batches over '
      f'{sharding.num_devices} devices must divide it evenly and leave the '
      'steps whole.'
    ) from e


def _put(array: np.ndarray, sharding: jax.sharding.Sharding | None):
  if sharding is None or sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  # Over several processes device_put would compare the whole array between
  # them; each knows that it holds the same.
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def make_batch(
  images: jax.Array,
  labels: jax.Array,
  indices: jax.Array,
  rng: jax.Array | None,
  augment: Augment,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  dtype: Any = jnp.float32,
) -> Batch:
  """Gathers, augments and normalizes one batch; pure, for use inside jit.

  Every example draws from a key of its own, so the batch does not depend on
  how it is spread over devices.

  Args:
    images: u8[N, H, W, C], or batches u8[K, B, H, W, C].
    labels: i32[N], or i32[K, B].
    indices: i32[B], each in 0..N-1; or i32[], in 0..K-1.
    rng: key of this step, or None for no augmentation.
    augment: what to vary.
    mean: C numbers in 0..1.
    std: C numbers in 0..1.
    dtype: of the images that are returned.

  Returns:
    {'image': dtype[B, H, W, C], 'label': i32[B]}.
  """
  # 'clip' since the default would fill rows out of range with a select. Of
  # batches one is taken as it lies on the devices.
  x = jnp.take(images, indices, axis=0, mode='clip')
  label = jnp.take(labels, indices, axis=0, mode='clip')
  if rng is None or augment == Augment():
    return {'image': normalize(x, mean, std, dtype), 'label': label}
  keys = jax.random.split(rng, x.shape[0])
  x = jax.vmap(functools.partial(_crop_and_flip, augment))(keys, x)
  x = normalize(x, mean, std, dtype)
  if augment.cutout:
    x = jax.vmap(functools.partial(_cut_out, augment.cutout))(keys, x)
  return {'image': x, 'label': label}


def normalize(
  images: jax.Array,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Returns (images / 255 - mean) / std.

  Args:
    images: u8[..., C].
    mean: C numbers in 0..1.
    std: C numbers in 0..1.
    dtype: of the result.

  Returns:
    dtype[..., C].
  """
  shape = (1,) * (images.ndim - 1) + (len(mean),)
  # Subtract, then multiply: no compiler can contract that into a fused
  # multiply-add, so all devices and batch sizes round alike.
  shift = (255 * np.array(mean)).astype(np.float32).reshape(shape)
  scale = (1 / (255 * np.array(std))).astype(np.float32).reshape(shape)
  return ((images.astype(jnp.float32) - shift) * scale).astype(dtype)


def _crop_and_flip(
  augment: Augment, key: jax.Array, image: jax.Array
) -> jax.Array:
  """Augments u8[H, W, C]; one gather of rows under vmap."""
  pad = augment.pad
  if pad:
    offset = jax.random.randint(
      jax.random.fold_in(key, 0), (2,), 0, 2 * pad + 1
    )
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    image = jax.lax.dynamic_slice(
      padded, (offset[0], offset[1], 0), image.shape
    )
  if augment.flip:
    flip = jax.random.bernoulli(jax.random.fold_in(key, 1))
    image = jnp.where(flip, image[:, ::-1], image)
  return image


def _cut_out(size: int, key: jax.Array, image: jax.Array) -> jax.Array:
  """Zeroes a square of [H, W, C] whose centre is uniform over the image."""
  height, width, _ = image.shape
  centre = jax.random.randint(
    jax.random.fold_in(key, 2), (2,), 0, jnp.array([height, width])
  )
  start = centre - size // 2
  rows, columns = jnp.arange(height) - start[0], jnp.arange(width) - start[1]
  inside = ((rows >= 0) & (rows < size))[:, None] & (
    (columns >= 0) & (columns < size)
  )[None, :]
  return jnp.where(inside[..., None], jnp.zeros((), image.dtype), image)


def eval_batches(
  dataset: Images,
  batch_size: int,
  sharding: jax.sharding.Sharding | None = None,
) -> Iterator[Batch]:
  """Yields a whole split in its order, in batches of one shape.

  Args:
    dataset: the split.
    batch_size: B; may exceed the size of the split.
    sharding: of a batch, split over B at most; each process reads, and puts on
      its devices, only the rows that they hold. None: NumPy arrays of all rows.

  Yields:
    {'image': u8[B, H, W, C], 'label': i32[B], 'mask': bool[B]}; the last batch
    is filled up with black images of class 0 whose mask is False.

  Raises:
    ValueError: `batch_size` is not positive, or does not split evenly.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size!r}; it must be at least 1.')
  rows = np.arange(batch_size)
  if sharding is not None:
    rows = parts.own_rows(sharding, batch_size)
  left = dataset.num_examples
  for image, label in dataset.blocks(batch_size, rows):
    missing = len(rows) - len(label)
    batch: Batch = {
      'image': np.pad(image, ((0, missing), (0, 0), (0, 0), (0, 0))),
      'label': np.pad(label, (0, missing)),
      'mask': rows < left,
    }
    if sharding is not None:
      batch = {
        k: parts.assemble(v, rows, sharding, batch_size)
        for k, v in batch.items()
      }
    yield batch
    left -= batch_size
