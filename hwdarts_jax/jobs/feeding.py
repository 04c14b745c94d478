"""From the section `data` of a config to sets of images, and to batches.

Small sets live on the devices, larger ones in memory, and those that fit
neither, or whose augmentation needs the images as they were stored, on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections

from hwdarts_jax.data import pipeline, prepared, records, sources, stream
from hwdarts_jax.data import workers as workers_lib
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.runtime import sharding

Images = records.Images
Feed = pipeline.Feed | stream.Feed
DISK = 'disk'
# So few cores are kept busy by threads, which start at once.
_FEW_CORES = 4


def load_data(
  data: Mapping[str, Any], split: str, augment: Mapping[str, Any] | None = None
) -> Images:
  """Loads the split 'train' or 'test' of the section `config.data`.

  Args:
    data: the section.
    split: which part.
    augment: how its images will be varied, if they will.

  Raises:
    ValueError: the set cannot be loaded, or its place does not go with how it
      is varied.
  """
  name, image_size = data['name'], data['image_size'] or None
  crop = data['eval_crop'] if split == 'test' else 1.0
  if _is_on_disk(data, split, augment):
    return records.open_records(
      name,
      split,
      data['data_dir'],
      image_size,
      data['eval_crop'],
      num_workers(data),
    )
  return sources.load(name, split, data['data_dir'], image_size, crop)


def _is_on_disk(
  data: Mapping[str, Any], split: str, augment: Mapping[str, Any] | None
) -> bool:
  place = residency(data)
  if augment is not None and Augment(**augment).needs_originals:
    if place in (True, False):
      raise ValueError(
        f'data.resident is {data["resident"]!r}, but augment.crop_area, colour '
        "and rand_ops need the images as they were stored: use 'auto' or "
        f'{DISK!r}, or leave them out.'
      )
    return True
  if place != 'auto':
    return place == DISK
  return data['name'] not in prepared.EMBEDDED and records.is_large(
    data['name'], split, data['data_dir'], data['image_size'] or None
  )


def residency(data: Mapping[str, Any]) -> bool | str:
  """Where `config.data` wants the images: True, False, 'auto' or 'disk'.

  The field is a text, so that is what the command line makes of true.
  """
  text = str(data['resident']).lower()
  return {'true': True, 'false': False}.get(text, text)


def num_workers(data: Mapping[str, Any]) -> int:
  """How many processes decode images on disk; 0: threads of this one."""
  if data['workers'] != 'auto':
    return int(data['workers'])
  cores = workers_lib.cores()
  return cores if cores > _FEW_CORES else 0


def make_feed(
  images: Images,
  data: ml_collections.ConfigDict,
  augment: Augment,
  batch_size: int,
  seed: int,
  mesh: jax.sharding.Mesh,
  is_split: bool = True,
) -> Feed:
  """The batches of a training.

  Args:
    images: what `load_data` returned, or a part of it.
    data: the section `data` of the config.
    augment: how they are varied.
    batch_size: B, over all devices.
    seed: of the order.
    mesh: devices.
    is_split: whether a batch is split over them, or all have all of it.

  Raises:
    ValueError: the batch size does not fit.
  """
  batched = (
    sharding.batched(mesh, axis=1) if is_split else sharding.replicated(mesh)
  )
  if isinstance(images, records.Records):
    return stream.Feed(images, batch_size, seed, augment, batched)
  return pipeline.Feed(
    images,
    batch_size,
    seed,
    resident=residency(data),
    max_resident_mb=data.max_resident_mb,
    replicated=sharding.replicated(mesh),
    batch_sharding=batched,
  )


def eval_batches(
  images: Images, batch_size: int, mesh: jax.sharding.Mesh
) -> Iterator[pipeline.Batch]:
  """Yields a whole split, each batch split over all devices.

  Args:
    images: the split.
    batch_size: of a batch, made larger where the devices do not divide it: what
      fills it up has a mask that is False.
    mesh: devices of all processes, each of which reads its own rows.
  """
  size = -(-batch_size // mesh.size) * mesh.size
  return pipeline.eval_batches(images, size, sharding.batched(mesh))


def whole_batches(
  images: Images, batch_size: int, mesh: jax.sharding.Mesh
) -> Iterator[pipeline.Batch]:
  """Yields those batches of a split that it fills, without a mask.

  For networks whose statistics are those of the batch: nothing may be added to
  it. It is split over the devices if they divide it, else each has all of it,
  so that what is found depends on no number of devices.

  Args:
    images: the split.
    batch_size: of each batch.
    mesh: devices of all processes.
  """
  splits = batch_size % mesh.size == 0
  place = sharding.batched(mesh) if splits else sharding.replicated(mesh)
  batches = pipeline.eval_batches(images, batch_size, place)
  for _, batch in zip(
    range(images.num_examples // batch_size), batches, strict=False
  ):
    yield {k: batch[k] for k in ('image', 'label')}


def check_fits(field: str, batch_size: int, images: Images) -> None:
  """Raises ValueError, naming `field`, if a batch is larger than the set."""
  if batch_size > images.num_examples:
    raise ValueError(
      f'{field} is {batch_size}; it must be at most {images.num_examples}, '
      f'the examples that are trained on.'
    )
