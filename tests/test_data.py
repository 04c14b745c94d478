"""Data: sources, the search split, the order, the batches."""

import pathlib
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_files import png, pngs, real, REAL_DATA, write_tfds

from hwdarts_jax.data import pipeline, sources, split
from hwdarts_jax.data.augment import Augment


def toy(num=40, size=6, channels=2, seed=0):
  """A set of random images whose labels are their positions."""
  shape = (num, size, size, channels)
  images = np.random.default_rng(seed).integers(1, 256, shape, np.uint8)
  labels = np.arange(num, dtype=np.int32)
  stats = (0.4,) * channels, (0.2,) * channels
  return sources.Dataset('toy', images, labels, num, *stats)


def test_digits_are_embedded_and_balanced():
  """Every job runs without a download: both splits hold all ten digits."""
  train, test = sources.load('digits', 'train'), sources.load('digits', 'test')
  assert (train.num_examples, test.num_examples) == (1437, 360)
  assert train.image_shape == (8, 8, 1) and train.images.dtype == np.uint8
  assert train.labels.dtype == np.int32 and train.num_classes == 10
  for dataset in (train, test):
    share = np.bincount(dataset.labels, minlength=10) / dataset.num_examples
    assert share.min() > 0.09 and share.max() < 0.11
  assert (train.mean, train.std) == (test.mean, test.std)
  np.testing.assert_allclose(
    train.images.mean() / 255, train.mean[0], atol=1e-5
  )
  np.testing.assert_allclose(train.images.std() / 255, train.std[0], atol=1e-5)


def test_digits_train_and_test_share_no_image():
  """The test split is held out, not sampled from train."""
  train, test = sources.load('digits', 'train'), sources.load('digits', 'test')
  seen = {i.tobytes() for i in train.images}
  assert not seen & {i.tobytes() for i in test.images}


def test_digits_need_neither_tfds_nor_jax():
  """Loading the embedded set stays fast: nothing heavy is imported."""
  code = (
    "import sys; from hwdarts_jax.data import sources; sources.load('digits', "
    "'test'); print('tensorflow_datasets' in sys.modules, 'jax' in sys.modules)"
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.split() == ['False', 'False']


def test_image_size_resizes_whatever_the_source():
  """data.image_size gives square images of that size."""
  assert sources.load('digits', 'test', image_size=12).image_shape == (
    12,
    12,
    1,
  )


@pytest.mark.parametrize(
  'kwargs, words',
  [
    ({'split': 'val'}, ["'val'", "'train', 'test'"]),
    ({'image_size': 0}, ['data.image_size', '0']),
    ({'name': '../cifar10'}, ['data.name', "'../cifar10'"]),
    ({'name': ''}, ['data.name', "''"]),
  ],
)
def test_a_wrong_argument_is_named(kwargs, words, tmp_path):
  """Errors say the field, the value and what is allowed."""
  defaults = {'name': 'digits', 'split': 'train', 'data_dir': str(tmp_path)}
  with pytest.raises(ValueError) as e:
    sources.load(**(defaults | kwargs))
  assert all(w in str(e.value) for w in words), e.value


def test_a_missing_set_says_how_to_prepare_it(tmp_path):
  """The message lists what is there and holds the command to run."""
  write_tfds(tmp_path, pngs(2)[1], [0, 1])
  with pytest.raises(ValueError) as e:
    sources.load('cifar10', 'train', str(tmp_path))
  command = (
    f'tfds build cifar10 --file_format=array_record --data_dir={tmp_path}'
  )
  for word in ('data.name', 'data.data_dir', 'tiny', 'digits', command):
    assert word in str(e.value)
  assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='tfds build'):
    sources.load('tiny', 'train', str(tmp_path / 'absent'))
  with pytest.raises(ValueError, match='tfds build tiny:2.0.0'):
    sources.load('tiny:2.0.0', 'train', str(tmp_path))


def test_a_missing_imagenet_says_what_to_download(tmp_path):
  """No command gets its archives; the message says which, and into where."""
  with pytest.raises(ValueError) as e:
    sources.load('imagenet2012', 'train', str(tmp_path), 224)
  for word in (
    'tfds build imagenet2012',
    'ILSVRC2012_img_train.tar',
    'ILSVRC2012_img_val.tar',
    f'{tmp_path}/downloads/manual',
  ):
    assert word in str(e.value)


def test_a_set_in_another_file_format_is_refused(tmp_path):
  """TFRecord would need TensorFlow; the message names the format to build."""
  write_tfds(tmp_path, pngs(2)[1], [0, 1], format='tfrecord')
  with pytest.raises(ValueError, match='as tfrecord.*array_record'):
    sources.load('tiny', 'train', str(tmp_path))


def test_a_set_without_labels_is_refused(tmp_path):
  """Only sets with the features 'image' and 'label' can be classified."""
  write_tfds(tmp_path, pngs(2)[1], [0, 1], label='caption')
  with pytest.raises(ValueError, match="'label'.*caption"):
    sources.load('tiny', 'train', str(tmp_path))


def test_labels_out_of_range_are_refused(tmp_path):
  """An unlabelled split (label -1) cannot slip into training."""
  write_tfds(tmp_path, pngs(10)[1], [0, -1] * 5)
  with pytest.raises(ValueError, match='label -1'):
    sources.load('tiny', 'train', str(tmp_path))


