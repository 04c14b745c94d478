"""The bounds of a search: from the config to budgets that can be met.

`objective.target_ms` and `objective.constraints` bound costs of the deployed
network. Whether any architecture meets them is found out before anything is
trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

from hwdarts_jax.bilevel import dual
from hwdarts_jax.jobs import common, energy
from hwdarts_jax.latency import budgets, projection
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec

LATENCY = 'latency_ms'
ENERGY = 'energy_mj'
HELD_OUT = 'held_out'
_HELD_OUT_ERROR = 'slower_p99_percent'  # of `latency.judge.quality`


class Bound(NamedTuple):
  """A cost and what it may be.

  Attributes:
    budget: the cost.
    target: what was asked for.
    margin: share that is kept free for errors of a predictor.
    field: of the config that has the target, for messages.
  """

  budget: budgets.Budget
  target: float
  margin: float
  field: str

  @property
  def name(self) -> str:
    """Name of the cost."""
    return self.budget.name

  @property
  def aim(self) -> float:
    """What is aimed at, so that the target is met in spite of errors."""
    return self.target / (1 + self.margin)

  @property
  def limit(self) -> projection.Limit:
    """The bound as the projection takes it."""
    return projection.Limit(self.name, self.budget.costs, self.aim)


def make(
  objective: Mapping[str, Any],
  deploy: NetworkSpec,
  latency: common.LatencyModel,
) -> tuple[Bound, ...]:
  """Makes the bounds of the section `objective`.

  Raises:
    ValueError: a cost is unknown, was not measured or is bounded twice, or no
      architecture meets the bounds; the message has the feasible range.
  """
  found = []
  for name, (target, field) in targets(objective).items():
    budgets.check_name(name)
    # What is computed from the space has no error to keep a margin for.
    model = _measured(name, deploy, latency)
    predict = model.predict if model else None
    share = margin(objective['margin'], model, name) if model else 0.0
    budget = budgets.make(name, deploy, predict)
    found.append(Bound(budget, target, share, field))
  check_feasible(found, deploy, latency.device)
  return tuple(found)


def _measured(
  name: str, deploy: NetworkSpec, latency: common.LatencyModel
) -> common.LatencyModel | None:
  """The predictor of a cost, None if it follows from the space."""
  if name == ENERGY:
    return energy.make(latency, deploy)
  return latency if name == LATENCY else None


def targets(objective: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
  """The bounded costs: name -> target, and the field that has it.

  Raises:
    ValueError: the latency is bounded twice.
  """
  found = {
    name: (float(value), f'objective.constraints.{name}')
    for name, value in objective['constraints'].items()
  }
  if objective['target_ms']:
    if LATENCY in found:
      raise ValueError(
        f'objective.target_ms is {objective["target_ms"]!r} and '
        f'objective.constraints has {LATENCY} too; give one of them.'
      )
    target = float(objective['target_ms']), 'objective.target_ms'
    found = {LATENCY: target} | found
  return found


def margin(
  value: str | float, model: common.LatencyModel, name: str = LATENCY
) -> float:
  """The share of `objective.margin`; see `judge.quality` for 'held_out'.

  Args:
    value: of the field.
    model: the predictor that may err.
    name: of the cost that it predicts.

  Raises:
    ValueError: the predictor has no held-out errors.
  """
  if value != HELD_OUT:
    return float(value)
  report = model.card['held_out'] or {}
  if report.get(_HELD_OUT_ERROR) is None:
    raise ValueError(
      f'objective.margin is {HELD_OUT!r}, but the predictor of {name} on '
      f'{model.device!r} has no held-out errors: fit it to more networks, or '
      'give a share such as --config.objective.margin=0.05.'
    )
  return max(0.0, report[_HELD_OUT_ERROR] / 100)


def constraints(bounds: Sequence[Bound]) -> tuple[dual.Constraint, ...]:
  """The bounds as the bilevel update takes them."""
  return tuple(dual.Constraint(b.name, b.budget) for b in bounds)


def record(
  bounds: Sequence[Bound],
  found: projection.Projection,
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
  """What is known of each bound of a finished search, JSON-able.

  Args:
    bounds: of the search.
    found: the architecture, and how it was found.
    rows: of the metrics.
  """
  return {
    b.name: {
      'unit': b.budget.unit,
      'target': b.target,
      'margin': b.margin,
      'aim': b.aim,
      'predicted': (value := b.budget.of(found.genotype)),
      'is_feasible': bool(value <= b.aim),
      'was_projected': found.has_moved,
      'feasible_range': [b.budget.range.low, b.budget.range.high],
      'expected_at_end': float(rows[-1][f'expected/{b.name}']),
      'multiplier_at_end': float(rows[-1][f'multiplier/{b.name}']),
    }
    for b in bounds
  }


def lines(name: str, bound: Mapping[str, Any]) -> list[str]:
  """What the summary says of an entry of `record`."""
  unit = bound['unit']
  margin = bound['margin']
  aim = f', less a margin of {100 * margin:.1f} %' if margin else ''
  said = 'met' if bound['is_feasible'] else 'NOT MET'
  moved = ' by the most probable architecture that does'
  return [
    f'{name} of at most {bound["target"]:.4g} {unit}{aim}: {said} with '
    f'{bound["predicted"]:.4g} {unit}{moved if bound["was_projected"] else ""}',
    f'  multiplier ends at {bound["multiplier_at_end"]:.3g}, the expectation '
    f'it holds at {bound["expected_at_end"]:.4g} {unit}; architectures have '
    f'{bound["feasible_range"][0]:.4g} to {bound["feasible_range"][1]:.4g}',
  ]


def check_feasible(
  bounds: Sequence[Bound], deploy: NetworkSpec, device: str
) -> None:
  """Raises ValueError if no architecture meets all bounds."""
  for b in bounds:
    low, high = b.budget.range.low, b.budget.range.high
    if b.aim * (1 - 1e-6) < low:
      least = math.ceil(1000 * low * (1 + b.margin)) / 1000
      aim = f' (with its margin, {b.aim:.4g})' if b.margin else ''
      raise ValueError(
        f'{b.field} is {b.target:g}{aim}, which no architecture meets: those '
        f'of space {deploy.space!r} have {low:.4g} to {high:.4g} '
        f'{b.budget.unit} on {device}. Give at least {least:g}.'
      )
  if len(bounds) < 2:
    return
  uniform = discretize.uniform(deploy)
  found = projection.project(deploy, uniform, [b.limit for b in bounds])
  if not found.is_feasible:
    nearest = ', '.join(
      f'{b.budget.of(found.genotype):.4g} of {b.aim:.4g} {b.budget.unit} '
      f'({b.field})'
      for b in bounds
    )
    raise ValueError(
      'objective.constraints can be met one by one, but no architecture was '
      f'found that meets all of them; the nearest has {nearest}.'
    )
