"""The traversal of a spec: its sites with their shapes, and its groups."""

from __future__ import annotations

from collections.abc import Iterator
import functools
from typing import TYPE_CHECKING

from hwdarts_jax.spaces.checks import check
from hwdarts_jax.spaces.spec_types import (
  CellSpec,
  EdgeSpec,
  GroupSpec,
  IMAGE,
  Shape,
  Site,
)

if TYPE_CHECKING:
  from hwdarts_jax.spaces.spec import NetworkSpec


@functools.lru_cache(maxsize=256)
def sites(spec: NetworkSpec) -> tuple[Site, ...]:
  """See `NetworkSpec.sites`."""
  outputs: dict[str, Shape] = {IMAGE: spec.input_shape}
  found: list[Site] = []
  for cell in spec.all_cells:
    check(
      cell.name not in outputs,
      'cell.name',
      cell.name,
      'a name that no other cell has',
    )
    found.extend(_cell_sites(spec, cell, outputs))
  last = spec.all_cells[-1].name
  want = (1, 1, spec.num_classes)
  check(
    outputs[last] == want,
    f'output of {last!r}',
    outputs[last],
    f'{want}, one value per class',
  )
  return tuple(found)


def _cell_sites(
  spec: NetworkSpec, cell: CellSpec, outputs: dict[str, Shape]
) -> Iterator[Site]:
  """Yields the sites of a cell and enters its output shape into `outputs`."""
  nodes: dict[int, Shape] = {}
  for node, source in cell.inputs:
    check(
      source in outputs,
      f'{cell.name}.inputs',
      source,
      f'an earlier cell: {sorted(outputs)}',
    )
    check(node not in nodes, f'{cell.name}.inputs', node, 'named once')
    nodes[node] = outputs[source]
  final = set(nodes)  # nodes that no further edge may write
  pairs: set[tuple[int, int]] = set()
  for edge in cell.edges:
    field = f'{cell.name}/{edge.name}'
    _check_edge(cell, edge, nodes, final)
    check(
      (edge.src, edge.dst) not in pairs,
      field,
      edge,
      'the only edge of its pair',
    )
    pairs.add((edge.src, edge.dst))
    final.add(edge.src)
    site = Site(
      f'{cell.name}/{edge.name}',
      edge.ops,
      nodes[edge.src],
      cell.features,
      edge.stride,
      None if edge.row is None else cell.group,
      edge.row,
      spec.pool_bn,
    )
    shape = nodes.setdefault(edge.dst, site.out_shape)
    check(
      shape == site.out_shape,
      field,
      site.out_shape,
      f'{shape}, like the other edges into node {edge.dst}',
    )
    yield site
  missing = [n for n in cell.outputs if n not in nodes]
  check(
    bool(cell.outputs) and not missing,
    f'{cell.name}.outputs',
    cell.outputs,
    f'nodes that are computed: {sorted(nodes)}',
  )
  outputs[cell.name] = _combined_shape(cell, [nodes[n] for n in cell.outputs])


def _check_edge(
  cell: CellSpec, edge: EdgeSpec, nodes: dict[int, Shape], final: set[int]
) -> None:
  """Raises ValueError where an edge cannot stand at its place in the cell."""
  field = f'{cell.name}/{edge.name}'
  check(
    edge.src in nodes,
    f'{field}.src',
    edge.src,
    f'a node that is already computed: {sorted(nodes)}',
  )
  check(
    edge.dst not in final,
    f'{field}.dst',
    edge.dst,
    'a node that is no input and that no earlier edge reads',
  )
  check(
    len(edge.ops) == 1 or (cell.group is not None and edge.row is not None),
    field,
    edge.ops,
    'one op, or else have a group and a row',
  )


def _combined_shape(cell: CellSpec, shapes: list[Shape]) -> Shape:
  same = shapes if cell.combine == 'sum' else [s[:2] for s in shapes]
  check(
    len(set(same)) == 1, f'{cell.name}.outputs', shapes, 'nodes of one shape'
  )
  height, width, channels = shapes[0]
  if cell.combine == 'concat':
    channels = sum(s[2] for s in shapes)
  return height, width, channels


@functools.lru_cache(maxsize=256)
def groups(spec: NetworkSpec) -> tuple[tuple[str, GroupSpec], ...]:
  """See `NetworkSpec.groups`."""
  rows: dict[str, dict[int, tuple[int, int, tuple[str, ...]]]] = {}
  for cell in spec.all_cells:
    for edge in cell.edges:
      if cell.group is None or edge.row is None or len(edge.ops) == 1:
        continue
      value = (edge.src, edge.dst, edge.ops)
      seen = rows.setdefault(cell.group, {}).setdefault(edge.row, value)
      check(
        seen == value,
        f'{cell.name}/{edge.name}',
        value,
        f'{seen}, like every row {edge.row} of group {cell.group!r}',
      )
  for name in rows:
    keeps = {c.keep for c in spec.all_cells if c.group == name}
    check(
      len(keeps) == 1, f'keep of group {name!r}', keeps, 'the same in each cell'
    )
  return tuple((n, _group(spec, n, by_row)) for n, by_row in rows.items())


def _group(
  spec: NetworkSpec,
  name: str,
  by_row: dict[int, tuple[int, int, tuple[str, ...]]],
) -> GroupSpec:
  """Checks and returns the group that cells describe row by row."""
  check(
    sorted(by_row) == list(range(len(by_row))),
    f'rows of group {name!r}',
    sorted(by_row),
    f'0 to {len(by_row) - 1} without gaps',
  )
  ordered = [by_row[i] for i in range(len(by_row))]
  ops = ordered[0][2]
  check(
    all(o == ops for _, _, o in ordered),
    f'ops of group {name!r}',
    sorted({o for _, _, o in ordered}),
    'the same ops in every row; use one group for each set of ops',
  )
  check(
    not set(ops) <= set(spec.excluded),
    'excluded',
    spec.excluded,
    f'without some op of group {name!r}: {ops}',
  )
  edges = tuple((src, dst) for src, dst, _ in ordered)
  check(
    len(set(edges)) == len(edges),
    f'edges of group {name!r}',
    edges,
    'different in every row, since genotypes name an edge by (src, dst)',
  )
  return GroupSpec(ops, edges)