def test_images_arrive_as_they_were_stored(tmp_path):
  """Lossless images keep every pixel, their order and their labels."""
  values, encoded = pngs(10)
  write_tfds(tmp_path, encoded, [i % 3 for i in range(10)], split='test')
  with pytest.raises(ValueError, match="no split 'train'"):
    sources.load('tiny', 'test', str(tmp_path))
  write_tfds(tmp_path / 'b', encoded, [i % 3 for i in range(10)])
  train = sources.load('tiny', 'train', str(tmp_path / 'b'))
  test = sources.load('tiny', 'test', str(tmp_path / 'b'))
  rows = {v.tobytes(): i for i, v in enumerate(values)}
  where = [
    [rows[i.tobytes()] for i in dataset.images] for dataset in (train, test)
  ]
  assert len(where[1]) == 2, 'a fifth of train is held out'
  assert sorted(where[0] + where[1]) == list(range(10))
  assert train.labels.tolist() == [i % 3 for i in where[0]]
  assert train.mean == test.mean, 'both are normalized by the train images'
  np.testing.assert_allclose(
    train.mean, values[where[0]].mean((0, 1, 2)) / 255, atol=1e-5
  )


def test_images_of_varied_size_need_image_size(tmp_path):
  """With it the shorter side is resized and the centre cropped."""
  wide = np.zeros((8, 24, 3), np.uint8)
  wide[:, 8:16] = 255  # the central square is white
  encoded = [png(wide), png(wide.transpose(1, 0, 2))] * 3
  write_tfds(tmp_path, encoded, [0] * 6, shape=(None, None, 3))
  with pytest.raises(ValueError, match='data.image_size is None.*vary'):
    sources.load('tiny', 'train', str(tmp_path))
  train = sources.load('tiny', 'train', str(tmp_path), image_size=4)
  assert train.images.shape == (5, 4, 4, 3)
  assert train.images[:, 1:3, 1:3].min() == 255


@pytest.mark.parametrize('damage', ['cut', 'empty', 'overwritten', 'removed'])
def test_a_damaged_shard_is_named(tmp_path, damage):
  """No training starts on half a data set; the message names the file."""
  shard = write_tfds(tmp_path, pngs(20)[1], [0] * 20)
  content = shard.read_bytes()
  if damage == 'removed':
    shard.unlink()
  else:
    noise = np.random.default_rng(0).bytes(500)
    shard.write_bytes(
      {
        'cut': content[: len(content) // 2],
        'empty': b'',
        'overwritten': content[:1000] + noise + content[1500:],
      }[damage]
    )
  with pytest.raises(ValueError, match=shard.name):
    sources.load('tiny', 'train', str(tmp_path))


def test_a_damaged_image_is_named(tmp_path):
  """A record whose bytes are no image is reported by its number."""
  encoded = pngs(20)[1]
  encoded[7] = encoded[7][: len(encoded[7]) // 2]
  shard = write_tfds(tmp_path, encoded, [0] * 20)
  with pytest.raises(ValueError, match=f'Example 7 of .*{shard.name}'):
    sources.load('tiny', 'train', str(tmp_path))


def test_metadata_that_are_no_json_are_named(tmp_path):
  """A half-written dataset_info.json or features.json is an error in words."""
  for file in ('dataset_info.json', 'features.json'):
    shard = write_tfds(tmp_path / file, pngs(2)[1], [0, 1])
    (shard.parent / file).write_text('{"name": ')
    with pytest.raises(ValueError, match='metadata.*cannot be read'):
      sources.load('tiny', 'train', str(tmp_path / file))


def test_a_set_larger_than_memory_is_refused(tmp_path):
  """Better an error now than a killed process in an hour."""
  write_tfds(tmp_path, pngs(10)[1], [0] * 10)
  with pytest.raises(ValueError, match='GiB.*data.image_size'):
    sources.load('tiny', 'train', str(tmp_path), image_size=10**6)


@pytest.mark.parametrize('name', [real('fashion_mnist'), real('cifar10')])
def test_real_test_splits_are_complete_and_in_order(name):
  """10,000 images, 1,000 a class, and what TFDS itself reads from the file."""
  dataset = sources.load(name, 'test', REAL_DATA)
  shape = {'fashion_mnist': (28, 28, 1), 'cifar10': (32, 32, 3)}[name]
  assert dataset.images.shape == (10_000, *shape)
  assert np.bincount(dataset.labels).tolist() == [1000] * 10
  (path,) = (pathlib.Path(REAL_DATA) / name).iterdir()
  direct = tfds.builder_from_directory(path).as_data_source('test')
  for i in (0, 1, 4321, 9999):
    assert dataset.labels[i] == direct[i]['label']
    # A decoder other than Pillow may differ by a few grey levels in JPEG.
    np.testing.assert_allclose(dataset.images[i], direct[i]['image'], atol=8)
  mean, std = sources._channel_stats(dataset.images)
  np.testing.assert_allclose(dataset.mean, mean, atol=0.01)
  np.testing.assert_allclose(dataset.std, std, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('name', [real('fashion_mnist')])
def test_known_statistics_are_those_of_the_train_images(name):
  """The constants in the code describe the data that they normalize."""
  dataset = sources.load(name, 'train', REAL_DATA)
  assert dataset.num_examples == 60_000
  assert np.bincount(dataset.labels).tolist() == [6000] * 10
  mean, std = sources._channel_stats(dataset.images)
  np.testing.assert_allclose(dataset.mean, mean, atol=1e-4)
  np.testing.assert_allclose(dataset.std, std, atol=1e-4)


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
