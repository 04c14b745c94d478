"""What a spec is made of: cells and edges; sites and groups; choices."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from hwdarts_jax.spaces.checks import are, check, is_int, is_name

IMAGE = 'image'  # the name of the network's input, as a source of cells

Shape = tuple[int, int, int]  # height, width, channels


@dataclasses.dataclass(frozen=True)
class EdgeSpec:
  """One edge of a cell.

  Attributes:
    src: node that is read.
    dst: node that is added to.
    ops: names of the candidate operations; one means the edge is fixed.
    row: row of the group's alphas, or None where nothing was ever searched. A
      derived edge keeps its row.
    stride: spatial stride of every op of the edge.
  """

  src: int
  dst: int
  ops: tuple[str, ...]
  row: int | None = None
  stride: int = 1

  def __post_init__(self):
    check(is_int(self.src), 'src', self.src, 'a whole number')
    check(is_int(self.dst), 'dst', self.dst, 'a whole number')
    check(
      are(is_name, self.ops) and 0 < len(self.ops) == len(set(self.ops)),
      'ops',
      self.ops,
      'one or more different names',
    )
    check(
      self.row is None or is_int(self.row, 0),
      'row',
      self.row,
      'a row of the alphas, from 0, or None',
    )
    check(is_int(self.stride, 1), 'stride', self.stride, 'at least 1')

  @property
  def name(self) -> str:
    """Name of the edge in parameter paths; the same in every derived spec."""
    return f'{self.src}_to_{self.dst}'


@dataclasses.dataclass(frozen=True)
class CellSpec:
  """A cell: a graph of edges.

  Attributes:
    name: unique in the network; a segment of parameter paths.
    inputs: pairs (node, source), a source being the name of an earlier cell or
      `IMAGE`.
    edges: all edges; the nodes they need must be inputs or written by earlier
      edges.
    outputs: nodes that make the output of the cell.
    features: channels that every edge writes.
    combine: 'concat' or 'sum' of the outputs.
    group: name of the alphas shared by all cells of this kind, or None.
    keep: how many edges into one node survive discretization; None keeps all.
  """

  name: str
  inputs: tuple[tuple[int, str], ...]
  edges: tuple[EdgeSpec, ...]
  outputs: tuple[int, ...]
  features: int
  combine: str = 'sum'
  group: str | None = None
  keep: int | None = None

  @classmethod
  def fixed(
    cls, name: str, source: str, op: str, features: int, stride: int = 1
  ) -> CellSpec:
    """A cell of one op, without a choice."""
    edge = EdgeSpec(0, 1, (op,), None, stride)
    return cls(name, ((0, source),), (edge,), (1,), features)

  def __post_init__(self):
    check(
      is_name(self.name) and '/' not in self.name,
      'name',
      self.name,
      'a name without slashes',
    )
    check(
      are(_is_input, self.inputs), 'inputs', self.inputs, 'pairs (node, source)'
    )
    check(
      are(lambda e: isinstance(e, EdgeSpec), self.edges),
      'edges',
      self.edges,
      'a tuple of EdgeSpec',
    )
    check(are(is_int, self.outputs), 'outputs', self.outputs, 'nodes')
    check(
      is_int(self.features, 1),
      'features',
      self.features,
      'a positive whole number',
    )
    check(
      self.combine in ('sum', 'concat'),
      'combine',
      self.combine,
      "'sum' or 'concat'",
    )
    check(
      self.group is None or is_name(self.group),
      'group',
      self.group,
      'a name or None',
    )
    check(
      self.keep is None or is_int(self.keep, 1),
      'keep',
      self.keep,
      'at least 1, or None',
    )


class Choice(NamedTuple):
  """One edge of a discrete architecture."""

  op: str
  src: int
  dst: int


class GroupSpec(NamedTuple):
  """Rows and columns of one group of alphas.

  Attributes:
    ops: names of the columns.
    edges: pairs (src, dst) of the rows.
  """

  ops: tuple[str, ...]
  edges: tuple[tuple[int, int], ...]

  @property
  def shape(self) -> tuple[int, int]:
    """Shape [E, O] of the group's alphas."""
    return len(self.edges), len(self.ops)


@dataclasses.dataclass(frozen=True)
class Site:
  """A place where an op runs, with all that determines its cost.

  Attributes:
    path: path of the edge's parameters, ``cell/edge``.
    ops: candidate operations.
    in_shape: (height, width, channels) of the input.
    features: channels of the output.
    stride: spatial stride.
    group: group of the alphas, or None at a site that is never searched.
    row: row of the alphas, or None.
    pool_bn: whether pooling ops end in batch normalization here.
  """

  path: str
  ops: tuple[str, ...]
  in_shape: Shape
  features: int
  stride: int
  group: str | None
  row: int | None
  pool_bn: bool = False

  @property
  def out_shape(self) -> Shape:
    """(height, width, channels) of the output."""
    height, width, _ = self.in_shape
    return (
      _ceil_div(height, self.stride),
      _ceil_div(width, self.stride),
      self.features,
    )

  def key(self, op: str) -> str:
    """The key of `op` at this site in every latency table."""
    height, width, channels = self.in_shape
    suffix = '/pool_bn' if self.pool_bn else ''
    return (
      f'{op}/{height}x{width}x{channels}/{self.features}/s{self.stride}{suffix}'
    )


def _is_input(value: Any) -> bool:
  return (
    isinstance(value, tuple)
    and len(value) == 2
    and is_int(value[0])
    and is_name(value[1])
  )


def _ceil_div(a: int, b: int) -> int:
  return -(-a // b)
