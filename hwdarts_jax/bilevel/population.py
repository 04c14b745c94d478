"""Many members on one set of params: a whole front in one search.

A member is a search of its own, with its own alphas, their optimizer,
multiplier and targets. Params are trained once, for all of them. In each step a
few members take their turn, one after the other around the circle:

    inner   params are trained on one batch, a part of it by each of these
            members' gates
    outer   alphas of these members move, each by the validation loss of its own
            part of the other batch

Both are one pass over the network (`evaluations.apply_members`), so that a step
costs what a step of one search with these batches costs, whatever the number of
members. In a `SearchState` of a population, `alphas`, `alphas_opt`,
`multiplier` and `duals` have a leading axis of members.

A member's schedules (temperature, warm-up, multipliers, steps of its optimizer)
count its own turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hwdarts_jax.bilevel import losses, update
from hwdarts_jax.bilevel import problem as problem_lib
from hwdarts_jax.bilevel.problem import (
  Batch,
  Metrics,
  Problem,
  SearchState,
  Tree,
)
from hwdarts_jax.models import evaluations

# Estimators that need no more than values and gradients at given params.
HYPERGRADS = ('first_order', 'lookahead')
_OWN = ('alphas', 'alphas_opt', 'multiplier', 'duals')


@dataclasses.dataclass(frozen=True)
class Population:
  """What a population optimizes.

  Attributes:
    problem: of the params; its steps are those of the population.
    member: of each member; its steps are a member's own turns.
    size: number of members.
    per_step: members that take their turn in a step; divides `size`.
  """

  problem: Problem
  member: Problem
  size: int
  per_step: int

  def __post_init__(self):
    if self.size < 1 or self.per_step < 1 or self.size % self.per_step:
      raise ValueError(
        f'population.members_per_step is {self.per_step}; it must divide the '
        f'number of members, which is {self.size}.'
      )
    if self.problem.hypergrad not in HYPERGRADS:
      raise ValueError(
        f'hypergrad.name is {self.problem.hypergrad!r}; a population takes '
        f'one of {HYPERGRADS}.'
      )

  @property
  def steps_per_turn(self) -> int:
    """Steps from one turn of a member to its next."""
    return self.size // self.per_step

  def turn(self, step: jax.Array | int) -> jax.Array:
    """Members whose turn it is, i32[per_step]."""
    first = jnp.asarray(step) % self.steps_per_turn * self.per_step
    return first + jnp.arange(self.per_step)


def init_state(
  population: Population,
  seed: int,
  seeds: Sequence[int],
  multipliers: Sequence[float],
  targets: Mapping[str, Sequence[float]],
) -> SearchState:
  """Returns the state before the first step.

  Args:
    population: what is optimized.
    seed: of the params, and of the steps.
    seeds: of the alphas of each member.
    multipliers: fixed weight of the hardware cost, of each member.
    targets: of each constraint, for each member.
  """
  # Members have constraints; what they share has none.
  shared = dataclasses.replace(population.problem, constraints=())
  state = problem_lib.init_state(shared, seed, 0.0)
  members = [
    problem_lib.init_alphas(
      population.member,
      seeds[i],
      multipliers[i],
      targets={name: values[i] for name, values in targets.items()},
    )
    for i in range(population.size)
  ]
  return state.replace(**jax.tree.map(lambda *x: jnp.stack(x), *members))


def view(population: Population, state: SearchState, members) -> SearchState:
  """Returns the state of members, their own turns being its steps.

  Args:
    population: what is optimized.
    state: of the population.
    members: i32[...]; leading axes of what is their own.
  """
  own = jax.tree.map(
    lambda x: x[members], {name: getattr(state, name) for name in _OWN}
  )
  return state.replace(step=state.step // population.steps_per_turn, **own)


def probabilities(
  population: Population, state: SearchState
) -> dict[str, jax.Array]:
  """Distribution over ops of all members: for each group f32[M, E, O]."""
  everyone = view(population, state, jnp.arange(population.size))
  return population.member.probabilities(everyone)


def population_update(
  population: Population,
  state: SearchState,
  train_batch: Batch,
  val_batch: Batch,
) -> tuple[SearchState, Metrics]:
  """One bilevel step of the members whose turn it is.

  Args:
    population: what is optimized.
    state: of the population.
    train_batch: B images, of which each member takes B / per_step.
    val_batch: likewise.

  Returns:
    The next state, and scalars as of `update.bilevel_update`, means over these
    members.
  """
  if population.problem.hypergrad == 'lookahead':
    state, first = inner_update(population, state, train_batch, val_batch)
    state, second = outer_update(population, state, train_batch, val_batch)
    return state, first | second
  mine, draw = _turn(population, state)
  params, first = _inner(population, state, mine, draw, train_batch)
  own, second = _outer(population, mine, state.params, draw, val_batch)
  state = _entered(population, state, own)
  return state.replace(step=state.step + 1, **params), first | second


def inner_update(
  population: Population,
  state: SearchState,
  train_batch: Batch,
  val_batch: Batch,
) -> tuple[SearchState, Metrics]:
  """The first half of a step by `lookahead`: params move, nothing else.

  The halves are two programs where one would take too long to compile.
  """
  del val_batch
  mine, draw = _turn(population, state)
  params, metrics = _inner(population, state, mine, draw, train_batch)
  return state.replace(**params), metrics


def outer_update(
  population: Population,
  state: SearchState,
  train_batch: Batch,
  val_batch: Batch,
) -> tuple[SearchState, Metrics]:
  """The second half, at the params that the first has stepped to."""
  del train_batch
  mine, draw = _turn(population, state)
  own, metrics = _outer(population, mine, state.params, draw, val_batch)
  state = _entered(population, state, own)
  return state.replace(step=state.step + 1), metrics


def _turn(
  population: Population, state: SearchState
) -> tuple[SearchState, _Draw]:
  """The state of the members whose turn it is, and what draws their gates."""
  members = population.turn(state.step)
  return view(population, state, members), _Draw(population, state, members)


def _entered(
  population: Population, state: SearchState, own: dict[str, Any]
) -> SearchState:
  """The state with what is new of the members whose turn it is."""
  members = population.turn(state.step)
  return state.replace(
    **{
      name: jax.tree.map(
        lambda old, part: old.at[members].set(part), getattr(state, name), value
      )
      for name, value in own.items()
    }
  )


class _Draw:
  """Draws gates of members; other numbers on each level and for each."""

  def __init__(self, population: Population, state: SearchState, members):
    rng = jax.random.fold_in(state.rng, state.step)
    self._train, self._val = jax.random.split(rng)
    self._problem, self._members = population.member, members
    self._step = state.step // population.steps_per_turn

  def train(self, alphas) -> dict[str, jax.Array]:
    """Gates of the train batch, for each group f[P, E, O]."""
    return self._gates(alphas, self._train)

  def val(self, alphas) -> dict[str, jax.Array]:
    """Gates of the validation batch, for each group f[P, E, O]."""
    return self._gates(alphas, self._val)

  def _gates(self, alphas, rng):
    def one(alphas, member):
      own = jax.random.fold_in(rng, member)
      return self._problem.gates(alphas, self._step, own)

    return jax.vmap(one)(alphas, self._members)


def _inner(
  population: Population,
  state: SearchState,
  mine: SearchState,
  draw: _Draw,
  batch: Batch,
) -> tuple[dict[str, Tree], Metrics]:
  """The next params with their optimizer and statistics, and metrics."""
  problem, parts = population.problem, _parts(batch, population.per_step)
  gates = draw.train(mine.alphas)

  def loss(params):
    logits, stats = evaluations.apply_members(
      problem.network,
      {'params': params, 'batch_stats': state.batch_stats},
      parts['image'],
      gates,
    )
    value, accuracy = jax.vmap(losses.loss_and_accuracy)(logits, parts)
    metrics = {'train_loss': value.mean(), 'train_accuracy': accuracy.mean()}
    return value.mean(), (stats, metrics)

  grads, (stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
  moved, norm = update.move_params(problem, state, grads, stats)
  names = ('params', 'params_opt', 'batch_stats')
  return {name: getattr(moved, name) for name in names}, metrics | norm


def _outer(
  population: Population, mine: SearchState, params, draw: _Draw, batch: Batch
) -> tuple[dict[str, Any], Metrics]:
  """What is the members' own after their step, and metrics."""
  problem, parts = population.member, _parts(batch, population.per_step)

  def objective(alphas, multiplier, loss, accuracy):
    one = mine.replace(alphas=alphas, multiplier=multiplier)
    return losses.objective_of(problem, one, alphas, loss, accuracy)

  def total(alphas):
    logits, _ = evaluations.apply_members(
      problem.network,
      {'params': params, 'batch_stats': mine.batch_stats},
      parts['image'],
      draw.val(alphas),
    )
    loss, accuracy = jax.vmap(losses.loss_and_accuracy)(logits, parts)
    values, metrics = jax.vmap(objective)(
      alphas, mine.multiplier, loss, accuracy
    )
    # Each is the loss of its own alphas alone: the sum has all gradients.
    return values.sum(), metrics

  grads, metrics = jax.grad(total, has_aux=True)(mine.alphas)

  def move(own, grads):
    moved, more = update.move_alphas(problem, mine.replace(**own), grads)
    return {name: getattr(moved, name) for name in _OWN}, more

  own = {name: getattr(mine, name) for name in _OWN}
  own, more = jax.vmap(move)(own, grads)
  return own, jax.tree.map(lambda m: m.mean(0), metrics | more)


def _parts(batch: Batch, count: int) -> dict[str, jax.Array]:
  """A batch f[B, ...] as f[count, B / count, ...]."""
  return {name: x.reshape(count, -1, *x.shape[1:]) for name, x in batch.items()}
