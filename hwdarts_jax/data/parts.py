"""The rows of a batch that the devices of this process hold.

Each process makes only these, and all of them together are one array.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def own_rows(
  sharding: jax.sharding.Sharding, batch_size: int, axis: int = 0
) -> np.ndarray:
  """Rows of a batch that devices of this process hold, in their order.

  Args:
    sharding: of the batch, split over `axis` at most.
    batch_size: B, over all devices of all processes.
    axis: of the batch.

  Returns:
    i64[b], b <= B.
  """
  shape = (1,) * axis + (batch_size,)
  parts = sharding.addressable_devices_indices_map(shape).values()
  rows = {
    row for index in parts for row in range(*_range(index, axis, batch_size))
  }
  return np.array(sorted(rows))


def assemble(
  local: np.ndarray,
  rows: np.ndarray,
  sharding: jax.sharding.Sharding,
  batch_size: int,
  axis: int = 0,
) -> jax.Array:
  """Makes one array of all processes from the rows that each of them has.

  Args:
    local: [..., b, ...], the rows of this process.
    rows: what `own_rows` returns, i64[b].
    sharding: of the result, split over `axis` at most.
    batch_size: B.
    axis: of the rows.

  Returns:
    [..., B, ...].
  """
  shape = (*local.shape[:axis], batch_size, *local.shape[axis + 1 :])

  def part(index: Any) -> np.ndarray:
    start, stop, _ = _range(index, axis, batch_size)
    first = int(np.searchsorted(rows, start))
    return local[(slice(None),) * axis + (slice(first, first + stop - start),)]

  return jax.make_array_from_callback(shape, sharding, part)


def _range(index: Any, axis: int, size: int) -> tuple[int, int, int]:
  """Start, stop and step along an axis of the part of a device."""
  return (index[axis] if index else slice(None)).indices(size)
