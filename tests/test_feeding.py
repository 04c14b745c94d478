"""What jobs evaluate: each image once, on whatever devices there are."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import numpy as np

from hwdarts_jax.data import sources
from hwdarts_jax.jobs import feeding
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.runtime import sharding

NUM_DEVICES = st.sampled_from([1, 2, 3, 8])


@functools.cache
def mesh(num_devices):
  return sharding.make_mesh(num_devices)


def toy(num):
  """Images that are all different; each fifth is of class 1, others of 0."""
  images = np.arange(num, dtype=np.uint8).reshape(num, 1, 1, 1)
  labels = (np.arange(num) % 5 == 0).astype(np.int32)
  return sources.Dataset('toy', images, labels, 2, (0.0,), (1.0,))


@given(st.integers(1, 60), st.integers(1, 70), NUM_DEVICES)
def test_an_evaluation_counts_every_image_once(num, size, num_devices):
  """Split over all devices, also where they do not divide the batch."""
  found = []
  for batch in feeding.eval_batches(toy(num), size, mesh(num_devices)):
    shards = batch['image'].addressable_shards
    assert len({s.device for s in shards}) == num_devices
    assert len({s.data.shape for s in shards}) == 1
    assert sum(len(s.data) for s in shards) == len(batch['image'])
    found += np.asarray(batch['image'])[np.asarray(batch['mask'])].tolist()
  assert np.ravel(found).tolist() == list(range(num))


@given(st.integers(1, 60), st.integers(1, 70), NUM_DEVICES)
def test_the_accuracy_is_that_of_a_single_device(num, size, num_devices):
  """What fills up a batch would be a right answer, and is not counted."""
  count = jax.jit(lambda _, b: ((b['label'] == 0) & b['mask']).sum())
  images = toy(num)
  found = loop_lib.count_correct(count, None, images, size, mesh(num_devices))
  assert found == (images.labels == 0).sum() / num


@given(st.integers(1, 60), st.integers(1, 70), NUM_DEVICES)
def test_whole_batches_are_those_of_a_single_device(num, size, num_devices):
  """Statistics of a batch are of these images and no others."""
  batches = [
    {k: np.asarray(v).ravel().tolist() for k, v in b.items()}
    for b in feeding.whole_batches(toy(num), size, mesh(num_devices))
  ]
  assert [b['image'] for b in batches] == [
    list(range(i, i + size)) for i in range(0, num - size + 1, size)
  ]
  assert all(b.keys() == {'image', 'label'} for b in batches)


def test_whole_batches_are_split_where_devices_divide_them():
  """So that each evaluates a part of it."""
  for size, held in ((16, 2), (15, 15)):
    batch = next(feeding.whole_batches(toy(16), size, mesh(8)))
    assert {len(s.data) for s in batch['image'].addressable_shards} == {held}
