"""Which nodes of a random cell are fed, and which are needed.

By dynamic programming over sets of nodes: pass through the nodes in order with
a distribution over the sets of them that are fed (or needed). Given the set,
the edges into the next node alone decide what becomes of it. A cell of n inner
nodes costs 2^n numbers, so this is for cells of few nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency.keeping import Kept, symmetric
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec

MAX_NODES = 12


class Reachability:
  """Chances that signals reach the nodes of one cell.

  Args:
    cell: the cell.
    strengths: chance of each row of its alphas to be kept, or, where nodes
      keep only some of their edges, its strength; f[...] each.
    live: the part of it with an op that computes something, f[...] each.
  """

  def __init__(
    self,
    cell: CellSpec,
    strengths: Mapping[int, jax.Array],
    live: Mapping[int, jax.Array],
  ):
    self._cell, self._live = cell, live
    self._inputs = {node for node, _ in cell.inputs}
    self._order = inner_nodes(cell)
    self._place = {node: i for i, node in enumerate(self._order)}
    self._kept = {}
    if cell.keep is not None:
      for dst in self._order:
        into = [strengths[row_of(e)] for e in self._searched(dst)]
        if into:
          self._kept[dst] = Kept(into, min(cell.keep, len(into)))
    self._one = jnp.ones_like(next(iter(strengths.values())))

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
          1 - self._live[row_of(edge)][..., None] * source_fed(edge)
        )
      return unfed
    kept = self._kept[node]
    dead = [
      s[..., None]
      - (self._live[row_of(e)] / kept.unit)[..., None] * source_fed(e)
      for e, s in zip(searched, kept.strengths, strict=True)
    ]
    return unfed * symmetric(dead, kept.count) / kept.total()[..., None]

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
        live = self._live[row_of(edge)][..., None]
        chance = chance + live * (mark(edge, chance) - chance)
      return chance
    kept = self._kept[node]
    # By the number of edges kept so far.
    counts = [chance] + [jnp.zeros_like(chance)] * kept.count
    for edge, strength in zip(searched, kept.strengths, strict=True):
      live = (self._live[row_of(edge)] / kept.unit)[..., None]
      with_it = [
        strength[..., None] * c + live * (mark(edge, c) - c) for c in counts
      ]
      counts = [counts[0]] + [
        counts[k] + with_it[k - 1] for k in range(1, kept.count + 1)
      ]
    return counts[kept.count] / kept.total()[..., None]

  def _searched(self, node: int) -> list[EdgeSpec]:
    edges = self._cell.edges
    return [e for e in edges if e.dst == node and is_searched(e)]

  def _fixed(self, node: int) -> list[EdgeSpec]:
    edges = self._cell.edges
    return [e for e in edges if e.dst == node and not is_searched(e)]


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
