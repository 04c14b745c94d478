"""Random views of images: crops, colours, RandAugment."""

import io
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from hwdarts_jax.data import order, transforms

NOTHING = dict.fromkeys(
  ('crop_area', 'colour', 'rand_ops', 'rand_magnitude'), 0
)


def photo(width=40, height=30, mode='RGB'):
  """Smooth, without symmetry, of all brightnesses."""
  rows, columns = np.mgrid[:height, :width]
  bands = [
    255 * columns / width,
    255 * rows / height,
    127 + 127 * np.sin(columns / 2 + rows / 3),
  ]
  pixels = np.stack(bands, -1).astype(np.uint8)
  return Image.fromarray(pixels).convert(mode)


def view(image, draws, size=16, **changes):
  return transforms.random(
    image, image.mode, draws, size=size, **NOTHING | changes
  )


def test_draws_never_change():
  """Old checkpoints go on with the same images in every release of NumPy."""
  draws = order.Draws(3, 5)
  found = [draws.uniform() for _ in range(3)]
  wanted = [0.04175602167539, 0.50341888047624, 0.58640848749017]
  np.testing.assert_allclose(found, wanted, rtol=1e-9)
  assert order.Draws(3, 6).uniform() != found[0] != order.Draws(4, 5).uniform()


def test_draws_are_uniform():
  """Their first moments are those of the uniform distribution."""
  values = [order.Draws(0, i).uniform(2, 4) for i in range(4000)]
  assert np.mean(values) == pytest.approx(3, abs=0.04)
  assert np.std(values) == pytest.approx(2 / math.sqrt(12), abs=0.03)
  wholes = np.bincount([order.Draws(1, i).whole(4) for i in range(4000)])
  assert len(wholes) == 4
  assert (abs(wholes - 1000) < 150).all()


@given(
  width=st.integers(1, 500),
  height=st.integers(1, 500),
  least=st.floats(0.05, 1),
  seed=st.integers(0, 2**32),
)
def test_a_random_box_is_as_large_and_as_long_as_it_should(
  width, height, least, seed
):
  """Inside the image; of the area and the aspect asked for, to a pixel."""
  left, upper, right, lower = transforms.random_box(
    (width, height), least, order.Draws(seed, 0)
  )
  assert 0 <= left < right <= width
  assert 0 <= upper < lower <= height
  w, h = right - left, lower - upper
  assert (w + 0.5) / max(h - 0.5, 0.1) >= 3 / 4
  assert (w - 0.5) / (h + 0.5) <= 4 / 3
  if 3 / 4 <= width / height <= 4 / 3:
    assert (w + 0.5) * (h + 0.5) >= 0.99 * least * width * height


def test_random_boxes_cover_the_image_evenly():
  """No side is preferred, and areas are spread over the whole range."""
  boxes = np.array(
    [
      transforms.random_box((300, 300), 0.1, order.Draws(0, i))
      for i in range(3000)
    ]
  )
  centres = (boxes[:, :2] + boxes[:, 2:]) / 2
  np.testing.assert_allclose(centres.mean(0), 150, atol=3)
  areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / 300**2
  assert areas.min() < 0.15
  assert areas.max() > 0.9
  assert np.mean(areas) == pytest.approx(0.5, abs=0.06)


def test_the_middle_shows_the_share_that_is_asked_for():
  """A frame of a fourth of each side is gone with crop 0.5."""
  pixels = np.zeros((40, 40, 3), np.uint8)
  pixels[10:30, 10:30] = 200
  image = Image.fromarray(pixels)
  assert (transforms.central(image, 'RGB', 20, crop=0.5) == 200).all()
  framed = transforms.central(image, 'RGB', 20)
  assert (framed[[0, -1]] == 0).all()
  assert (framed[7:13, 7:13] == 200).all()


def test_nothing_varies_unless_it_is_asked_for():
  """Without augmentation a view is what is evaluated."""
  image = photo()
  middle = transforms.central(image, 'RGB', 16)
  np.testing.assert_array_equal(view(image, order.Draws(0, 0)), middle)


def test_a_large_jpeg_is_decoded_smaller_to_about_the_same():
  """What the decoder leaves out would have been averaged anyway."""
  stream = io.BytesIO()
  photo(800, 600).save(stream, 'JPEG', quality=95)
  settings = {'size': 32, 'crop_area': 0.5}
  for position in range(8):
    whole = Image.open(io.BytesIO(stream.getvalue()))
    whole.load()  # decoded: nothing is left to be saved
    left, right = (
      view(i, order.Draws(0, position), **settings).astype(float)
      for i in (Image.open(io.BytesIO(stream.getvalue())), whole)
    )
    assert abs(left - right).mean() < 2
    assert abs(left - right).max() < 12


@pytest.mark.parametrize('mode', ['L', 'RGB'])
@pytest.mark.parametrize('number', range(len(transforms.RAND_OPS)))
def test_ops_of_rand_augment_grow_with_their_magnitude(number, mode):
  """At 0 those with a magnitude change nothing, at 10 more than at 5."""
  op, image = transforms.RAND_OPS[number], photo(mode=mode)
  before = np.asarray(image, float)
  for sign in (-1.0, 1.0):
    none, half, full = (
      abs(np.asarray(op(image, level, sign), float) - before).mean()
      for level in (0.0, 0.5, 1.0)
    )
    if number == 0 or (mode == 'L' and number == COLOUR):
      assert none == half == full == 0
    elif number in (1, 2):  # autocontrast and equalize have none
      assert none == half == full
    else:
      assert none == 0
      assert 0 < half < full


COLOUR = 6


def test_rand_augment_takes_as_many_ops_as_it_is_told():
  """All ops occur, each about as often as any other."""
  seen = np.zeros(len(transforms.RAND_OPS), int)
  ops = [
    lambda image, level, sign, i=i: (seen.__setitem__(i, seen[i] + 1), image)[1]
    for i in range(len(seen))
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(transforms, 'RAND_OPS', tuple(ops))
    for i in range(700):
      transforms.rand_augment(photo(), 2, 9.0, order.Draws(0, i))
  assert seen.sum() == 1400
  assert (abs(seen - 100) < 40).all()


def test_colours_change_by_no_more_than_they_may():
  """Brightness, the first of them, stays within its factor."""
  image = Image.new('L', (8, 8), 100)  # contrast and colour leave it alone
  values = [
    view(image, order.Draws(0, i), size=8, colour=0.3)[0, 0, 0]
    for i in range(300)
  ]
  assert 70 <= min(values) < 75
  assert 125 < max(values) <= 130
