"""Pairs of searched edges that meet, and so may be fused or wait in line."""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import NamedTuple

import numpy as np

from hwdarts_jax.latency.reachability import is_searched
from hwdarts_jax.spaces.spec import NetworkSpec

# How the edges of a pair meet: the first feeds the second, both add to one
# node, or both read one node.
RELATIONS = ('feeds', 'joins', 'shares')


class Pairs(NamedTuple):
  """Pairs of an edge of one group and an edge of the same or another one.

  Attributes:
    left_group: of the first edges.
    right_group: of the second edges.
    left: rows i[P] of the first.
    right: rows i[P] of the second.
    relation: index in `RELATIONS`, i[P].
    turned: bool[P], whether it is the second edge that feeds the first.
  """

  left_group: str
  right_group: str
  left: np.ndarray
  right: np.ndarray
  relation: np.ndarray
  turned: np.ndarray

  @property
  def name(self) -> str:
    """Of the parameters f[P, O, O] of these pairs."""
    if self.left_group == self.right_group:
      return f'{self.left_group}_pair'
    return f'{self.left_group}_{self.right_group}_pair'


def adjacent_edges(edges) -> tuple[np.ndarray, np.ndarray]:
  """Rows of all pairs of edges that share a node, as two i[P]."""
  pairs = [
    (i, j)
    for i in range(len(edges))
    for j in range(i + 1, len(edges))
    if set(edges[i]) & set(edges[j])
  ]
  both = np.array(pairs, int).reshape(-1, 2)
  return both[:, 0], both[:, 1]


@functools.lru_cache(maxsize=64)
def adjacent(spec: NetworkSpec) -> tuple[Pairs, ...]:
  """All pairs: within the cells of a group, and between cells of two groups.

  Two cells meet where an edge into an output of the one is followed by an edge
  out of an input of the other, with nothing fixed in between.
  """
  found = []
  for name, group in spec.groups().items():
    left, right = adjacent_edges(group.edges)
    if len(left):
      kinds = [
        _relation(group.edges[i], group.edges[j])
        for i, j in zip(left, right, strict=True)
      ]
      relation, turned = np.array(kinds).T
      found.append(
        Pairs(name, name, left, right, relation, turned.astype(bool))
      )
  found += [
    Pairs(*groups, *_columns(rows), *np.zeros((2, len(rows)), int))
    for groups, rows in _across(spec).items()
  ]
  return tuple(p._replace(turned=p.turned.astype(bool)) for p in found)


def _columns(rows) -> tuple[np.ndarray, np.ndarray]:
  both = np.array(sorted(rows), int)
  return both[:, 0], both[:, 1]


def _across(spec: NetworkSpec) -> Mapping[tuple[str, str], set]:
  """Rows (first, second) of edges of two groups that follow each other."""
  cells = {cell.name: cell for cell in spec.all_cells}
  found: dict[tuple[str, str], set] = {}
  for cell in spec.all_cells:
    for node, source in cell.inputs:
      before = cells.get(source)
      if before is None or before.group == cell.group:
        continue  # within a group, the pairs that share a node are enough
      ends = [
        e.row
        for e in before.edges
        if is_searched(e) and e.dst in before.outputs
      ]
      starts = [e.row for e in cell.edges if is_searched(e) and e.src == node]
      if ends and starts:
        assert before.group is not None and cell.group is not None
        rows = found.setdefault((before.group, cell.group), set())
        rows |= {(i, j) for i in ends for j in starts}
  return found


def _relation(first, second) -> tuple[int, int]:
  """Index in `RELATIONS` and whether the pair is turned round."""
  if first[1] == second[0]:
    return 0, 0
  if second[1] == first[0]:
    return 0, 1
  return (1, 0) if first[1] == second[1] else (2, 0)
