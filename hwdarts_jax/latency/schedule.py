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
  Run,
)
from hwdarts_jax.spaces.spec import EdgeSpec

KINDS = {
  'does': lambda op: not op.is_zero,
  'computes': lambda op: bool(op.steps) and not op.is_shared,
  'passes': lambda op: op.is_identity,
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
    apart: whether the ReLU of each source is an operation of its own, made in
      this cell for later ones as well: nothing computes a joined image with it.
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
  apart: tuple[bool, ...]
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
    self.runs: list[Run] = []
    self._tails: list[Image] = []
    sources = [self.new_image(size, given=True) for size in layout.source_bytes]
    self.sources = sources
    self.nodes = {node: sources[i] for node, i in layout.inputs}
    for edge, found in zip(layout.edges, layout.ops, strict=True):
      if edge.dst not in self.nodes:
        self.nodes[edge.dst] = self.new_image(found[0].out_bytes)
    self.activated: dict[int, Image] = {}
    self.shared: dict[tuple[int, str, int], Image] = {}
    self.of_shared: dict[tuple[int, str, int], Footprint] = {}
    self.fed = self._feed()
    # By image: the images that it is instead, with chances.
    self.handed: dict[int, list[tuple[Image, Chance]]] = {}
    self._close_all()

  def peak(self) -> Any:
    """The most bytes that are alive at once, f[...]."""
    layout = self.layout
    total = self.spread(float(layout.outside_bytes))[..., None]
    for image in (*self.images, *self._tails):
      alive = self.alive(image)
      if alive is not None:
        total = total + self.spread(image.size)[..., None] * alive
    inner: dict[int, Chance] = {}
    for run in self.runs:
      end = len(run.op.steps) - 1
      for step in range(end + 1):
        there = run.chance * (1 - run.moved if step == end else 1.0)
        at = self.last_slot(run.number) - end + step
        size = run.op.inner_bytes(step)
        inner[at] = inner.get(at, 0.0) + there * size
    if layout.joins:
      inner[self.end] = sum(self.nodes[node].size for node in layout.outputs)
    for at, size in inner.items():
      row = np.zeros((1,) * len(self._shape()) + (self.end + 1,), np.float32)
      row[..., at] = 1
      total = total + self.spread(size)[..., None] * row
    return total.max(-1)

  def _close_all(self) -> None:
    """Runs the cell backwards, so that the readers of an image are known."""
    layout = self.layout
    for node in layout.outputs:
      self.nodes[node].read(self.end, 1.0)
      self.nodes[node].wants.append((None, 1.0))
    last = {edge.dst: i for i, edge in enumerate(layout.edges)}
    for node in sorted(last, key=lambda n: -last[n]):
      self._close_shared(node)
      self._close_node(node)
    for node, _ in layout.inputs:
      self._close_shared(node)
    for image, stays, apart in zip(
      self.sources, layout.stays, layout.apart, strict=True
    ):
      if apart:
        image.wants.append((None, 1.0))
      self._close(image, 1.0)
      if stays:
        kept = self.activated[id(image)] if apart else image
        kept.read(self.end, 1.0)

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
    for key, image in list(self.shared.items()):
      if key[0] != node:
        continue
      self._hand_to_equal(key, image)
      moves = self._close(image, 1.0)
      before: list[Chance] = []
      for at in sorted({at for at, _ in image.writes}):
        chance = any_of([c for slot, c in image.writes if slot == at])
        once = chance * none_of(before)
        edge, op = at // self.width, self.of_shared[key]
        self.run(Run(edge, node, op, once, moves.chance, moves.slots))
        before.append(chance)
      image.writes = [
        (at, c * (1 - moves.chance)) for at, c in image.writes
      ] + [(at, moves.chance * c) for at, c in moves.slots]

  def _hand_to_equal(self, key: tuple[int, str, int], image: Image) -> None:
    """Where the node is another one, so is what is made of it."""
    into, runs = self._entering(key[0])
    for place, number in enumerate(into):
      edge = self.layout.edges[number]
      alone = none_of(runs[:place] + runs[place + 1 :])
      part = self.chance_of(number, 'passes') * self.fed[edge.src] * alone
      equal = self._share((edge.src, *key[1:]), self.of_shared[key])
      equal.writes += [(at, c * part) for at, c in image.writes]
      self._hand(image, equal, part)
    other = none_of([part for _, part in self.handed.get(id(image), [])])
    image.writes = [(at, c * other) for at, c in image.writes]

  def _hand(self, image: Image, target: Image, part: Chance) -> None:
    """An image is another one with a chance: who reads it reads that."""
    self.handed.setdefault(id(image), []).append((target, part))
    target.reads += [r._replace(chance=r.chance * part) for r in image.reads]
    target.wants += [(r, c * part) for r, c in image.wants]

  def _share(self, key: tuple[int, str, int], op: Footprint) -> Image:
    """The image of an op without params on a node."""
    if key not in self.shared:
      self.shared[key] = self.new_image(op.out_bytes)
      self.of_shared[key] = op
    return self.shared[key]

  def _entering(self, node: int) -> tuple[list[int], list[Chance]]:
    """Edges into a node, and their chances to bring an image or a constant."""
    into = [i for i, e in enumerate(self.layout.edges) if e.dst == node]
    fed = [self.fed[self.layout.edges[i].src] for i in into]
    runs = [
      self.chance_of(i, 'does') * f
      + self.chance_of(i, 'has_constants') * (1 - f)
      for i, f in zip(into, fed, strict=True)
    ]
    return into, runs

  def run(self, run: Run) -> None:
    """Enters the operations of an op: all but what it writes."""
    self.runs.append(run)
    number, op = run.number, run.op
    source = self.nodes[run.source]
    last, relu_at = self.last_slot(number), number * self.width
    for i, step in enumerate(op.steps):
      at = last - len(op.steps) + 1 + i
      places = [(at, run.chance)]
      if at == last:
        places = [(at, run.chance * (1 - run.moved))]
        places += [(s, run.chance * run.moved * c) for s, c in run.slots]
      for slot, chance in places:
        if step.reads_input:
          source.read(slot, chance)
        if step.reads_activated:
          source.read(slot, chance, relu_at)
    if any(step.reads_input for step in op.steps):
      source.wants.append((None, run.chance))
    if any(step.reads_activated for step in op.steps):
      source.wants.append((relu_at, run.chance))
    if op.kept_bytes and run.slots:
      tail = Image(run.chance * op.kept_bytes, [(last, 1.0)])
      tail.reads = [Read(slot, run.moved * c) for slot, c in run.slots]
      self._tails.append(tail)

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
    self.activated[id(image)] = copy
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
    image = self.nodes[node]
    into, runs = self._entering(node)
    needed = any_of([c for _, c in image.wants])
    handed: Chance = 0.0  # it is the image of another node
    for place, number in enumerate(into):
      others = runs[:place] + runs[place + 1 :]
      alone = none_of(others)
      for target, chance in self.targets(number):
        part = chance * alone
        self._hand(image, target, part)
        handed = handed + part
    moves = self._close(image, 1 - handed)
    for place in range(len(into)):
      Entry(self, moves, runs, place, into, needed).enter(image)

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
        targets.append((self._share(key, op), chance))
    return targets

  def alive(self, image: Image) -> Any:
    """Chance that an image is alive in each slot, f[..., S]; None: never."""
    if not image.reads or not (image.writes or image.is_given):
      return None
    slots = np.arange(self.end + 1)
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
