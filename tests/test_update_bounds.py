"""The bilevel update under budgets: multipliers by dual ascent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from update_cases import _close, _latency, _problem, _same, Program, STEPS

from hwdarts_jax.bilevel import dual, update
from hwdarts_jax.runtime import optimizers


@pytest.fixture(scope='module')
def bounded():
  """A program whose expected latency is bounded; the bound is in its state."""
  problem = dataclasses.replace(
    _problem('first_order', num_steps=10 * STEPS),
    constraints=(dual.Constraint('latency_ms', _latency),),
    alphas_optimizer=optimizers.make('adam', 0.03, STEPS, schedule='constant'),
  )
  return Program(problem, num_steps=STEPS)


def _bounded_state(problem, target):
  return update.init_state(problem, 0, 0.0, targets={'latency_ms': target})


@pytest.mark.parametrize('target', [0.5, 1.0])
def test_a_bounded_search_ends_within_its_target(bounded, target):
  """And not far below: the same program, with the bound in its state."""
  problem = bounded.problem
  state, weights = _bounded_state(problem, target), []
  for _ in range(10):
    state, metrics = bounded(state)
    weights.append(float(metrics['multiplier/latency_ms']))
  assert max(weights) > 0
  probs = dual.sharpened(problem.probabilities(state), 1.0, problem.dual)
  assert 0.75 * target < _latency(probs) <= 1.02 * target


def test_a_bound_that_no_mixture_reaches_is_as_good_as_none(bounded):
  """Then it never pulls down, and up by no more than its lift."""
  state, metrics = bounded(_bounded_state(bounded.problem, 100.0))
  bound, settings = state.duals['latency_ms'], bounded.problem.dual
  assert -settings.lift - 1e-6 <= float(bound.integral) <= 0
  assert float(metrics['multiplier/latency_ms']) <= 0
  assert float(metrics['expected/latency_ms']) > 1.0


def test_a_constraint_pulls_along_the_gradient_of_its_cost(x64):
  """By its multiplier times d excess, on top of the task's hypergradient."""
  problem = dataclasses.replace(
    _problem('first_order', jnp.float64),
    constraints=(dual.Constraint('latency_ms', _latency),),
  )
  rng = np.random.default_rng(0)
  alphas, grads = ({'cell': jnp.asarray(rng.normal(size=(3, 5)))} for _ in '12')
  bound = dual.start(0.4)._replace(integral=jnp.asarray(0.7))
  state = _bounded_state(problem, 0.4).replace(
    alphas=alphas, duals={'latency_ms': bound}, step=jnp.asarray(9)
  )
  total, duals, metrics = update.constrained(problem, state, grads)

  def excess(alphas):
    probs = {'cell': jax.nn.softmax(alphas['cell'])}
    progress = problem.progress(9)
    return _latency(dual.sharpened(probs, progress, problem.dual)) / 0.4 - 1

  pulled = jax.tree.map(lambda t, g: t - g, total, grads)
  weight = metrics['multiplier/latency_ms']
  want = jax.tree.map(lambda s: weight * s, jax.grad(excess)(alphas))
  _close(pulled, want, 1e-5)  # the target is a float32
  assert weight > 0
  assert duals['latency_ms'].integral > bound.integral


def test_multipliers_wait_for_the_end_of_the_warmup():
  """While alphas stay, what they exceed teaches nothing."""
  problem = dataclasses.replace(
    _problem('first_order', warmup_steps=2),
    constraints=(dual.Constraint('latency_ms', _latency),),
  )
  program = Program(problem)
  states = [_bounded_state(problem, 0.2)]
  for i in range(3):
    states.append(program(states[-1], i)[0])
  assert _same(states[2].duals, states[0].duals)
  assert not _same(states[3].duals, states[0].duals)
