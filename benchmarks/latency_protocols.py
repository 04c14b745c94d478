"""Whose rows a latency model may see, and on which it is scored.

The protocols of the literature on the shipped series over NAS-Bench-201 (see
``latency_tables/README.md``). Cells are numbered as in `oracle`; protocols that
count by the official order of the benchmark go through its `official_index`.
"""

from __future__ import annotations

from collections.abc import Iterable
import functools
from typing import NamedTuple

import numpy as np

from hwdarts_jax import oracle, spaces
from hwdarts_jax.latency import fewshot
from hwdarts_jax.spaces import nasbench201

SEEDS = tuple(range(5))
# HELP (Lee et al., NeurIPS 2021), loader.py: its meta-training devices.
HELP_TRAIN = (
  '1080ti_1',
  '1080ti_32',
  '1080ti_256',
  'silver_4114',
  'silver_4210r',
  'samsung_a50',
  'pixel3',
  'essential_ph_1',
  'samsung_s7',
)
# NASFLAT's task 2; two of its sources, titanxp_1 and titanxp_32, are not here.
SERVER_GPUS = (
  '1080ti_1',
  '1080ti_32',
  '1080ti_256',
  'titanx_1',
  'titanx_32',
  'titanx_256',
)
NASFLAT_TASK_2 = ('1080ti_1', '1080ti_32', '1080ti_256')
EDGE_TARGETS = (
  'jetson_nano_gpu_fp16',
  'snapdragon855_hexagon690_int8',
  'edge_tpu_int8',
)
SMALL_SERIES = ('pixel4_cpu', 'intel_ncs2')


class Split(NamedTuple):
  """Cells of the target, as rows of `oracle`.

  Attributes:
    train: measured, i[n].
    test: scored, i[m].
  """

  train: np.ndarray
  test: np.ndarray


@functools.cache
def spec():
  """The space of all series here."""
  return spaces.make('nasbench201')


def one_hot(cells: np.ndarray) -> dict[str, np.ndarray]:
  """Cells as gates f32[N, E, O] of their group."""
  ops = oracle.load().ops[cells]
  return {nasbench201.GROUP: np.eye(len(nasbench201.OPS), dtype='f')[ops]}


def measured(device: str, connected_only: bool = True) -> np.ndarray:
  """Cells of which a device has a latency, i[N]."""
  known = np.isfinite(oracle.latencies(device))
  if connected_only:
    known &= oracle.load().connected
  return np.flatnonzero(known)


def rows(device: str, cells: np.ndarray) -> fewshot.Rows:
  """Measured cells of a device, for the few-shot model."""
  return fewshot.Rows(one_hot(cells), oracle.latencies(device)[cells])


def series(
  devices: Iterable[str], official: range | None = None
) -> dict[str, fewshot.Rows]:
  """Connected cells of other devices.

  Args:
    devices: their names.
    official: only cells with these official numbers, such as the first 900
      that HELP trains on; None: all that were measured.
  """
  found = {}
  for device in devices:
    cells = measured(device)
    if official is not None:
      cells = cells[np.isin(oracle.load().official_index[cells], official)]
    found[device] = rows(device, cells)
  return found


def help_split(device: str, count: int, seed: int) -> Split:
  """HELP's: samples from archs 0-899, test on 900-1899, both trimmed.

  In pool and test the fastest and slowest 10 % by true latency are dropped.
  Cells without a path from input to output are in it, as they are in HELP.
  """
  pool, test = help_pool(device), _trimmed(device, range(900, 1900))
  rng = np.random.default_rng(seed)
  return Split(np.sort(rng.choice(pool, count, replace=False)), test)


def help_pool(device: str) -> np.ndarray:
  """The cells that HELP draws its samples from."""
  return _trimmed(device, range(900))


def random_split(
  device: str, count: int, seed: int, samples_in_test: bool = False
) -> Split:
  """Connected cells drawn at random; test on the rest.

  Args:
    device: the target.
    count: how many.
    seed: of the draw.
    samples_in_test: as in NASFLAT, whose test is all cells.
  """
  cells = measured(device)
  rng = np.random.default_rng(seed)
  train = np.sort(rng.choice(cells, count, replace=False))
  test = cells if samples_in_test else np.setdiff1d(cells, train)
  return Split(train, test)


def _trimmed(device: str, official: range) -> np.ndarray:
  """Cells in the order of latency without the first and last tenth."""
  cells = measured(device, connected_only=False)
  cells = cells[np.isin(oracle.load().official_index[cells], official)]
  order = cells[np.argsort(oracle.latencies(device)[cells], kind='stable')]
  cut = len(order) // 10
  return np.sort(order[cut : len(order) - cut])
