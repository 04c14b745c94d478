"""Dense convolutions as one matrix product over patches.

Where params have a batch dimension, as those of networks that are trained side
by side, a convolution becomes a grouped one, whose gradients are slow on some
machines; a product with a batch dimension stays one. It writes the patches:
K * K times the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int],
  padding: Any,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  **settings: Any,
) -> jax.Array:
  """As `jax.lax.conv_general_dilated` of images f[B, H, W, C].

  Args:
    x: f[B, H, W, C].
    kernel: f[K, K, C, D].
    window_strides: of both axes.
    padding: ((top, bottom), (left, right)).
    lhs_dilation: none, or ones.
    rhs_dilation: of both axes.
    dimension_numbers: those of images; not read.
    feature_group_count: 1.
    **settings: of the product, such as its precision.

  Returns:
    f[B, H', W', D].
  """
  del dimension_numbers
  assert feature_group_count == 1 and set(lhs_dilation or (1,)) == {1}
  rows, columns, channels, features = kernel.shape
  stride, dilation = window_strides, rhs_dilation or (1, 1)
  height, width = (
    (n + sum(pad) - d * (k - 1) - 1) // s + 1
    for n, pad, k, s, d in zip(
      x.shape[1:3], padding, (rows, columns), stride, dilation, strict=True
    )
  )
  x = jnp.pad(x, ((0, 0), *map(tuple, padding), (0, 0)))
  taps = [
    x[
      :,
      top : top + (height - 1) * stride[0] + 1 : stride[0],
      left : left + (width - 1) * stride[1] + 1 : stride[1],
    ]
    for top in range(0, rows * dilation[0], dilation[0])
    for left in range(0, columns * dilation[1], dilation[1])
  ]
  patches = taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)
  flat = kernel.reshape(len(taps) * channels, features)
  return jax.lax.dot_general(
    patches, flat, (((3,), (0,)), ((), ())), **settings
  )


# By `Context.dense`.
DENSE: dict[str, Callable[..., jax.Array]] = {
  'conv': jax.lax.conv_general_dilated,
  'matmul': convolve,
}
