"""Checks a table, and holds its sums of ops against its whole networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any, cast, NamedTuple

import jax
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost, judge, liveness, predictor
from hwdarts_jax.latency.table import LatencyTable
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces.spec import NetworkSpec

CALIBRATION = 10  # networks that the sums are calibrated on
_MIN_TEST = 5
_NUM_SPLITS = 5
_MAX_NAMED = 5


class Additivity(NamedTuple):
  """What sums of ops say of whole networks that no fit has seen.

  Attributes:
    plain: `judge.quality` of the sums as they are, over all networks.
    calibrated: the same after one factor is fitted to `CALIBRATION` networks;
      means over random splits.
    corrected: the same, of the predictor that is fitted to these networks on
      top of the sums.
    bias_percent: median of sum over measurement, less one.
    semantics: which ops were summed; see `liveness`.
    networks: how many.
  """

  plain: dict[str, float]
  calibrated: dict[str, float]
  corrected: dict[str, float]
  bias_percent: float
  semantics: str
  networks: int


def report(
  table: LatencyTable, deploy: Mapping[str, Any] | None = None, space: str = ''
) -> str:
  """What a user wants to know of a table.

  Args:
    table: it has passed all checks of values by being one.
    deploy: settings of the space it shall serve; by default those it was
      measured with.
    space: name of that space.

  Raises:
    UserError: it lacks something that the space needs, or is of another.
  """
  zeros = sum(not e.value_ms for e in table.entries.values())
  noisy = [key for key, e in table.entries.items() if e.noisy]
  lines = [
    f'{table.device} ({table.soc or "unknown chip"}), {table.kind}, '
    f'{table.runtime or "unknown runtime"} {table.runtime_version or ""}, '
    f'{table.dtype or "unknown dtype"}, {table.date or "unknown date"}',
    f'{len(table.entries)} ops, {zeros} of them free, {len(noisy)} noisy'
    + (f' ({_some(noisy)})' if noisy else ''),
  ]
  spreads = [
    100 * e.spread_ms / e.value_ms
    for e in table.entries.values()
    if e.spread_ms is not None and e.value_ms
  ]
  if spreads:
    lines.append(
      f'rounds of an op differ by {np.median(spreads):.1f} % (median), '
      f'{max(spreads):.1f} % (most)'
    )
  spec = _spec(table, deploy, space or table.space)
  if spec is None:
    lines.append('no spec is known: name one by --config to check its keys')
    return '\n'.join(lines)
  table.check_covers(spec)
  missing = table.missing_keys(spec)
  lines.append(f'serves space {spec.space} with spec hash {spec.spec_hash()}')
  if missing:
    lines.append(f'{len(missing)} ops have no entry ({_some(missing)})')
  if not table.has_networks(spec):
    lines.append('no whole networks of that spec')
  elif missing:
    lines.append(f'{len(table.measured_networks(spec)[1])} whole networks')
  else:
    lines += _describe(additivity(table, spec))
  return '\n'.join(lines)


def additivity(table: LatencyTable, spec: NetworkSpec) -> Additivity | None:
  """Holds sums of ops against whole networks; None if there are too few."""
  one_hot, ms = table.networks_one_hot(spec)
  connected = liveness.is_connected(spec, one_hot)
  one_hot = {name: p[connected] for name, p in one_hot.items()}
  ms = ms[connected]
  if len(ms) < CALIBRATION + _MIN_TEST:
    return None
  entries = cost.of_entries(spec, table)
  semantics = predictor.counted_ops(spec, one_hot, ms, entries)
  sums = predictor.sum_costs(spec, entries, one_hot, semantics)
  network = predictor.LatencyPredictor(spec)
  calibrated, corrected = [], []
  for seed in range(_NUM_SPLITS):
    order = np.random.default_rng(seed).permutation(len(ms))
    train, test = order[:CALIBRATION], order[CALIBRATION:]
    model = predictor.fit(
      spec, _take(one_hot, train), ms[train], entries, held_out=0
    )
    predicted = judge.corner_ms(
      functools.partial(_apply, network, model.variables), _take(one_hot, test)
    )
    corrected.append(judge.quality(predicted, ms[test]))
    counted = predictor.counted_ops(
      spec, _take(one_hot, train), ms[train], entries
    )
    scaled = predictor.calibrate(
      spec, entries, _take(one_hot, train), ms[train], counted
    )
    predicted = predictor.sum_costs(spec, scaled, _take(one_hot, test), counted)
    calibrated.append(judge.quality(predicted, ms[test]))
  return Additivity(
    judge.quality(sums, ms),
    _mean(calibrated),
    _mean(corrected),
    float(100 * (np.median(sums / ms) - 1)),
    semantics,
    len(ms),
  )


def _describe(found: Additivity | None) -> list[str]:
  if found is None:
    return [
      f'fewer than {CALIBRATION + _MIN_TEST} whole networks: too few to hold '
      'sums of ops against them'
    ]
  return [
    f'{found.networks} whole networks; sums of their {found.semantics} ops are '
    f'off by {found.bias_percent:+.1f} % (median)',
    f'  as they are:                           {_figures(found.plain)}',
    f'  times a factor of {CALIBRATION} networks, others: '
    f'{_figures(found.calibrated)}',
    f'  corrected by {CALIBRATION} networks, others:      '
    f'{_figures(found.corrected)}',
  ]


def _figures(q: Mapping[str, float]) -> str:
  return (
    f'MAPE {q["mape_percent"]:.2f} %, within 5 %: {q["within_5_percent"]:.0f} %'
    f', Kendall {q["kendall_tau"]:.3f}'
  )


def _spec(
  table: LatencyTable, deploy: Mapping[str, Any] | None, space: str
) -> NetworkSpec | None:
  """The spec that a table is for, if that can be told."""
  if space not in spaces.names():
    return None
  if deploy is not None:
    if table.space not in ('', space):
      raise UserError(
        f'--config is of space {space!r}, the table of {table.space!r}.'
      )
    return spaces.make(space, **deploy)
  settings = table.source.get('deploy', {})
  if not isinstance(settings, Mapping):
    raise UserError(f'source.deploy is {settings!r}; it must be an object.')
  spec = spaces.make(table.space, **settings)
  return spec if table.spec_hash in (None, spec.spec_hash()) else None


def _some(keys: Sequence[str]) -> str:
  more = len(keys) - _MAX_NAMED
  shown = ', '.join(keys[:_MAX_NAMED])
  return shown + (f' and {more} more' if more > 0 else '')


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def _apply(network: predictor.LatencyPredictor, variables, gates) -> jax.Array:
  return cast(jax.Array, network.apply(variables, gates))


def _take(one_hot, rows):
  return {name: p[rows] for name, p in one_hot.items()}
