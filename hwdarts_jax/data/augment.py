"""What may vary in train images, and where: on the device or in the workers."""

from __future__ import annotations

import dataclasses
from typing import Any

_OF_WORKERS = ('crop_area', 'colour', 'rand_ops', 'rand_magnitude')


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random changes of train images.

  The first three cost the device little. The others need the images as they
  were stored, and are applied by the workers that decode (`transforms.random`).

  Attributes:
    pad: pixels of black on every side before a random crop of the old size.
    flip: whether to mirror left and right with probability 1/2.
    cutout: side in pixels of the square that is zeroed after normalization;
      its centre is uniform over the image and it is clipped at the borders
      (DeVries & Taylor, 2017). 0 leaves it out.
    crop_area: least share of the area that a random crop, resized, shows; 0
      leaves it out.
    colour: brightness, contrast and saturation change by up to 1 ± this.
    rand_ops: number of ops of RandAugment; 0 leaves it out.
    rand_magnitude: their magnitude, 0 to 10.
  """

  pad: int = 0
  flip: bool = False
  cutout: int = 0
  crop_area: float = 0.0
  colour: float = 0.0
  rand_ops: int = 0
  rand_magnitude: float = 0.0

  def __post_init__(self):
    for field in ('pad', 'cutout'):
      if getattr(self, field) < 0:
        raise ValueError(
          f'augment.{field} is {getattr(self, field)!r}; it must be a number '
          'of pixels, at least 0.'
        )

  @property
  def needs_originals(self) -> bool:
    """Whether workers have to apply some of it."""
    return bool(self.crop_area or self.colour or self.rand_ops)

  def of_workers(self) -> dict[str, Any]:
    """The part of the workers: arguments of `transforms.random`."""
    return {name: getattr(self, name) for name in _OF_WORKERS}
