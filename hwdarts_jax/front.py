"""The true Pareto front of a device in NAS-Bench-201, and how much is reached.

Of two costs: latency as measured on the device, and test accuracy. No jax is
imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwdarts_jax import oracle


def of(dataset: str, device: str) -> np.ndarray:
  """The true Pareto front of a device.

  Args:
    dataset: one of `DATASETS`.
    device: a device of `devices`.

  Returns:
    Numbers i64[N] of the cells than which none measured there is both faster
    and at least as accurate, or as fast and more accurate; from the fastest on.
  """
  return _front(np.flatnonzero(oracle.candidates(device)), dataset, device)


def hypervolume(cells: Sequence[int], dataset: str, device: str) -> float:
  """Share of the true front's hypervolume that cells reach, from 0 to 1.

  The area of all (latency, accuracy) that some cell of the set is no worse
  than, as far as it lies above the reference point: the latency of the slowest
  cell of the true front and the accuracy of its fastest one. The ends of the
  front alone, easy to find, have an area of 0 and the whole front has 1.

  Args:
    cells: numbers of cells that were measured on the device.
    dataset: one of `DATASETS`.
    device: a device of `devices`.

  Raises:
    ValueError: a cell is not connected or not measured there.
  """
  numbers = np.asarray(cells, np.int64)
  oracle.check_indices(numbers)
  absent = numbers[~oracle.candidates(device)[numbers]]
  if absent.size:
    raise ValueError(
      f'cells {absent[:5].tolist()} are not connected, or not measured on '
      f'{device!r}.'
    )
  true = of(dataset, device)
  corner = (
    oracle.latencies(device)[true[-1]],
    oracle.accuracies(dataset)[true[0]],
  )
  areas = [_area(c, dataset, device, corner) for c in (numbers, true)]
  # A front of a single cell is reached by that cell or not at all.
  return areas[0] / areas[1] if areas[1] else float(true[0] in numbers)


def _front(cells: np.ndarray, dataset: str, device: str) -> np.ndarray:
  """Those of some cells that no other one of them dominates, fastest first."""
  ms, values = (
    oracle.latencies(device)[cells],
    oracle.accuracies(dataset)[cells],
  )
  order = np.lexsort((oracle.load().official_index[cells], -values, ms))
  before = np.maximum.accumulate(np.append(-np.inf, values[order][:-1]))
  return cells[order[values[order] > before]]


def _area(
  cells: np.ndarray, dataset: str, device: str, corner: tuple[float, float]
) -> float:
  """Milliseconds times per cent that cells dominate, up to a corner."""
  best_of = _front(cells, dataset, device)
  ms, values = (
    oracle.latencies(device)[best_of],
    oracle.accuracies(dataset)[best_of],
  )
  widths = np.diff(np.minimum(np.append(ms, corner[0]), corner[0]))
  return float((widths * np.maximum(values - corner[1], 0)).sum())
