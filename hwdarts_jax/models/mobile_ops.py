"""Ops of mobile networks: inverted residual blocks, stems and heads.

Registered in a loop over what the space `mobile` and the networks of
`references` name. Blocks of the same settings have the same name, the name
says all settings, and so does the latency key.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from flax import linen as nn
import jax

from hwdarts_jax.models.op import Op, register
from hwdarts_jax.spaces import mobile, references
from hwdarts_jax.spaces.blocks import FusedConv, make_divisible, MBConv

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
  'relu': nn.relu,
  'relu6': nn.relu6,
  'hswish': nn.hard_swish,
  'silu': nn.silu,
}


class _Squeeze(NamedTuple):
  """A kind of squeeze-and-excitation (Hu et al., CVPR 2018).

  Attributes:
    channels: in between, given those of the block's input and hidden ones.
    activation: in between.
    gate: of the channels.
  """

  channels: Callable[[int, int], int]
  activation: Activation
  gate: Activation


# Howard et al. 2019, section 5.3: a fourth of the hidden channels (a multiple
# of 8 in their code), hard-sigmoid.
_OF_MOBILENET_V3 = _Squeeze(
  lambda _, hidden: make_divisible(hidden // 4), nn.relu, nn.hard_sigmoid
)
# Tan & Le 2019: a fourth of the channels of the block's input, sigmoid.
_OF_EFFICIENTNET = _Squeeze(
  lambda channels, _: max(1, channels // 4), nn.silu, nn.sigmoid
)
_SQUEEZES = {'silu': _OF_EFFICIENTNET}


class Block(Op):
  """Adds its input where shapes agree, as all blocks of mobile networks."""

  is_residual = True

  expansion: float = 6
  activation: str = 'relu'

  def act(self, x: jax.Array) -> jax.Array:
    """The activation of the block."""
    return ACTIVATIONS[self.activation](x)

  def hidden(self, x: jax.Array) -> int:
    """Channels between expansion and projection."""
    return round(self.expansion * x.shape[-1])

  def squeeze_kind(self) -> _Squeeze:
    """Its kind of squeeze-and-excitation, which goes with the activation."""
    return _SQUEEZES.get(self.activation, _OF_MOBILENET_V3)

  def project(self, y: jax.Array, x: jax.Array, train: bool) -> jax.Array:
    """Linear projection of `y`, and the sum with the input `x`."""
    y = self.norm()(self.conv(1)(y), train)
    same_shape = self.stride == 1 and x.shape[-1] == self.features
    return x + y if same_shape else y


class InvertedResidual(Block):
  """1x1 expansion, depthwise convolution, squeeze, linear 1x1 projection.

  Sandler et al., "MobileNetV2", CVPR 2018, section 3.3; squeeze-and-excitation
  after the depthwise convolution, batch norm and activation, as in MobileNetV3
  and EfficientNet. Which kind goes with the activation: blocks with SiLU are
  EfficientNet's, all others MobileNetV3's.
  """

  kernel: int = 3
  squeeze: bool = False

  @nn.compact
  def __call__(self, x, train):
    hidden, y = self.hidden(x), x
    if self.expansion != 1:
      y = self.act(self.norm()(self.conv(1, 1, hidden)(y), train))
    y = self.depthwise(self.kernel, self.stride)(y)
    y = self.act(self.norm()(y, train))
    if self.squeeze:
      y = y * self._gates(y, x.shape[-1])
    return self.project(y, x, train)

  def _gates(self, y, channels):
    """f[B, 1, 1, hidden] in 0 to 1, from the means over pixels."""
    kind, hidden = self.squeeze_kind(), y.shape[-1]
    means = y.mean((1, 2), keepdims=True)
    narrow = self.dense(kind.channels(channels, hidden))(means)
    return kind.gate(self.dense(hidden)(kind.activation(narrow)))


class FusedInvertedResidual(Block):
  """Dense 3x3 convolution that expands, linear 1x1 projection.

  Gupta & Tan, "EfficientNet-EdgeTPU", 2019; Xiong et al., "MobileDets", CVPR
  2021, section 3.2.
  """

  @nn.compact
  def __call__(self, x, train):
    y = self.conv(3, self.stride, self.hidden(x))(x)
    return self.project(self.act(self.norm()(y, train)), x, train)


class ConvBnAct(Op):
  """Convolution, affine BN, activation: stem and head of mobile networks."""

  kernel: int = 3
  activation: str = 'relu'

  @nn.compact
  def __call__(self, x, train):
    y = self.norm(affine=True)(self.conv(self.kernel, self.stride)(x), train)
    return ACTIVATIONS[self.activation](y)


class DenseAct(Op):
  """Dense layer with bias and activation on 1x1 pixels: head of MobileNetV3."""

  activation: str = 'relu'

  @nn.compact
  def __call__(self, x, train):
    return ACTIVATIONS[self.activation](self.dense(self.features)(x))


def _register_all() -> None:
  searched = [
    MBConv(kernel, expansion, squeeze, activation)
    for kernel in mobile.KERNELS
    for expansion in mobile.EXPANSIONS
    for squeeze in (False, True)
    for activation in mobile.ACTIVATIONS
  ]
  fixed = [MBConv(3, 1, False, act) for act in mobile.ACTIVATIONS]
  for block in dict.fromkeys([*searched, *fixed, *references.all_blocks()]):
    register(block.name, **dataclasses.asdict(block))(InvertedResidual)
  for activation in mobile.ACTIVATIONS:
    register(f'dense_{activation}', activation=activation)(DenseAct)
    for expansion in mobile.FUSED_EXPANSIONS:
      fused = FusedConv(expansion, activation)
      register(fused.name, **dataclasses.asdict(fused))(FusedInvertedResidual)
  for activation in ACTIVATIONS:
    for kernel in (1, 3):
      register(
        f'conv_bn_{kernel}x{kernel}_{activation}',
        kernel=kernel,
        activation=activation,
      )(ConvBnAct)


_register_all()
