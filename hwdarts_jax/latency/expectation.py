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

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import keeping, reachability
from hwdarts_jax.latency.checks import check
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
  for name in spec.groups():
    probs = _allowed(spec, name, gates[name])
    kept = _kept(spec, name, probs)
    out[name] = probs if kept is None else probs * kept.inclusion()[..., None]
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
  kept = {name: _kept(spec, name, p) for name, p in probs.items()}
  first, second = (
    keeping.take(probs[name], rows)
    for name, rows in zip(groups, (each.left, each.right), strict=True)
  )
  ends = kept[groups[0]], kept[groups[1]]
  if ends[0] is not None and groups[0] == groups[1]:
    first = first * ends[0].both(each.left, each.right)[..., None]
    return first, second
  if ends[0] is not None:
    inclusion = ends[0].inclusion()[..., None]
    first = first * keeping.take(inclusion, each.left)
  if ends[1] is not None:
    inclusion = ends[1].inclusion()[..., None]
    second = second * keeping.take(inclusion, each.right)
  return first, second


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
    does = keeping.constant([not ops.is_zero(op) for op in group.ops], p)
    drawn = p if cell.keep is None else _allowed(spec, name, gates[name])
    chances = reachability.Reachability(
      cell, drawn.sum(-1), (drawn * does).sum(-1)
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
  return probs if all(allowed) else probs * keeping.constant(allowed, probs)


def _kept(
  spec: NetworkSpec, name: str, probs: jax.Array
) -> keeping.Kept | None:
  """Which edges of a group its nodes keep; None where that is all of them."""
  group = spec.groups()[name]
  limit = {c.group: c.keep for c in spec.all_cells}[name]
  if limit is None and not set(group.ops) & set(spec.excluded):
    return None
  nodes = np.array([dst for _, dst in group.edges])
  return keeping.Kept(probs.sum(-1), nodes, limit)
