"""The schedule of one cell: which images are alive when; see `activations`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency.entry import Entry
from hwdarts_jax.latency.footprint import Footprint
from hwdarts_jax.latency.images import (
  any_of,
  Chance,
  Image,
  Moves,
  none_of,
  Read,
)
from hwdarts_jax.spaces.spec import EdgeSpec

KINDS = {
  'does': lambda op: not op.is_zero,
  'computes': lambda op: bool(op.steps) and not op.is_shared,
  'has_constants': lambda op: bool(op.constant_bytes),
}


class Layout(NamedTuple):
  """All of a cell that its schedule depends on; equal cells are run once.

  Attributes:
    group: name of its alphas, or ''.
    inputs: pairs (node, source), sources numbered.
    edges: edges in order.
    ops: footprints of the ops of each edge.
    outputs: output nodes.
    joins: whether they are concatenated.
    source_bytes: of each source.
    stays: whether each source is read by a later cell as well.
    outside_bytes: of all other images that are kept meanwhile.
  """

  group: str
  inputs: tuple[tuple[int, int], ...]
  edges: tuple[EdgeSpec, ...]
  ops: tuple[tuple[Footprint, ...], ...]
  outputs: tuple[int, ...]
  joins: bool
  source_bytes: tuple[int, ...]
  stays: tuple[bool, ...]
  outside_bytes: int


class Schedule:
  """The schedule of one cell; see the docstring of the file.

  Every edge has slots: one where the ReLU of its source may be computed, one
  for each operation of its op, ends aligned, and one where its image is added.
  """

  def __init__(self, layout: Layout, probs: Any):
    self.layout, self._probs = layout, probs
    self._np: Any = jnp if isinstance(probs, jax.Array) else np
    steps = [len(f.steps) for found in layout.ops for f in found]
    self.width = 2 + max(steps, default=0)
    self.end = len(layout.edges) * self.width
    self.images: list[Image] = []
    self.inner: list[tuple[int, Chance]] = []
    sources = [self.new_image(size, given=True) for size in layout.source_bytes]
    self.sources = sources
    self.nodes = {node: sources[i] for node, i in layout.inputs}
    for edge, found in zip(layout.edges, layout.ops, strict=True):
      if edge.dst not in self.nodes:
        self.nodes[edge.dst] = self.new_image(found[0].out_bytes)
    self.shared: dict[tuple[int, str, int], Image] = {}
    self.of_shared: dict[tuple[int, str, int], Footprint] = {}
    self.fed = self._feed()
    self.handed: dict[int, list[tuple[Image, Chance]]] = {}
    self._close_all()

  def peak(self) -> Any:
    """The most bytes that are alive at once, f[...]."""
    total = self.spread(float(self.layout.outside_bytes))[..., None]
    for image in self.images:
      alive = self.alive(image, self.end + 1)
      if alive is not None:
        total = total + self.spread(image.size)[..., None] * alive
    for at in sorted({at for at, _ in self.inner}):
      extra = sum(c for a, c in self.inner if a == at)
      row = np.zeros((1,) * len(self._shape()) + (self.end + 1,), np.float32)
      row[..., at] = 1
      total = total + self.spread(extra)[..., None] * row
    return total.max(-1)

  def _close_all(self) -> None:
    """Runs the cell backwards, so that the readers of an image are known."""
    layout = self.layout
    for node in layout.outputs:
      self.nodes[node].read(self.end, 1.0)
      self.nodes[node].wants.append((None, 1.0))
    if layout.joins:
      out = sum(self.nodes[node].size for node in layout.outputs)
      self.inner.append((self.end, out))
    last = {edge.dst: i for i, edge in enumerate(layout.edges)}
    for node in sorted(last, key=lambda n: -last[n]):
      self._close_shared(node)
      self._close_node(node)
    for node, _ in layout.inputs:
      self._close_shared(node)
    for image, stays in zip(self.sources, layout.stays, strict=True):
      self._close(image, 1.0)
      if stays:
        image.read(self.end, 1.0)

  def new_image(self, size: Chance, given: bool = False) -> Image:
    """An image that is there in the beginning, or else is written."""
    self.images.append(Image(size, is_given=given))
    return self.images[-1]

  def prob(self, edge: EdgeSpec, column: int) -> Chance:
    """Chance that an edge has an op."""
    if len(edge.ops) == 1 or self._probs is None:
      return 1.0
    return self._probs[..., edge.row, column]

  def chance_of(self, number: int, kind: str) -> Chance:
    """Chance that an edge has an op of a kind, be its source fed or not."""
    edge, found = self.layout.edges[number], self.layout.ops[number]
    return sum(
      (self.prob(edge, i) for i, f in enumerate(found) if KINDS[kind](f)), 0.0
    )

  def _feed(self) -> dict[int, Chance]:
    """Chance of each node to depend on the image."""
    fed: dict[int, Chance] = {node: 1.0 for node, _ in self.layout.inputs}
    for number, edge in enumerate(self.layout.edges):
      runs = self.chance_of(number, 'does') * fed[edge.src]
      fed[edge.dst] = 1 - (1 - fed.get(edge.dst, 0.0)) * (1 - runs)
    return fed

  def _close_shared(self, node: int) -> None:
    """Runs ops without params that read a node, each once."""
    for key, image in self.shared.items():
      if key[0] != node:
        continue
      before: list[Chance] = []
      for number in sorted({at for at, _ in image.writes}):
        chance = any_of([c for at, c in image.writes if at == number])
        edge = number // self.width
        self._run(edge, self.of_shared[key], chance * none_of(before))
        before.append(chance)
      self._close(image, 1.0)

  def _run(self, number: int, op: Footprint, chance: Chance) -> None:
    """Enters the operations of an op, but not what it writes."""
    self.run_steps(number, op, chance, op.steps)
    self.want(number, op, chance)

  def run_steps(
    self, number: int, op: Footprint, chance: Chance, steps
  ) -> None:
    """Enters operations of an op: what they read, and images inside the op."""
    source = self.nodes[self.layout.edges[number].src]
    relu_at = number * self.width
    for i, step in enumerate(steps):
      at = self.last_slot(number) - len(op.steps) + 1 + i
      self.inner.append((at, chance * step.inner_bytes))
      if step.reads_input:
        source.read(at, chance)
      if step.reads_activated:
        source.read(at, chance, relu_at)

  def want(self, number: int, op: Footprint, chance: Chance) -> None:
    """Enters that an edge wants its source, in the forms that its op reads."""
    source = self.nodes[self.layout.edges[number].src]
    if any(step.reads_input for step in op.steps):
      source.wants.append((None, chance))
    if any(step.reads_activated for step in op.steps):
      source.wants.append((number * self.width, chance))

  def last_slot(self, number: int) -> int:
    """Slot of the last operation of an edge."""
    return (number + 1) * self.width - 2

  def add_slot(self, number: int) -> int:
    """Slot where the image of an edge is added to its node."""
    return (number + 1) * self.width - 1

  def _close(self, image: Image, exists: Chance) -> Moves:
    """Decides in what forms an image is kept, all its readers being known."""
    raw, activated = image.chance(False), image.chance(True)
    slots: list[tuple[int, Chance]] = []
    before: list[Chance] = []
    for at in sorted({r for r, _ in image.wants if r is not None}):
      chance = any_of([c for r, c in image.wants if r == at])
      slots.append((at, chance * none_of(before)))
      before.append(chance)
    copy = self.new_image(image.size)
    own = []
    for read in image.reads:
      if read.relu_at is None:
        own.append(read)
      else:
        own.append(read._replace(chance=read.chance * (1 - raw)))
        copy.reads.append(read)
    own += [Read(at, chance * raw) for at, chance in slots]
    copy.writes = [(at, chance * raw * exists) for at, chance in slots]
    image.reads = own
    return Moves(activated * (1 - raw), tuple(slots))

  def _close_node(self, node: int) -> None:
    """Runs the edges into a node, all readers of the node being known."""
    layout, image = self.layout, self.nodes[node]
    into = [i for i, e in enumerate(layout.edges) if e.dst == node]
    runs = [
      self.chance_of(i, 'does') * self.fed[layout.edges[i].src] for i in into
    ]
    constant = any_of(
      [
        self.chance_of(i, 'has_constants') * (1 - self.fed[layout.edges[i].src])
        for i in into
      ]
    )
    needed = any_of([c for _, c in image.wants])
    reads, wants = image.reads, image.wants
    handed: Chance = 0.0  # it is the image of another node
    for place, number in enumerate(into):
      others = runs[:place] + runs[place + 1 :]
      alone = none_of([*others, constant])
      for target, chance in self.targets(number):
        part = chance * alone
        self.handed.setdefault(node, []).append((target, part))
        handed = handed + part
        target.reads += [r._replace(chance=r.chance * part) for r in reads]
        target.wants += [(r, c * part) for r, c in wants]
    moves = self._close(image, 1 - handed)
    for place in range(len(into)):
      Entry(self, moves, runs, place, into, needed, constant).enter(image)
    if into:
      image.writes.append(
        (self.add_slot(into[-1]), constant * any_of(runs) * needed)
      )

  def targets(self, number: int) -> list[tuple[Image, Chance]]:
    """Images that an edge may hand on as they are, with chances."""
    edge, found = self.layout.edges[number], self.layout.ops[number]
    fed, targets = self.fed[edge.src], []
    for column, op in enumerate(found):
      chance = self.prob(edge, column) * fed
      if op.is_identity:
        targets.append((self.nodes[edge.src], chance))
      elif op.is_shared:
        key = edge.src, edge.ops[column], edge.stride
        if key not in self.shared:
          self.shared[key] = self.new_image(op.out_bytes)
          self.of_shared[key] = op
        targets.append((self.shared[key], chance))
    return targets

  def alive(self, image: Image, count: int) -> Any:
    """Chance that an image is alive in each slot, f[..., S]; None: never."""
    if not image.reads or not (image.writes or image.is_given):
      return None
    slots = np.arange(count)
    # A sum is written over one of its terms: after it, there is one less.
    adds = slots % self.width == self.width - 1
    reads = [(r.at, r.chance) for r in image.reads]
    alive = self._since(reads, slots + (adds & (slots < self.end)))
    if image.is_given:
      return alive
    return alive * self._until(image.writes, slots)

  def _shape(self) -> tuple[int, ...]:
    return () if self._probs is None else self._probs.shape[:-2]

  def spread(self, value: Chance) -> Any:
    """A number as f[...]."""
    return self._np.broadcast_to(
      self._np.asarray(value, self._np.float32), self._shape()
    )

  def _until(self, events: list[tuple[int, Chance]], slots) -> Any:
    """Chance that an event happens up to each slot, f[..., S]."""
    events = sorted(events, key=lambda e: e[0])
    none = self._products([c for _, c in events])
    places = np.searchsorted([at for at, _ in events], slots, side='right')
    return 1 - none[..., places]

  def _since(self, events: list[tuple[int, Chance]], slots) -> Any:
    """Chance that an event happens from each slot on, f[..., S]."""
    events = sorted(events, key=lambda e: -e[0])
    none = self._products([c for _, c in events])
    places = np.searchsorted([-at for at, _ in events], -slots, side='right')
    return 1 - none[..., places]

  def _products(self, chances: list[Chance]) -> Any:
    """Chance that none of the first k events happens, f[..., K + 1]."""
    one = self.spread(1.0)
    found = [one]
    for chance in chances:
      found.append(found[-1] * (1 - self.spread(chance)))
    return self._np.stack(found, -1)
