"""A data set in one file, for machines that have no TFDS.

python -m benchmarks.packed --name=cifar10 --data_dir=$HOME/tfds --out=packed

Writes packed/cifar10_train.npz and packed/cifar10_test.npz: the images as they
are stored (JPEG or PNG), one after the other, and their labels. Benchmarks read
them by --packed=packed.
"""

from __future__ import annotations

from collections.abc import Sequence
import concurrent.futures
import functools
import io
import os
import pathlib

from absl import app, flags
import numpy as np
from PIL import Image

from hwdarts_jax.data import prepared, sources, transforms

_NAME = flags.DEFINE_string('name', 'cifar10', 'Of the set, in TFDS.')
_DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where TFDS has prepared it.')
_OUT = flags.DEFINE_string('out', 'packed', 'Folder to write.')


def pack(name: str, split: str, data_dir: str, path: pathlib.Path) -> int:
  """Writes a split; returns how many images it has."""
  import tensorflow_datasets as tfds

  directory = prepared.find_version(
    name, data_dir or tfds.core.constants.DATA_DIR
  )
  builder = tfds.builder_from_directory(directory)
  source = builder.as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  examples = [source[i] for i in range(len(source))]
  blobs = [bytes(e['image']) for e in examples]
  np.savez(
    path,
    data=np.frombuffer(b''.join(blobs), np.uint8),
    offsets=np.cumsum([0] + [len(b) for b in blobs]).astype(np.int64),
    labels=np.asarray([e['label'] for e in examples], np.int32),
    num_classes=builder.info.features['label'].num_classes,
  )
  return len(blobs)


def use(folder: pathlib.Path, most: int = 0) -> None:
  """Has every job of this process read its data from packed files.

  Args:
    folder: what `pack` wrote.
    most: images of a split, for trials; 0: all.
  """
  read = functools.lru_cache(functools.partial(_read, folder, most))

  def load(name, split, data_dir='', image_size=None, crop=1.0):
    del data_dir
    return read(name, split, image_size, crop)

  sources.load = load


def _read(
  folder: pathlib.Path,
  most: int,
  name: str,
  split: str,
  image_size: int | None,
  crop: float,
) -> sources.Dataset:
  with np.load(folder / f'{name}_{split}.npz') as arrays:
    data, offsets = arrays['data'].tobytes(), arrays['offsets']
    labels, num_classes = arrays['labels'], int(arrays['num_classes'])
  count = min(most or len(labels), len(labels))

  def decode(i: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]]))
    return transforms.central(image, 'RGB', image_size, crop)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    images = np.stack(list(pool.map(decode, range(count), chunksize=500)))
  return sources.Dataset(
    name, images, labels[:count], num_classes, *sources.known_statistics(name)
  )


def main(argv: Sequence[str]) -> None:
  """Packs both splits."""
  del argv
  folder = pathlib.Path(_OUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  for split in sources.SPLITS:
    path = folder / f'{_NAME.value}_{split}.npz'
    count = pack(_NAME.value, split, _DATA_DIR.value, path)
    print(f'{path}: {count} images, {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
  app.run(main)
