"""From gates to the random architecture that they stand for.

The discretization of a space, made random: every edge draws an op from its
gates; where a node keeps only some of its edges, it keeps a set of edges with
probability proportional to the product of their strengths, the strength of an
edge being the mass of the ops that may win. At one-hot gates this is the
discretized architecture itself.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.spaces.spec import NetworkSpec


def marginals(
  spec: NetworkSpec, gates: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Returns the probability that each op ends up in the architecture.

  Args:
    spec: the space.
    gates: for each group f[..., E, O] whose rows are distributions over ops;
      a row of zeros is an edge that is never kept.

  Returns:
    For each group f[..., E, O]. The gates themselves where every edge is kept
    and no op is excluded.
  """
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  out = {}
  for name, group in spec.groups().items():
    allowed = np.array([op not in spec.excluded for op in group.ops])
    probs = gates[name]
    if not allowed.all():
      shape = (1,) * (probs.ndim - 1) + (-1,)
      probs = probs * allowed.reshape(shape).astype(probs.dtype)
    limit = keep[name]
    if limit is not None or not allowed.all():
      probs = _keep_edges(probs, group.edges, limit)
    out[name] = probs
  return out


def _keep_edges(probs: jax.Array, edges, limit: int | None) -> jax.Array:
  """Scales each row from its strength to its probability of being kept."""
  strength = probs.sum(-1)
  factors: list[Any] = [None] * len(edges)
  for dst in sorted({d for _, d in edges}):
    into = [r for r, (_, d) in enumerate(edges) if d == dst]
    count = len(into) if limit is None else min(limit, len(into))
    scaled = _inclusion([strength[..., r] for r in into], count)
    for row, factor in zip(into, scaled, strict=True):
      factors[row] = factor
  return probs * jnp.stack(factors, -1)[..., None]


def _inclusion(strengths: list[jax.Array], count: int) -> list[jax.Array]:
  """P(i is kept) / s_i when a set S of `count` has weight prod of s in S.

  By elementary symmetric polynomials: e_{count-1}(others) / e_count(all). There
  is no division by s_i, so that rows of zeros have their true gradient.
  """
  largest = functools.reduce(jnp.maximum, strengths)
  # The result is that of any unit; in this one, no product is far from 1.
  unit = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
  # The square of e_count, which is at least floor^(count - 1), stays a float32.
  floor = jnp.where(largest > 0, 10.0 ** (-18 / max(count - 1, 1)), 1)
  s = [strength / unit + floor for strength in strengths]
  if count == len(s):
    return [1 / (unit * value) for value in s]
  total = unit * _symmetric(s, count)
  return [
    _symmetric(s[:i] + s[i + 1 :], count - 1) / total for i in range(len(s))
  ]


def _symmetric(values: list[jax.Array], degree: int) -> jax.Array:
  """The elementary symmetric polynomial of the values."""
  poly = [jnp.ones_like(values[0]) if values else jnp.ones(())]
  poly += [jnp.zeros_like(poly[0])] * degree
  for value in values:
    poly = [poly[0]] + [
      poly[k] + value * poly[k - 1] for k in range(1, degree + 1)
    ]
  return poly[degree]
