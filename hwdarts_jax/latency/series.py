"""The numbering of all cells of a space, which a `Series` of latencies follows.

No jax is imported here.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from hwdarts_jax.latency.checks import check
from hwdarts_jax.spaces import nasbench201
from hwdarts_jax.spaces.spec import Choice, Genotype, GroupSpec

# Spaces whose cells can be numbered: each edge takes any op, in one group.
_ENUMERATED = {
  'nasbench201': (
    nasbench201.GROUP,
    GroupSpec(nasbench201.OPS, nasbench201.EDGES),
  )
}


@functools.cache
def enumerate_ops(space: str) -> np.ndarray:
  """All cells of an enumerated space, in the order of a `Series`.

  Cell number n has as its ops the digits of n written in base O, the first
  edge being the most significant digit.

  Args:
    space: name of the space.

  Returns:
    Columns of the ops on the edges of each cell, i8[O**E, E]; read-only.

  Raises:
    ValueError: the cells of the space are not numbered.
  """
  group = enumerated(space)[1]
  num_edges, num_ops = group.shape
  numbers = np.arange(num_ops**num_edges)[:, None]
  powers = num_ops ** np.arange(num_edges)[::-1]
  return read_only((numbers // powers % num_ops).astype(np.int8))


def decode(space: str, indices: np.ndarray) -> tuple[Genotype, ...]:
  """Genotypes of the cells with these numbers.

  Args:
    space: name of an enumerated space.
    indices: integers [N], rows of `enumerate_ops`.

  Raises:
    ValueError: the cells of the space are not numbered.
  """
  name, group = enumerated(space)
  choices = [[Choice(op, *edge) for op in group.ops] for edge in group.edges]
  return tuple(
    Genotype(
      space, {name: tuple(c[o] for c, o in zip(choices, ops, strict=True))}
    )
    for ops in enumerate_ops(space)[indices].tolist()
  )


def enumerated(space: str) -> tuple[str, GroupSpec]:
  """The only group of an enumerated space, by name; ValueError for others."""
  check(
    isinstance(space, str) and space in _ENUMERATED,
    'space of a series',
    space,
    f'one of {sorted(_ENUMERATED)}',
  )
  return _ENUMERATED[space]


def layout(space: str) -> dict[str, Any]:
  """What the digits of a cell's number mean, for the reader of a file."""
  group = enumerated(space)[1]
  return {'edges': [list(e) for e in group.edges], 'ops': list(group.ops)}


def read_only(array: np.ndarray) -> np.ndarray:
  """Returns `array`, which from now on cannot be written."""
  array.setflags(write=False)
  return array
