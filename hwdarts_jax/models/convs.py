"""Dense convolutions that several edges share, and how they train."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from hwdarts_jax.models import op as op_lib
from hwdarts_jax.models import patches


def convolve(
  stage: op_lib.Stage, x: jax.Array, kernel: jax.Array, dense: str = 'conv'
) -> jax.Array:
  """The convolution of a stage.

  A dilated kernel sees pixels of one phase (remainder of the position by the
  dilation) only, so each phase is an ordinary convolution of its own. That is
  many times faster: cuDNN is asked for gradients of dilated convolutions as
  convolutions with enormous windows.

  Args:
    stage: says how to move over the image.
    x: f[B, H, W, C].
    kernel: f[K, K, C, D], of the type of `x`.
    dense: see `op.Context`.

  Returns:
    f[B, H', W', D].
  """
  dilation = stage.dilation
  if dilation == 1 or any(p % dilation for pad in stage.padding for p in pad):
    return _run(stage, x, kernel, dense)
  (top, bottom), (left, right) = stage.padding
  padding = (
    (top // dilation, bottom // dilation),
    (left // dilation, right // dilation),
  )
  ordinary = stage._replace(stride=1, dilation=1, padding=padding)
  if stage.stride == dilation:  # the other phases are never read
    return _run(ordinary, x[:, ::dilation, ::dilation], kernel, dense)
  if stage.stride > 1 or any(n % dilation for n in x.shape[1:3]):
    return _run(stage, x, kernel, dense)
  phases = _run(ordinary, _split_phases(x, dilation), kernel, dense)
  return _join_phases(phases, dilation)


def convolve_pair(
  stage: op_lib.Stage, groups: int, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  """As `convolve`, of two batches, of which the first alone trains the kernel.

  Args:
    stage: says how to move over the image.
    groups: batch groups of each batch.
    x: f[2 * B, H, W, C], see `join_pair`.
    kernel: f[K, K, C, D].
  """
  return _convolve_pair(functools.partial(convolve, stage), groups, x, kernel)


def _run(stage, x, kernel, dense):
  return patches.DENSE[dense](
    x,
    kernel,
    (stage.stride,) * 2,
    stage.padding,
    rhs_dilation=(stage.dilation,) * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _split_phases(x, dilation: int):
  """f[B, H, W, C] -> f[B * d * d, H / d, W / d, C]."""
  batch, height, width, channels = x.shape
  x = x.reshape(
    batch, height // dilation, dilation, width // dilation, dilation, channels
  )
  x = x.transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(-1, height // dilation, width // dilation, channels)


def _join_phases(x, dilation: int):
  """The inverse of `_split_phases`."""
  _, height, width, channels = x.shape
  x = x.reshape(-1, dilation, dilation, height, width, channels)
  x = x.transpose(0, 3, 1, 4, 2, 5)
  return x.reshape(-1, height * dilation, width * dilation, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve_pair(run, groups: int, x, kernel):
  del groups
  return run(x, kernel)


def _convolve_pair_forward(run, groups, x, kernel):
  del groups
  return run(x, kernel), (x, kernel)


def _convolve_pair_backward(run, groups, residuals, cotangent):
  x, kernel = residuals
  _, of_x = jax.vjp(lambda x: run(x, kernel), x)
  first, _ = split_pair(x, groups)
  _, of_kernel = jax.vjp(lambda kernel: run(first, kernel), kernel)
  (dx,) = of_x(cotangent)
  (dkernel,) = of_kernel(split_pair(cotangent, groups)[0])
  return dx, dkernel


_convolve_pair.defvjp(_convolve_pair_forward, _convolve_pair_backward)


def check_groups(batch: int, groups: int) -> None:
  """Raises ValueError if a batch cannot be cut into groups."""
  if batch % groups:
    raise ValueError(
      f'batch of {batch} examples is not divisible by batch_groups={groups}.'
    )


def join_pair(pair, groups: int) -> jax.Array:
  """Two batches f[B, ...] -> f[2 * B, ...], alternating by batch groups.

  The groups are outermost, so that a device that holds whole groups of both
  batches holds them still.
  """
  check_groups(pair[0].shape[0], groups)
  parts = [x.reshape(groups, -1, *x.shape[1:]) for x in pair]
  both = jnp.stack(parts, axis=1)
  return both.reshape(-1, *both.shape[3:])


def split_pair(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
  """The inverse of `join_pair`."""
  both = x.reshape(groups, 2, -1, *x.shape[1:])
  first, second = (both[:, i].reshape(-1, *both.shape[3:]) for i in range(2))
  return first, second


def padded(kernels: jax.Array, window: int) -> jax.Array:
  """f[E, K, K, C, D] -> f[E, window, window, C, D], zero around the taps."""
  pad = ((window - kernels.shape[1]) // 2,) * 2
  return jnp.pad(kernels, ((0, 0), pad, pad, (0, 0), (0, 0)))


def beside(kernels: jax.Array) -> jax.Array:
  """f[E, K, K, C, D] -> f[K, K, C, E * D]: all edges read the same input."""
  count, *window, channels, features = kernels.shape
  moved = jnp.moveaxis(kernels, 0, -2)
  return moved.reshape(*window, channels, count * features)


def diagonal(kernels: jax.Array) -> jax.Array:
  """f[E, K, K, C, D] -> f[K, K, E * C, E * D]: each edge reads its own."""
  count, *window, channels, features = kernels.shape
  eye = jnp.eye(count, dtype=kernels.dtype).reshape(1, 1, count, 1, count, 1)
  blocks = jnp.moveaxis(kernels, 0, 2)[:, :, :, :, None] * eye
  return blocks.reshape(*window, count * channels, count * features)
