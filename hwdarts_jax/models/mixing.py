"""Batch norm, gates and the sum over ops in as few passes as there can be.

Normalizing, gating and adding are one affine map of each op's output. Forward,
an output is read once for its moments and once for the sum. Backward, all
outputs of a fan are read once, with the cotangent, for the sums that batch
norm and gates need (Ioffe & Szegedy 2015), and once for their own cotangents.
The derivatives are written down because those found by automatic
differentiation read every output several times more, in many small kernels;
they are themselves ordinary differentiable code.

Arrays here are f[G, N, O, E, C]: batch group, examples and pixels, op, edge,
channel.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models.layers import EPSILON, param_dtype

# Name of statistics of a batch, for rematerialization: a few kilobytes.
MOMENTS = 'moments'
# Sums over examples and pixels are taken in so many pieces at a time.
_PIECES = 128


class Moments(NamedTuple):
  """Mean and biased variance, f32[G or 1, 1, O, E or 1, C]."""

  mean: jax.Array
  var: jax.Array


class Term(NamedTuple):
  """Outputs of O ops, to be summed over ops.

  Attributes:
    y: f[G, N, O, E or 1, C]; one edge where all have the same output.
    gates: f32[G or 1, O, E].
    running: statistics of the batch norm that follows, for evaluation; None if
      none follows.
  """

  y: jax.Array
  gates: jax.Array
  running: Moments | None


def mix(terms: Sequence[Term], dtype: Any, train: bool):
  """Returns the weighted sum of all terms, and moments of the batch.

  Args:
    terms: of one fan.
    dtype: of the sum.
    train: whether to normalize by the statistics of the batch.

  Returns:
    f[G, N, E, C], and for each term its `Moments`, None where it has no batch
    norm or `train` is false.
  """
  if train:
    ys = tuple(term.y for term in terms)
    gates = jnp.concatenate([term.gates for term in terms], axis=1)
    normed = tuple(term.running is not None for term in terms)
    return _mix(normed, jnp.dtype(dtype), ys, gates)
  total: Any = 0.0
  for y, gates, running in terms:
    if running is not None:
      y = (y - running.mean) * _scale(running)
    total = total + (y * _weight(gates)).sum(2)
  return total.astype(dtype), [None for _ in terms]


def norm_relu(y: jax.Array, running: Moments, train: bool):
  """Returns ReLU of the batch norm for each op, and moments of the batch.

  Args:
    y: f[G, N, O, E, C].
    running: statistics for evaluation.
    train: whether to normalize by the statistics of the batch.

  Returns:
    O arrays f[G, N, E, C] of the type of `y`; and `Moments`, None if `train`
    is false.
  """
  if train:
    return _norm_relu(y)
  h = jax.nn.relu((y - running.mean) * _scale(running)).astype(y.dtype)
  return tuple(_by_op(h)), None


def _sums(parts: Sequence[jax.Array]) -> jax.Array:
  """Sums over examples and pixels: parts f[G, N, ...] -> f[G, S], end to end.

  In two steps. A sum of a few thousand rows in one step keeps most of a GPU
  idle; and all parts share the kernel of the second, and those of whatever is
  done with the sums before `_cut`.
  """
  groups, size = parts[0].shape[:2]
  pieces = math.gcd(size, _PIECES)
  first = [
    part.reshape(groups, pieces, size // pieces, -1).sum(2) for part in parts
  ]
  return jnp.concatenate(first, axis=-1).sum(1)


def _cut(flat: jax.Array, parts: Sequence[jax.Array]) -> list[jax.Array]:
  """f[G, S] -> f[G, 1, ...], what belongs to each part f[G, N, ...]."""
  sizes = [math.prod(part.shape[2:]) for part in parts]
  return [
    s.reshape(len(flat), 1, *part.shape[2:])
    for s, part in zip(jax.lax.split(flat, sizes, 1), parts, strict=True)
  ]


def _moments(ys: Sequence[jax.Array]) -> list[Moments]:
  """Moments over examples and pixels, in one pass.

  Distances are taken from one value of each channel, or E[y^2] - E[y]^2 would
  lose all digits where the mean dominates.
  """
  if not ys:
    return []
  wide = [y.astype(param_dtype(y.dtype)) for y in ys]
  origins = [jax.lax.stop_gradient(y[:, :1]) for y in wide]
  distances = [y - origin for y, origin in zip(wide, origins, strict=True)]
  sums = _sums([*distances, *map(jnp.square, distances)]) / wide[0].shape[1]
  mean, square = jnp.split(sums, 2, axis=1)
  var = jnp.maximum(square - jnp.square(mean), 0)
  origin = jnp.concatenate([o.reshape(len(o), -1) for o in origins], axis=1)
  both = (checkpoint_name(m, MOMENTS) for m in (origin + mean, var))
  return list(map(Moments, *(_cut(m, wide) for m in both)))


def _scale(moments: Moments) -> jax.Array:
  return jax.lax.rsqrt(moments.var + EPSILON)


def _weight(gates: jax.Array) -> jax.Array:
  """f32[G or 1, O, E] -> f32[G or 1, 1, O, E, 1]."""
  return gates[:, None, :, :, None]


def _by_op(y: jax.Array) -> list[jax.Array]:
  return [y[:, :, i] for i in range(y.shape[2])]


def _rows(ys: Sequence[jax.Array]) -> list[slice]:
  """Where the ops of each term are among those of all."""
  ends = np.cumsum([y.shape[2] for y in ys])
  return [slice(end - y.shape[2], end) for y, end in zip(ys, ends, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(normed, dtype, ys, gates):
  return _mix_forward(normed, dtype, ys, gates)[0]


def _mix_forward(normed, dtype, ys, gates):
  found = iter(_moments([y for y, n in zip(ys, normed, strict=True) if n]))
  moments = [next(found) if has else None for has in normed]
  weight = _weight(gates)
  total: Any = 0.0
  for y, rows, of_batch in zip(ys, _rows(ys), moments, strict=True):
    factor = weight[:, :, rows]
    if of_batch is not None:
      y = y - of_batch.mean
      factor = factor * _scale(of_batch)
    total = total + (y * factor).sum(2)
  return (total.astype(dtype), moments), (ys, gates, moments)


def _mix_backward(normed, dtype, residuals, cotangents):
  del normed, dtype
  ys, gates, moments = residuals
  # Nothing is differentiated through running statistics.
  cotangent, _ = cotangents
  dz = cotangent.astype(param_dtype(cotangent.dtype))
  size = dz.shape[1]
  distances = [
    y.astype(dz.dtype) if m is None else y - m.mean
    for y, m in zip(ys, moments, strict=True)
  ]
  parts = [*(dz * d for y in distances for d in _by_op(y)), dz]
  *dots, sum_dz = _cut(_sums(parts), parts)
  dot = jnp.stack(dots, axis=2)
  scale = jnp.concatenate(
    [
      jnp.broadcast_to(
        jnp.ones((), dz.dtype) if m is None else _scale(m),
        (*dot.shape[:2], y.shape[2], *dot.shape[3:]),
      )
      for y, m in zip(ys, moments, strict=True)
    ],
    axis=2,
  )
  of_gates = (scale * dot).sum((1, 4))
  if gates.shape[0] == 1:
    of_gates = of_gates.sum(0, keepdims=True)
  factor = _weight(gates) * scale
  slope = jnp.square(scale) * dot / size
  centered = dz - sum_dz / size
  of_ys = []
  for y, d, rows, m in zip(ys, distances, _rows(ys), moments, strict=True):
    of_y = dz[:, :, None]
    if m is not None:
      of_y = centered[:, :, None] - d * slope[:, :, rows]
    of_y = factor[:, :, rows] * of_y
    if y.shape[3] == 1:
      of_y = of_y.sum(3, keepdims=True)
    of_ys.append(of_y.astype(y.dtype))
  return tuple(of_ys), of_gates.astype(gates.dtype)


_mix.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def _norm_relu(y):
  return _norm_relu_forward(y)[0]


def _norm_relu_forward(y):
  (moments,) = _moments([y])
  scale = _scale(moments)
  hs = tuple(
    jax.nn.relu((part - moments.mean[:, :, i]) * scale[:, :, i]).astype(y.dtype)
    for i, part in enumerate(_by_op(y))
  )
  return (hs, moments), (y, moments)


def _norm_relu_backward(residuals, cotangents):
  y, moments = residuals
  parts, _ = cotangents
  distances = _by_op(y - moments.mean)
  dts = [
    jnp.where(d > 0, part.astype(d.dtype), 0)
    for d, part in zip(distances, parts, strict=True)
  ]
  parts = [*dts, *(dt * d for dt, d in zip(dts, distances, strict=True))]
  sums = _cut(_sums(parts), parts)
  scales = _by_op(_scale(moments))
  of_y = []
  for i, (dt, d, scale) in enumerate(zip(dts, distances, scales, strict=True)):
    mean_dt, mean_dot = (s / y.shape[1] for s in sums[i :: len(dts)])
    slope = jnp.square(scale) * mean_dot
    of_y.append((scale * (dt - mean_dt - d * slope)).astype(y.dtype))
  return (jnp.stack(of_y, axis=2),)


_norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)
