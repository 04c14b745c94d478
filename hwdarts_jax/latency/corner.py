"""The architectures of a space, where there are few enough to name each."""

from __future__ import annotations

import itertools
import math

import numpy as np

from hwdarts_jax.latency.pairs import adjacent_edges
from hwdarts_jax.spaces.spec import NetworkSpec

__all__ = ('adjacent_edges', 'corners', 'is_enumerable')

_MAX_ENUMERATED = 2**16


def is_enumerable(spec: NetworkSpec) -> bool:
  """Whether the predictor keeps the latency of every architecture.

  Only where edges are independent: none is dropped and no op excluded.
  """
  independent = not spec.excluded and all(
    c.keep is None for c in spec.all_cells
  )
  count = math.prod(
    num_ops**num_edges
    for num_edges, num_ops in (g.shape for g in spec.groups().values())
  )
  return independent and count <= _MAX_ENUMERATED


def corners(spec: NetworkSpec) -> dict[str, np.ndarray]:
  """All architectures of an enumerable space: for each group f[N, E, O].

  In the order of the digits of the rows, the first row the most significant.
  """
  groups = spec.groups()
  sizes = [g.shape[1] for g in groups.values() for _ in range(g.shape[0])]
  digits = np.array(list(itertools.product(*map(range, sizes))), np.int32)
  one_hot, at = {}, 0
  for name, group in groups.items():
    num_edges, num_ops = group.shape
    one_hot[name] = np.eye(num_ops)[digits[:, at : at + num_edges]]
    at += num_edges
  return one_hot
