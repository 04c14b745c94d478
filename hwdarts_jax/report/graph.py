"""What is drawn of an architecture: its cells in a row, and one of each kind.

Only structure is decided here; where nodes stand on the screen is the page's
affair, since a phone has other room than a desk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwdarts_jax.latency import cost
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.report.costs import Part
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import CellSpec, Genotype, NetworkSpec, Site

Drawing = dict[str, Any]


def strip(
  network: NetworkSpec, ms: Mapping[str, float] | None
) -> list[Drawing]:
  """The cells of a discrete network in the order of evaluation.

  Args:
    network: discrete.
    ms: milliseconds of each site by its path, None where not known.

  Returns:
    For each cell its name, its group, its op if it has but one, the (height,
    width, channels) that it writes, MACs, params and ms (or None).
  """
  sites: dict[str, list[Site]] = {}
  for site in network.sites():
    sites.setdefault(site.path.partition('/')[0], []).append(site)
  return [
    {
      'name': cell.name,
      'group': cell.group,
      'op': cell.edges[0].ops[0] if len(cell.edges) == 1 else None,
      'shape': _out_shape(cell, sites[cell.name]),
      'macs': _total(cost.macs, sites[cell.name]),
      'params': _total(cost.params, sites[cell.name]),
      'ms': None if ms is None else sum(ms[s.path] for s in sites[cell.name]),
    }
    for cell in network.all_cells
  ]


def _out_shape(cell: CellSpec, sites: list[Site]) -> list[int]:
  height, width, channels = sites[-1].out_shape
  parts = len(cell.outputs) if cell.combine == 'concat' else 1
  return [height, width, channels * parts]


def _total(value: cost.ValueFn, sites: list[Site]) -> int:
  return int(sum(value(s, s.ops[0]) for s in sites))


def kinds(
  spec: NetworkSpec, genotype: Genotype, parts: tuple[Part, ...]
) -> list[Drawing]:
  """One drawing for each group of the alphas: a cell of it as a graph.

  Args:
    spec: the space.
    genotype: an architecture of it.
    parts: of its breakdown, for the milliseconds of the edges.

  Returns:
    For each group its name, how many cells have it, nodes and edges. A node
    has a name and a role: input, inner or output; `layer` is the length of the
    longest path to it. An edge has src, dst, op, whether that is nothing,
    group and row of the alphas (None where it was not searched) and ms (None
    where not known) over all cells of the group.
  """
  ms = {(p.group, p.row): p.ms for p in parts if p.group is not None}
  network = discretize.discretize(spec, genotype)
  found: dict[str, list[CellSpec]] = {}
  for cell in network.all_cells:
    if cell.group in spec.groups():
      found.setdefault(str(cell.group), []).append(cell)
  return [_kind(name, cells, ms) for name, cells in found.items()]


def _kind(
  name: str, cells: list[CellSpec], ms: Mapping[Any, float | None]
) -> Drawing:
  cell = cells[-1]  # the first ones may read a stem, and another op with it
  edges = [
    {
      'src': edge.src,
      'dst': edge.dst,
      'op': edge.ops[0],
      'zero': op_lib.is_zero(edge.ops[0]),
      'group': None if edge.row is None else name,
      'row': edge.row,
      'ms': None if edge.row is None else ms.get((name, edge.row)),
    }
    for edge in cell.edges
  ]
  layers = {node: 0 for node, _ in cell.inputs}
  for edge in cell.edges:  # sources come before what is written from them
    layers[edge.dst] = max(layers.get(edge.dst, 0), layers[edge.src] + 1)
  sources = dict(cell.inputs)
  nodes = [
    {
      'id': node,
      'layer': layers[node],
      'role': 'input' if node in sources else 'inner',
      'name': _input(node, sources) if node in sources else str(node),
    }
    for node in sorted(layers, key=lambda n: (layers[n], n))
  ]
  _mark_outputs(cell, nodes, edges)
  return {
    'group': name,
    'cells': [c.name for c in cells],
    'combine': cell.combine,
    'nodes': nodes,
    'edges': edges,
  }


def _input(node: int, sources: Mapping[int, str]) -> str:
  """What an input is called; cells of one kind read different ones."""
  order = sorted(sources).index(node)
  return 'input' if len(sources) == 1 else f'input {order + 1}'


def _mark_outputs(
  cell: CellSpec, nodes: list[Drawing], edges: list[Drawing]
) -> None:
  """Marks the one output, or adds a node that joins several."""
  if len(cell.outputs) == 1:
    for node in nodes:
      if node['id'] == cell.outputs[0]:
        node['role'] = 'output'
    return
  last = max(n['layer'] for n in nodes) + 1
  join = max(n['id'] for n in nodes) + 1
  nodes.append(
    {'id': join, 'layer': last, 'role': 'output', 'name': cell.combine}
  )
  edges += [
    {
      'src': node,
      'dst': join,
      'op': None,
      'zero': False,
      'group': None,
      'row': None,
      'ms': None,
    }
    for node in cell.outputs
  ]
