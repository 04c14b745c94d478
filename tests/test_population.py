"""Members share params and are searches of their own in all else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import update_cases as tiny

from hwdarts_jax.bilevel import dual, population, update
from hwdarts_jax.bilevel.population import Population
from hwdarts_jax.models import evaluations, ops
from hwdarts_jax.runtime import optimizers

SIZE, PER_STEP = 4, 2


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _problem(
  hypergrad='lookahead',
  lr=tiny.LR,
  bounded=False,
  evaluation='plain',
  **settings,
):
  """That of a single search, in float64, with batch groups that can be cut."""
  problem = tiny._problem(hypergrad, jnp.float64, **settings)
  context = ops.Context(affine=False, bn_groups=2, dtype=jnp.float64)
  constraints = (dual.Constraint('latency_ms', tiny._latency),)
  return dataclasses.replace(
    problem,
    network=evaluations.make(tiny._spec(), context, evaluation),
    params_optimizer=optimizers.make('sgd', lr, tiny.STEPS, momentum=0.9),
    constraints=constraints if bounded else (),
  )


def _population(problem, size=SIZE, per_step=PER_STEP):
  return Population(problem, problem, size, per_step)


def _cast(tree):
  return jax.tree.map(
    lambda x: (
      x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
    ),
    tree,
  )


def _start(of, targets=None):
  targets = {} if targets is None else {'latency_ms': targets}
  return _cast(
    population.init_state(of, 0, range(of.size), [0.5] * of.size, targets)
  )


def _step(make, of):
  """`make_step` of a single search or of a population, compiled."""
  return jax.jit(update.make_step(of, tiny._fetch, advance=make))


@functools.cache
def _steps(num_steps):
  """The states of a population, from the first on."""
  of = _population(_problem())
  states, step = [_start(of)], _step(population.population_update, of)
  for i in range(num_steps):
    states.append(step(states[-1], *tiny._chunks(jnp.float64, i, 1))[0])
  return states


def _own(state, member):
  return jax.tree.map(
    lambda x: x[member],
    (state.alphas, state.alphas_opt, state.multiplier, state.duals),
  )


@pytest.mark.parametrize(
  ('hypergrad', 'evaluation'),
  [('first_order', 'plain'), ('lookahead', 'plain'), ('first_order', 'fused')],
)
def test_one_member_alone_is_a_single_search(hypergrad, evaluation):
  """Params, statistics, alphas and metrics, over several steps."""
  problem = _problem(hypergrad, evaluation=evaluation)
  of = _population(problem, 1, 1)
  state, alone = _start(of), _cast(update.init_state(problem, 0, 0.5))
  step = _step(population.population_update, of)
  single = _step(update.bilevel_update, problem)
  for i in range(4):
    chunks = tiny._chunks(jnp.float64, i, 1)
    state, metrics = step(state, *chunks)
    alone, want = single(alone, *chunks)
  assert set(metrics) == set(want)
  for name in want:
    np.testing.assert_allclose(metrics[name], want[name], rtol=1e-8)
  tiny._close(state.params, alone.params, 1e-8)
  tiny._close(_own(state, 0)[0], alone.alphas, 1e-8)
  tiny._close(state.batch_stats, alone.batch_stats, 1e-8)


def test_two_programs_make_the_step_of_one():
  """A step by halves is that of the whole, which one search is equal to."""
  of = _population(_problem('lookahead'))
  whole = _step(population.population_update, of)
  halves = [
    _step(half, of)
    for half in (population.inner_update, population.outer_update)
  ]
  state = apart = _start(of)
  for i in range(3):
    chunks = tiny._chunks(jnp.float64, i, 1)
    state, want = whole(state, *chunks)
    before = apart
    apart, first = halves[0](apart, *chunks)
    assert apart.step == before.step
    assert tiny._same(apart.alphas, before.alphas)
    apart, second = halves[1](apart, *chunks)
    for name, value in want.items():
      np.testing.assert_allclose((first | second)[name], value, rtol=1e-8)
  tiny._close(apart, state, 1e-8)


def test_only_members_whose_turn_it_is_move_and_all_get_it_as_often():
  states = _steps(4)
  for i, (before, after) in enumerate(
    zip(states[:-1], states[1:], strict=True)
  ):
    turn = {2 * (i % 2), 2 * (i % 2) + 1}
    for member in range(SIZE):
      stays = tiny._same(_own(before, member), _own(after, member))
      assert stays == (member not in turn)
    assert not tiny._same(before.params, after.params)


def test_a_member_moves_as_if_it_were_alone_with_its_images_and_target():
  """While params stand still, others change nothing for it, nor its place."""
  problem = _problem(lr=0.0, bounded=True)
  of = _population(problem)
  before = _start(of, targets=[0.3, 0.6, 0.9, 1.2])
  chunks = tiny._chunks(jnp.float64, 0, 1)
  after, _ = _step(population.population_update, of)(before, *chunks)
  half = tiny.BATCH // PER_STEP
  single = _step(update.bilevel_update, problem)
  for member in range(PER_STEP):
    mine = slice(half * member, half * (member + 1))
    parts = [c._replace(indices=c.indices[:, mine]) for c in chunks]
    alone, metrics = single(population.view(of, before, member), *parts)
    tiny._close(_own(after, member)[0], alone.alphas, 1e-8)
    tiny._close(_own(after, member)[-1], alone.duals, 1e-8)
    assert metrics['multiplier/latency_ms'] > 0


def test_members_draw_samples_of_their_own_on_each_level():
  of = _population(_problem(relaxation='sampled'))
  state = _start(of)
  flat = {'cell': jnp.zeros((SIZE, 3, 5))}
  draw = population._Draw(of, state, jnp.arange(SIZE))
  drawn = np.concatenate([draw.train(flat)['cell'], draw.val(flat)['cell']])
  # 125 equal chances each.
  assert len({sample.tobytes() for sample in drawn}) >= 2 * SIZE - 2
  again = population._Draw(of, state, jnp.arange(SIZE)).train(flat)['cell']
  np.testing.assert_array_equal(drawn[:SIZE], again)


def test_schedules_of_a_member_count_its_own_turns():
  """Of 8 steps with 2 of 4 members each, every member has 4 turns."""
  member = _problem(num_steps=4, temperature_start=1.0, temperature_end=0.1)
  of = Population(_problem(), member, SIZE, PER_STEP)
  state = _start(of)
  found = [
    float(
      member.temperature(population.view(of, state.replace(step=s), 0).step)
    )
    for s in jnp.arange(8)
  ]
  want = np.repeat(np.geomspace(1.0, 0.1, 4), 2)
  np.testing.assert_allclose(found, want, rtol=1e-6)


def test_members_that_do_not_go_around_evenly_are_refused():
  with pytest.raises(ValueError, match='members_per_step is 3; it must divide'):
    _population(_problem(), 4, 3)


def test_estimators_that_look_through_the_inner_step_are_refused():
  with pytest.raises(ValueError, match="hypergrad.name is 'unrolled'; a pop"):
    _population(_problem('unrolled'))
