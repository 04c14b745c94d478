"""The random set of edges that a node keeps.

A set S of `count` edges has a probability proportional to the product of the
strengths in S. By elementary symmetric polynomials, without enumeration, and
without division by a strength, so that edges of strength zero have their true
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp


class Kept:
  """Which of the edges into a node are kept.

  Attributes:
    count: how many are kept.
    unit: that `strengths` are measured in, f[...].
    strengths: of the edges, in this unit and off zero, f[...] each.
  """

  def __init__(self, strengths: Sequence[jax.Array], count: int):
    largest = functools.reduce(jnp.maximum, strengths)
    # The result is that of any unit; in this one, no product is far from 1.
    self.unit = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    # The square of the total, at least floor^(count - 1), stays a float32.
    floor = jnp.where(largest > 0, 10.0 ** (-18 / max(count - 1, 1)), 1)
    self.strengths = [s / self.unit + floor for s in strengths]
    self.count = count

  def total(self) -> jax.Array:
    """Sum f[...] over all sets of the products of `strengths`."""
    return symmetric(self.strengths, self.count)

  def inclusion(self) -> list[jax.Array]:
    """For each edge i: P(i is kept) / (strength of i), f[...]."""
    s = self.strengths
    if self.count == len(s):
      return [1 / (self.unit * value) for value in s]
    total = self.unit * self.total()
    return [
      symmetric(s[:i] + s[i + 1 :], self.count - 1) / total
      for i in range(len(s))
    ]

  def both(self, i: int, j: int) -> jax.Array:
    """P(i and j are kept) / (strength of i * strength of j), f[...]."""
    s = self.strengths
    if self.count == len(s):
      return 1 / (self.unit * s[i]) / (self.unit * s[j])
    if self.count < 2:
      return jnp.zeros_like(s[i])
    others = [value for k, value in enumerate(s) if k not in (i, j)]
    return symmetric(others, self.count - 2) / self.total() / self.unit**2


def symmetric(values: Sequence[jax.Array], degree: int) -> jax.Array:
  """The elementary symmetric polynomial of the values."""
  poly = [jnp.ones_like(values[0]) if values else jnp.ones(())]
  poly += [jnp.zeros_like(poly[0])] * degree
  for value in values:
    poly = [poly[0]] + [
      poly[k] + value * poly[k - 1] for k in range(1, degree + 1)
    ]
  return poly[degree]
