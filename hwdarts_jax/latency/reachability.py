"""Which nodes of a random cell are fed, and which are needed.

By dynamic programming over sets of nodes: pass through the nodes in order with
a distribution over the sets of them that are fed (or needed). Given the set,
the edges into the next node alone decide what becomes of it. A cell of n inner
nodes costs 2^n numbers, so this is for cells of few nodes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency.keeping import symmetric, to_unit
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec

MAX_NODES = 12


class Reachability:
  """Chances that signals reach the nodes of one cell.

  Args:
    cell: the cell.
    strengths: chance of each row of its alphas to be kept, or, where nodes
      keep only some of their edges, its strength; f[..., E].
    live: the part of it with an op that computes something, f[..., E].
  """

  def __init__(self, cell: CellSpec, strengths: jax.Array, live: jax.Array):
    self._cell, self._live = cell, live
    self._inputs = {node for node, _ in cell.inputs}
    self._order = inner_nodes(cell)
    self._place = {node: i for i, node in enumerate(self._order)}
    self._kept = {}
    if cell.keep is not None:
      for dst in self._order:
        rows = [row_of(e) for e in self._searched(dst)]
        if rows:
          self._kept[dst] = _Kept(strengths, live, rows, cell.keep)
    self._one = jnp.ones_like(strengths[..., 0])

  def fed(self) -> dict[int, jax.Array]:
    """P(node is computed from an input), f[...] for each node."""
    found = dict.fromkeys(self._inputs, self._one)
    chance = self._one[..., None]  # of each set of the nodes so far
    for node in self._order:
      sets = np.arange(chance.shape[-1])
      off = chance * self._unfed(node, sets)
      on = chance - off
      found[node] = on.sum(-1)
      chance = jnp.concatenate([off, on], -1)
    return found

  def needed(self) -> dict[int, jax.Array]:
    """P(node is used for an output), f[...] for each node."""
    sets = np.arange(2 ** len(self._order))
    outputs = [self._place[n] for n in self._cell.outputs if n in self._place]
    start = sum(1 << i for i in outputs)
    chance = self._one[..., None] * _row(sets == start, self._one)
    found = {}
    for node in reversed(self._order):
      used = (sets >> self._place[node] & 1).astype(bool)
      found[node] = (chance * _row(used, self._one)).sum(-1)
      chance = self._mark_sources(node, chance, sets, used)
    return found

  def _unfed(self, node: int, sets: np.ndarray) -> jax.Array:
    """P(no edge feeds `node` | the set of nodes fed before), f[..., S]."""
    one = self._one[..., None] * _row(np.ones(len(sets)), self._one)

    def source_fed(edge: EdgeSpec) -> jax.Array:
      if edge.src in self._inputs:
        return one
      return one * _row(sets >> self._place[edge.src] & 1, self._one)

    unfed = one
    for edge in self._fixed(node):
      unfed = unfed * (1 - source_fed(edge))
    searched = self._searched(node)
    if node not in self._kept:
      for edge in searched:
        unfed = unfed * (
          1 - self._live[..., row_of(edge), None] * source_fed(edge)
        )
      return unfed
    kept = self._kept[node]
    fed = jnp.stack([source_fed(e) for e in searched], -1)
    dead = kept.strengths[..., None, :] - kept.live[..., None, :] * fed
    return unfed * symmetric(dead, kept.count) / kept.total

  def _mark_sources(self, node, chance, sets, used) -> jax.Array:
    """Adds the sources of edges into `node` to the sets that hold it."""

    def mark(edge, chance):
      if edge.src in self._inputs:
        return chance
      bit = 1 << self._place[edge.src]
      moves = used & (sets & bit == 0)
      moved = chance * _row(moves, self._one)
      return chance - moved + moved[..., sets ^ bit]

    for edge in self._fixed(node):
      chance = mark(edge, chance)
    searched = self._searched(node)
    if node not in self._kept:
      for edge in searched:
        live = self._live[..., row_of(edge), None]
        chance = chance + live * (mark(edge, chance) - chance)
      return chance
    kept = self._kept[node]
    # By the number of edges kept so far.
    counts = [chance] + [jnp.zeros_like(chance)] * kept.count
    for i, edge in enumerate(searched):
      strength, live = kept.strengths[..., i, None], kept.live[..., i, None]
      with_it = [strength * c + live * (mark(edge, c) - c) for c in counts]
      counts = [counts[0]] + [
        counts[k] + with_it[k - 1] for k in range(1, kept.count + 1)
      ]
    return counts[kept.count] / kept.total

  def _searched(self, node: int) -> list[EdgeSpec]:
    edges = self._cell.edges
    return [e for e in edges if e.dst == node and is_searched(e)]

  def _fixed(self, node: int) -> list[EdgeSpec]:
    edges = self._cell.edges
    return [e for e in edges if e.dst == node and not is_searched(e)]


class _Kept:
  """Which edges into one node are kept.

  Attributes:
    count: how many are kept.
    strengths: of the edges, in a unit of their own and off zero, f[..., K].
    live: the part that computes something, in the same unit, f[..., K].
    total: sum over all sets of the products of `strengths`, f[..., 1].
  """

  def __init__(self, strengths, live, rows, limit):
    self.count = min(limit, len(rows))
    into = jnp.stack([strengths[..., row] for row in rows], -1)
    unit, self.strengths = to_unit(into, np.ones(len(rows), bool), self.count)
    self.live = (
      jnp.stack([live[..., row] for row in rows], -1) / unit[..., None]
    )
    self.total = symmetric(self.strengths[..., None, :], self.count)


@functools.cache
def inner_nodes(cell: CellSpec) -> tuple[int, ...]:
  """Nodes that edges write, each after all that it is computed from."""
  last = {edge.dst: i for i, edge in enumerate(cell.edges)}
  return tuple(sorted(last, key=lambda node: last[node]))


def row_of(edge: EdgeSpec) -> int:
  """The row of an edge that has gates."""
  assert edge.row is not None
  return edge.row


def is_searched(edge: EdgeSpec) -> bool:
  """Whether an edge has gates."""
  return edge.row is not None and len(edge.ops) > 1


def _row(values: np.ndarray, like: jax.Array) -> jax.Array:
  """`values` [S] as f[..., S] of the rank and type of f[...] `like`."""
  shape = (1,) * like.ndim + (-1,)
  return jnp.asarray(np.reshape(values, shape), like.dtype)
