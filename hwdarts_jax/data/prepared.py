"""Sets that TFDS has prepared on disk: where they are, and what they hold.

Errors name the config field, the value and the way out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from etils import epath
import numpy as np

EMBEDDED = ('digits',)  # need no preparation
# What `tfds build` cannot download by itself.
_BY_HAND = {
  'imagenet2012': (
    'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which image-net.org '
    'gives to those who register'
  )
}
PIL_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # by number of channels


def find_version(name: str, data_dir: str) -> epath.Path:
  """Returns the directory of the newest prepared version of a set.

  Raises:
    ValueError: there is none; the message says how to prepare it.
  """
  match = re.fullmatch(r'(\w+(?:/[\w.+-]+)?)(?::(\d+\.\d+\.\d+))?', name)
  if match is None:
    raise ValueError(
      f"data.name is {name!r}; it must be 'digits' or a name of TFDS, like "
      "'cifar10', 'imagenette/160px-v2' or 'cifar10:3.0.2'."
    )
  base, version = match.groups()
  versions = [
    v for v in _versions(epath.Path(data_dir) / base) if version in (None, v)
  ]
  if not versions:
    found = ', '.join(_prepared_sets(epath.Path(data_dir))) or 'no data set'
    raise ValueError(
      f'data.name is {name!r}, which is not prepared in data.data_dir '
      f'{data_dir!r} (found there: {found}; embedded: '
      f'{", ".join(EMBEDDED)}); prepare it with `tfds build {name} '
      f'--file_format=array_record --data_dir={data_dir}`'
      f'{_by_hand(base, data_dir)}.'
    )
  newest = max(versions, key=lambda v: [int(n) for n in v.split('.')])
  return epath.Path(data_dir) / base / newest


def _by_hand(base: str, data_dir: str) -> str:
  """What has to be downloaded by hand before a set can be prepared."""
  if base not in _BY_HAND:
    return ''
  return (
    f' (that command needs TensorFlow, which nothing else does, and '
    f'before it {_BY_HAND[base]}, in {data_dir}/downloads/manual)'
  )


def _subdirectories(directory: epath.Path) -> list[epath.Path]:
  """Directories in `directory` by name; none if it does not exist."""
  try:
    if not directory.is_dir():
      return []
    return sorted(p for p in directory.iterdir() if p.is_dir())
  except OSError as e:
    raise ValueError(
      f'data.data_dir: {str(directory)!r} cannot be listed ({e.strerror}).'
    ) from e


def _versions(directory: epath.Path) -> list[str]:
  """Prepared versions of the set in `directory`."""
  return [
    p.name
    for p in _subdirectories(directory)
    if re.fullmatch(r'\d+\.\d+\.\d+', p.name)
    and (p / 'dataset_info.json').exists()
  ]


def _prepared_sets(data_dir: epath.Path) -> list[str]:
  """Names (with config, if any) of the sets that are prepared somewhere."""
  names = []
  for path in _subdirectories(data_dir):
    if _versions(path):
      names.append(path.name)
    names.extend(
      f'{path.name}/{config.name}'
      for config in _subdirectories(path)
      if _versions(config)
    )
  return names


def check_format(name: str, directory: epath.Path) -> None:
  """Raises ValueError if a set is not prepared as array_record."""
  path = directory / 'dataset_info.json'
  try:
    found = json.loads(path.read_text()).get('fileFormat', 'tfrecord')
  except (OSError, ValueError, AttributeError) as e:
    raise ValueError(
      f'data.name is {name!r}, whose metadata {str(path)!r} cannot be read '
      f'({first_line(e)}).'
    ) from e
  if found != 'array_record':
    raise ValueError(
      f'data.name is {name!r}, which is prepared as {found} in '
      f'{str(directory)!r}, but only array_record can be read; prepare it in '
      f'another data.data_dir with `tfds build {name} '
      '--file_format=array_record --data_dir=...`.'
    )


def image_shape(
  name: str, features: Any, tfds: Any, image_size: int | None
) -> tuple[int, int, int]:
  """Returns the shape that decoded images will have.

  Args:
    name: of the set, for messages.
    features: of its builder.
    tfds: the module.
    image_size: that images are resized to; None: they stay as they are.

  Raises:
    ValueError: the set is not one of labelled images of one size.
  """
  found = (
    dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
  )
  image, label = found.get('image'), found.get('label')
  if not (
    isinstance(image, tfds.features.Image)
    and isinstance(label, tfds.features.ClassLabel)
    and label.num_classes
  ):
    raise ValueError(
      f"data.name is {name!r}; it must have the features 'image' (Image) and "
      f"'label' (ClassLabel), but it has "
      f'{ {k: type(v).__name__ for k, v in found.items()} }.'
    )
  height, width, channels = image.shape
  if image.np_dtype != np.uint8 or channels not in PIL_MODES:
    raise ValueError(
      f'data.name is {name!r}, whose images are '
      f'{np.dtype(image.np_dtype).name} with {channels} channels; they must be '
      f'uint8 with one of {sorted(PIL_MODES)} channels.'
    )
  if image_size is not None:
    return image_size, image_size, channels
  if height is None or width is None:
    raise ValueError(
      f'data.image_size is None, but the images of data.name {name!r} vary in '
      'size; it must be a number of pixels, such as 64.'
    )
  return height, width, channels


def first_line(error: BaseException) -> str:
  """What an error says first, without a full stop."""
  lines = str(error).strip().splitlines()
  return lines[0].rstrip('.') if lines else type(error).__name__
