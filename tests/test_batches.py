"""The search split, the order of examples, and batches of them."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from hwdarts_jax.data import pipeline, sources, split
from hwdarts_jax.data.augment import Augment


def toy(num=40, size=6, channels=2, seed=0):
  """A set of random images whose labels are their positions."""
  shape = (num, size, size, channels)
  images = np.random.default_rng(seed).integers(1, 256, shape, np.uint8)
  labels = np.arange(num, dtype=np.int32)
  stats = (0.4,) * channels, (0.2,) * channels
  return sources.Dataset('toy', images, labels, num, *stats)


@given(
  num=st.integers(2, 200), seed=st.integers(0, 2**32), share=st.floats(0.1, 0.9)
)
@settings(max_examples=50)
def test_search_split_is_a_partition(num, seed, share):
  """Train and val halves share no example and leave none out."""
  dataset = toy(num, size=1)
  if not 0 < round(num * share) < num:
    return
  train, val = split.search_split(dataset, seed, share)
  assert sorted([*train.labels, *val.labels]) == list(range(num))
  assert train.num_examples == round(num * share)
  assert np.array_equal(train.images, dataset.images[train.labels])
  again, _ = split.search_split(dataset, seed, share)
  assert np.array_equal(train.labels, again.labels)


def test_search_split_depends_on_the_seed():
  """Another seed is another split; another fraction moves only the cut."""
  dataset = toy(100)
  train, _ = split.search_split(dataset, 0)
  other, _ = split.search_split(dataset, 1)
  smaller, _ = split.search_split(dataset, 0, 0.3)
  assert set(train.labels) != set(other.labels)
  assert set(smaller.labels) < set(train.labels)


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 0.001, float('nan')])
def test_search_split_refuses_an_empty_part(fraction):
  """A bilevel problem needs two sets."""
  with pytest.raises(ValueError, match='fraction'):
    split.search_split(toy(), 0, fraction)


def test_the_order_never_changes():
  """Golden values: the order is the same in every release of NumPy."""
  got = pipeline.batch_indices(10, 5, seed=3, step=1)
  assert got.tolist() == [7, 9, 4, 3, 0]
  train, _ = split.search_split(toy(10), seed=3)
  assert train.labels.tolist() == [1, 3, 6, 8, 9]


@given(
  num=st.integers(1, 60),
  size=st.integers(1, 60),
  seed=st.integers(0, 2**64 - 1),
  epoch=st.integers(0, 1000),
)
@settings(max_examples=50)
def test_an_epoch_visits_every_example_at_most_once(num, size, seed, epoch):
  """And all but the remainder that does not fill a batch."""
  size = min(num, size)
  steps = num // size
  seen = np.concatenate(
    [
      pipeline.batch_indices(num, size, seed, epoch * steps + k)
      for k in range(steps)
    ]
  )
  assert seen.dtype == np.int32 and len(seen) == steps * size
  assert len(set(seen.tolist())) == len(seen)
  assert seen.min() >= 0 and seen.max() < num


@given(start=st.integers(0, 40), num_steps=st.integers(1, 8))
@settings(max_examples=20)
def test_the_order_does_not_depend_on_where_you_start(start, num_steps):
  """A run that resumes sees the batches that it would have seen anyway."""
  dataset = toy()
  chunk = pipeline.Feed(dataset, 7, seed=5)(start, num_steps)
  for k in range(num_steps):
    expected = pipeline.batch_indices(40, 7, 5, start + k)
    assert np.array_equal(chunk.indices[k], expected)


def test_epochs_and_seeds_have_orders_of_their_own():
  """No two of them are shuffled alike."""
  orders = {
    tuple(pipeline.batch_indices(20, 20, seed, epoch))
    for seed in range(5)
    for epoch in range(5)
  }
  assert len(orders) == 25


@pytest.mark.parametrize(
  'call, field',
  [
    (lambda: pipeline.batch_indices(4, 5, 0, 0), 'batch_size is 5'),
    (lambda: pipeline.batch_indices(4, 0, 0, 0), 'batch_size is 0'),
    (lambda: pipeline.batch_indices(4, 2, 0, -1), 'step is -1'),
    (lambda: pipeline.batch_indices(4, 2, -1, 0), 'seed is -1'),
    (lambda: pipeline.Feed(toy(), 41, 0), 'batch_size is 41'),
    (lambda: pipeline.Feed(toy(), 4, 0, resident='no'), "resident is 'no'"),
    (lambda: pipeline.Feed(toy(), 4, 0)(0, 0), 'num_steps is 0'),
    (
      lambda: pipeline.Feed(toy(), 12, 0, batch_sharding=shardings(8)[1]),
      'batch_size is 12.*8 devices',
    ),
    (lambda: list(pipeline.eval_batches(toy(), 0)), 'batch_size is 0'),
    (lambda: Augment(pad=-1), 'augment.pad is -1'),
    (lambda: Augment(cutout=-2), 'augment.cutout is -2'),
  ],
)
def test_a_number_out_of_range_is_named(call, field):
  """Errors say the field and the value."""
  with pytest.raises(ValueError, match=field):
    call()


def test_auto_residence_follows_the_size():
  """Only a set that fits into the limit stays on the devices."""
  dataset = toy(num=64, size=32, channels=16)  # 1 MiB
  for limit, resident in ((1.0, True), (0.99, False)):
    feed = pipeline.Feed(dataset, 8, 0, max_resident_mb=limit)
    assert feed.resident is resident
  assert pipeline.Feed(dataset, 8, 0).steps_per_epoch == 8


def shardings(num_devices):
  """(replicated, indices split over their second axis)."""
  mesh = jax.make_mesh(
    (num_devices,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:num_devices],
  )
  return NamedSharding(mesh, P()), NamedSharding(mesh, P(None, 'data'))


def batches(dataset, augment, num_devices=None, **kwargs):
  """Two augmented batches of 16, made in one compiled function."""
  if num_devices:
    kwargs['replicated'], kwargs['batch_sharding'] = shardings(num_devices)
  chunk = pipeline.Feed(dataset, 16, 7, **kwargs)(3, 2)

  @jax.jit
  def make(chunk, rng):
    return [
      pipeline.make_batch(
        chunk.images, chunk.labels, indices, jax.random.fold_in(rng, k),
        augment, dataset.mean, dataset.std,
      )
      for k, indices in enumerate(chunk.indices)
    ]  # fmt: skip

  return make(chunk, jax.random.key(0))


def assert_equal(left, right):
  for a, b in zip(left, right, strict=True):
    assert np.array_equal(a['image'], b['image'])
    assert np.array_equal(a['label'], b['label'])


@pytest.mark.parametrize('num_devices', [None, 8])
def test_streamed_and_resident_batches_are_the_same(num_devices):
  """Where the images live is a matter of speed alone."""
  augment = Augment(pad=2, flip=True, cutout=3)
  left, right = (
    batches(toy(), augment, num_devices, resident=r) for r in (True, False)
  )
  assert_equal(left, right)


def test_eight_devices_augment_like_one():
  """Bit for bit: every example has a key of its own."""
  augment = Augment(pad=2, flip=True, cutout=3)
  one, eight = (batches(toy(), augment, num) for num in (1, 8))
  assert len(eight[0]['image'].sharding.device_set) == 8
  assert_equal(one, eight)


make_batch = jax.jit(pipeline.make_batch, static_argnums=(4, 5, 6, 7))


def augmented(augment, images, seed=0):
  """All images in their order, augmented; 0..255 stays 0..255."""
  num, channels = len(images), images.shape[-1]
  stats = (0.0,) * channels, (1 / 255,) * channels
  rng = None if seed is None else jax.random.key(seed)
  rows = np.arange(num)
  return np.asarray(
    make_batch(images, rows, rows, rng, augment, *stats)['image']
  )


def test_every_augmented_image_is_a_shifted_mirrored_original():
  """Pad-crop and flip move pixels; they invent none but black ones."""
  images = toy(num=64, size=5).images
  pad = 2
  padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  seen = set()
  for row, got in enumerate(augmented(Augment(pad, flip=True), images)):
    hits = [
      (y, x, flip)
      for y in range(2 * pad + 1)
      for x in range(2 * pad + 1)
      for flip in (1, -1)
      if np.array_equal(
        padded[row, y : y + 5, x : x + 5][:, ::flip], np.round(got)
      )
    ]
    assert len(hits) == 1
    seen.add(hits[0])
  assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(5))
  assert {flip for _, _, flip in seen} == {1, -1}


@pytest.mark.parametrize(
  'augment, seed', [(Augment(), 0), (Augment(4, True, 4), None)]
)
def test_no_augmentation_is_the_identity(augment, seed):
  """Neither an empty `Augment` nor a missing rng changes an image."""
  images = toy().images
  np.testing.assert_allclose(
    augmented(augment, images, seed), images, rtol=1e-6
  )


@given(size=st.sampled_from([1, 3, 9]), seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_cutout_zeroes_one_clipped_square(size, seed):
  """At most size^2 pixels, all channels of each, at least a quarter of it."""
  images = toy(num=8, size=6).images  # no pixel is black
  got = augmented(Augment(cutout=size), images, seed)
  for image, original in zip(got, images, strict=True):
    zero = (image == 0).all(-1)
    assert np.array_equal(zero, (image == 0).any(-1))
    rows, columns = zero.any(1), zero.any(0)
    assert np.array_equal(zero, rows[:, None] & columns[None])
    for side in (rows, columns):
      assert min(6, (size + 1) // 2) <= side.sum() <= min(6, size)
      assert np.ptp(np.flatnonzero(side)) == side.sum() - 1
    np.testing.assert_allclose(image[~zero], original[~zero], rtol=1e-6)


def test_cutout_zeroes_after_normalization():
  """A cut pixel has the value of the mean colour, not of black."""
  dataset = toy(num=8)
  batch = make_batch(
    dataset.images, dataset.labels, np.arange(8), jax.random.key(0),
    Augment(cutout=99), dataset.mean, dataset.std,
  )  # fmt: skip
  assert np.count_nonzero(batch['image']) == 0
  grey = np.full((1, 1, 1, 2), 102, np.uint8)  # 0.4 of 255
  grey = pipeline.normalize(grey, dataset.mean, dataset.std)
  np.testing.assert_allclose(grey, 0, atol=1e-6)


def test_labels_follow_their_images():
  """Whatever the order and the augmentation, a label is that of its image."""
  images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(4, 1)
  images = images.repeat(4, 2)
  dataset = sources.Dataset(
    'toy', images, np.arange(40, dtype=np.int32), 40, (0.0,), (1 / 255,)
  )
  for batch in batches(dataset, Augment(pad=1, flip=True)):
    brightest = np.asarray(batch['image']).max((1, 2, 3))
    assert np.array_equal(np.round(brightest), batch['label'])


def test_one_augmentation_does_not_reroll_another():
  """Adding cutout keeps the crops, so settings can be compared pairwise."""
  images = toy().images
  plain = augmented(Augment(pad=2), images)
  cut = augmented(Augment(pad=2, cutout=2), images)
  assert np.array_equal(np.where(cut == 0, 0, plain), cut)
  assert not np.array_equal(plain, cut)


def test_normalization_gives_zero_mean_and_unit_variance():
  """For the train images, in the type that was asked for."""
  dataset = sources.load('digits', 'train')
  x = pipeline.normalize(jnp.asarray(dataset.images), dataset.mean, dataset.std)
  np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-4)
  low = pipeline.normalize(
    jnp.asarray(dataset.images), dataset.mean, dataset.std, jnp.bfloat16
  )
  assert low.dtype == jnp.bfloat16
  assert np.array_equal(low, x.astype(jnp.bfloat16))


@given(num=st.integers(1, 30), size=st.integers(1, 40))
@settings(max_examples=30)
def test_evaluation_sees_every_example_once(num, size):
  """In batches of one shape; the mask tells the padding from the split."""
  dataset = toy(num, size=2)
  seen = list(pipeline.eval_batches(dataset, size))
  assert {b['image'].shape for b in seen} == {(size, 2, 2, 2)}
  for name, expected in (('image', dataset.images), ('label', dataset.labels)):
    got = np.concatenate([b[name][b['mask']] for b in seen])
    assert np.array_equal(got, expected) and got.dtype == expected.dtype
