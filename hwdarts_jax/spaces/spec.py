"""The search space as data: what can be chosen, and where.

A `NetworkSpec` is a frozen, hashable, JSON-able description of a family of
networks. Everything else in the project is a function of it: the supernet, the
shapes of the alphas, latency keys, MACs, parameter counts. `NetworkSpec.sites`
is the one traversal that all of them share.

A cell is a small directed graph. Nodes are integers; a node's value is the sum
of the edges that enter it, or an input of the cell. An edge with one op is
fixed; an edge with more is searched, and its logits are
``alphas[cell.group][edge.row]``. Cells of one group share those logits. Stem
and head are cells too, whose edges are all fixed.

No jax is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
import math
from typing import Any, NamedTuple, TypeVar

IMAGE = 'image'  # the name of the network's input, as a source of cells

Shape = tuple[int, int, int]  # height, width, channels
T = TypeVar('T')


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
    _check(_is_int(self.src), 'src', self.src, 'a whole number')
    _check(_is_int(self.dst), 'dst', self.dst, 'a whole number')
    _check(
      _are(_is_name, self.ops) and 0 < len(self.ops) == len(set(self.ops)),
      'ops',
      self.ops,
      'one or more different names',
    )
    _check(
      self.row is None or _is_int(self.row, 0),
      'row',
      self.row,
      'a row of the alphas, from 0, or None',
    )
    _check(_is_int(self.stride, 1), 'stride', self.stride, 'at least 1')

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

  def __post_init__(self):
    _check(
      _is_name(self.name) and '/' not in self.name,
      'name',
      self.name,
      'a name without slashes',
    )
    _check(
      _are(_is_input, self.inputs),
      'inputs',
      self.inputs,
      'pairs (node, source)',
    )
    _check(
      _are(lambda e: isinstance(e, EdgeSpec), self.edges),
      'edges',
      self.edges,
      'a tuple of EdgeSpec',
    )
    _check(_are(_is_int, self.outputs), 'outputs', self.outputs, 'nodes')
    _check(
      _is_int(self.features, 1),
      'features',
      self.features,
      'a positive whole number',
    )
    _check(
      self.combine in ('sum', 'concat'),
      'combine',
      self.combine,
      "'sum' or 'concat'",
    )
    _check(
      self.group is None or _is_name(self.group),
      'group',
      self.group,
      'a name or None',
    )
    _check(
      self.keep is None or _is_int(self.keep, 1),
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


@dataclasses.dataclass(frozen=True)
class Genotype:
  """A discrete architecture: the publishable result of a search.

  Attributes:
    space: name of the space it belongs to.
    cells: for each group, its surviving edges in the order of the spec.
  """

  space: str
  cells: Mapping[str, tuple[Choice, ...]]

  def __hash__(self) -> int:
    return hash(self.to_json())

  def to_dict(self) -> dict[str, Any]:
    """A JSON-able dict; `from_dict` is its inverse."""
    return {
      'space': self.space,
      'cells': {g: [list(c) for c in cs] for g, cs in self.cells.items()},
    }

  def to_json(self) -> str:
    """Canonical JSON of `to_dict`."""
    return json.dumps(self.to_dict(), sort_keys=True)

  @classmethod
  def from_dict(cls, data: Any) -> Genotype:
    """Inverse of `to_dict`.

    Raises:
      ValueError: the data are not a genotype; the message names the field.
    """
    data = _check_mapping(data, 'genotype', {'space', 'cells'})
    _check(
      isinstance(data['space'], str),
      'genotype.space',
      data['space'],
      'the name of a space',
    )
    _check(
      isinstance(data['cells'], Mapping),
      'genotype.cells',
      data['cells'],
      'a mapping from group to a list of [op, src, dst]',
    )
    cells = {}
    for group, choices in data['cells'].items():
      field = f'genotype.cells[{group!r}]'
      _check(isinstance(choices, list), field, choices, 'a list')
      cells[group] = tuple(_choice_from_list(c, field) for c in choices)
    return cls(data['space'], cells)

  @classmethod
  def from_json(cls, text: str) -> Genotype:
    """Inverse of `to_json`; raises ValueError like `from_dict`."""
    return cls.from_dict(_loads(text, 'genotype'))


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
  """A space of networks, or one network if no edge has a choice left.

  Attributes:
    space: name of the module in `hwdarts_jax.spaces` that made it.
    input_shape: (height, width, channels) of an image.
    stem: cells before the first searched one.
    cells: the body.
    head: cells after the body; the last one writes `num_classes` features at
      1x1 pixels.
    num_classes: classes of the data set.
    excluded: ops that may not win discretization.
    pool_bn: whether pooling ops end in batch normalization, as in the DARTS
      supernet.
  """

  space: str
  input_shape: Shape
  stem: tuple[CellSpec, ...]
  cells: tuple[CellSpec, ...]
  head: tuple[CellSpec, ...]
  num_classes: int
  excluded: tuple[str, ...] = ()
  pool_bn: bool = False

  def __post_init__(self):
    _check(_is_name(self.space), 'space', self.space, 'the name of a space')
    _check(
      _are(lambda n: _is_int(n, 1), self.input_shape)
      and len(self.input_shape) == 3,
      'input_shape',
      self.input_shape,
      'three positive whole numbers: height, width, channels',
    )
    for part in ('stem', 'cells', 'head'):
      cells = getattr(self, part)
      ok = _are(lambda c: isinstance(c, CellSpec), cells)
      _check(ok, part, cells, 'a tuple of CellSpec')
    _check(bool(self.all_cells), 'cells', self.cells, 'at least one cell')
    _check(
      _is_int(self.num_classes, 2),
      'num_classes',
      self.num_classes,
      'at least 2',
    )
    _check(_are(_is_name, self.excluded), 'excluded', self.excluded, 'op names')
    _check(
      isinstance(self.pool_bn, bool), 'pool_bn', self.pool_bn, 'True or False'
    )
    self.sites()  # raises ValueError where the graph does not hold together
    self.groups()

  @property
  def all_cells(self) -> tuple[CellSpec, ...]:
    """Stem, body and head, in the order of evaluation."""
    return self.stem + self.cells + self.head

  def sites(self) -> tuple[Site, ...]:
    """Every place where an op runs, once each, in the order of evaluation.

    Raises:
      ValueError: shapes of edges that meet disagree, or a source is missing.
    """
    return _sites(self)

  def groups(self) -> dict[str, GroupSpec]:
    """Rows and columns of the alphas of each group.

    Raises:
      ValueError: cells of a group, or rows of one group, disagree.
    """
    return dict(_groups(self))

  @property
  def is_discrete(self) -> bool:
    """Whether every edge has exactly one op."""
    return not self.groups()

  def to_dict(self) -> dict[str, Any]:
    """A JSON-able dict; `from_dict` is its inverse."""
    return dataclasses.asdict(self)

  def to_json(self) -> str:
    """Canonical JSON of `to_dict`."""
    return json.dumps(self.to_dict(), sort_keys=True)

  def spec_hash(self) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

  @classmethod
  def from_dict(cls, data: Any) -> NetworkSpec:
    """Inverse of `to_dict`.

    Raises:
      ValueError: the data are not a spec; the message names the field.
    """
    fields = _fields(data, cls, 'spec')
    for part in ('stem', 'cells', 'head'):
      fields[part] = tuple(
        _cell_from_dict(c, f'spec.{part}[{i}]')
        for i, c in enumerate(_items(fields[part], f'spec.{part}'))
      )
    for name in ('input_shape', 'excluded'):
      fields[name] = _items(fields[name], f'spec.{name}')
    return _build(cls, fields, 'spec')

  @classmethod
  def from_json(cls, text: str) -> NetworkSpec:
    """Inverse of `to_json`; raises ValueError like `from_dict`."""
    return cls.from_dict(_loads(text, 'spec'))


@functools.lru_cache(maxsize=256)
def _sites(spec: NetworkSpec) -> tuple[Site, ...]:
  outputs: dict[str, Shape] = {IMAGE: spec.input_shape}
  sites: list[Site] = []
  for cell in spec.all_cells:
    _check(
      cell.name not in outputs,
      'cell.name',
      cell.name,
      'a name that no other cell has',
    )
    sites.extend(_cell_sites(spec, cell, outputs))
  last = spec.all_cells[-1].name
  want = (1, 1, spec.num_classes)
  _check(
    outputs[last] == want,
    f'output of {last!r}',
    outputs[last],
    f'{want}, one value per class',
  )
  return tuple(sites)


def _cell_sites(
  spec: NetworkSpec, cell: CellSpec, outputs: dict[str, Shape]
) -> Iterator[Site]:
  """Yields the sites of a cell and enters its output shape into `outputs`."""
  nodes: dict[int, Shape] = {}
  for node, source in cell.inputs:
    _check(
      source in outputs,
      f'{cell.name}.inputs',
      source,
      f'an earlier cell: {sorted(outputs)}',
    )
    _check(node not in nodes, f'{cell.name}.inputs', node, 'named once')
    nodes[node] = outputs[source]
  final = set(nodes)  # nodes that no further edge may write
  pairs: set[tuple[int, int]] = set()
  for edge in cell.edges:
    field = f'{cell.name}/{edge.name}'
    _check(
      edge.src in nodes,
      f'{field}.src',
      edge.src,
      f'a node that is already computed: {sorted(nodes)}',
    )
    _check(
      edge.dst not in final,
      f'{field}.dst',
      edge.dst,
      'a node that is no input and that no earlier edge reads',
    )
    _check(
      (edge.src, edge.dst) not in pairs,
      field,
      edge,
      'the only edge of its pair',
    )
    _check(
      len(edge.ops) == 1 or (cell.group is not None and edge.row is not None),
      field,
      edge.ops,
      'one op, or else have a group and a row',
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
    _check(
      shape == site.out_shape,
      field,
      site.out_shape,
      f'{shape}, like the other edges into node {edge.dst}',
    )
    yield site
  missing = [n for n in cell.outputs if n not in nodes]
  _check(
    bool(cell.outputs) and not missing,
    f'{cell.name}.outputs',
    cell.outputs,
    f'nodes that are computed: {sorted(nodes)}',
  )
  outputs[cell.name] = _combined_shape(cell, [nodes[n] for n in cell.outputs])


def _combined_shape(cell: CellSpec, shapes: list[Shape]) -> Shape:
  same = shapes if cell.combine == 'sum' else [s[:2] for s in shapes]
  _check(
    len(set(same)) == 1, f'{cell.name}.outputs', shapes, 'nodes of one shape'
  )
  height, width, channels = shapes[0]
  if cell.combine == 'concat':
    channels = sum(s[2] for s in shapes)
  return height, width, channels


@functools.lru_cache(maxsize=256)
def _groups(spec: NetworkSpec) -> tuple[tuple[str, GroupSpec], ...]:
  rows: dict[str, dict[int, tuple[int, int, tuple[str, ...]]]] = {}
  for cell in spec.all_cells:
    for edge in cell.edges:
      if cell.group is None or edge.row is None or len(edge.ops) == 1:
        continue
      value = (edge.src, edge.dst, edge.ops)
      seen = rows.setdefault(cell.group, {}).setdefault(edge.row, value)
      _check(
        seen == value,
        f'{cell.name}/{edge.name}',
        value,
        f'{seen}, like every row {edge.row} of group {cell.group!r}',
      )
  for name in rows:
    keeps = {c.keep for c in spec.all_cells if c.group == name}
    _check(
      len(keeps) == 1, f'keep of group {name!r}', keeps, 'the same in each cell'
    )
  return tuple((n, _group(spec, n, by_row)) for n, by_row in rows.items())


def _group(
  spec: NetworkSpec,
  name: str,
  by_row: dict[int, tuple[int, int, tuple[str, ...]]],
) -> GroupSpec:
  """Checks and returns the group that cells describe row by row."""
  _check(
    sorted(by_row) == list(range(len(by_row))),
    f'rows of group {name!r}',
    sorted(by_row),
    f'0 to {len(by_row) - 1} without gaps',
  )
  ordered = [by_row[i] for i in range(len(by_row))]
  ops = ordered[0][2]
  _check(
    all(o == ops for _, _, o in ordered),
    f'ops of group {name!r}',
    sorted({o for _, _, o in ordered}),
    'the same ops in every row; use one group for each set of ops',
  )
  _check(
    not set(ops) <= set(spec.excluded),
    'excluded',
    spec.excluded,
    f'without some op of group {name!r}: {ops}',
  )
  edges = tuple((src, dst) for src, dst, _ in ordered)
  _check(
    len(set(edges)) == len(edges),
    f'edges of group {name!r}',
    edges,
    'different in every row, since genotypes name an edge by (src, dst)',
  )
  return GroupSpec(ops, edges)


def _ceil_div(a: int, b: int) -> int:
  return -(-a // b)


def _check(ok: bool, field: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{field} is {value!r}; it must be {allowed}.')


def _is_int(value: Any, least: float = -math.inf) -> bool:
  return (
    isinstance(value, int) and not isinstance(value, bool) and value >= least
  )


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _is_input(value: Any) -> bool:
  return (
    isinstance(value, tuple)
    and len(value) == 2
    and _is_int(value[0])
    and _is_name(value[1])
  )


def _are(test: Callable[[Any], bool], values: Any) -> bool:
  return isinstance(values, tuple) and all(map(test, values))


def _loads(text: str, what: str) -> Any:
  try:
    return json.loads(text)
  except (TypeError, ValueError, RecursionError) as e:
    raise ValueError(f'{what}: not JSON ({e}).') from e


def _check_mapping(data: Any, what: str, keys: set[str]) -> Mapping[str, Any]:
  _check(isinstance(data, Mapping), what, data, 'a JSON object')
  _check(
    set(data) == keys, f'{what} keys', sorted(map(str, data)), f'{sorted(keys)}'
  )
  return data


def _choice_from_list(value: Any, field: str) -> Choice:
  _check(
    isinstance(value, list | tuple)
    and len(value) == 3
    and isinstance(value[0], str)
    and _is_int(value[1])
    and _is_int(value[2]),
    field,
    value,
    '[op, src, dst]',
  )
  return Choice(*value)


def _items(value: Any, field: str) -> tuple[Any, ...]:
  _check(isinstance(value, list | tuple), field, value, 'a list')
  return tuple(value)


def _fields(data: Any, cls: type, field: str) -> dict[str, Any]:
  names = {f.name for f in dataclasses.fields(cls)}
  return dict(_check_mapping(data, field, names))


def _build(cls: type[T], fields: dict[str, Any], field: str) -> T:
  try:
    return cls(**fields)
  except ValueError as e:
    raise ValueError(f'{field}: {e}') from e


def _cell_from_dict(data: Any, field: str) -> CellSpec:
  fields = _fields(data, CellSpec, field)
  fields['edges'] = tuple(
    _edge_from_dict(e, f'{field}.edges[{i}]')
    for i, e in enumerate(_items(fields['edges'], f'{field}.edges'))
  )
  fields['inputs'] = tuple(
    _items(pair, f'{field}.inputs')
    for pair in _items(fields['inputs'], f'{field}.inputs')
  )
  fields['outputs'] = _items(fields['outputs'], f'{field}.outputs')
  return _build(CellSpec, fields, field)


def _edge_from_dict(data: Any, field: str) -> EdgeSpec:
  fields = _fields(data, EdgeSpec, field)
  fields['ops'] = _items(fields['ops'], f'{field}.ops')
  return _build(EdgeSpec, fields, field)
