"""Candidate operations, registered under the field's names.

To add an op, write one class and register it; spaces name it, and cost models,
tables and tests follow. `op` says what an op is; those of mobile networks are
in `mobile_ops`, on shared weights in `mobile_families`.

The semantics are those of the published spaces (DARTS, ICLR 2019;
NAS-Bench-201, ICLR 2020): symmetric padding also at stride 2, average pooling
that does not count padding, batch normalization with epsilon 1e-5.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from hwdarts_jax.models import mobile_families, mobile_ops, shifts
from hwdarts_jax.models.layers import BatchNorm, DepthwiseConv, same
from hwdarts_jax.models.op import (
  Context,
  families,
  get,
  is_residual,
  is_skip,
  is_zero,
  module,
  Op,
  OPS,
  register,
  Shared,
  Stage,
)

__all__ = (
  'OPS',
  'BatchNorm',
  'Context',
  'DepthwiseConv',
  'Op',
  'families',
  'get',
  'is_residual',
  'is_skip',
  'is_zero',
  'module',
  'mobile_families',
  'mobile_ops',
  'register',
)


@register('none')
class Zero(Op):
  """The zero operation: no connection."""

  is_zero = True

  @nn.compact
  def __call__(self, x, train):
    height, width = (-(-n // self.stride) for n in x.shape[1:3])
    return jnp.zeros((x.shape[0], height, width, self.features), x.dtype)


@register('factorized_reduce')
class FactorizedReduce(Op):
  """ReLU, two 1x1 convolutions of stride 2 on shifted grids, BN.

  Odd sizes are padded at the end, as in NAS-Bench-201; at even sizes this is
  the DARTS op.
  """

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(x)
    half = self.features // 2
    shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    parts = [(half, x), (self.features - half, shifted)]
    y = jnp.concatenate(
      [
        self.conv(1, self.stride, features)(grid)
        for features, grid in parts
        if features > 0
      ],
      axis=-1,
    )
    return self.norm()(y, train)

  def stages(self, in_shape):
    return (_reduce_stage(self.stride, in_shape),)


@register('skip_connect')
class SkipConnect(Op):
  """Identity, or `FactorizedReduce` where the shape changes."""

  is_skip = True

  @nn.compact
  def __call__(self, x, train):
    if self._is_identity(x.shape):
      return x
    return FactorizedReduce(self.features, self.stride, self.context)(x, train)

  def stages(self, in_shape):
    if self._is_identity(in_shape):
      return ()
    stage = _reduce_stage(self.stride, in_shape)
    name = 'FactorizedReduce_0'
    return (
      stage._replace(
        kernel=lambda params: stage.kernel(params[name]),
        norm=(name, *stage.norm),
      ),
    )

  def shared(self, in_shape):
    return Shared(lambda x: x, ()) if self._is_identity(in_shape) else None

  def _is_identity(self, shape) -> bool:
    return self.stride == 1 and shape[-1] == self.features


@register('nor_conv_1x1', kernel=1)
@register('nor_conv_3x3', kernel=3)
@register('relu_conv_bn_1x1', kernel=1)
class ReluConvBn(Op):
  """ReLU, convolution, BN."""

  kernel: int = 1

  @nn.compact
  def __call__(self, x, train):
    y = self.conv(self.kernel, self.stride)(nn.relu(x))
    return self.norm()(y, train)

  def stages(self, in_shape):
    def kernel(params):
      return params['Conv_0']['kernel']

    padding = same(self.kernel)
    return (Stage(kernel, ('BatchNorm_0',), self.stride, 1, padding),)


@register('sep_conv_3x3', kernel=3)
@register('sep_conv_5x5', kernel=5)
class SepConv(Op):
  """Twice: ReLU, depthwise and pointwise convolution, BN."""

  kernel: int = 3

  @nn.compact
  def __call__(self, x, train):
    for stride, features in ((self.stride, x.shape[-1]), (1, self.features)):
      y = self.depthwise(self.kernel, stride)(nn.relu(x))
      x = self.norm()(self.conv(1, 1, features)(y), train)
    return x

  def stages(self, in_shape):
    return tuple(
      Stage(_separable(i), (f'BatchNorm_{i}',), stride, 1, same(self.kernel))
      for i, stride in enumerate((self.stride, 1))
    )


@register('dil_conv_3x3', kernel=3)
@register('dil_conv_5x5', kernel=5)
class DilConv(Op):
  """ReLU, depthwise convolution of dilation 2, pointwise convolution, BN."""

  kernel: int = 3

  @nn.compact
  def __call__(self, x, train):
    y = self.depthwise(self.kernel, self.stride, 2)(nn.relu(x))
    return self.norm()(self.conv(1)(y), train)

  def stages(self, in_shape):
    padding = same(self.kernel, 2)
    return (Stage(_separable(0), ('BatchNorm_0',), self.stride, 2, padding),)


class _Pool(Op):
  """3x3 pooling, then BN without affine where the context says so."""

  def finish(self, y, train):
    # Where the published supernet normalizes pooling, it never has an affine.
    return self.norm(affine=False)(y, train) if self.context.pool_bn else y

  def shared(self, in_shape):
    return Shared(self.pool, ('BatchNorm_0',) if self.context.pool_bn else ())

  def pool(self, x):
    """The fast form of the op."""
    raise NotImplementedError


@register('avg_pool_3x3')
class AvgPool(_Pool):
  """Average of the pixels of a 3x3 window that lie inside the image."""

  @nn.compact
  def __call__(self, x, train):
    return self.finish(_average(x, 3, self.stride, same(3)), train)

  def pool(self, x):
    return shifts.average_pool(x, 3, self.stride, same(3))


@register('max_pool_3x3')
class MaxPool(_Pool):
  """Maximum of a 3x3 window."""

  @nn.compact
  def __call__(self, x, train):
    y = nn.max_pool(x, (3, 3), (self.stride, self.stride), same(3))
    return self.finish(y, train)

  def pool(self, x):
    return shifts.max_pool(x, 3, self.stride, same(3))


@register('conv_bn_3x3', kernel=3)
class ConvBn(Op):
  """Convolution and affine BN: the stem of both spaces."""

  kernel: int = 3

  @nn.compact
  def __call__(self, x, train):
    y = self.conv(self.kernel, self.stride)(x)
    return self.norm(affine=True)(y, train)


@register('residual_block_3x3')
class ResidualBlock(Op):
  """The reduction block of NAS-Bench-201; its BN is always affine."""

  @nn.compact
  def __call__(self, x, train):
    y = self.norm(affine=True)(self.conv(3, self.stride)(nn.relu(x)), train)
    y = self.norm(affine=True)(self.conv(3)(nn.relu(y)), train)
    if self.stride > 1:
      # 2x2 windows; a last odd row or column is averaged over what it has.
      pads = tuple((0, -n % self.stride) for n in x.shape[1:3])
      x = _average(x, self.stride, self.stride, pads)
    return y + self.conv(1)(x)


@register('bn_relu')
class BnRelu(Op):
  """Affine BN and ReLU, before the pooling of NAS-Bench-201."""

  @nn.compact
  def __call__(self, x, train):
    return nn.relu(self.norm(affine=True)(x, train))


@register('global_avg_pool')
class GlobalAvgPool(Op):
  """Mean over all pixels; the stride of its site is the resolution."""

  @nn.compact
  def __call__(self, x, train):
    return x.mean((1, 2), keepdims=True)


@register('dense')
class Dense(Op):
  """Dense layer with bias on 1x1 pixels."""

  @nn.compact
  def __call__(self, x, train):
    return self.dense(self.features)(x)


def _reduce_stage(stride: int, in_shape: Any) -> Stage:
  """`FactorizedReduce` as a 2x2 convolution, a tap for each of its grids."""

  def kernel(params):
    taps = [params[name]['kernel'] for name in sorted(params)]
    before, after = ((0, 1), (0, 1)), ((1, 0), (1, 0))
    # Of a single channel there is only the shifted grid.
    sides = [before, after][-len(taps) :]
    padded = [
      jnp.pad(tap, (*side, (0, 0), (0, 0)))
      for tap, side in zip(taps, sides, strict=True)
    ]
    return jnp.concatenate(padded, axis=-1)

  # To where the shifted grid has its last pixel, which may be padding.
  ends = [(-(-n // stride) - 1) * stride + 2 - n for n in in_shape[:2]]
  padding = ((0, ends[0]), (0, ends[1]))
  return Stage(kernel, ('BatchNorm_0',), stride, 1, padding)


def _separable(index: int):
  """Composes a depthwise and a pointwise kernel of the op into a dense one."""

  def kernel(params):
    depthwise = params[f'DepthwiseConv_{index}']['kernel'][:, :, 0, :, None]
    return depthwise * params[f'Conv_{index}']['kernel']

  return kernel


def _average(x: jax.Array, window: int, stride: int, pads: Any) -> jax.Array:
  """Average pooling that does not count padding, in the type of `x`."""
  y = nn.avg_pool(
    x, (window,) * 2, (stride,) * 2, pads, count_include_pad=False
  )
  # The counts of Flax are float32.
  return y.astype(x.dtype)
