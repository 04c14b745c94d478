"""Architectures drawn from gates, and the independent choices they consist of.

In numpy, apart from the closed forms of `expectation`, so that each can be
held against the other.
"""

from __future__ import annotations

from collections.abc import Mapping
import itertools
from typing import NamedTuple

import numpy as np

from hwdarts_jax.spaces.spec import NetworkSpec


class Block(NamedTuple):
  """Edges whose ops are chosen together, and apart from all other edges.

  Attributes:
    group: whose rows they are.
    rows: of the alphas.
    keep: how many of them the architecture has.
  """

  group: str
  rows: tuple[int, ...]
  keep: int


def blocks(spec: NetworkSpec) -> list[Block]:
  """Each edge by itself, or the edges into one node where some are dropped."""
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  found = []
  for name, group in spec.groups().items():
    limit = keep[name]
    if limit is None:
      found += [Block(name, (row,), 1) for row in range(len(group.edges))]
      continue
    for dst in sorted({d for _, d in group.edges}):
      rows = tuple(r for r, (_, d) in enumerate(group.edges) if d == dst)
      found.append(Block(name, rows, min(limit, len(rows))))
  return found


def choices(spec: NetworkSpec, block: Block) -> np.ndarray:
  """All one-hot values f[C, R, O] that the rows of a block can take."""
  ops = spec.groups()[block.group].ops
  allowed = [i for i, op in enumerate(ops) if op not in spec.excluded]
  found = []
  for kept in itertools.combinations(range(len(block.rows)), block.keep):
    for columns in itertools.product(allowed, repeat=block.keep):
      value = np.zeros((len(block.rows), len(ops)))
      value[list(kept), list(columns)] = 1
      found.append(value)
  return np.stack(found)


def chances(values: np.ndarray, probs: np.ndarray) -> np.ndarray:
  """Probabilities f[C] of the `choices` f[C, R, O] of a block.

  Args:
    values: what `choices` returns.
    probs: gates of the rows, f[R, O].
  """
  weights = np.where(values > 0, probs, 1).prod((1, 2))
  return weights / weights.sum()


def draw(
  spec: NetworkSpec,
  gates: Mapping[str, np.ndarray],
  count: int,
  rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  """Random architectures, for each group f32[count, E, O] of zeros and ones.

  Args:
    spec: the space.
    gates: for each group f[E, O], the distributions to draw from.
    count: how many.
    rng: where chance comes from.
  """
  drawn = {
    name: np.zeros((count, *group.shape), np.float32)
    for name, group in spec.groups().items()
  }
  for block in blocks(spec):
    values = choices(spec, block)
    rows = list(block.rows)
    probs = np.asarray(gates[block.group], np.float64)[rows]
    picked = rng.choice(len(values), size=count, p=chances(values, probs))
    drawn[block.group][:, rows] = values[picked]
  return drawn
