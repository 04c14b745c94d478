"""Pooling as a few shifted reads, which compilers fuse into one pass.

The window reductions of XLA, and above all the gradient of the maximum, are
kernels of their own that nothing fuses with.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Padding = Any  # ((top, bottom), (left, right))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(
  x: jax.Array, window: int, stride: int, padding: Padding
) -> jax.Array:
  """Maximum of a window; the gradient goes to the first of equal maxima.

  Args:
    x: f[B, H, W, C].
    window: height and width.
    stride: of the windows.
    padding: pixels around the image, which never win.
  """
  return _max_and_index(x, window, stride, padding)[0]


@max_pool.defjvp
def _max_pool_jvp(window, stride, padding, primals, tangents):
  # Linear in the tangent, so that reverse and second derivatives follow. The
  # index is one byte a pixel; without it every derivative compares again.
  (x,), (tangent,) = primals, tangents
  y, index = _max_and_index(x, window, stride, padding)
  parts = _shifted(tangent, window, stride, padding, 0)
  zero = jnp.zeros((), tangent.dtype)
  chosen = [jnp.where(index == i, part, zero) for i, part in enumerate(parts)]
  return y, functools.reduce(jnp.add, chosen)


def _max_and_index(x, window, stride, padding):
  first, *rest = _shifted(x, window, stride, padding, -jnp.inf)
  best, index = first, jnp.zeros(first.shape, jnp.uint8)
  for i, part in enumerate(rest, start=1):
    wins = part > best
    best = jnp.where(wins, part, best)
    index = jnp.where(wins, np.uint8(i), index)
  return best, jax.lax.stop_gradient(index)


def average_pool(
  x: jax.Array, window: int, stride: int, padding: Padding
) -> jax.Array:
  """Average of the pixels of a window that lie inside the image.

  Args:
    x: f[B, H, W, C]; sums are taken in at least float32.
    window: height and width.
    stride: of the windows.
    padding: pixels around the image, which do not count.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  total = functools.reduce(jnp.add, _shifted(wide, window, stride, padding, 0))
  inside = [
    sum(
      _taps(np.ones(n), offset, total.shape[axis], stride, padding[axis - 1])
      for offset in range(window)
    )
    for axis, n in ((1, x.shape[1]), (2, x.shape[2]))
  ]
  count = np.outer(*inside)[None, :, :, None]
  return (total * (1 / count).astype(total.dtype)).astype(x.dtype)


def _taps(values, offset, size, stride, padding):
  padded = np.pad(values, padding)
  return padded[offset : offset + (size - 1) * stride + 1 : stride]


def _shifted(x, window, stride, padding, value) -> list[jax.Array]:
  """What each tap of the window sees, row by row."""
  height, width = (
    (n + sum(pad) - window) // stride + 1
    for n, pad in zip(x.shape[1:3], padding, strict=True)
  )
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)
  return [
    x[
      :,
      top : top + (height - 1) * stride + 1 : stride,
      left : left + (width - 1) * stride + 1 : stride,
    ]
    for top in range(window)
    for left in range(window)
  ]
