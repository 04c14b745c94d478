"""What other devices tell of a new one before it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses

import numpy as np

from hwdarts_jax.latency import blas, liveness
from hwdarts_jax.latency import fewshot_basis as basis_lib
from hwdarts_jax.latency import fewshot_mixture as mixture
from hwdarts_jax.latency.fewshot_basis import Rows, take, Values
from hwdarts_jax.spaces.spec import NetworkSpec

_MIN_SERIES = 20
_MIN_DEVICES = 3  # from which it can be learned what devices are like


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
  """What is known before a device is measured; made by `prepare`.

  Attributes:
    spec: the space.
    devices: names of the other devices.
    basis: functions that latencies are made of.
    model: all settings.
    log_prior: of each setting, f[M].
  """

  spec: NetworkSpec
  devices: tuple[str, ...]
  basis: basis_lib.Basis
  model: mixture.Model
  log_prior: np.ndarray


@blas.by_one_thread
def prepare(
  spec: NetworkSpec, series: Mapping[str, Rows] | None = None, seed: int = 0
) -> Prior:
  """Returns what other devices tell of a new one; `fit` can share it.

  Args:
    spec: the space.
    series: for each other device its measured networks; may be empty.
    seed: of simulated devices and of the rows that are held against them.

  Raises:
    ValueError: a series has too few rows.
  """
  series = dict(series or {})
  for name, rows in series.items():
    connected = liveness.is_connected(spec, rows.one_hot).sum()
    if connected < _MIN_SERIES:
      raise ValueError(
        f'the series of device {name!r} has {connected} networks that connect '
        'input and output; a prior needs at '
        f'least {_MIN_SERIES}. Leave it out.'
      )
  rng = np.random.default_rng(seed)
  basis = basis_lib.make(spec, series, rng)
  semantics = tuple(basis.semantics.tolist())
  model = mixture.Model(len(series), semantics)
  weights = np.full(len(model.kinds), 1 / len(model.kinds))
  if len(series) >= _MIN_DEVICES:
    pseudo = _pseudo_targets(spec, basis, series, rng)
    weights = mixture.learn_kinds(semantics, pseudo, len(series))
  return Prior(spec, tuple(series), basis, model, model.log_prior(weights))


def _pseudo_targets(
  spec, basis, series, rng
) -> Iterator[tuple[Values, np.ndarray]]:
  """Yields each device in the place of a new one, several times."""
  for device, rows in enumerate(series.values()):
    connected = np.flatnonzero(liveness.is_connected(spec, rows.one_hot))
    y = basis_lib.link(spec, np.asarray(rows.latency_ms, np.float64)[connected])
    for _ in range(mixture.PSEUDO_REPEATS):
      chosen = rng.choice(len(y), mixture.PSEUDO_ROWS, replace=False)
      values = basis(take(rows.one_hot, connected[chosen]))
      yield values.without(device), y[chosen]
