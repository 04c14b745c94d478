"""What happens where an edge enters a node of a cell; see `activations`."""

from __future__ import annotations

from typing import NamedTuple, TYPE_CHECKING

from hwdarts_jax.latency.images import (
  any_of,
  Chance,
  Image,
  Moves,
  none_of,
  Read,
  Run,
)

if TYPE_CHECKING:
  from hwdarts_jax.latency.schedule import Schedule


class Entry(NamedTuple):
  """An edge enters a node.

  Attributes:
    schedule: of the cell.
    moves: where the node is computed instead, if it is.
    runs: chance of each edge into the node to bring an image or a constant.
    place: of the edge among them.
    into: numbers of these edges.
    needed: chance that the node is read.
  """

  schedule: Schedule
  moves: Moves
  runs: list[Chance]
  place: int
  into: list[int]
  needed: Chance

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
        moved = self._moved_alone
        schedule.run(Run(number, edge.src, op, chance, moved, self.moves.slots))
        end = len(op.steps) - 1
        if op.out_step < end:  # the last steps add to what is there
          at = schedule.last_slot(number) - end + op.out_step
          image.writes.append((at, chance * (1 - self._prior)))
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
    alone = (1 - self._prior) * self._is_last
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
    target.reads += [Read(at, c) for at, c in events]
    others = [*self.runs[: self.place], *self.runs[self.place + 1 :]]
    target.wants.append((None, chance * any_of(others)))

  def _place_image(self, image: Image, computed: Chance) -> None:
    """What was computed is the node, or is kept until it is added to it."""
    schedule, number = self.schedule, self.into[self.place]
    # Before it, the node is there once something was computed, or added.
    none: Chance = 1.0
    one: Chance = 0.0
    for place, run in zip(self.into, self.runs[: self.place], strict=False):
      other = schedule.chance_of(place, 'computes')
      made = other * schedule.fed[schedule.layout.edges[place].src]
      none, one = none * (1 - run), one * (1 - run) + none * (run - made)
    is_new = none + one
    first, moved = computed * is_new, self._moved_alone
    image.writes.append((schedule.last_slot(number), first * (1 - moved)))
    image.writes += [(at, first * moved * c) for at, c in self.moves.slots]
    if self.place:
      term = schedule.new_image(image.size)
      term.writes = [(schedule.last_slot(number), computed * (1 - is_new))]
      events: list[tuple[int, Chance]] = []
      self._at_sum(events, 1.0)
      term.reads = [Read(at, c) for at, c in events]
