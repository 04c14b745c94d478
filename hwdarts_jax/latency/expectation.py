"""From gates to the random architecture that they stand for.

The discretization of a space, made random: every edge draws an op from its
gates; where a node keeps only some of its edges, it keeps a set of edges with
probability proportional to the product of their strengths, the strength of an
edge being the mass of the ops that may win. At one-hot gates this is the
discretized architecture itself.

All in closed form, differentiable, and without a look at any architecture:
`marginals` of single ops, `pair_marginals` of two, and `paid`, the marginals of
the ops that a runtime pays for.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import reachability
from hwdarts_jax.latency.checks import check
from hwdarts_jax.latency.keeping import Kept
from hwdarts_jax.latency.pairs import Pairs
from hwdarts_jax.models import ops
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
  out = {}
  for name, group in spec.groups().items():
    probs = _allowed(spec, name, gates[name])
    factors: list[Any] = [None] * len(group.edges)
    for rows, kept in _nodes(spec, name, probs):
      for row, factor in zip(rows, kept.inclusion(), strict=True):
        factors[row] = factor
    if None not in factors:
      probs = probs * jnp.stack(factors, -1)[..., None]
    out[name] = probs
  return out


def pair_marginals(
  spec: NetworkSpec, gates: Mapping[str, jax.Array], each: Pairs
) -> tuple[jax.Array, jax.Array]:
  """Returns the probability of two ops being in the architecture together.

  Args:
    spec: the space.
    gates: see `marginals`.
    each: pairs of edges.

  Returns:
    f[..., P, O] and f[..., P, O]: the product of entries o and q is the
    probability of op o on the first edge and op q on the second.
  """
  groups = each.left_group, each.right_group
  probs = {name: _allowed(spec, name, gates[name]) for name in set(groups)}
  # Of each edge into a node that drops some, or where some ops may not win:
  # its node and its place among the edges into it.
  places = {
    (name, row): (rows, kept, kept.inclusion()[i])
    for name, p in probs.items()
    for rows, kept in _nodes(spec, name, p)
    for i, row in enumerate(rows)
  }
  first = probs[groups[0]]
  one = jnp.ones(first.shape[:-2], first.dtype)
  factors = []
  for i, j in zip(each.left.tolist(), each.right.tolist(), strict=True):
    ends = [places.get(end) for end in zip(groups, (i, j), strict=True)]
    if ends[0] and groups[0] == groups[1] and j in ends[0][0]:
      rows, kept, _ = ends[0]
      factors.append(kept.both(rows.index(i), rows.index(j)))
    else:
      factors.append(math.prod((end[2] for end in ends if end), start=one))
  factor = jnp.stack(factors, -1)[..., None]
  return (
    factor * first[..., each.left, :],
    probs[groups[1]][..., each.right, :],
  )


def paid(
  spec: NetworkSpec, gates: Mapping[str, jax.Array], semantics: str
) -> dict[str, jax.Array]:
  """Returns the probability that the runtime pays for each op.

  Whether the source of an edge is fed depends on edges into nodes up to it,
  whether its target is needed on edges into nodes after it. So both are
  independent of the edge and of each other, and the probability that its op
  lies on a path is the product of three.

  Args:
    spec: the space.
    gates: see `marginals`.
    semantics: one of `liveness.SEMANTICS`.

  Returns:
    For each group f[..., E, O]; its sum with the costs of ops is the expected
    latency of an additive runtime.

  Raises:
    ValueError: a cell has too many nodes.
  """
  probs = marginals(spec, gates)
  if semantics == 'eager':
    return probs
  cells = {c.group: c for c in spec.all_cells if c.group is not None}
  out = {}
  for name, group in spec.groups().items():
    cell, p = cells[name], probs[name]
    count = len(reachability.inner_nodes(cell))
    check(
      count <= reachability.MAX_NODES,
      f'number of inner nodes of cell {cell.name!r}',
      count,
      f'at most {reachability.MAX_NODES} for the chances of dead ops',
    )
    does = _columns([not ops.is_zero(op) for op in group.ops], p)
    rows = range(len(group.edges))
    drawn = p if cell.keep is None else _allowed(spec, name, gates[name])
    strengths, live = drawn.sum(-1), (drawn * does).sum(-1)
    chances = reachability.Reachability(
      cell,
      {row: strengths[..., row] for row in rows},
      {row: live[..., row] for row in rows},
    )
    needed = chances.needed()
    ends = [needed[dst] for _, dst in group.edges]
    if semantics == 'compiled':
      fed = chances.fed()
      ends = [
        end * fed[src] for end, (src, _) in zip(ends, group.edges, strict=True)
      ]
    out[name] = p * does * jnp.stack(ends, -1)[..., None]
  return out


def _allowed(spec: NetworkSpec, name: str, probs: jax.Array) -> jax.Array:
  """Gates f[..., E, O] of a group, without ops that may not win."""
  allowed = [op not in spec.excluded for op in spec.groups()[name].ops]
  return probs if all(allowed) else probs * _columns(allowed, probs)


def _nodes(
  spec: NetworkSpec, name: str, probs: jax.Array
) -> list[tuple[tuple[int, ...], Kept]]:
  """Rows into each node and which of them it keeps; none if it keeps all."""
  group = spec.groups()[name]
  limit = {c.group: c.keep for c in spec.all_cells}[name]
  if limit is None and not set(group.ops) & set(spec.excluded):
    return []
  strength = probs.sum(-1)
  found = []
  for dst in sorted({d for _, d in group.edges}):
    rows = tuple(r for r, (_, d) in enumerate(group.edges) if d == dst)
    count = len(rows) if limit is None else min(limit, len(rows))
    found.append((rows, Kept([strength[..., r] for r in rows], count)))
  return found


def _columns(values: list[bool], like: jax.Array) -> np.ndarray:
  """`values` [O] as f[..., 1, O] of the rank and type of f[..., E, O]."""
  shape = (1,) * (like.ndim - 1) + (-1,)
  return np.reshape(values, shape).astype(like.dtype)
