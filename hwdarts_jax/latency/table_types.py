"""What a latency table consists of: constants, entries, networks, series."""

from __future__ import annotations

import dataclasses

from hwdarts_jax.spaces.spec import Genotype

SCHEMA = 1
KINDS = ('measured', 'published', 'estimated')
MEASURE_COMMAND = (
  'python -m hwdarts_jax.harness --config=... --runner=... --out=...'
)


@dataclasses.dataclass(frozen=True)
class Entry:
  """The latency of one operation.

  Attributes:
    value_ms: milliseconds; 0 where the runtime drops the operation.
    repeats: timed runs, or None if unknown.
    rounds: shuffled rounds the runs were spread over, or None if unknown.
    spread_ms: difference between the slowest and the fastest round in
      milliseconds, or None if unknown.
    noisy: whether the rounds still disagreed after all re-measurements.
    energy_mj: millijoules of one run, or None if they were not measured.
  """

  value_ms: float
  repeats: int | None
  rounds: int | None
  spread_ms: float | None
  noisy: bool = False
  energy_mj: float | None = None


@dataclasses.dataclass(frozen=True)
class NetworkRow:
  """The latency of one whole network.

  Attributes:
    genotype: the network.
    value_ms: milliseconds.
    repeats: timed runs, or None if unknown.
    spread_ms: as in `Entry`.
    spec_hash: `NetworkSpec.spec_hash` of the space it was deployed from.
    energy_mj: as in `Entry`.
  """

  genotype: Genotype
  value_ms: float
  repeats: int | None
  spread_ms: float | None
  spec_hash: str
  energy_mj: float | None = None


@dataclasses.dataclass(frozen=True)
class Series:
  """The latencies of all cells of the table's space, deployed by its spec.

  Attributes:
    value_ms: milliseconds in the order of `enumerate_ops`; None where the cell
      was not measured.
    repeats: timed runs of each, or None if unknown.
    spread_ms: as in `Entry`, typical of the series, or None if unknown.
    energy_mj: millijoules of each, in the same order; None where, or if, they
      were not measured.
  """

  value_ms: tuple[float | None, ...]
  repeats: int | None = None
  spread_ms: float | None = None
  energy_mj: tuple[float | None, ...] | None = None
