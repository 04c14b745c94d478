"""What a latency may depend on, as features of architectures.

Everything is read from the cells of the spec. `linear` features are at most
linear in the gates of each edge, so that a latency that is a weighted sum of
them has an exact expectation in any space. `shape` features say more about the
graph that a runtime sees, for spaces whose architectures can be enumerated:
how many ops of a kind, how they meet, what lies on each path.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import pairs
from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import CellSpec, NetworkSpec

Paid = Mapping[str, np.ndarray]  # what `liveness.paid_ops` returns

_MAX_PATHS = 64
_NUM_BUCKETS = 257  # of op sequences


def per_op(paid: Paid) -> np.ndarray:
  """Each op of each edge, f[N, sum of E * O]."""
  return np.concatenate([p.reshape(len(p), -1) for p in paid.values()], 1)


def per_pair(spec: NetworkSpec, paid: Paid) -> np.ndarray:
  """Each pair of ops of each pair of adjacent edges, f[N, F]."""
  return _flat([p.reshape(len(p), -1) for p in products(spec, paid)], paid)


def products(spec: NetworkSpec, paid: Paid) -> list[np.ndarray]:
  """For each of `pairs.adjacent`, f[N, P, O, O]."""
  return [
    paid[p.left_group][:, p.left, :, None]
    * paid[p.right_group][:, p.right, None, :]
    for p in pairs.adjacent(spec)
  ]


def counts(spec: NetworkSpec, paid: Paid) -> np.ndarray:
  """How many ops of each kind, whatever their edge, f[N, F].

  Groups with the same ops are counted together.
  """
  sums: dict[tuple[str, ...], np.ndarray] = {}
  for name, group in spec.groups().items():
    total = paid[name].sum(1)
    sums[group.ops] = sums.get(group.ops, 0) + total
  return np.concatenate(list(sums.values()), 1)


def meetings(spec: NetworkSpec, paid: Paid) -> np.ndarray:
  """How often ops of two kinds meet in each relation, f[N, F]."""
  sums: dict[tuple, np.ndarray] = {}
  for key, mask, product in meeting_parts(spec, products(spec, paid)):
    sums[key] = sums.get(key, 0) + product[:, mask].sum(1)
  return _flat([s.reshape(len(s), -1) for s in sums.values()], paid)


def meeting_parts(spec: NetworkSpec, arrays):
  """Yields (key, mask bool[P], array f[..., P, O, O]) of what is tied.

  Pairs with the same key count alike; an array of pairs that are turned round,
  or that have no direction, comes transposed as well.
  """
  groups = spec.groups()
  for p, array in zip(pairs.adjacent(spec), arrays, strict=True):
    kinds = groups[p.left_group].ops, groups[p.right_group].ops
    for index, relation in enumerate(pairs.RELATIONS):
      here = p.relation == index
      turned = np.swapaxes(array, -1, -2)
      both_ways = relation != 'feeds' and kinds[0] == kinds[1]
      straight = here & ~p.turned
      if straight.any():
        yield (relation, *kinds), straight, array
      if (here & p.turned).any():
        yield (relation, *kinds), here & p.turned, turned
      if both_ways and here.any():
        yield (relation, *kinds), here, turned


def degrees(spec: NetworkSpec, paid: Paid) -> np.ndarray:
  """How many edges that run enter and leave each node, f[N, F]."""
  columns = []
  for name, group in spec.groups().items():
    runs = np.asarray(paid[name].any(-1))
    for end in (0, 1):
      for node in sorted({edge[end] for edge in group.edges}):
        rows = [r for r, edge in enumerate(group.edges) if edge[end] == node]
        columns.append(runs[:, rows].sum(1))
  return np.stack(columns, 1).astype(np.float64)


def additions(spec: NetworkSpec, paid: Paid) -> np.ndarray:
  """Counts of ops, of nodes, and of sums and forks in the graph, f[N, F]."""
  columns = [counts(spec, paid)]
  for name, group in spec.groups().items():
    runs = np.asarray(paid[name].any(-1))
    for end in (0, 1):
      nodes = sorted({edge[end] for edge in group.edges})
      degree = np.stack(
        [
          runs[:, [r for r, e in enumerate(group.edges) if e[end] == n]].sum(1)
          for n in nodes
        ],
        1,
      )
      columns.append(np.maximum(degree - 1, 0).sum(1, keepdims=True))
    columns.append((degree > 0).sum(1, keepdims=True))
  return np.concatenate(columns, 1).astype(np.float64)


def sequences(spec: NetworkSpec, paid: Paid) -> np.ndarray:
  """How many paths have each sequence of ops, f[N, buckets].

  Ops that pass on what they read are left out of a sequence. Sequences are
  told apart by a hash. Empty where a cell has very many paths.
  """
  cells = {c.group: c for c in spec.all_cells if c.group is not None}
  total = np.zeros((len(next(iter(paid.values()))), _NUM_BUCKETS))
  for seed, (name, group) in enumerate(spec.groups().items()):
    paths = _paths(cells[name])
    if len(paths) > _MAX_PATHS:
      continue
    says = np.array([0 if _passes_on(op) else 1 for op in group.ops])
    column = paid[name].argmax(-1)
    runs = np.asarray(paid[name].any(-1))
    for path in paths:
      code = np.full(len(total), seed)
      for row in path:
        op = column[:, row]
        code = np.where(says[op], code * (len(group.ops) + 1) + op + 1, code)
        code %= 1_000_003
      whole = runs[:, list(path)].all(1)
      np.add.at(total, (np.flatnonzero(whole), code[whole] % _NUM_BUCKETS), 1)
  return total


def categories(paid: Paid) -> np.ndarray:
  """Each op of each edge, and whether the edge is idle, f[N, F]."""
  with_idle = [
    np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1) for p in paid.values()
  ]
  return _flat([p.reshape(len(p), -1) for p in with_idle], paid)


@functools.cache
def _paths(cell: CellSpec) -> tuple[tuple[int, ...], ...]:
  """Rows of the searched edges on each path through a cell."""
  found: dict[int, list[tuple[int, ...]]] = {n: [()] for n, _ in cell.inputs}
  for edge in cell.edges:
    step = () if edge.row is None or len(edge.ops) == 1 else (edge.row,)
    longer = [path + step for path in found.get(edge.src, [])]
    found.setdefault(edge.dst, []).extend(longer[: _MAX_PATHS + 1])
  return tuple(p for n in cell.outputs for p in found.get(n, []) if p)


@functools.cache
def _passes_on(op: str) -> bool:
  """Whether an op of stride 1 returns what it reads."""
  x = jnp.arange(32.0).reshape(1, 4, 4, 2)
  module = ops.get(op)(2, 1, ops.Context())
  shapes = jax.eval_shape(
    functools.partial(module.init, train=False), jax.random.key(0), x
  )
  if jax.tree.leaves(shapes):
    return False
  y = jnp.asarray(module.apply({}, x, train=False))
  return y.shape == x.shape and np.array_equal(y, x)


def _flat(columns: list[np.ndarray], paid: Paid) -> np.ndarray:
  rows = len(next(iter(paid.values())))
  return np.concatenate([np.zeros((rows, 0)), *columns], 1)
