"""What NAS-Bench-201 knows: true accuracy and latency of every cell.

The 15,625 cells are numbered as in `hwdarts_jax.latency.table.enumerate_ops`:
the six ops, columns of `nasbench201.OPS` in the order of `nasbench201.EDGES`,
are the digits of a number in base 5, the first edge being the most significant.
Every array here is in that order. Accuracies are those of the benchmark (see
``PROVENANCE-nasbench201.md``), latencies those of the shipped tables. A cell
without a path from input to output is no network and never counts.

`judge` says how good a cell is: by its regret, the accuracy that it lacks
against the best cell within the same budget of *measured* latency. A cell that
exceeds the budget has no regret, and so never one of zero.

No jax is imported here. The accuracies are a file of 137 kB that `load` reads
in a few milliseconds (`benchmarks/oracle_load.py`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from etils import epath
import numpy as np

from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import nasbench201
from hwdarts_jax.spaces.spec import Genotype

SPACE = 'nasbench201'
DATASETS = ('cifar10', 'cifar100', 'imagenet16_120')
NUM_CELLS = len(nasbench201.OPS) ** len(nasbench201.EDGES)

_FILE = epath.Path(__file__).parent / 'nasbench201_accuracy.npz'
_UNIT = 10_000  # the file holds whole ten-thousandths of a per cent


class Best(NamedTuple):
  """The answer of `best`.

  Attributes:
    genotype: the cell.
    accuracy: test accuracy in per cent.
    latency_ms: measured milliseconds, or None if no device was named.
  """

  genotype: Genotype
  accuracy: float
  latency_ms: float | None


class Verdict(NamedTuple):
  """The answer of `judge`.

  Attributes:
    accuracy: test accuracy of the cell in per cent.
    latency_ms: its measured milliseconds, or None if no device was named.
    budget_ms: that it was judged within, or None.
    best: the most accurate cell within the budget.
    rank: its place among the cells within the budget by accuracy, from 1; None
      if it exceeds the budget.
    num_ranked: how many cells are within the budget.
    regret: per cent of accuracy that it lacks against `best`; None, a failure,
      if it exceeds the budget.
  """

  accuracy: float
  latency_ms: float | None
  budget_ms: float | None
  best: Best
  rank: int | None
  num_ranked: int
  regret: float | None

  @property
  def meets_budget(self) -> bool:
    """Whether the cell is within the budget, so that it has a regret."""
    return self.regret is not None


class Benchmark(NamedTuple):
  """The arrays of the benchmark, read-only, in the order of the cells.

  Attributes:
    accuracy: for each of `DATASETS`, test accuracy f64[15625] in per cent.
    official_index: i64[15625], the number that NAS-Bench-201 itself and the
      protocols of the literature give to each cell.
    ops: columns of the ops, i8[15625, 6].
    connected: bool[15625], whether a path of ops other than `none` leads from
      input to output.
  """

  accuracy: dict[str, np.ndarray]
  official_index: np.ndarray
  ops: np.ndarray
  connected: np.ndarray


@functools.cache
def load() -> Benchmark:
  """Returns the benchmark; only the first call reads it."""
  with _FILE.open('rb') as f, np.load(f, allow_pickle=False) as arrays:
    accuracy = {d: arrays[d] / _UNIT for d in DATASETS}
    official_index = arrays['official_index'].astype(np.int64)
  ops = table_lib.enumerate_ops(SPACE)
  benchmark = Benchmark(accuracy, official_index, ops, _find_connected(ops))
  for array in (*accuracy.values(), official_index, benchmark.connected):
    array.setflags(write=False)
  return benchmark


def accuracy(genotype: Genotype, dataset: str) -> float:
  """Test accuracy in per cent after 200 epochs, mean of the published runs.

  Args:
    genotype: a cell of the space.
    dataset: one of `DATASETS`.

  Raises:
    ValueError: the genotype or the data set is not of the benchmark.
  """
  return float(accuracies(dataset)[index(genotype)])


def accuracies(dataset: str) -> np.ndarray:
  """`accuracy` of all cells, f64[15625] per cent.

  Raises:
    ValueError: the data set is not one of `DATASETS`.
  """
  if dataset not in DATASETS:
    raise ValueError(f'dataset is {dataset!r}; it must be one of {DATASETS}.')
  return load().accuracy[dataset]


def latency(genotype: Genotype, device: str) -> float:
  """Measured latency in milliseconds.

  Args:
    genotype: a cell of the space.
    device: a device of `devices`.

  Raises:
    ValueError: the genotype is not of the space, there is no table of the
      device, or the cell was not measured on it.
  """
  cell = index(genotype)
  values = latencies(device)
  if np.isnan(values[cell]):
    raise ValueError(
      f'{nasbench201.to_arch_string(genotype)} was not measured on {device!r}, '
      f'which has {np.isfinite(values).sum()} of the {NUM_CELLS} cells.'
    )
  return float(values[cell])


@functools.cache
def latencies(device: str) -> np.ndarray:
  """`latency` of all cells, f64[15625] ms; NaN where not measured.

  Raises:
    ValueError: there is no table of the device, or it has no such series.
  """
  table = table_lib.load(f'{device}.{SPACE}')
  if table.series is None:
    raise ValueError(
      f'the latency table of {device!r} has no series; those of '
      f'{list(devices())} have one.'
    )
  return table.series_ms


def devices() -> tuple[str, ...]:
  """Names of the devices with a shipped series, sorted."""
  return tuple(table_lib.with_series(SPACE))


def best(
  dataset: str, device: str | None = None, budget_ms: float | None = None
) -> Best:
  """The most accurate connected cell, within a budget if one is given.

  Of equally accurate cells it is the one that NAS-Bench-201 lists first.

  Args:
    dataset: one of `DATASETS`.
    device: if given, only cells that were measured on it take part.
    budget_ms: the most milliseconds the cell may need on the device.

  Raises:
    ValueError: the data set or device is unknown, there is a budget without a
      device, or no cell is within it.
  """
  values = accuracies(dataset)
  cell = _argmax(np.where(candidates(device, budget_ms), values, -np.inf))
  ms = None if device is None else float(latencies(device)[cell])
  return Best(genotype(cell), float(values[cell]), ms)


def candidates(
  device: str | None = None, budget_ms: float | None = None
) -> np.ndarray:
  """Cells that count: connected, measured on the device, within the budget.

  Args:
    device: if given, only cells that were measured on it.
    budget_ms: the most milliseconds a cell may need on the device.

  Returns:
    bool[15625], true of one cell at least.

  Raises:
    ValueError: the device is unknown, there is a budget without a device, or no
      cell is within it.
  """
  allowed = load().connected
  if device is None:
    if budget_ms is not None:
      raise ValueError(f'budget_ms is {budget_ms!r}, but there is no device.')
    return allowed
  ms = latencies(device)
  allowed = allowed & np.isfinite(ms)
  if budget_ms is None:
    return allowed
  within = allowed & (ms <= budget_ms)
  if not within.any():
    raise ValueError(
      f'budget_ms is {budget_ms!r}; the fastest connected cell on '
      f'{device!r} needs {ms[allowed].min()} ms.'
    )
  return within


def judge(
  genotype: Genotype,
  dataset: str,
  device: str | None = None,
  budget_ms: float | None = None,
) -> Verdict:
  """How good a cell is among those of the same budget.

  Args:
    genotype: a connected cell.
    dataset: one of `DATASETS`.
    device: if given, the cell must have been measured on it, and only such
      cells are compared.
    budget_ms: the most milliseconds a cell may need on the device.

  Raises:
    ValueError: see `best` and `latency`; or the cell is not connected.
  """
  cell = index(genotype)
  if not load().connected[cell]:
    raise ValueError(
      f'{nasbench201.to_arch_string(genotype)} has no path from input to '
      'output: it is no network, and has no rank.'
    )
  value, found = accuracy(genotype, dataset), best(dataset, device, budget_ms)
  ms = None if device is None else latency(genotype, device)
  among = candidates(device, budget_ms)
  within = bool(among[cell])
  better = int((accuracies(dataset)[among] > value).sum())
  return Verdict(
    accuracy=value,
    latency_ms=ms,
    budget_ms=budget_ms,
    best=found,
    rank=better + 1 if within else None,
    num_ranked=int(among.sum()),
    regret=found.accuracy - value if within else None,
  )


def project(
  scores: np.ndarray, device: str, budget_ms: float | None = None
) -> Genotype:
  """The connected cell measured on a device that a search rates best.

  Args:
    scores: f[15625], higher is better; see `log_probabilities`.
    device: a device of `devices`.
    budget_ms: the most milliseconds the cell may need.

  Raises:
    ValueError: see `candidates`; or scores are not of that shape, or NaN.
  """
  scores = np.asarray(scores, np.float64)
  if scores.shape != (NUM_CELLS,) or np.isnan(scores).any():
    raise ValueError(
      f'scores have shape {scores.shape} and {np.isnan(scores).sum()} NaN; '
      f'they must be {NUM_CELLS} numbers, one for each cell.'
    )
  among = np.flatnonzero(candidates(device, budget_ms))
  return genotype(int(among[scores[among].argmax()]))


def log_probabilities(probs: np.ndarray) -> np.ndarray:
  """Log of the probability of all cells, f64[15625], by distributions f[6, 5].

  Rows are in the order of `nasbench201.EDGES`, columns in that of its `OPS`.
  """
  logs = np.log(np.maximum(np.asarray(probs, np.float64), 1e-300))
  if logs.shape != (len(nasbench201.EDGES), len(nasbench201.OPS)):
    raise ValueError(
      f'probs have shape {logs.shape}; it must be '
      f'{(len(nasbench201.EDGES), len(nasbench201.OPS))}.'
    )
  return logs[np.arange(len(logs)), load().ops].sum(1)


def index(genotype: Genotype) -> int:
  """The number of a cell, from 0 to 15624.

  Raises:
    ValueError: the genotype is not a cell of the space.
  """
  choices = genotype.cells.get(nasbench201.GROUP, ())
  ops = {(c.src, c.dst): c.op for c in choices}
  if (
    genotype.space != SPACE
    or set(genotype.cells) != {nasbench201.GROUP}
    or len(choices) != len(nasbench201.EDGES)
    or set(ops) != set(nasbench201.EDGES)
    or not set(ops.values()) <= set(nasbench201.OPS)
  ):
    raise ValueError(
      f'genotype {genotype.to_json()} is not a cell of {SPACE!r}: it must '
      f'have one of {nasbench201.OPS} on each of {nasbench201.EDGES}.'
    )
  number = 0
  for edge in nasbench201.EDGES:
    number = number * len(nasbench201.OPS) + nasbench201.OPS.index(ops[edge])
  return number


def genotype(index: int) -> Genotype:
  """The cell with this number; inverse of `index`.

  Raises:
    ValueError: there is no such cell.
  """
  check_indices(index)
  return table_lib.decode(SPACE, np.array([index]))[0]


def connected(indices: int | np.ndarray) -> np.ndarray:
  """Whether a path of ops other than `none` leads from input to output.

  The 341 cells without one are no networks: drop them from any error in per
  cent, since some runtimes delete them and need almost no time.

  Args:
    indices: a cell's number, or integers of any shape.

  Returns:
    bool of the shape of `indices`.

  Raises:
    ValueError: there is no such cell.
  """
  check_indices(indices)
  return load().connected[indices]


def _argmax(values: np.ndarray) -> int:
  """Where f64[15625] is largest; first in the official order of those."""
  cells = np.flatnonzero(values == values.max())
  return int(cells[load().official_index[cells].argmin()])


def _find_connected(ops: np.ndarray) -> np.ndarray:
  """Follows each cell's edges from node 0; bool[N] of ops i8[N, E]."""
  none = nasbench201.OPS.index('none')
  reached = np.zeros((4, len(ops)), bool)
  reached[0] = True
  # All edges into a node come before those that leave it.
  for row, (src, dst) in enumerate(nasbench201.EDGES):
    reached[dst] |= reached[src] & (ops[:, row] != none)
  return reached[-1]


def check_indices(indices: int | np.ndarray) -> None:
  """Raises ValueError if a number is not that of a cell."""
  array = np.asarray(indices)
  ok = np.issubdtype(array.dtype, np.integer)
  if not ok or np.any((array < 0) | (array >= NUM_CELLS)):
    raise ValueError(
      f'index is {indices!r}; it must be whole and from 0 to {NUM_CELLS - 1}.'
    )
