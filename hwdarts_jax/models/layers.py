"""Layers that ops are made of: batch norms and depthwise convolutions."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models import initializers, kernel_gradients

EPSILON = 1e-5  # of all batch norms
Padding = tuple[tuple[int, int], tuple[int, int]]


class BatchNorm(nn.Module):
  """Batch normalization over a fixed number of batch groups.

  The batch is cut into `groups` contiguous parts and each part is normalized
  by its own mean and variance ("ghost" batch normalization, Hoffer et al.
  2017). Running statistics average over the groups. Unlike in PyTorch the
  running variance is the biased one.
  """

  groups: int = 1
  affine: bool = True
  momentum: float = 0.9
  epsilon: float = EPSILON
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns `x: f[B, H, W, C]` normalized per channel.

    Raises:
      ValueError: B is not divisible by the number of groups.
    """
    features = x.shape[-1]
    stat_dtype = param_dtype(self.dtype)
    ra_mean = self.variable(
      'batch_stats', 'mean', np.zeros, (features,), stat_dtype
    )
    ra_var = self.variable(
      'batch_stats', 'var', np.ones, (features,), stat_dtype
    )
    if self.affine:
      gamma = self.param('scale', initializers.ones, (features,), stat_dtype)
      beta = self.param('bias', initializers.zeros, (features,), stat_dtype)
    if self.is_initializing():
      return x.astype(self.dtype)  # whose values no initializer reads
    if train:
      mean, var, x = self._group_statistics(x, stat_dtype)
      if self.is_mutable_collection('batch_stats'):
        keep = self.momentum
        ra_mean.value = keep * ra_mean.value + (1 - keep) * mean.mean(
          (0, 1, 2, 3)
        )
        ra_var.value = keep * ra_var.value + (1 - keep) * var.mean((0, 1, 2, 3))
    else:
      shape = (1,) * (x.ndim - 1) + (features,)
      mean, var = ra_mean.value.reshape(shape), ra_var.value.reshape(shape)
    scale = jax.lax.rsqrt(var + self.epsilon)
    offset = -mean * scale
    if self.affine:
      shape = (1,) * (x.ndim - 1) + (features,)
      scale = scale * gamma.reshape(shape)
      offset = offset * gamma.reshape(shape) + beta.reshape(shape)
    # In the wide type, so that its gradients are also summed in it.
    y = (x * scale + offset).astype(self.dtype)
    return y.reshape((-1, *y.shape[-3:]))

  def _group_statistics(self, x, stat_dtype):
    """Returns mean and variance [G, 1, 1, 1, C], and x [G, B/G, H, W, C]."""
    batch = x.shape[0]
    if batch % self.groups:
      raise ValueError(
        f'batch of {batch} examples is not divisible by '
        f'batch_groups={self.groups}.'
      )
    x = x.reshape((self.groups, batch // self.groups, *x.shape[1:]))
    wide = x.astype(stat_dtype)
    mean = wide.mean((1, 2, 3), keepdims=True)
    # Two passes: E[x^2] - E[x]^2 loses all digits where the mean dominates.
    var = jnp.square(wide - mean).mean((1, 2, 3), keepdims=True)
    return mean, var, x


class DepthwiseConv(nn.Module):
  """Depthwise convolution; for `method` and `gradient` see `op.Context`."""

  kernel: int
  stride: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  method: str = 'conv'
  gradient: str = kernel_gradients.CONV

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """x: f[B, H, W, C] -> f[B, ceil(H / stride), ceil(W / stride), C].

    A mask f[K, K, 1, C] is a factor of the kernel.
    """
    channels = x.shape[-1]
    kernel = self.param(
      'kernel',
      initializers.he_normal,
      (self.kernel, self.kernel, 1, channels),
      param_dtype(self.dtype),
    )
    if mask is not None:
      kernel = kernel * mask
    kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
    # Of fresh params only the shape counts: a convolution is traced soonest.
    method = 'conv' if self.is_initializing() else self.method
    evaluate = {'conv': self._grouped, 'shift': self._shifted}[method]
    return evaluate(x, kernel)

  def _grouped(self, x, kernel):
    return kernel_gradients.convolve(
      x, kernel, self.stride, self.dilation, self.gradient
    )

  def _shifted(self, x, kernel):
    height, width = (-(-n // self.stride) for n in x.shape[1:3])
    pad = same(self.kernel, self.dilation)
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    # Products are summed in the wide type, as by a convolution.
    kernel = kernel.astype(param_dtype(self.dtype))
    total = jnp.zeros((), kernel.dtype)
    for i in range(self.kernel):
      for j in range(self.kernel):
        top, left = i * self.dilation, j * self.dilation
        part = x[
          :,
          top : top + (height - 1) * self.stride + 1 : self.stride,
          left : left + (width - 1) * self.stride + 1 : self.stride,
        ]
        term = part * kernel[i, j].reshape(1, 1, 1, -1)
        total = total + term
    return total.astype(self.dtype)


def param_dtype(dtype: Any) -> Any:
  """Type of parameters and statistics beside activations of `dtype`."""
  return jnp.promote_types(dtype, jnp.float32)


def same(kernel: int, dilation: int = 1) -> Padding:
  """Symmetric padding that keeps ceil(size / stride), as in PyTorch."""
  pad = dilation * (kernel - 1) // 2
  return ((pad, pad), (pad, pad))
