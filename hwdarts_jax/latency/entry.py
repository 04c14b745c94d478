"""What happens where an edge enters a node of a cell; see `activations`."""

from __future__ import annotations

from typing import NamedTuple, TYPE_CHECKING

from hwdarts_jax.latency.footprint import Footprint
from hwdarts_jax.latency.images import (
  any_of,
  Chance,
  Image,
  Moves,
  none_of,
  Read,
)

if TYPE_CHECKING:
  from hwdarts_jax.latency.schedule import Schedule


class Entry(NamedTuple):
  """An edge enters a node.

  Attributes:
    schedule: of the cell.
    moves: where the node is computed instead, if it is.
    runs: chance of each edge into the node to bring an image.
    place: of the edge among them.
    into: numbers of these edges.
    needed: chance that the node is read.
    constant: chance that a constant is added to it.
  """

  schedule: Schedule
  moves: Moves
  runs: list[Chance]
  place: int
  into: list[int]
  needed: Chance
  constant: Chance

  def enter(self, image: Image) -> None:
    """Runs the op of the edge, and adds what it brings to the node."""
    schedule, number = self.schedule, self.into[self.place]
    for target, chance in schedule.targets(number):
      self._hand_on(target, chance)
    edge = schedule.layout.edges[number]
    fed = schedule.fed[edge.src]
    computed: Chance = 0.0
    for column, op in enumerate(schedule.layout.ops[number]):
      chance = schedule.prob(edge, column) * fed * self.needed
      if op.is_shared:
        key = edge.src, edge.ops[column], edge.stride
        schedule.shared[key].writes.append((schedule.last_slot(number), chance))
      elif op.steps:
        computed = computed + chance
        self._compute(op, chance)
    self._place_image(image, computed)
    self._at_sum(image.writes, self._run * self._prior * self.needed)

  @property
  def _run(self) -> Chance:
    return self.runs[self.place]

  @property
  def _prior(self) -> Chance:
    """That an edge before it brings an image."""
    return any_of(self.runs[: self.place])

  @property
  def _is_last(self) -> Chance:
    """That no edge after it brings an image."""
    return none_of(self.runs[self.place + 1 :])

  @property
  def _moved_alone(self) -> Chance:
    """That its last operation is moved, there being nothing to add."""
    alone = (1 - self._prior) * self._is_last * (1 - self.constant)
    return self.moves.chance * alone

  def _at_sum(self, events: list, chance: Chance) -> None:
    """Enters what happens when the edge is added, which may be moved."""
    moved = self.moves.chance * self._is_last
    add = self.schedule.add_slot(self.into[self.place])
    events.append((add, chance * (1 - moved)))
    events += [(at, chance * moved * c) for at, c in self.moves.slots]

  def _hand_on(self, target: Image, chance: Chance) -> None:
    """The edge adds an image that is there anyway."""
    chance = chance * self.needed
    events: list[tuple[int, Chance]] = []
    self._at_sum(events, chance * self._prior)
    first = chance * (1 - self._prior)
    later = range(self.place + 1, len(self.into))
    for place in later:
      between = none_of(self.runs[self.place + 1 : place])
      other = self._replace(place=place)
      other._at_sum(events, first * between * self.runs[place])
    end = self.schedule.add_slot(self.into[-1])
    events.append((end, first * self._is_last * self.constant))
    target.reads += [Read(at, c) for at, c in events]
    others = [*self.runs[: self.place], *self.runs[self.place + 1 :]]
    target.wants.append((None, chance * any_of([*others, self.constant])))

  def _compute(self, op: Footprint, chance: Chance) -> None:
    """The operations of an op; the last one may be moved."""
    schedule, number = self.schedule, self.into[self.place]
    moved, final = self._moved_alone, op.steps[-1]
    schedule.want(number, op, chance)
    schedule.run_steps(number, op, chance, op.steps[:-1])
    at, relu_at = schedule.last_slot(number), number * schedule.width
    source = schedule.nodes[schedule.layout.edges[number].src]
    schedule.inner.append((at, chance * (1 - moved) * final.inner_bytes))
    places = [(at, chance * (1 - moved))]
    places += [(slot, chance * moved * c) for slot, c in self.moves.slots]
    for slot, c in places:
      if final.reads_input:
        source.read(slot, c)
      if final.reads_activated:
        source.read(slot, c, relu_at)
    if final.kept_bytes:
      tail = schedule.new_image(chance * final.kept_bytes)
      tail.writes = [(at, 1.0)]
      tail.reads = [Read(slot, moved * c) for slot, c in self.moves.slots]

  def _place_image(self, image: Image, computed: Chance) -> None:
    """What was computed is the node, or is kept until it is added to it."""
    schedule, number = self.schedule, self.into[self.place]
    earlier = [
      schedule.chance_of(i, 'computes')
      * schedule.fed[schedule.layout.edges[i].src]
      for i in self.into[: self.place]
    ]
    first, moved = computed * none_of(earlier), self._moved_alone
    image.writes.append((schedule.last_slot(number), first * (1 - moved)))
    image.writes += [(at, first * moved * c) for at, c in self.moves.slots]
    if earlier:
      term = schedule.new_image(image.size)
      term.writes = [(schedule.last_slot(number), computed * any_of(earlier))]
      events: list[tuple[int, Chance]] = []
      self._at_sum(events, 1.0)
      term.reads = [Read(at, c) for at, c in events]
