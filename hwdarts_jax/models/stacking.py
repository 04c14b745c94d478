"""The layout of a supernet's variables in few, large arrays.

Searched edges of a cell that are alike (same ops, stride and input shape) form
a `Bundle`; equal cells that follow each other form a `Run`. A bundle has one
array where the plain network has one an edge and cell:

    plain     cell_0/0_to_2/sep_conv_3x3/Conv_0/kernel     f[1, 1, C, C]
    stacked   cell_0/bundle_0/sep_conv_3x3/Conv_0/kernel   f[E, 1, 1, C, C]

and a run of N cells has f[N, E, 1, 1, C, C] under the name of its first cell.
Fixed edges keep their names. Both layouts hold the same numbers; `stack` and
`unstack` move them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, NetworkSpec, Shape


class Bundle(NamedTuple):
  """Searched edges of a cell that are alike, in the order of their sources.

  Attributes:
    name: in parameter paths.
    edges: those of one source are neighbours.
    in_shape: (H, W, C) of every source.
  """

  name: str
  edges: tuple[EdgeSpec, ...]
  in_shape: Shape

  @property
  def ops(self) -> tuple[str, ...]:
    """Candidate operations of every edge."""
    return self.edges[0].ops

  @property
  def stride(self) -> int:
    """Stride of every edge."""
    return self.edges[0].stride


class Run(NamedTuple):
  """Cells that follow each other and differ in nothing but their names.

  Attributes:
    cells: each reads only the one before it, if they are more than one.
    bundles: of each of the cells.
    fixed: fixed edges of each, with the shape (H, W, C) that they read.
  """

  cells: tuple[CellSpec, ...]
  bundles: tuple[Bundle, ...]
  fixed: Mapping[str, Shape]

  @property
  def name(self) -> str:
    """In parameter paths."""
    return self.cells[0].name


@functools.lru_cache(maxsize=64)
def runs(spec: NetworkSpec) -> tuple[Run, ...]:
  """Returns all cells of a spec, in their order, as runs."""
  shapes = {site.path: site.in_shape for site in spec.sites()}
  found: list[Run] = []
  for cell in spec.all_cells:
    run = Run(
      (cell,),
      _bundles(cell, shapes),
      {
        e.name: shapes[f'{cell.name}/{e.name}']
        for e in cell.edges
        if len(e.ops) == 1
      },
    )
    if found and _continues(found[-1], run):
      found[-1] = found[-1]._replace(cells=found[-1].cells + run.cells)
    else:
      found.append(run)
  return tuple(found)


def _bundles(cell: CellSpec, shapes: Mapping[str, Shape]):
  alike: dict[Any, list[EdgeSpec]] = {}
  for edge in cell.edges:
    if len(edge.ops) > 1:
      key = edge.ops, edge.stride, shapes[f'{cell.name}/{edge.name}']
      alike.setdefault(key, []).append(edge)
  return tuple(
    Bundle(f'bundle_{i}', tuple(sorted(edges, key=lambda e: e.src)), key[2])
    for i, (key, edges) in enumerate(alike.items())
  )


def _continues(run: Run, new: Run) -> bool:
  """Whether the one cell of `new` is one more of a run."""
  last, cell = run.cells[-1], new.cells[0]
  chained = [source for _, source in cell.inputs] == [last.name]
  same = dataclasses.replace(cell, name=last.name, inputs=last.inputs) == last
  # Stem and head, without choices, are cells of their own.
  return bool(
    chained
    and same
    and new.bundles
    and (run.bundles, run.fixed) == (new.bundles, new.fixed)
  )


def stack(spec: NetworkSpec, variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns variables in the stacked layout, given the plain one."""
  return {
    collection: _stack_tree(spec, tree)
    for collection, tree in variables.items()
  }


def unstack(spec: NetworkSpec, variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns variables in the plain layout; the inverse of `stack`."""
  return {
    collection: _unstack_tree(spec, tree)
    for collection, tree in variables.items()
  }


def join(trees: Sequence[Any]) -> Any:
  """Joins trees of arrays f[E, ...] of some edges each, alike but in E.

  All leaves are joined as one array, or each would be a kernel of its own.
  """
  if len(trees) == 1:
    return trees[0]
  leaves, structure = jax.tree.flatten(trees[0])
  flat = [
    jnp.concatenate([v.reshape(len(v), -1) for v in jax.tree.leaves(t)], axis=1)
    for t in trees
  ]
  bounds = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
  cuts = jnp.split(jnp.concatenate(flat), bounds, axis=1)
  return jax.tree.unflatten(
    structure,
    [
      cut.reshape(-1, *leaf.shape[1:])
      for cut, leaf in zip(cuts, leaves, strict=True)
    ],
  )


def _stack_tree(spec, tree):
  flat = traverse_util.flatten_dict(tree)
  out = {}
  for run in runs(spec):
    for place, paths in _places(run).items():
      # Every edge of a bundle has the same leaves.
      leaves = [path[2:] for path in flat if path[:2] == paths[0][0]]
      for leaf in leaves:
        rows = [
          _stack([flat[path + leaf] for path in row])
          if len(place) == 2 and place[1] in _names(run)
          else flat[row[0] + leaf]
          for row in paths
        ]
        value = _stack(rows) if len(run.cells) > 1 else rows[0]
        out[place + leaf] = value
  return traverse_util.unflatten_dict(out)


def _stack(leaves: Sequence[Any]) -> Any:
  """Stacks arrays, fresh ones of NumPy without a program of XLA."""
  fresh = all(isinstance(leaf, np.ndarray) for leaf in leaves)
  return np.stack(leaves) if fresh else jnp.stack(leaves)


def _unstack_tree(spec, tree):
  flat = traverse_util.flatten_dict(tree)
  out = {}
  for run in runs(spec):
    for place, paths in _places(run).items():
      for path, value in flat.items():
        if path[:2] != place:
          continue
        for i, row in enumerate(paths):
          of_cell = value[i] if len(run.cells) > 1 else value
          for j, edge_path in enumerate(row):
            bundled = place[1] in _names(run)
            out[edge_path + path[2:]] = of_cell[j] if bundled else of_cell
  return traverse_util.unflatten_dict(out)


def _names(run: Run) -> set[str]:
  return {bundle.name for bundle in run.bundles}


def _places(run: Run) -> dict[tuple[str, str], list[list[tuple[str, str]]]]:
  """Stacked (run, bundle or edge) -> plain (cell, edge) by cell and edge."""
  places = {}
  for bundle in run.bundles:
    places[run.name, bundle.name] = [
      [(cell.name, edge.name) for edge in bundle.edges] for cell in run.cells
    ]
  for name in run.fixed:
    places[run.name, name] = [[(cell.name, name)] for cell in run.cells]
  return places
