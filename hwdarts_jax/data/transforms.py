"""From an encoded image to uint8 pixels: as it is evaluated, and as trained.

These run on the host, in the workers that decode; what costs little (flips,
small shifts, cutout, normalization) is left to the device. All that is random
comes from `order.Draws`, so an example of a step is the same in every run and
in every worker.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hwdarts_jax.data.order import Draws

_BILINEAR = Image.Resampling.BILINEAR
_TRIES = 10  # for a crop that fits, as in Inception
_ASPECT = math.log(4 / 3)
_GREY = 128  # fills what a shear or a shift uncovers
_LEVELS = 10.0  # the magnitude that is "full"; RandAugment's published scale


def central(
  image: Image.Image, mode: str, size: int | None, crop: float = 1.0
) -> np.ndarray:
  """The middle of an image, as it is evaluated.

  Args:
    image: opened, not decoded yet.
    mode: of PIL, that it is converted to.
    size: height and width of the result; None keeps the image as it is.
    crop: share of the shorter side that the result shows; 0.875 is common for
      ImageNet (256 pixels, of which 224 are kept).

  Returns:
    u8[H, W, C].
  """
  return _pixels(_middle(image, mode, size, crop))


def random(
  image: Image.Image,
  mode: str,
  draws: Draws,
  *,
  size: int | None,
  crop_area: float,
  colour: float,
  rand_ops: int,
  rand_magnitude: float,
) -> np.ndarray:
  """A random view of an image, as it is trained on.

  Args:
    image: opened, not decoded yet.
    mode: of PIL, that it is converted to.
    draws: where chance comes from.
    size: height and width of the result; None keeps the image as it is, and
      needs `crop_area` to be 0.
    crop_area: least share of the area that a random crop has; 0 takes the
      middle.
    colour: brightness, contrast and saturation change by factors of up to
      1 ± this. Inception has 0.125, 0.5, 0.5 and a hue, which is left out.
    rand_ops: number of ops of `rand_augment`.
    rand_magnitude: their magnitude.

  Returns:
    u8[H, W, C].
  """
  if crop_area and size is not None:
    box = random_box(image.size, crop_area, draws)
    image = _resized(image, mode, box, size)
  else:
    image = _middle(image, mode, size, 1.0)
  if colour:
    image = _coloured(image, colour, draws)
  return _pixels(rand_augment(image, rand_ops, rand_magnitude, draws))


def random_box(
  size: tuple[int, int], least_area: float, draws: Draws
) -> tuple[int, int, int, int]:
  """A random rectangle in an image (Szegedy et al. 2015).

  Its area is uniform from `least_area` to all of the image, the logarithm of
  its aspect uniform from 3/4 to 4/3. Where ten such do not fit, it is the
  largest of an allowed aspect in the middle.

  Args:
    size: (width, height) of the image.
    least_area: share of the area, above 0, at most 1.
    draws: where chance comes from.

  Returns:
    (left, upper, right, lower) in pixels.
  """
  width, height = size
  for _ in range(_TRIES):
    area = draws.uniform(least_area, 1.0) * width * height
    aspect = math.exp(draws.uniform(-_ASPECT, _ASPECT))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    left, upper = draws.uniform(), draws.uniform()
    if 0 < w <= width and 0 < h <= height:
      left = int(left * (width - w + 1))
      upper = int(upper * (height - h + 1))
      return left, upper, left + w, upper + h
  most = math.exp(_ASPECT)
  w, h = min(width, round(height * most)), min(height, round(width * most))
  left, upper = (width - w) // 2, (height - h) // 2
  return left, upper, left + w, upper + h


def _middle(
  image: Image.Image, mode: str, size: int | None, crop: float
) -> Image.Image:
  image = image.convert(mode)
  if size is None or (crop == 1 and image.size == (size, size)):
    return image
  return ImageOps.fit(image, (size, size), _BILINEAR, bleed=(1 - crop) / 2)


def _resized(
  image: Image.Image, mode: str, box: tuple[int, int, int, int], size: int
) -> Image.Image:
  """A part of an image in another size."""
  width, height = image.size
  side = min(box[2] - box[0], box[3] - box[1])
  if side >= 2 * size:
    # JPEG is decoded at a half, a quarter or an eighth, in a fraction of the
    # time, if that still has the pixels that are asked for.
    image.draft(None, (width * size // side, height * size // side))
  scale = image.size[0] / width, image.size[1] / height
  scaled = [v * scale[i % 2] for i, v in enumerate(box)]
  part = (scaled[0], scaled[1], scaled[2], scaled[3])
  return image.convert(mode).resize((size, size), _BILINEAR, box=part)


def _coloured(image: Image.Image, strength: float, draws: Draws) -> Image.Image:
  for enhance in (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
  ):
    image = enhance(image).enhance(draws.uniform(1 - strength, 1 + strength))
  return image


def rand_augment(
  image: Image.Image, num_ops: int, magnitude: float, draws: Draws
) -> Image.Image:
  """RandAugment (Cubuk et al. 2020): ops drawn alike, at one magnitude.

  The 14 ops of the paper in the ranges of AutoAugment, of which `magnitude`
  10 is the end; those with a sign have it at random. Shifts and shears uncover
  grey.

  Args:
    image: in mode L or RGB.
    num_ops: how many are applied, one after the other.
    magnitude: from 0 to 10.
    draws: where chance comes from.
  """
  level = magnitude / _LEVELS
  for _ in range(num_ops):
    op = RAND_OPS[draws.whole(len(RAND_OPS))]
    sign = 1.0 if draws.uniform() < 0.5 else -1.0
    image = op(image, level, sign)
  return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    Image.Resampling.NEAREST,
    fillcolor=_grey(image),
  )


def _grey(image: Image.Image) -> int | tuple[int, ...]:
  return _GREY if image.mode == 'L' else (_GREY,) * len(image.getbands())


def _enhanced(
  enhance: type,
) -> Callable[[Image.Image, float, float], Image.Image]:
  return lambda image, level, sign: enhance(image).enhance(
    1 + sign * 0.9 * level
  )


# (image, level from 0 to 1, sign) -> image.
RAND_OPS: tuple[Callable[[Image.Image, float, float], Image.Image], ...] = (
  lambda image, level, sign: image,
  lambda image, level, sign: ImageOps.autocontrast(image),
  lambda image, level, sign: ImageOps.equalize(image),
  lambda image, level, sign: image.rotate(
    sign * 30 * level, fillcolor=_grey(image)
  ),
  lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
  lambda image, level, sign: ImageOps.posterize(image, 8 - int(4 * level)),
  _enhanced(ImageEnhance.Color),
  _enhanced(ImageEnhance.Contrast),
  _enhanced(ImageEnhance.Brightness),
  _enhanced(ImageEnhance.Sharpness),
  lambda image, level, sign: _affine(image, 1, sign * 0.3 * level, 0, 0, 1, 0),
  lambda image, level, sign: _affine(image, 1, 0, 0, sign * 0.3 * level, 1, 0),
  lambda image, level, sign: _affine(
    image, 1, 0, sign * 0.45 * level * image.width, 0, 1, 0
  ),
  lambda image, level, sign: _affine(
    image, 1, 0, 0, 0, 1, sign * 0.45 * level * image.height
  ),
)


def _pixels(image: Image.Image) -> np.ndarray:
  return np.asarray(image).reshape(image.height, image.width, -1)
