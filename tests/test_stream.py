"""Images that stay on disk: what workers make of them, and in which order."""

import copy
import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from tfds_files import pngs, real, REAL_DATA, write_tfds

from hwdarts_jax.data import parts, pipeline, records, sources, stream
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.split import search_split

VARIED = Augment(crop_area=0.3, colour=0.4, rand_ops=2, rand_magnitude=9.0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A set of 50 images, of which 40 are for training."""
  path = tmp_path_factory.mktemp('tfds')
  write_tfds(path, pngs(50, 12, 10)[1], [i % 3 for i in range(50)])
  return str(path)


def opened(folder, workers=0):
  return records.open_records('tiny', 'train', folder, 8, workers=workers)


def in_memory(folder):
  return sources.load('tiny', 'train', folder, 8)


def batched(num_devices):
  mesh = jax.make_mesh(
    (num_devices,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:num_devices],
  )
  return NamedSharding(mesh, P(None, 'data'))


def arrays(feed, step, num_steps=1):
  chunk = feed(step, num_steps)
  return np.asarray(chunk.images), np.asarray(chunk.labels)


@pytest.mark.parametrize('num_devices', [1, 8])
def test_images_on_disk_are_those_in_memory(folder, num_devices):
  """Where they live changes no batch, on any number of devices."""
  memory = pipeline.Feed(in_memory(folder), 16, 7)
  sharding = batched(num_devices)
  disk = stream.Feed(opened(folder), 16, 7, Augment(), sharding)
  assert disk.steps_per_epoch == memory.steps_per_epoch == 2
  stats = (0.5,) * 3, (0.2,) * 3
  for step in range(5):
    of_disk, of_memory = disk(step, 1), memory(step, 1)
    left, right = (
      pipeline.make_batch(
        c.images, c.labels, c.indices[0], jax.random.key(step),
        Augment(pad=1, flip=True), *stats,
      )
      for c in (of_disk, of_memory)
    )  # fmt: skip
    np.testing.assert_array_equal(left['image'], right['image'])
    np.testing.assert_array_equal(left['label'], right['label'])
  disk.close()


@pytest.mark.parametrize('on_disk', [True, False])
def test_a_device_gets_its_own_rows_and_asks_no_other(folder, on_disk):
  """Batches lie split on the devices, and to take one needs no collective."""
  feed = (
    stream.Feed(opened(folder), 16, 7, Augment(), batched(8))
    if on_disk
    else pipeline.Feed(
      in_memory(folder), 16, 7, resident=False, batch_sharding=batched(8)
    )
  )
  chunk = feed(0, 3)
  whole = np.asarray(chunk.images)
  for shard in chunk.images.addressable_shards:
    assert shard.data.shape[:2] == (3, 2)
    np.testing.assert_array_equal(shard.data, whole[shard.index])
  make = jax.jit(
    lambda c, k: pipeline.make_batch(
      c.images, c.labels, c.indices[k], None, Augment(), (0.5,) * 3, (0.2,) * 3
    )
  )
  text = make.lower(chunk, 1).compile().as_text()
  assert 'all-' not in text
  assert 'collective' not in text


class _Part:
  """Stands for a sharding of which this process holds some devices."""

  def __init__(self, sharding, devices):
    self._sharding, self._devices = sharding, devices

  def addressable_devices_indices_map(self, shape):
    found = self._sharding.devices_indices_map(shape)
    return {d: found[d] for d in self._devices}


def test_processes_decode_parts_that_make_up_the_batch(folder):
  """Each decodes the rows of its devices, the same ones as one process."""
  images, sharding = opened(folder), batched(8)
  every = np.arange(16)
  whole = stream._Batch(images, 16, 3, every, VARIED)(5)[0]
  rows = [
    parts.own_rows(_Part(sharding, jax.devices()[i : i + 4]), 16, axis=1)
    for i in (0, 4)
  ]
  assert np.concatenate(rows).tolist() == every.tolist()
  found = [stream._Batch(images, 16, 3, r, VARIED)(5)[0] for r in rows]
  np.testing.assert_array_equal(np.concatenate(found), whole)


@given(size=st.integers(1, 50), cut=st.integers(0, 50), on_disk=st.booleans())
@settings(max_examples=20)
def test_processes_read_parts_that_make_up_an_evaluation(
  folder, size, cut, on_disk
):
  """Nothing else is decoded, and one of them may have none of the end."""
  images = opened(folder) if on_disk else in_memory(folder)
  every = np.arange(size)
  whole = list(images.blocks(size, every))
  assert sum(len(label) for _, label in whole) == 40
  halves = [list(images.blocks(size, r)) for r in (every[:cut], every[cut:])]
  for block, *found in zip(whole, *halves, strict=True):
    for array, *both in zip(block, *found, strict=True):
      np.testing.assert_array_equal(np.concatenate(both), array)


def test_a_process_decodes_no_image_that_others_evaluate(folder, monkeypatch):
  """Counted where the files are read."""
  seen = []
  evaluated = records.Records.evaluated

  def counting(self, index):
    seen.append(index)
    return evaluated(self, index)

  monkeypatch.setattr(records.Records, 'evaluated', counting)
  list(opened(folder).blocks(16, np.arange(8, 16)))
  assert sorted(seen) == [*range(8, 16), *range(24, 32)]


@given(step=st.integers(0, 9), num_steps=st.integers(1, 3))
def test_a_batch_does_not_depend_on_where_a_run_starts(step, num_steps, walked):
  """A run that resumes in mid-epoch sees what it would have seen."""
  images, steps = walked
  feed = stream.Feed(images, 16, 7, VARIED)
  found = arrays(feed, step, num_steps)
  feed.close()
  for k in range(num_steps):
    for left, right in zip(steps[step + k], found, strict=True):
      np.testing.assert_array_equal(left[0], right[k])


@pytest.fixture(scope='module')
def walked(folder):
  """Images, and the batches of steps 0 to 11 in their order."""
  images = opened(folder)
  feed = stream.Feed(images, 16, 7, VARIED)
  steps = [arrays(feed, step) for step in range(12)]
  feed.close()
  return images, steps


def test_an_image_looks_different_in_every_epoch(walked):
  """Chance depends on the epoch, and not only on the image."""
  images, steps = walked
  plain = {}
  for step, (pixels, _) in enumerate(steps):
    chosen = pipeline.batch_indices(40, 16, 7, step)
    for index, image in zip(chosen.tolist(), pixels[0], strict=True):
      plain.setdefault(index, []).append(image.tobytes())
  views = [v for v in plain.values() if len(v) > 2]
  assert len(views) > 20
  assert all(len(set(v)) == len(v) for v in views)


def test_processes_make_the_batches_of_threads(walked, folder):
  """How many workers there are is a matter of speed alone."""
  feed = stream.Feed(opened(folder, workers=2), 16, 7, VARIED)
  for step in (3, 4, 5):
    for left, right in zip(walked[1][step], arrays(feed, step), strict=True):
      np.testing.assert_array_equal(left, right)
  feed.close()


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_is_damaged_is_named_by_workers(tmp_path, workers):
  """The message comes through threads and processes."""
  encoded = pngs(50)[1]
  shard = write_tfds(tmp_path / 'good', encoded, [0] * 50)
  images = records.open_records(
    'tiny', 'train', str(tmp_path / 'good'), 8, workers=workers
  )
  number = int(images.indices[4])
  encoded[number] = encoded[number][:60]
  write_tfds(tmp_path / 'bad', encoded, [0] * 50).replace(shard)
  # Opened again: what is open already would be read on.
  images = dataclasses.replace(images, files=copy.copy(images.files))
  feed = stream.Feed(images, 40, 7, Augment())
  with pytest.raises(ValueError, match=f'Example {number} of .*{shard.name}'):
    feed(0, 1)
  feed.close()


def test_halves_of_a_search_are_those_in_memory(folder):
  """The split goes by the number of the record, wherever images are."""
  for disk, memory in zip(
    search_split(opened(folder), 3),
    search_split(in_memory(folder), 3),
    strict=True,
  ):
    found = disk.in_memory()
    np.testing.assert_array_equal(found.images, memory.images)
    np.testing.assert_array_equal(found.labels, memory.labels)
    for left, right in zip(
      pipeline.eval_batches(disk, 8),
      pipeline.eval_batches(memory, 8),
      strict=True,
    ):
      for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])


def test_an_embedded_set_is_not_on_disk():
  """The message says what asked for it."""
  with pytest.raises(ValueError, match='crop_area.*TFDS'):
    records.open_records('digits', 'train')


@pytest.mark.parametrize('name', [real('tf_flowers')])
def test_photographs_stream_as_they_were_prepared(name):
  """Classes in the numbers of the original; the same views every time, and
  those of one photo alike though not the same.
  """
  images = records.open_records(name, 'train', REAL_DATA, 32)
  assert images.num_examples == 2936
  assert images.num_classes == 5
  feeds = [stream.Feed(images, 32, 1, Augment(crop_area=0.5)) for _ in range(2)]
  left, right = (arrays(feed, 91) for feed in feeds)  # the second epoch
  np.testing.assert_array_equal(left[0], right[0])
  assert set(left[1].ravel()) == set(range(5))
  rows = pipeline.batch_indices(2936, 32, 1, 91)
  middle = np.stack([images.evaluated(int(i))[0] for i in rows]).astype(float)
  means = left[0][0].mean((1, 2)), middle.mean((1, 2))
  assert np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1] > 0.9
  assert (left[0][0] != middle).mean() > 0.5
  for feed in feeds:
    feed.close()
