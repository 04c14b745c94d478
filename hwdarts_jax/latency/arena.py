"""The memory that a runtime lays out for the images of an architecture.

An arena is a block of memory in which every image has a fixed place for as long
as it is needed. Places are given greedily, the largest image first, in the
smallest gap that holds it (Pisarchyk & Lee, "Efficient Memory Management for
Deep Neural Net Inference", 2020, 'greedy by size for offset calculation', with
gaps as LiteRT chooses them). Gaps that nothing fits make it larger than the
peak of `activations`, whose schedule it follows.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hwdarts_jax.latency import activations
from hwdarts_jax.latency.images import Image
from hwdarts_jax.latency.schedule import Layout, Schedule
from hwdarts_jax.spaces.spec import IMAGE, NetworkSpec

_ALIGNMENT = 64
_NEVER = -1
_FOREVER = 2**31


class _Row(NamedTuple):
  """An image of a cell, in each of N architectures.

  Attributes:
    size: bytes.
    first: i64[N], slot from which it is needed; `_NEVER` where it is not.
    last: i64[N], slot up to which it is.
  """

  size: int
  first: np.ndarray
  last: np.ndarray


class _Over(NamedTuple):
  """What a sum is written over: of its first two terms one that is free then.

  Attributes:
    row: i64[N], the first of them that nobody else reads, or `_NEVER`.
    kept: i64[2, N], else, where neither is made for the sum alone: their rows.
      Both are kept until the sum is there. `_NEVER` where there is none.
  """

  row: np.ndarray
  kept: np.ndarray


class _Cell(NamedTuple):
  """The images of a cell.

  Attributes:
    rows: see `_Row`; the first ones are the sources of the cell.
    output: i64[N], the row that is its output, or `_NEVER` where the outputs
      are joined in an image of their own.
    over: of rows that are sums, see `_Over`.
    activated: of sources whose ReLU is an image of its own, its row; it is
      what later cells read.
    end: its last slot.
  """

  rows: list[_Row]
  output: np.ndarray
  over: dict[int, _Over]
  activated: dict[int, int]
  end: int


class _Place(NamedTuple):
  """An image in the arena: bytes, and the slots of the network it lives in."""

  size: int
  first: int
  last: int


def arena_bytes(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns the bytes of the arena, i64[N].

  Args:
    spec: the space.
    one_hot: architectures: for each group f[N, E, O].
  """
  layouts = activations.layouts(spec)
  count = len(next(iter(one_hot.values())))
  cells = {
    layout: _images(layout, one_hot.get(layout.group), count)
    for layout in dict.fromkeys(layouts)
  }
  # Most ops differ in nothing that matters here: few schedules are different.
  columns = [
    column
    for cell in cells.values()
    for column in (
      *(x for r in cell.rows for x in r[1:]),
      *(x for o in cell.over.values() for x in (o.row, *o.kept)),
      cell.output,
    )
  ]
  _, kept, which = np.unique(
    np.stack(columns, -1), axis=0, return_index=True, return_inverse=True
  )
  sizes = [
    _plan(_places(spec, [cells[layout] for layout in layouts], int(n)))
    for n in kept
  ]
  return np.array(sizes, np.int64)[which.reshape(-1)]


def _images(layout: Layout, probs: Any, count: int) -> _Cell:
  """Follows the schedule of a cell in N architectures."""
  schedule = Schedule(layout, probs)
  rows: list[_Row] = []
  numbers: dict[int, int] = {}
  images = [*schedule.sources, *schedule.images]
  for image in _unique(images):
    numbers[id(image)] = len(rows)
    rows.append(_interval(schedule, image, count))
  for run in schedule.runs:
    rows += _inner(schedule, run, count)
  output = _row_of(schedule, schedule.nodes[layout.outputs[0]], numbers, count)
  if layout.joins:
    output = np.full(count, _NEVER)
  consumers = np.stack([_consumers(i, count) for i in _unique(images)])
  over = {
    numbers[id(schedule.nodes[node])]: _over(schedule, node, numbers, consumers)
    for node in dict.fromkeys(edge.dst for edge in layout.edges)
  }
  activated = {
    i: numbers[id(schedule.activated[id(image)])]
    for i, image in enumerate(schedule.sources)
    if layout.apart[i]
  }
  return _Cell(rows, output, over, activated, schedule.end)


def _interval(schedule: Schedule, image: Image, count: int) -> _Row:
  """When an image is needed."""
  alive = schedule.alive(image)
  if alive is None:
    return _Row(int(image.size), *np.full((2, count), _NEVER))
  there = np.broadcast_to(np.asarray(alive) > 0.5, (count, schedule.end + 1))
  first = np.where(there.any(-1), there.argmax(-1), _NEVER)
  last = schedule.end - there[:, ::-1].argmax(-1)
  return _Row(int(image.size), first, np.where(first == _NEVER, _NEVER, last))


def _inner(schedule: Schedule, run: Any, count: int) -> list[_Row]:
  """When images inside an op are needed."""
  runs = np.broadcast_to(np.asarray(run.chance) > 0.5, (count,))
  end = len(run.op.steps) - 1
  start = schedule.last_slot(run.number) - end
  moved_to = np.full(count, start + end)
  for slot, chance in run.slots:
    moves = np.asarray(run.moved) * np.asarray(chance) > 0.5
    moved_to = np.where(moves, slot, moved_to)
  rows = []
  for inner in run.op.inner:
    last = moved_to if inner.last == end else np.full(count, start + inner.last)
    rows.append(
      _Row(
        inner.size,
        np.where(runs, start + inner.first, _NEVER),
        np.where(runs, last, _NEVER),
      )
    )
  return rows


