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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hwdarts_jax.models.op import EPSILON, param_dtype


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
  ys = tuple(term.y for term in terms)
  gates = tuple(term.gates for term in terms)
  if train:
    normed = tuple(term.running is not None for term in terms)
    return _mix(normed, jnp.dtype(dtype), ys, gates)
  total: Any = 0.0
  for y, g, term in zip(ys, gates, terms, strict=True):
    if term.running is not None:
      y = (y - term.running.mean) * _scale(term.running)
    total = total + _gated(y, g)
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
  return _split(
    jax.nn.relu((y - running.mean) * _scale(running)), y.dtype
  ), None


def _moments(y: jax.Array) -> Moments:
  """Moments over examples and pixels, in one pass.

  Distances are taken from one value of each channel, or E[y^2] - E[y]^2 would
  lose all digits where the mean dominates.
  """
  y = y.astype(param_dtype(y.dtype))
  origin = jax.lax.stop_gradient(y[:, :1])
  distance = y - origin
  mean = distance.mean(1, keepdims=True)
  square = jnp.square(distance).mean(1, keepdims=True)
  return Moments(origin + mean, jnp.maximum(square - jnp.square(mean), 0))


def _scale(moments: Moments) -> jax.Array:
  return jax.lax.rsqrt(moments.var + EPSILON)


def _gated(value: jax.Array, gates: jax.Array) -> jax.Array:
  """Sum over ops, f[G, N, E, C]."""
  return (value * gates[:, None, :, :, None]).sum(2)


def _split(h: jax.Array, dtype: Any) -> tuple[jax.Array, ...]:
  return tuple(h[:, :, i].astype(dtype) for i in range(h.shape[2]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(normed, dtype, ys, gates):
  return _mix_forward(normed, dtype, ys, gates)[0]


def _mix_forward(normed, dtype, ys, gates):
  moments = [
    _moments(y) if has else None for y, has in zip(ys, normed, strict=True)
  ]
  total: Any = 0.0
  for y, g, of_batch in zip(ys, gates, moments, strict=True):
    if of_batch is not None:
      y = (y - of_batch.mean) * _scale(of_batch)
    total = total + _gated(y, g)
  return (total.astype(dtype), moments), (ys, gates, moments)


def _mix_backward(normed, dtype, residuals, cotangents):
  del normed, dtype
  ys, gates, moments = residuals
  # Nothing is differentiated through running statistics.
  cotangent, _ = cotangents
  wide = param_dtype(cotangent.dtype)
  dz = cotangent[:, :, None].astype(wide)
  size = dz.shape[1]
  sum_dz = dz.sum(1, keepdims=True)
  of_ys, of_gates = [], []
  for y, g, of_batch in zip(ys, gates, moments, strict=True):
    weight = g[:, None, :, :, None]
    shift = 0 if of_batch is None else of_batch.mean
    # Sums of one shape, which the compiler finds in a single pass.
    dot = jnp.concatenate(
      [
        (dz * (y - shift)[:, :, i : i + 1]).sum(1, keepdims=True)
        for i in range(y.shape[2])
      ],
      axis=2,
    )
    if of_batch is None:
      of_gate = dot.sum((1, 4))
      of_y = weight * dz
    else:
      scale = _scale(of_batch)
      of_gate = (scale * dot).sum((1, 4))
      slope = jnp.square(scale) * dot / size
      of_y = weight * scale * (dz - sum_dz / size - (y - of_batch.mean) * slope)
    if g.shape[0] == 1:
      of_gate = of_gate.sum(0, keepdims=True)
    if y.shape[3] == 1:
      of_y = of_y.sum(3, keepdims=True)
    of_ys.append(of_y.astype(y.dtype))
    of_gates.append(of_gate.astype(g.dtype))
  return tuple(of_ys), tuple(of_gates)


_mix.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def _norm_relu(y):
  return _norm_relu_forward(y)[0]


def _norm_relu_forward(y):
  moments = _moments(y)
  h = jax.nn.relu((y - moments.mean) * _scale(moments))
  return (_split(h, y.dtype), moments), (y, moments)


def _norm_relu_backward(residuals, cotangents):
  y, moments = residuals
  parts, _ = cotangents
  scale = _scale(moments)
  distance = y - moments.mean
  dh = jnp.stack(parts, axis=2).astype(distance.dtype)
  dt = jnp.where(distance > 0, dh, 0)
  size = y.shape[1]
  mean_dt = dt.sum(1, keepdims=True) / size
  dot = (dt * distance).sum(1, keepdims=True)
  slope = jnp.square(scale) * dot / size
  return ((scale * (dt - mean_dt - distance * slope)).astype(y.dtype),)


_norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)
