"""Where the milliseconds of an architecture go.

Where a latency table has the time of every op of the network, they are told
place by place. Where only whole networks were measured, what the predictor says
of the architecture is divided among its edges by Shapley values (Shapley 1953):
an edge's mean share over all orders in which the edges could be put into the
network. Those add up to the prediction whatever the runtime fuses or drops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import itertools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from hwdarts_jax.latency import cost
from hwdarts_jax.latency.table import LatencyTable
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec, Site

Gates = Mapping[str, Any]
Predict = Callable[[Gates], Any]
_MAX_EXACT = 10  # edges; of more, orders are drawn
_NUM_ORDERS = 400


class Part(NamedTuple):
  """All places of a network that count as one.

  Attributes:
    group: of the alphas, None for ops that were never chosen.
    row: of the alphas, or None.
    op: what runs there.
    edge: pair (src, dst), or None.
    places: how many there are in the network.
    macs: of all of them.
    params: of all of them.
    ms: of all of them, None if not known.
  """

  group: str | None
  row: int | None
  op: str
  edge: tuple[int, int] | None
  places: int
  macs: int
  params: int
  ms: float | None


class Breakdown(NamedTuple):
  """The milliseconds of an architecture, part by part.

  Attributes:
    how: 'entries' of a table, 'shapley', or 'unknown'.
    parts: searched edges first.
    rest_ms: what no part accounts for; None if nothing is known.
    total_ms: of the parts and the rest.
  """

  how: str
  parts: tuple[Part, ...]
  rest_ms: float | None
  total_ms: float | None


def of(
  spec: NetworkSpec,
  genotype: Genotype,
  predict: Predict | None,
  table: LatencyTable | None,
) -> Breakdown:
  """Divides the latency of an architecture.

  Args:
    spec: the deployed space.
    genotype: an architecture of it.
    predict: for each group gates f[N, E, O] -> ms f[N]; None: not known.
    table: of the device, or None.
  """
  network = discretize.discretize(spec, genotype)
  by_entries = table is not None and not table.missing_keys(network)
  parts = _parts(spec, network, table if by_entries else None)
  if by_entries:
    total = sum(p.ms or 0.0 for p in parts)
    return Breakdown('entries', parts, 0.0, total)
  if predict is None:
    return Breakdown('unknown', parts, None, None)
  shares, rest = _shapley(spec, genotype, predict)
  parts = tuple(p._replace(ms=shares.get((p.group, p.row))) for p in parts)
  return Breakdown('shapley', parts, rest, rest + sum(shares.values()))


def sites_ms(
  network: NetworkSpec, table: LatencyTable | None
) -> dict[str, float] | None:
  """Milliseconds of each site by its path, None if an entry is missing."""
  if table is None or table.missing_keys(network):
    return None
  return {s.path: _entry_ms(table, s) for s in network.sites()}


def _entry_ms(table: LatencyTable, site: Site) -> float:
  return table.lookup(site.key(site.ops[0])).value_ms


def _parts(
  spec: NetworkSpec, network: NetworkSpec, table: LatencyTable | None
) -> tuple[Part, ...]:
  groups = spec.groups()
  found: dict[Any, list[Site]] = {}
  for site in network.sites():
    (op,) = site.ops
    searched = site.group in groups and site.row is not None
    key = (site.group, site.row, op) if searched else (None, None, op)
    found.setdefault(key, []).append(site)
  parts = [
    Part(
      group,
      row,
      op,
      None if group is None else groups[group].edges[row],
      len(sites),
      int(sum(cost.macs(s, op) for s in sites)),
      int(sum(cost.params(s, op) for s in sites)),
      None if table is None else sum(_entry_ms(table, s) for s in sites),
    )
    for (group, row, op), sites in found.items()
  ]
  return tuple(sorted(parts, key=lambda p: p.group is None))


def _shapley(
  spec: NetworkSpec, genotype: Genotype, predict: Predict
) -> tuple[dict[tuple[str | None, int | None], float], float]:
  """Shares in ms by (group, row), and what the network without them costs."""
  chosen = discretize.one_hot(spec, genotype)
  rows = [
    (name, row)
    for name, gates in chosen.items()
    for row in np.flatnonzero(gates.any(-1)).tolist()
  ]
  jitted = jax.jit(predict)
  without = _without(spec, chosen, jitted)

  def value(masks: np.ndarray) -> np.ndarray:
    gates = {}
    for name in chosen:
      keep = np.ones((len(masks), len(chosen[name])), bool)
      for i, (group, row) in enumerate(rows):
        if group == name:
          keep[:, row] = masks[:, i]
      gates[name] = np.where(keep[..., None], chosen[name], without[name])
    return np.asarray(jitted(gates), np.float64)

  shares = shapley(value, len(rows))
  rest = float(value(np.zeros((1, len(rows)), bool))[0])
  return dict(zip(rows, shares.tolist(), strict=True)), rest


def _without(
  spec: NetworkSpec, chosen: dict[str, np.ndarray], predict: Predict
) -> dict[str, np.ndarray]:
  """Gates in which each edge has nothing, or else its cheapest op."""
  result = {name: gates.copy() for name, gates in chosen.items()}
  for name, group in spec.groups().items():
    zeros = [i for i, op in enumerate(group.ops) if op_lib.is_zero(op)]
    for row in np.flatnonzero(chosen[name].any(-1)).tolist():
      best = zeros[0] if zeros else _cheapest(chosen, name, row, predict)
      result[name][row] = np.eye(len(group.ops))[best]
  return result


def _cheapest(
  chosen: dict[str, np.ndarray], name: str, row: int, predict: Predict
) -> int:
  """The op with which the architecture is fastest."""
  count = chosen[name].shape[1]
  gates = {g: np.repeat(p[None], count, axis=0) for g, p in chosen.items()}
  gates[name][:, row] = np.eye(count)
  return int(np.argmin(np.asarray(predict(gates))))


def shapley(
  value: Callable[[np.ndarray], np.ndarray], count: int, seed: int = 0
) -> np.ndarray:
  """Shapley values f64[count] of a game.

  Exact for up to ten players; of more, the mean over 400 random orders and
  their reverses, which also adds up to the value of all players less that of
  none.

  Args:
    value: of coalitions bool[N, count] -> f[N].
    count: players.
    seed: of the orders.
  """
  if count > _MAX_EXACT:
    return _drawn(value, count, np.random.default_rng(seed))
  masks = np.array(list(itertools.product((False, True), repeat=count)), bool)
  worth = value(masks.reshape(-1, count))
  bits = 1 << np.arange(count)[::-1]
  result = np.zeros(count)
  for i in range(count):
    out = np.flatnonzero(~masks[:, i])
    sizes = masks[out].sum(1)
    weight = [1 / (count * math.comb(count - 1, k)) for k in sizes]
    result[i] = np.dot(weight, worth[out + bits[i]] - worth[out])
  return result


def _drawn(value, count: int, rng: np.random.Generator) -> np.ndarray:
  result = np.zeros(count)
  for _ in range(_NUM_ORDERS // 2):
    order = rng.permutation(count)
    for each in (order, order[::-1]):
      masks = np.zeros((count + 1, count), bool)
      for i, player in enumerate(each):
        masks[i + 1 :, player] = True
      result[each] += np.diff(value(masks))
  return result / (_NUM_ORDERS // 2 * 2)
