"""Published mobile networks, to compare found ones with. Nothing is searched.

MobileNetV2 (Sandler et al., CVPR 2018, table 2), MobileNetV3-Large and -Small
(Howard et al., ICCV 2019, tables 1 and 2), EfficientNet-B0 (Tan & Le, ICML
2019, table 1). They run by the same blocks and the same network as the space
`mobile`, whose choices do not hold all of theirs. Parameters are those of the
published models. Two things differ in training: the dropout before the
classifier is left out, and batch norms have the epsilon of this project, 1e-5,
where MobileNetV3 and EfficientNet have 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hwdarts_jax.spaces import blocks
from hwdarts_jax.spaces.blocks import make_divisible, MBConv
from hwdarts_jax.spaces.checks import check
from hwdarts_jax.spaces.spec import CellSpec, IMAGE, NetworkSpec


class _Row(NamedTuple):
  """Equal blocks in a row, of which the first has the stride."""

  kernel: int
  expansion: float
  features: int
  squeeze: bool
  activation: str
  stride: int
  repeats: int = 1

  @property
  def block(self) -> MBConv:
    return MBConv(self.kernel, self.expansion, self.squeeze, self.activation)


class _Model(NamedTuple):
  """A published network.

  Attributes:
    stem: channels of the first convolution.
    activation: of stem and head.
    rows: the body.
    head: channels of the last convolution, and of the dense layer after it.
  """

  stem: int
  activation: str
  rows: tuple[_Row, ...]
  head: tuple[int, int]


MODELS = {
  'mobilenet_v2': _Model(
    32,
    'relu6',
    (
      _Row(3, 1, 16, False, 'relu6', 1),
      _Row(3, 6, 24, False, 'relu6', 2, 2),
      _Row(3, 6, 32, False, 'relu6', 2, 3),
      _Row(3, 6, 64, False, 'relu6', 2, 4),
      _Row(3, 6, 96, False, 'relu6', 1, 3),
      _Row(3, 6, 160, False, 'relu6', 2, 3),
      _Row(3, 6, 320, False, 'relu6', 1),
    ),
    (1280, 0),
  ),
  'mobilenet_v3_large': _Model(
    16,
    'hswish',
    (
      _Row(3, 1, 16, False, 'relu', 1),
      _Row(3, 4, 24, False, 'relu', 2),
      _Row(3, 3, 24, False, 'relu', 1),
      _Row(5, 3, 40, True, 'relu', 2, 3),
      _Row(3, 6, 80, False, 'hswish', 2),
      _Row(3, 2.5, 80, False, 'hswish', 1),
      _Row(3, 2.3, 80, False, 'hswish', 1, 2),
      _Row(3, 6, 112, True, 'hswish', 1, 2),
      _Row(5, 6, 160, True, 'hswish', 2, 3),
    ),
    (960, 1280),
  ),
  'mobilenet_v3_small': _Model(
    16,
    'hswish',
    (
      _Row(3, 1, 16, True, 'relu', 2),
      _Row(3, 4.5, 24, False, 'relu', 2),
      _Row(3, 3.67, 24, False, 'relu', 1),
      _Row(5, 4, 40, True, 'hswish', 2),
      _Row(5, 6, 40, True, 'hswish', 1, 2),
      _Row(5, 3, 48, True, 'hswish', 1, 2),
      _Row(5, 6, 96, True, 'hswish', 2, 3),
    ),
    (576, 1024),
  ),
  'efficientnet_b0': _Model(
    32,
    'silu',
    (
      _Row(3, 1, 16, True, 'silu', 1),
      _Row(3, 6, 24, True, 'silu', 2, 2),
      _Row(5, 6, 40, True, 'silu', 2, 2),
      _Row(3, 6, 80, True, 'silu', 2, 3),
      _Row(5, 6, 112, True, 'silu', 1, 3),
      _Row(5, 6, 192, True, 'silu', 2, 4),
      _Row(3, 6, 320, True, 'silu', 1),
    ),
    (1280, 0),
  ),
}


def make(
  model: str = 'mobilenet_v3_large',
  width: float = 1.0,
  num_classes: int = 1000,
  image_size: int = 224,
  image_channels: int = 3,
  stem_stride: int = 2,
) -> NetworkSpec:
  """Returns a network; the defaults are those of ImageNet.

  Args:
    model: one of `MODELS`.
    width: multiplier of all channels but the hidden ones of blocks, which
      follow by their expansion; rounded to multiples of 8.
    num_classes: classes of the data set.
    image_size: height and width of an image.
    image_channels: channels of an image.
    stem_stride: of the first convolution; 1 for images of 32 pixels.

  Raises:
    ValueError: a setting is not allowed; the message names it.
  """
  check(model in MODELS, 'model', model, f'one of {sorted(MODELS)}')
  is_number = isinstance(width, int | float) and not isinstance(width, bool)
  check(is_number and 0 < width <= 10, 'width', width, 'above 0, at most 10')
  blocks.check_image(image_size, stem_stride)
  source = MODELS[model]

  def widened(channels: int) -> int:
    return make_divisible(channels * width)

  stem = CellSpec.fixed(
    'stem',
    IMAGE,
    f'conv_bn_3x3_{source.activation}',
    widened(source.stem),
    stem_stride,
  )
  cells = _body(source.rows, stem.name, widened)
  size = -(-image_size // stem_stride)
  for row in source.rows:
    size = -(-size // row.stride)
  wide, hidden = source.head
  return NetworkSpec(
    space='references',
    input_shape=(image_size, image_size, image_channels),
    stem=(stem,),
    cells=tuple(cells),
    head=blocks.head(
      cells[-1].name,
      size,
      (widened(wide), widened(hidden) if hidden else 0),
      source.activation,
      num_classes,
    ),
    num_classes=num_classes,
  )


def _body(
  rows: tuple[_Row, ...], before: str, widened: Callable[[int], int]
) -> list[CellSpec]:
  """The blocks of a network; only the first of a row has its stride."""
  cells: list[CellSpec] = []
  for row in rows:
    for i in range(row.repeats):
      cells.append(
        CellSpec.fixed(
          f'block_{len(cells)}',
          before,
          row.block.name,
          widened(row.features),
          row.stride if i == 0 else 1,
        )
      )
      before = cells[-1].name
  return cells


def all_blocks() -> Iterator[MBConv]:
  """The blocks of all models, for the registry of ops."""
  for model in MODELS.values():
    for row in model.rows:
      yield row.block
