"""Sets as TFDS prepares them, written and found by tests."""

import io
import json
import os
import pathlib

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

REAL_DATA = os.environ.get('HWDARTS_DATA_DIR') or str(
  pathlib.Path(__file__).resolve().parents[2] / 'shared/data/tfds'
)


def real(name):
  """Marks a test that reads a real data set and is skipped without it."""
  return pytest.param(
    name,
    marks=pytest.mark.skipif(
      not (pathlib.Path(REAL_DATA) / name).is_dir(),
      reason=f'{name} is not in HWDARTS_DATA_DIR or ../shared/data/tfds',
    ),
  )


def write_tfds(directory, images, labels, split='train', **changes):
  """Writes an array_record set of 3 classes as TFDS would; returns its shard.

  Args:
    directory: the data_dir.
    images: encoded images, bytes.
    labels: one whole number for each.
    split: name of the only split.
    **changes: `shape` of the image feature, `label` its name, `format`.
  """
  path = directory / 'tiny' / '1.0.0'
  path.mkdir(parents=True)
  label = changes.get('label', 'label')
  tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=changes.get('shape', (8, 8, 3))),
      label: tfds.features.ClassLabel(num_classes=3),
    }
  ).save_config(path)
  info = {
    'name': 'tiny',
    'version': '1.0.0',
    'fileFormat': changes.get('format', 'array_record'),
    'splits': [
      {
        'name': split,
        'shardLengths': [str(len(images))],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
    ],
  }
  (path / 'dataset_info.json').write_text(json.dumps(info))
  shard = path / f'tiny-{split}.array_record-00000-of-00001'
  writer = ArrayRecordWriter(str(shard), 'group_size:1')
  for image, number in zip(images, labels, strict=True):
    example = tf_example_pb2.Example()
    example.features.feature['image'].bytes_list.value.append(image)
    example.features.feature[label].int64_list.value.append(number)
    writer.write(example.SerializeToString())
  writer.close()
  return shard


def png(pixels):
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'PNG')
  return stream.getvalue()


def pngs(num, height=8, width=8):
  values = np.random.default_rng(0).integers(
    0, 256, (num, height, width, 3), np.uint8
  )
  return values, [png(v) for v in values]