def _unique(images: list[Image]) -> list[Image]:
  return list({id(image): image for image in images}.values())


def _row_of(
  schedule: Schedule, image: Image, numbers: dict[int, int], count: int
) -> np.ndarray:
  """The row of the image that an image is in fact, i64[N]."""
  found = np.full(count, numbers[id(image)])
  for target, part in schedule.handed.get(id(image), []):
    row = _row_of(schedule, target, numbers, count)
    found = np.where(np.asarray(part) > 0.5, row, found)
  return found


def _consumers(image: Image, count: int) -> np.ndarray:
  """How many operations read an image, i64[N]; its ReLU is one."""
  found = np.zeros(count, np.int64)
  activated = np.zeros(count, bool)
  for relu_at, chance in image.wants:
    wants = np.broadcast_to(np.asarray(chance) > 0.5, (count,))
    if relu_at is None:
      found += wants
    else:
      activated |= wants
  return found + activated


def _over(
  schedule: Schedule, node: int, numbers: dict[int, int], consumers: np.ndarray
) -> _Over:
  """What the sum at a node is written over."""
  count = consumers.shape[-1]
  found, terms = np.full(count, _NEVER), np.zeros(count, np.int64)
  kept = np.full((2, count), _NEVER)
  is_open = np.ones(count, bool)  # none of them can be written over yet
  for number, edge in enumerate(schedule.layout.edges):
    if edge.dst != node:
      continue
    fed = np.asarray(schedule.fed[edge.src])
    brings = np.asarray(schedule.chance_of(number, 'does')) * fed
    constant = np.asarray(schedule.chance_of(number, 'has_constants'))
    brings = np.broadcast_to(brings + constant * (1 - fed) > 0.5, (count,))
    for target, chance in schedule.targets(number):
      row = _row_of(schedule, target, numbers, count)
      alone = np.take_along_axis(consumers, row[None], 0)[0] == 1
      term = (np.asarray(chance) > 0.5) & is_open & (terms < 2)
      found = np.where(term & alone, row, found)
      is_open = is_open & ~(term & alone)
      for place in range(2):
        kept[place] = np.where(term & (terms == place), row, kept[place])
    computed = np.asarray(schedule.chance_of(number, 'computes')) * fed > 0.5
    is_open = is_open & ~(computed & (terms < 2))
    terms += brings
  return _Over(found, np.where(is_open, kept, _NEVER))


def _places(
  spec: NetworkSpec, cells: list[_Cell], architecture: int
) -> list[_Place]:
  """The images of a whole network, those that cells hand on being one."""
  sizes = activations.output_bytes(spec)
  places = [_Place(sizes[IMAGE], _NEVER, _FOREVER)]
  owner = {IMAGE: 0}
  base = 0
  for cell, found in zip(spec.all_cells, cells, strict=True):
    sources = tuple(dict.fromkeys(source for _, source in cell.inputs))
    where: dict[int, int] = {}
    for number, image in enumerate(found.rows):
      first = int(image.first[architecture])
      last = int(image.last[architecture])
      if number < len(sources):
        where[number] = owner[sources[number]]
        if first != _NEVER:
          old = places[where[number]]
          places[where[number]] = old._replace(last=max(old.last, base + last))
      elif first != _NEVER:
        where[number] = len(places)
        places.append(_Place(image.size, base + first, base + last))
    for number, over in found.over.items():
      target = int(over.row[architecture])
      if number in where and target in where and number != target:
        _merge(places, where, number, target)
      elif number in where:
        _keep(places, where, number, over.kept[:, architecture])
    for number, row in found.activated.items():
      owner[sources[number]] = where[row]
    output = int(found.output[architecture])
    if output in where:
      owner[cell.name] = where[output]
    else:  # joined, or a constant that needs no memory
      owner[cell.name] = len(places)
      at = base + found.end
      places.append(_Place(sizes[cell.name], at, at))
    base += found.end + 1
  return places


def _merge(
  places: list[_Place], where: dict[int, int], number: int, target: int
) -> None:
  """Writes a sum over one of its terms; the other is kept until then."""
  term, total = places[where[target]], places[where[number]]
  places[where[target]] = term._replace(last=max(term.last, total.last))
  # Nothing, if the other term has a row of its own.
  size = total.size if total.first <= term.last else 0
  places[where[number]] = _Place(size, total.first, term.last)
  where[number] = where[target]


def _keep(
  places: list[_Place], where: dict[int, int], number: int, terms: np.ndarray
) -> None:
  """Keeps the terms of a sum that is written over neither until it is there."""
  first = places[where[number]].first
  for row in map(int, terms):
    if row in where:
      term = places[where[row]]
      places[where[row]] = term._replace(last=max(term.last, first))


def _plan(places: list[_Place]) -> int:
  """Size of the arena that holds all images."""
  forever = [p for p in places if p.last == _FOREVER]
  others = [p for p in places if p.last != _FOREVER]
  others.sort(key=lambda p: (-p.size, p.first))
  taken: list[tuple[int, int, int, int]] = []  # in the order of their starts
  top = 0
  for place in (*forever, *others):
    size = -(-place.size // _ALIGNMENT) * _ALIGNMENT
    at, gap, end = _NEVER, _FOREVER, 0
    for start, stop, first, last in taken:
      if first > place.last or last < place.first:
        continue
      if size <= start - end < gap:
        at, gap = end, start - end
      end = max(end, stop)
    start = end if at == _NEVER else at
    bisect.insort(taken, (start, start + size, place.first, place.last))
    top = max(top, start + size)
  return top
