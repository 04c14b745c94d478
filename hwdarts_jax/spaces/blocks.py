"""Blocks of mobile networks, by name, and the layers around them.

What `mobile` and `references` have in common. The registry of ops reads the
same dataclasses, so that a name says everything about its op: kernel,
expansion, squeeze-and-excitation and activation change the latency, and the
name of an op is part of its latency key.
"""

from __future__ import annotations

import dataclasses

from hwdarts_jax.spaces.checks import check, is_int
from hwdarts_jax.spaces.spec_types import CellSpec

DIVISOR = 8  # channels of the published networks are multiples of it


@dataclasses.dataclass(frozen=True)
class MBConv:
  """An inverted residual block: expand, depthwise, squeeze, project.

  Attributes:
    kernel: of the depthwise convolution.
    expansion: hidden over input channels; the block of expansion 1 has no first
      convolution.
    squeeze: whether it has squeeze-and-excitation.
    activation: one of `hwdarts_jax.models.mobile_ops.ACTIVATIONS`.
  """

  kernel: int = 3
  expansion: float = 6
  squeeze: bool = False
  activation: str = 'relu'

  @property
  def name(self) -> str:
    """Such as mb_conv_5x5_e6_se_hswish; blocks with ReLU do not say so."""
    kernel = f'{self.kernel}x{self.kernel}'
    squeeze = '_se' if self.squeeze else ''
    suffix = _suffix(self.activation)
    return f'mb_conv_{kernel}_e{self.expansion:g}{squeeze}{suffix}'


@dataclasses.dataclass(frozen=True)
class FusedConv:
  """A dense 3x3 convolution that expands, and one that projects.

  Attributes:
    expansion: hidden over input channels.
    activation: as in `MBConv`.
  """

  expansion: float = 4
  activation: str = 'relu'

  @property
  def name(self) -> str:
    """Such as fused_conv_3x3_e4."""
    return f'fused_conv_3x3_e{self.expansion:g}{_suffix(self.activation)}'


def _suffix(activation: str) -> str:
  return '' if activation == 'relu' else f'_{activation}'


def make_divisible(channels: float, divisor: int = DIVISOR) -> int:
  """The nearest multiple of `divisor` that is not over 10 % less.

  `_make_divisible` of the published MobileNets.
  """
  rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * channels else rounded


def head(
  source: str,
  size: int,
  channels: tuple[int, int],
  activation: str,
  num_classes: int,
) -> tuple[CellSpec, ...]:
  """1x1 convolution, global pooling, dense layer, classifier.

  Args:
    source: name of the last block.
    size: height and width of its output.
    channels: of the convolution, and of the dense layer; 0: there is none.
    activation: of both.
    num_classes: classes of the data set.
  """
  wide, hidden = channels
  cells = [
    CellSpec.fixed('head_conv', source, f'conv_bn_1x1_{activation}', wide),
    CellSpec.fixed('pool', 'head_conv', 'global_avg_pool', wide, size),
  ]
  if hidden:
    cells.append(
      CellSpec.fixed('head_dense', 'pool', f'dense_{activation}', hidden)
    )
  cells.append(
    CellSpec.fixed('classifier', cells[-1].name, 'dense', num_classes)
  )
  return tuple(cells)


def check_image(image_size: int, stem_stride: int) -> None:
  """Raises ValueError unless both are positive whole numbers."""
  for field, value in (
    ('image_size', image_size),
    ('stem_stride', stem_stride),
  ):
    check(is_int(value, 1), field, value, 'a positive whole number')
