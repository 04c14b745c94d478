"""Job `pareto`: a whole front of architectures in one search.

One set of params serves all members (`bilevel.population`); each has a latency
target, or a fixed multiplier, and alphas of its own. Writes config.json,
checkpoints/, metrics.jsonl, tensorboard/, members/*.json, front.json and
front.png. The same workdir resumes, to the bit.

Files of members are files of genotypes: give them to `retrain`. The accuracy
that is told is that of the shared params, good enough to compare members of one
target; what a network is worth is known when it is trained.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from etils import epath
import jax
import ml_collections
import numpy as np

from hwdarts_jax.bilevel import population as population_lib
from hwdarts_jax.bilevel.population import Population
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common, pareto_report
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.jobs.members import accuracies
from hwdarts_jax.latency import budgets, liveness, projection, sampling
from hwdarts_jax.runtime import distributed, sharding
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

FRONT = pareto_report.FRONT
_SHOWN = ('train_loss', 'val_accuracy', 'gate_entropy')
_NUM_SAMPLES = 2000  # random architectures that say where targets may lie
_TARGETS = (5, 95)  # percentiles of their latencies, the default targets


class Member(NamedTuple):
  """What distinguishes a member.

  Attributes:
    bound: of its latency, None if it has a multiplier.
    multiplier: fixed weight of its latency, 0 if it has a bound.
    seed: of its alphas.
  """

  bound: bounds_lib.Bound | None
  multiplier: float
  seed: int


@dataclasses.dataclass(frozen=True)
class Pareto:
  """Everything a population needs besides its state.

  Attributes:
    search: what a single search of this config would be.
    members: by their number.
    population: what is optimized.
  """

  search: search_job.Search
  members: tuple[Member, ...]
  population: Population


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Searches; prints the front at the end.

  Raises:
    ValueError: something in the config cannot be; the message names it.
    loop.NonFiniteError: the loss is no longer finite.
  """
  pareto = make(config)
  with loop_lib.opened(config, workdir, pareto.search.hashes()) as path:
    if distributed.any_process((path / FRONT).exists()):
      print(f'{path} is finished already; a new search needs a new --workdir.')
    elif not _search(pareto, path):
      return
    if distributed.is_first():
      print(pareto_report.of(path))


