"""Data: sources, the search split, the order, the batches."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_files import png, pngs, real, REAL_DATA, write_tfds

from hwdarts_jax.data import sources


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
