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

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any

from hwdarts_jax.spaces import spec_json, spec_sites
from hwdarts_jax.spaces.checks import are, check, is_int, is_name
from hwdarts_jax.spaces.spec_types import (
  CellSpec,
  Choice,
  EdgeSpec,
  GroupSpec,
  IMAGE,
  Shape,
  Site,
)

__all__ = (
  'CellSpec',
  'Choice',
  'EdgeSpec',
  'Genotype',
  'GroupSpec',
  'IMAGE',
  'NetworkSpec',
  'Shape',
  'Site',
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
    return spec_json.genotype_from_dict(cls, data)

  @classmethod
  def from_json(cls, text: str) -> Genotype:
    """Inverse of `to_json`; raises ValueError like `from_dict`."""
    return cls.from_dict(spec_json.loads(text, 'genotype'))


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
    check(is_name(self.space), 'space', self.space, 'the name of a space')
    check(
      are(lambda n: is_int(n, 1), self.input_shape)
      and len(self.input_shape) == 3,
      'input_shape',
      self.input_shape,
      'three positive whole numbers: height, width, channels',
    )
    for part in ('stem', 'cells', 'head'):
      cells = getattr(self, part)
      ok = are(lambda c: isinstance(c, CellSpec), cells)
      check(ok, part, cells, 'a tuple of CellSpec')
    check(bool(self.all_cells), 'cells', self.cells, 'at least one cell')
    check(
      is_int(self.num_classes, 2), 'num_classes', self.num_classes, 'at least 2'
    )
    check(are(is_name, self.excluded), 'excluded', self.excluded, 'op names')
    check(
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
    return spec_sites.sites(self)

  def groups(self) -> dict[str, GroupSpec]:
    """Rows and columns of the alphas of each group.

    Raises:
      ValueError: cells of a group, or rows of one group, disagree.
    """
    return dict(spec_sites.groups(self))

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
    return spec_json.network_from_dict(cls, data)

  @classmethod
  def from_json(cls, text: str) -> NetworkSpec:
    """Inverse of `to_json`; raises ValueError like `from_dict`."""
    return cls.from_dict(spec_json.loads(text, 'spec'))