def make(config: ml_collections.ConfigDict) -> Pareto:
  """Builds everything from the config; see `run` for errors."""
  settings_lib.check(config.to_dict())
  _check(config)
  search = search_job.make(config)
  members = _members(config, search)
  per_step = min(config.population.members_per_step, len(members))
  shared = search.problem
  turns = max(shared.num_steps * per_step // len(members), 1)
  constraints = bounds_lib.constraints(
    [m.bound for m in members[:1] if m.bound is not None]
  )
  own = dataclasses.replace(
    shared,
    num_steps=turns,
    warmup_steps=shared.warmup_steps * per_step // len(members),
    alphas_optimizer=settings_lib.make_optimizer(
      'alphas_optimizer', common.section(config, 'alphas_optimizer'), turns
    ),
    constraints=constraints,
  )
  population = Population(shared, own, len(members), per_step)
  sharding.check_batch(
    config.search.batch_size,
    per_step * config.network.bn_groups,
    search.mesh.size,
    'search.batch_size',
  )
  return Pareto(search, members, population)


def _check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for settings that are those of a single search."""
  alone = {
    'objective.target_ms': config.objective.target_ms,
    'objective.constraints': dict(config.objective.constraints),
    'search.memory_gb': config.search.memory_gb,
    'diagnostics.every_steps': config.diagnostics.every_steps,
  }
  for field, value in alone.items():
    if value:
      raise ValueError(
        f'{field} is {value!r}; job pareto takes none: it is for a single '
        'search. Targets of members are population.targets_ms.'
      )
  if config.population.targets_ms and config.population.multipliers:
    raise ValueError(
      f'population.targets_ms is {config.population.targets_ms!r} and '
      f'population.multipliers {config.population.multipliers!r}; give one.'
    )


def _members(
  config: ml_collections.ConfigDict, search: search_job.Search
) -> tuple[Member, ...]:
  """All members: each target or multiplier with each seed."""
  own = config.population
  deploy, latency = search.specs.deploy, search.latency
  budget = budgets.make(bounds_lib.LATENCY, deploy, latency.predict)
  points: list[tuple[bounds_lib.Bound | None, float]]
  if own.multipliers:
    points = [(None, float(m)) for m in own.multipliers]
  else:
    margin = bounds_lib.margin(config.objective.margin, latency)
    targets = own.targets_ms or _spread(deploy, budget, own.num_targets)
    found = [
      bounds_lib.Bound(budget, float(t), margin, 'population.targets_ms')
      for t in targets
    ]
    for bound in found:
      bounds_lib.check_feasible([bound], deploy, latency.device)
    points = [(bound, 0.0) for bound in found]
  return tuple(
    Member(bound, multiplier, config.seed + seed)
    for bound, multiplier in points
    for seed in range(own.seeds)
  )


def _spread(
  deploy: NetworkSpec, budget: budgets.Budget, count: int
) -> list[float]:
  """Targets in ms, from fast to slow in equal ratios."""
  uniform = discretize.uniform(deploy)
  rng = np.random.default_rng(0)
  drawn = sampling.draw(deploy, uniform, _NUM_SAMPLES, rng)
  costs = budget.costs(drawn)[liveness.is_connected(deploy, drawn)]
  low, high = np.percentile(costs, _TARGETS)
  return [float(ms) for ms in np.geomspace(low, high, count)]


def _search(pareto: Pareto, path: epath.Path) -> bool:
  """Runs or resumes; returns whether the search came to its end."""
  search, members = pareto.search, pareto.members
  bounds = [m.bound for m in members if m.bound is not None]
  state = population_lib.init_state(
    pareto.population,
    search.config.seed,
    [m.seed for m in members],
    [m.multiplier for m in members],
    {bounds_lib.LATENCY: [b.aim for b in bounds]} if bounds else {},
  )
  state = sharding.replicate(
    search_job.as_dtype(state, search.problem), search.mesh
  )
  loop = loop_lib.Loop(
    name='pareto',
    schedule=search.schedule,
    compile=functools.partial(_compile, pareto),
    feeds=search_job.feeds(search),
    on_row=functools.partial(_extend_row, pareto),
    shown=_SHOWN,
    advice='Try a lower params_optimizer.learning_rate or '
    'alphas_optimizer.learning_rate, with a new --workdir.',
    packs=search_job.PACKED,
  )
  state, done = loop.run(path, state)
  if done:
    finish(pareto, path, state)
  return done


def _compile(pareto: Pareto, state, chunks):
  """Compiles the update of the population, by halves where it has them."""
  search, population = pareto.search, pareto.population
  halves = [population_lib.population_update]
  # A scan over steps needs them whole.
  if (
    population.problem.hypergrad == 'lookahead'
    and pareto.search.schedule.steps_per_call == 1
  ):
    halves = [population_lib.outer_update, population_lib.inner_update]
  compiled = loop_lib.compile_together(
    'compiling the bilevel update',
    [
      (search.step(population, advance), (state, *chunks)) for advance in halves
    ],
    search.config.deterministic,
  )

  def step(state, *chunks):
    metrics: dict[str, Any] = {}
    for half in reversed(compiled):
      state, more = half(state, *chunks)
      metrics |= more
    return state, metrics

  return step


def _extend_row(pareto: Pareto, state, step: int, row) -> dict[str, Any]:
  """Adds the gates and the expected latency of every member."""
  del row, step
  probs = population_lib.probabilities(pareto.population, state)
  ms = pareto.search.latency.predict(probs)
  return {'member_ms': np.asarray(ms, np.float32)} | {
    f'gates/{g}': np.asarray(p, np.float32) for g, p in probs.items()
  }


def finish(pareto: Pareto, path: epath.Path, state) -> list[Genotype]:
  """Derives all genotypes and writes what a user wants to see.

  `front.json` is written last: its presence says that the run is finished.
  """
  search = pareto.search
  probs = jax.tree.map(
    np.asarray, population_lib.probabilities(pareto.population, state)
  )
  found = [
    projection.project(
      search.specs.search,
      {g: p[i] for g, p in probs.items()},
      [] if member.bound is None else [member.bound.limit],
    )
    for i, member in enumerate(pareto.members)
  ]
  genotypes = [each.genotype for each in found]
  judged = accuracies(search, state, genotypes)
  rows = metrics_lib.read(path)
  record = pareto_report.record(pareto, found, judged, rows)
  if distributed.is_first():
    pareto_report.write(path, record)
  return genotypes
