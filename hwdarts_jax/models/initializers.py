"""Initializers whose draws need no program.

Drawn by XLA, the first params of a supernet take a compilation for every shape
of a kernel, half a second each on a CPU. Here NumPy draws them: for the same
key the numbers of `jax.nn.initializers`, up to rounding, and the same to the
bit on every host and backend.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_END = 2.0  # standard deviations at which the normal distribution is cut
_CUT = 0.87962566103423978  # standard deviation of what is left


def he_normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> Any:
  """He et al. 2015, cut at two standard deviations; f[..., inputs, outputs].

  Args:
    key: may be traced.
    shape: of a kernel.
    dtype: float32 or float64.
  """
  return _scaled_normal(2.0, key, shape, dtype)


def lecun_normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> Any:
  """Like `he_normal`, with half the variance (LeCun et al. 1998)."""
  return _scaled_normal(1.0, key, shape, dtype)


def zeros(key: jax.Array, shape: Sequence[int], dtype: Any) -> np.ndarray:
  """f[...] of zeros."""
  del key
  return np.zeros(shape, dtype)


def ones(key: jax.Array, shape: Sequence[int], dtype: Any) -> np.ndarray:
  """f[...] of ones."""
  del key
  return np.ones(shape, dtype)


def _scaled_normal(scale: float, key, shape, dtype) -> Any:
  if not _is_known(key):
    make = jax.nn.initializers.variance_scaling
    return make(scale, 'fan_in', 'truncated_normal')(key, shape, dtype)
  dtype = jax.dtypes.canonicalize_dtype(dtype)
  deviation = dtype.type(
    math.sqrt(scale / max(math.prod(shape[:-1]), 1)) / _CUT
  )

  def draw(data):
    return deviation * _truncated_normal(np.asarray(data), shape, dtype)

  data = jax.random.key_data(key)
  if isinstance(data, jax.core.Tracer):
    return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), data)
  return draw(data)


def _is_known(key: jax.Array) -> bool:
  """Whether jax draws numbers of this key as it is done here."""
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  name = str(jax.random.key_impl(key)) if typed else ''
  as_here = jax.config.values['jax_threefry_partitionable']
  return name == 'threefry2x32' and as_here


def _truncated_normal(key: np.ndarray, shape, dtype: np.dtype) -> np.ndarray:
  """`jax.random.truncated_normal` between -2 and 2."""
  root = np.sqrt(np.array(2, dtype))
  end = dtype.type(special.erf(_END / root))
  share = _uniform(key, shape, dtype)
  share = np.maximum(share * (end - -end) + -end, -end)
  most = np.nextafter(dtype.type(_END), dtype.type(0))
  drawn = (root * special.erfinv(share)).astype(dtype)
  return np.clip(drawn, -most, most)


def _uniform(key: np.ndarray, shape, dtype: np.dtype) -> np.ndarray:
  """`jax.random.uniform`: f[...] from 0, below 1."""
  index = np.arange(math.prod(shape), dtype=np.uint64)
  words = _threefry(key, (index >> 32).astype(np.uint32), index.astype('u4'))
  if dtype.itemsize == 8:
    high, low = (word.astype(np.uint64) for word in words)
    bits = (high << 32 | low) >> 12 | np.array(1.0).view(np.uint64)
  else:
    bits = (words[0] ^ words[1]) >> 9 | np.array(1.0, 'f4').view(np.uint32)
  return bits.view(dtype).reshape(shape) - dtype.type(1)


def _threefry(
  key: np.ndarray, high: np.ndarray, low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Threefry-2x32, 20 rounds (Salmon et al. 2011, section 3.3).

  Args:
    key: u32[2].
    high: first words of the counters, u32[N].
    low: second words.
  """
  keys = [*key, key[0] ^ key[1] ^ np.uint32(_PARITY)]
  x, y = high + keys[0], low + keys[1]
  for turn in range(5):
    for rotation in _ROTATIONS[turn % 2]:
      x = x + y
      y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
      y = y ^ x
    x = x + keys[(turn + 1) % 3]
    y = y + keys[(turn + 2) % 3] + np.uint32(turn + 1)
  return x, y
