"""Depthwise convolutions whose kernels get their gradients another way.

XLA (jax 0.10.2, compiled for an H100) asks cuDNN for the gradient of a kernel
as such only if that is smaller than the image or has a stride, and is not
dilated. Otherwise it asks for a forward convolution by the image: both images
are copied into another order, and of the groups, each with as many channels as
the batch has examples, cuDNN has no fast one. On 7x7 pixels with 960 features
that takes 2 ms a 7x7 kernel, where the bytes would take 0.02.

What takes its place is written as the tangent of the kernel. Its transpose is
the gradient, and all else (forward mode, second derivatives, `vmap`) follows.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

CONV = 'conv'  # the gradient that XLA has by itself
GRADIENTS = (CONV, 'pairs', 'padded')
# Pixels from which on pairs of them take more bytes, in float32 written and
# read once, than both images of 128 examples in bfloat16, read once. A fixed
# number of examples: on several devices a batch is larger than what each has.
_MOST_PIXELS = (128 * 2) / (2 * 4)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  stride: int = 1,
  dilation: int = 1,
  gradient: str = CONV,
) -> jax.Array:
  """Depthwise convolution, padded symmetrically.

  Args:
    x: f[B, H, W, C].
    kernel: f[K, K, 1, C], of the type of `x`.
    stride: of the output's pixels.
    dilation: of the kernel.
    gradient: 'conv', XLA's own; or, where that is slow, 'pairs' (products over
      pairs of pixels, channel by channel, then sums of those at one offset) or
      'padded' (XLA's own on images that are larger than the kernel). On
      several devices those add up the products, not their sums: some
      megabytes.

  Returns:
    f[B, ceil(H / stride), ceil(W / stride), C].
  """
  if gradient in ways(kernel.shape[0], stride, dilation, x.shape[1:3]):
    return _convolve(x, kernel, stride, dilation, gradient)
  return _grouped(x, kernel, stride, dilation)


def ways(
  kernel: int, stride: int, dilation: int, image: Sequence[int]
) -> tuple[str, ...]:
  """What may take the place of XLA's own gradient; () where that is fast."""
  pixels = float(np.prod(image))
  outputs = pixels / stride**2
  few = pixels * outputs <= _MOST_PIXELS * (pixels + outputs)
  if dilation > 1:
    return ('pairs',) if few else ()
  if stride > 1 or min(image) > kernel:
    return ()
  return ('pairs', 'padded') if few else ('padded',)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolve(x, kernel, stride, dilation, gradient):
  del gradient
  return _grouped(x, kernel, stride, dilation)


def _convolve_jvp(stride, dilation, gradient, primals, tangents):
  x, kernel = primals
  of_x, of_kernel = tangents
  tangent = {'pairs': _pairs, 'padded': _padded}[gradient]
  terms = []  # one at least; without it no tangent is asked for
  if not isinstance(of_x, jax.custom_derivatives.SymbolicZero):
    terms.append(_grouped(of_x, kernel, stride, dilation))
  if not isinstance(of_kernel, jax.custom_derivatives.SymbolicZero):
    terms.append(tangent(x, of_kernel, stride, dilation))
  y = _convolve(x, kernel, stride, dilation, gradient)
  return y, functools.reduce(jnp.add, terms)


_convolve.defjvp(_convolve_jvp, symbolic_zeros=True)


def _grouped(x, kernel, stride, dilation):
  pad = (dilation * (kernel.shape[0] - 1) // 2,) * 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    (pad, pad),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def _padded(x, kernel, stride, dilation):
  """The convolution by way of an image that is larger than the kernel."""
  height, width = x.shape[1:3]
  more = [(0, max(kernel.shape[0] + 1 - n, 0)) for n in (height, width)]
  x = jnp.pad(x, ((0, 0), *more, (0, 0)))
  return _grouped(x, kernel, stride, dilation)[:, :height, :width]


def _pairs(x, kernel, stride, dilation):
  """The convolution as a matrix product for each channel.

  Its transpose sums over examples by one product, and over pairs of pixels by
  another one with zeros and ones.
  """
  batch, height, width, channels = x.shape
  wide = jnp.promote_types(x.dtype, jnp.float32)
  steps = [
    _steps(kernel.shape[0], n, stride, dilation) for n in (height, width)
  ]
  meets = np.einsum('ipr,jqs->ijpqrs', *steps)
  count, out = kernel.shape[0] ** 2, meets.shape[-2:]
  matrix = jnp.einsum(
    'kc,kpq->cpq',
    kernel.reshape(count, channels).astype(wide),
    jnp.asarray(meets.reshape(count, height * width, -1), wide),
    precision=jax.lax.Precision.HIGHEST,
  )
  y = jax.lax.dot_general(
    x.reshape(batch, -1, channels),
    matrix,
    (((1,), (1,)), ((2,), (0,))),
    preferred_element_type=wide,
  )
  return y.transpose(1, 2, 0).reshape(batch, *out, channels).astype(x.dtype)


def _steps(kernel: int, size: int, stride: int, dilation: int) -> np.ndarray:
  """Whether a tap takes a pixel to an output, bool[K, size, ceil(size / s)]."""
  tap, pixel, output = np.ogrid[:kernel, :size, : -(-size // stride)]
  offset = tap * dilation - dilation * (kernel - 1) // 2
  return pixel == output * stride + offset
