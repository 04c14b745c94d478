"""The random set of edges that a node keeps.

A set S of `count` edges has a probability proportional to the product of the
strengths in S. By elementary symmetric polynomials, without enumeration, and
without division by a strength, so that edges of strength zero have their true
gradient. All edges of a group are one axis of an array: edge by edge this is
thousands of scalars, which compilers take longer for than for a network.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Kept:
  """Which of the edges into each node are kept.

  Args:
    strengths: of all edges, f[..., E].
    nodes: that the edges lead into, i[E].
    limit: how many edges a node keeps at most; None: all.
  """

  def __init__(
    self, strengths: jax.Array, nodes: np.ndarray, limit: int | None
  ):
    self._joined = nodes[:, None] == nodes
    into = self._joined.sum(1)
    self._counts = into if limit is None else np.minimum(into, limit)
    self._drops = self._counts < into
    # Row i holds the strengths into the node of edge i.
    rows = jnp.where(
      constant(self._joined, strengths[..., None]), strengths[..., None, :], 0
    )
    # Where all edges are kept nothing is a product of them, and a total is not
    # needed.
    degrees = np.where(self._drops, self._counts, 0)
    self._unit, self._rows = to_unit(rows, self._joined, degrees)
    self._total = symmetric(self._rows, degrees)

  def inclusion(self) -> jax.Array:
    """For each edge i: P(i is kept) / (strength of i), f[..., E]."""
    itself = constant(np.eye(len(self._joined), dtype=bool), self._rows)
    factor = 1 / jnp.where(itself, self._rows, 0).sum(-1)
    if self._drops.any():
      others = jnp.where(itself, 0, self._rows)
      degrees = np.where(self._drops, self._counts - 1, 0)
      some = symmetric(others, degrees) / self._total
      factor = jnp.where(constant(self._drops, some), some, factor)
    return factor / self._unit

  def both(self, i: np.ndarray, j: np.ndarray) -> jax.Array:
    """P(i and j are kept) / (strength of i * strength of j), f[..., P].

    Args:
      i: edges i[P].
      j: other edges i[P].
    """
    inclusion = self.inclusion()[..., None]
    factor = (take(inclusion, i) * take(inclusion, j))[..., 0]
    related = self._joined[i, j] & self._drops[i]
    if not related.any():
      return factor
    edges = np.arange(len(self._joined))
    others = (edges != i[:, None]) & (edges != j[:, None])
    rows = take(self._rows, i)
    rows = jnp.where(constant(others, rows), rows, 0)
    degrees = np.where(related, self._counts[i] - 2, 0)
    scale = jnp.stack([self._total, self._unit], -1)
    total, unit = jnp.moveaxis(take(scale, i), -1, 0)
    together = symmetric(rows, degrees) / total / unit / unit
    return jnp.where(constant(related, together), together, factor)


def to_unit(
  strengths: jax.Array, present: np.ndarray, count: int | np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Returns a unit in which no product of `count` strengths is far from 1.

  Args:
    strengths: f[..., E]; 0 where there is no edge.
    present: bool[..., E], where there is one.
    count: how many edges are kept, i[...].

  Returns:
    The unit f[...], a constant, and the strengths in it f[..., E]. These are
    off zero where there is an edge.
  """
  largest = jax.lax.stop_gradient(strengths.max(-1))
  unit = jnp.where(largest > 0, largest, 1)
  # The square of the total, at least floor^(count - 1), stays a float32.
  floors = constant(10.0 ** (-18 / np.maximum(count - 1, 1)), largest)
  floor = jnp.where(largest > 0, floors, 1)[..., None]
  mask = constant(present, strengths)
  return unit, strengths / unit[..., None] + jnp.where(mask, floor, 0)


def symmetric(values: jax.Array, degree: int | np.ndarray) -> jax.Array:
  """Elementary symmetric polynomials over the last axis.

  A product of edges is taken when the last of its edges is: e_k is the sum over
  i of value i times e_(k-1) of the values before i.

  Args:
    values: f[..., R, E].
    degree: of all or of each polynomial, i[] or i[R]; 0 if it is negative.

  Returns:
    f[..., R].
  """
  count = values.shape[-1]
  before = np.tri(count, k=-1, dtype=bool)
  degrees = np.broadcast_to(degree, values.shape[-2:-1])
  found = jnp.where(
    constant(degrees == 0, values[..., 0]), jnp.ones_like(values[..., 0]), 0
  )
  terms = values
  for k in range(1, int(degrees.max(initial=0)) + 1):
    if k > 1:
      sums = jnp.where(
        constant(before, terms[..., None]), terms[..., None, :], 0
      ).sum(-1)
      terms = values * sums
    found = jnp.where(constant(degrees == k, found), terms.sum(-1), found)
  return found


def take(values: jax.Array, rows: np.ndarray) -> jax.Array:
  """Returns `values[..., rows, :]`, f[..., P, K] of f[..., E, K].

  By sums, whose gradient is a sum as well: that of a lookup adds up in any
  order on some devices, so that a search would not repeat to the bit.
  """
  hot = rows[:, None] == np.arange(values.shape[-2])
  wide = values[..., None, :, :]
  return jnp.where(constant(hot[..., None], wide), wide, 0).sum(-2)


def constant(values: Any, like: jax.Array) -> np.ndarray:
  """Returns `values` with axes of size 1 before them, in the rank of `like`.

  Numbers are in its type as well; truth values stay what they are.
  """
  values = np.asarray(values)
  if values.dtype != bool:
    values = values.astype(like.dtype)
  return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
