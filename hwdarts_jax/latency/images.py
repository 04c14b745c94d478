"""Images that may be alive for some of the time, and chances that they are.

Chances are taken for those of independent events; see `activations`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from hwdarts_jax.latency.footprint import Footprint

Chance = Any  # f[...] of gates f[..., E, O], or a number


def any_of(chances: list[Chance]) -> Chance:
  """Chance that at least one of independent events happens."""
  return 1 - none_of(chances)


def none_of(chances: list[Chance]) -> Chance:
  """Chance that none of independent events happens."""
  return functools.reduce(lambda a, b: a * b, [1 - c for c in chances], 1.0)


class Read(NamedTuple):
  """An image is read, with a chance.

  Attributes:
    at: slot of the schedule.
    chance: that it is.
    relu_at: slot where the ReLU is computed that is read, or None.
  """

  at: int
  chance: Chance
  relu_at: int | None = None


@dataclasses.dataclass
class Image:
  """An image that may be there for some of the time.

  Attributes:
    size: f[...] bytes.
    writes: slots where it may be written, with chances.
    is_given: whether it is there before all.
    reads: see `Read`.
    wants: chance of each edge to read it, and the slot where the ReLU is
      computed that it reads, or None.
  """

  size: Chance
  writes: list[tuple[int, Chance]] = dataclasses.field(default_factory=list)
  is_given: bool = False
  reads: list[Read] = dataclasses.field(default_factory=list)
  wants: list[tuple[int | None, Chance]] = dataclasses.field(
    default_factory=list
  )

  def read(self, at: int, chance: Chance, relu_at: int | None = None) -> None:
    """Enters a read."""
    self.reads.append(Read(at, chance, relu_at))

  def chance(self, activated: bool) -> Chance:
    """That it is read through ReLU, or that it is read without."""
    return any_of([c for r, c in self.wants if (r is not None) == activated])


class Moves(NamedTuple):
  """Where a node is computed that is read through ReLU only.

  Attributes:
    chance: that it is such a node.
    slots: where it may be read first, with chances.
  """

  chance: Chance
  slots: tuple[tuple[int, Chance], ...]


class Run(NamedTuple):
  """An op runs.

  Attributes:
    number: of its edge.
    source: node that it reads.
    op: what it asks of memory.
    chance: that it runs.
    moved: chance that its last operation is moved, if it runs.
    slots: where to, with chances.
  """

  number: int
  source: int
  op: Footprint
  chance: Chance
  moved: Chance = 0.0
  slots: tuple[tuple[int, Chance], ...] = ()
