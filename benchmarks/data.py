r"""How many images a second workers decode for a training, and a core.

python -m benchmarks.data --name=tf_flowers --data_dir=$HOME/tfds \
  --image_size=160
python -m benchmarks.data --synthetic=500x375 --image_size=224

The second makes JPEG files of noise over a gradient, of the mean size of
ImageNet's photos: they stand for a set that is not at hand. The time of the
first batches, in which workers start, does not count. Images of a CPU second
are those that one core decodes, also on a machine that has other work.
"""

from __future__ import annotations

import io
import json
import pathlib
import tempfile
import time
from typing import Any

from absl import app, flags
import numpy as np
from PIL import Image

from hwdarts_jax.data import records as records_lib
from hwdarts_jax.data import stream, workers
from hwdarts_jax.data.augment import Augment

_NAME = flags.DEFINE_string('name', '', 'A set that TFDS has prepared.')
_DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where it is prepared.')
_SYNTHETIC = flags.DEFINE_string('synthetic', '', 'WIDTHxHEIGHT, or a set.')
_SIZE = flags.DEFINE_integer('image_size', 224, 'Pixels of a train image.')
_BATCH = flags.DEFINE_integer('batch_size', 64, 'Images of a batch.')
_SECONDS = flags.DEFINE_float('seconds', 8.0, 'Time of each row.')
_WORKERS = flags.DEFINE_list('workers', ['0'], 'Processes; 0: threads.')
_RATES = flags.DEFINE_list(
  'rates', ['2800'], 'Images/s of a device, to be fed.'
)
_OUT = flags.DEFINE_string('out', '', 'JSON file to write.')

AUGMENTS = {
  'middle': Augment(),
  'random crop': Augment(crop_area=0.08),
  'random crop, colour 0.4': Augment(crop_area=0.08, colour=0.4),
  'random crop, RandAugment 2 x 9': Augment(
    crop_area=0.08, rand_ops=2, rand_magnitude=9.0
  ),
}
_IMAGES = 256
_QUALITY = 90
_FIRST = 4  # batches that do not count, for each worker


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  with tempfile.TemporaryDirectory() as folder:
    name, data_dir = _NAME.value, _DATA_DIR.value
    if _SYNTHETIC.value:
      width, height = map(int, _SYNTHETIC.value.split('x'))
      name, data_dir = 'noise', folder
      _write(pathlib.Path(folder), width, height)
    rows = [
      _measure(name, data_dir, what, int(number))
      for number in _WORKERS.value
      for what in AUGMENTS
    ]
  _print(rows)
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(rows, indent=1) + '\n')


def _measure(
  name: str, data_dir: str, what: str, number: int
) -> dict[str, Any]:
  """Images a second of one augmentation by so many workers."""
  images = records_lib.open_records(
    name, 'train', data_dir, _SIZE.value, workers=number
  )
  feed = stream.Feed(images, _BATCH.value, 0, AUGMENTS[what])
  step = 0
  while step < _FIRST * max(number, 1):
    feed(step, 1)
    step += 1
  first, begun, used = step, time.perf_counter(), time.process_time()
  while time.perf_counter() - begun < _SECONDS.value:
    feed(step, 1)
    step += 1
  count = (step - first) * _BATCH.value
  rate = count / (time.perf_counter() - begun)
  # Of processes the time is not known before they end.
  core = None if number else count / (time.process_time() - used)
  feed.close()
  return {
    'set': _SYNTHETIC.value or name,
    'image_size': _SIZE.value,
    'augment': what,
    'workers': number,
    'cores': workers.cores(),
    'images_per_second': rate,
    'images_per_cpu_second': core,
  }


def _print(rows: list[dict[str, Any]]) -> None:
  rates = [float(r) for r in _RATES.value]
  feed = ' | '.join(f'cores for {r:g}/s, computed' for r in rates)
  print(f'| augmentation | workers | images/s | a CPU second | {feed} |')
  print('|---|---|---|---|' + '---|' * len(rates))
  for row in rows:
    core = row['images_per_cpu_second']
    shown = [core, *(rate / core for rate in rates)] if core else []
    cells = [f'{v:.3g}' for v in shown] or ['-'] * (1 + len(rates))
    number = row['workers'] or 'threads'
    print(
      f'| {row["augment"]} | {number} | {row["images_per_second"]:.0f} '
      f'| {" | ".join(cells)} |'
    )


def _write(folder: pathlib.Path, width: int, height: int) -> None:
  """A set of JPEG files, as TFDS would prepare it."""
  from array_record.python.array_record_module import ArrayRecordWriter
  import tensorflow_datasets as tfds
  from tensorflow_datasets.proto import tf_example_pb2

  path = folder / 'noise' / '1.0.0'
  path.mkdir(parents=True)
  tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(num_classes=2),
    }
  ).save_config(path)
  parts = {'train': _IMAGES, 'test': 1}
  info = {
    'name': 'noise',
    'version': '1.0.0',
    'fileFormat': 'array_record',
    'splits': [
      {
        'name': part,
        'shardLengths': [str(num)],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for part, num in parts.items()
    ],
  }
  (path / 'dataset_info.json').write_text(json.dumps(info))
  for part, num in parts.items():
    shard = path / f'noise-{part}.array_record-00000-of-00001'
    writer = ArrayRecordWriter(str(shard), 'group_size:1')
    for index in range(num):
      example = tf_example_pb2.Example()
      feature = example.features.feature
      feature['image'].bytes_list.value.append(_jpeg(width, height, index))
      feature['label'].int64_list.value.append(index % 2)
      writer.write(example.SerializeToString())
    writer.close()


def _jpeg(width: int, height: int, seed: int) -> bytes:
  """About as many bytes a pixel as a photo."""
  rng = np.random.default_rng(seed)
  slope = np.linspace(0, 160, width)[None, :, None]
  noise = rng.normal(48, 12, (height, width, 3))
  pixels = np.clip(slope + noise, 0, 255).astype(np.uint8)
  stream_ = io.BytesIO()
  Image.fromarray(pixels).save(stream_, 'JPEG', quality=_QUALITY)
  return stream_.getvalue()


if __name__ == '__main__':
  app.run(main)
