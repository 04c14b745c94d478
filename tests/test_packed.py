"""Data sets in one file, as machines without TFDS read them."""

import io

import numpy as np
from PIL import Image
import pytest

from benchmarks import packed
from hwdarts_jax.data import sources
from hwdarts_jax.jobs import feeding


def test_packed_images_are_read_in_the_place_of_tfds(tmp_path, monkeypatch):
  """PNG loses nothing, so that images come back as they were."""
  monkeypatch.setattr(sources, 'load', sources.load)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
  blobs = []
  for image in images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'png')
    blobs.append(file.getvalue())
  np.savez(
    tmp_path / 'cifar10_train.npz',
    data=np.frombuffer(b''.join(blobs), np.uint8),
    offsets=np.cumsum([0] + [len(b) for b in blobs]),
    labels=np.arange(5, dtype=np.int32),
    num_classes=10,
  )
  packed.use(tmp_path, most=4)
  data = {
    'name': 'cifar10',
    'image_size': 0,
    'data_dir': '',
    'eval_crop': 1.0,
    'resident': 'true',
  }
  found = feeding.load_data(data, 'train')
  np.testing.assert_array_equal(found.images, images[:4])
  np.testing.assert_array_equal(found.labels, np.arange(4))
  assert found.num_classes == 10
  assert found.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
