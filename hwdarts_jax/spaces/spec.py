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

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
from typing import Any, NamedTuple

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
    names = {f.name for f in dataclasses.fields(cls)}
    data = dict(_check_mapping(data, 'spec', names))
    try:
      for part in ('stem', 'cells', 'head'):
        data[part] = tuple(
          _cell_from_dict(c, f'spec.{part}[{i}]')
          for i, c in enumerate(data[part])
        )
      data['input_shape'] = _ints(data['input_shape'], 'spec.input_shape')
      data['excluded'] = _strings(data['excluded'], 'spec.excluded')
      _check(
        _is_int(data['num_classes']),
        'spec.num_classes',
        data['num_classes'],
        'a whole number',
      )
      _check(
        isinstance(data['space'], str),
        'spec.space',
        data['space'],
        'the name of a space',
      )
      _check(
        isinstance(data['pool_bn'], bool),
        'spec.pool_bn',
        data['pool_bn'],
        'true or false',
      )
      return cls(**data)
    except TypeError as e:
      raise ValueError(f'spec: not a network spec ({e}).') from e

  @classmethod
  def from_json(cls, text: str) -> NetworkSpec:
    """Inverse of `to_json`; raises ValueError like `from_dict`."""
    return cls.from_dict(_loads(text, 'spec'))


@functools.lru_cache(maxsize=256)
def _sites(spec: NetworkSpec) -> tuple[Site, ...]:
  _check(
    len(spec.input_shape) == 3 and min(spec.input_shape) > 0,
    'spec.input_shape',
    spec.input_shape,
    'three positive numbers: height, width, channels',
  )
  _check(
    spec.num_classes >= 2, 'spec.num_classes', spec.num_classes, 'at least 2'
  )
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
    nodes[node] = outputs[source]
  read: set[int] = set()
  for edge in cell.edges:
    field = f'{cell.name}/{edge.name}'
    _check(
      edge.src in nodes,
      f'{field}.src',
      edge.src,
      f'a node that is already computed: {sorted(nodes)}',
    )
    _check(
      edge.dst not in read,
      f'{field}.dst',
      edge.dst,
      'a node that no earlier edge reads',
    )
    _check(
      bool(edge.ops) and edge.stride >= 1,
      field,
      (edge.ops, edge.stride),
      'at least one op and a stride of at least 1',
    )
    _check(
      len(edge.ops) == 1 or (cell.group is not None and edge.row is not None),
      field,
      edge.ops,
      'a group and a row, since there is a choice',
    )
    read.add(edge.src)
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
    cell.combine in ('sum', 'concat'),
    f'{cell.name}.combine',
    cell.combine,
    "'sum' or 'concat'",
  )
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
  groups = []
  for name, by_row in rows.items():
    _check(
      sorted(by_row) == list(range(len(by_row))),
      f'rows of {name!r}',
      sorted(by_row),
      f'0 to {len(by_row) - 1} without gaps',
    )
    ordered = [by_row[i] for i in range(len(by_row))]
    ops = {o for _, _, o in ordered}
    _check(
      len(ops) == 1,
      f'ops of group {name!r}',
      sorted(ops),
      'the same ops in every row; use one group for each set of ops',
    )
    groups.append(
      (name, GroupSpec(ordered[0][2], tuple((s, d) for s, d, _ in ordered)))
    )
  return tuple(groups)


def _ceil_div(a: int, b: int) -> int:
  return -(-a // b)


def _check(ok: bool, field: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{field} is {value!r}; it must be {allowed}.')


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _ints(value: Any, field: str) -> tuple[int, ...]:
  _check(
    isinstance(value, list | tuple) and all(_is_int(v) for v in value),
    field,
    value,
    'a list of whole numbers',
  )
  return tuple(value)


def _strings(value: Any, field: str) -> tuple[str, ...]:
  _check(
    isinstance(value, list | tuple) and all(isinstance(v, str) for v in value),
    field,
    value,
    'a list of names',
  )
  return tuple(value)


def _loads(text: str, what: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as e:
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


def _cell_from_dict(data: Any, field: str) -> CellSpec:
  names = {f.name for f in dataclasses.fields(CellSpec)}
  data = dict(_check_mapping(data, field, names))
  _check(
    isinstance(data['edges'], list | tuple),
    f'{field}.edges',
    data['edges'],
    'a list',
  )
  edges = []
  for edge in data['edges']:
    edge_names = {f.name for f in dataclasses.fields(EdgeSpec)}
    edge = dict(_check_mapping(edge, f'{field}.edges', edge_names))
    for name in ('src', 'dst', 'stride'):
      _check(
        _is_int(edge[name]),
        f'{field}.edges.{name}',
        edge[name],
        'a whole number',
      )
    _check(
      edge['row'] is None or _is_int(edge['row']),
      f'{field}.edges.row',
      edge['row'],
      'a whole number or null',
    )
    edge['ops'] = _strings(edge['ops'], f'{field}.edges.ops')
    edges.append(EdgeSpec(**edge))
  data['edges'] = tuple(edges)
  inputs = []
  for pair in data['inputs']:
    _check(
      isinstance(pair, list | tuple)
      and len(pair) == 2
      and _is_int(pair[0])
      and isinstance(pair[1], str),
      f'{field}.inputs',
      pair,
      '[node, source]',
    )
    inputs.append((pair[0], pair[1]))
  data['inputs'] = tuple(inputs)
  data['outputs'] = _ints(data['outputs'], f'{field}.outputs')
  _check(
    _is_int(data['features']) and data['features'] > 0,
    f'{field}.features',
    data['features'],
    'a positive whole number',
  )
  _check(
    data['keep'] is None or _is_int(data['keep']),
    f'{field}.keep',
    data['keep'],
    'a whole number or null',
  )
  return CellSpec(**data)
