"""The bilevel update on a supernet of one NAS-Bench-201 cell."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import (
  _chunks,
  _close,
  _fetch,
  _latency,
  _norm,
  _problem,
  _same,
  _spec,
  _state,
  GROUPS,
  Program,
  STEPS,
)

from hwdarts_jax.bilevel import hypergrad, update
from hwdarts_jax.models import evaluations
from hwdarts_jax.runtime import sharding
from hwdarts_jax.spaces import discretize

PARTS_OF_PARAMS = ('params', 'batch_stats', 'params_opt')
PARTS_OF_ALPHAS = ('alphas', 'alphas_opt')


class Levels(NamedTuple):
  """A state, after each level alone, and what both levels cost."""

  state: update.SearchState
  inner: update.SearchState
  outer: update.SearchState
  flops: float


@pytest.fixture(scope='module')
def program():
  """Programs by their settings, each compiled once for all tests."""

  @functools.cache
  def make(hypergrad, num_steps=1, mesh=None, **settings):
    return Program(_problem(hypergrad, **settings), num_steps, mesh)

  return make


@pytest.fixture(scope='module')
def mesh(devices):
  return sharding.make_mesh(len(devices))


@pytest.fixture(scope='module')
def levels():
  """A state in mid-search, and after each level alone, in float64."""
  with jax.enable_x64(True):
    problem = _problem('unrolled', jnp.float64)
    # Not the first step: momenta are not zero.
    state = _state(problem)
    state = state.replace(
      step=state.step + 3,
      params_opt=jax.tree.map(_bump, state.params_opt),
      alphas_opt=jax.tree.map(_bump, state.alphas_opt),
    )

    @jax.jit
    def both(state, train_chunk, val_chunk):
      batches = [
        _fetch(c, c.indices[0], None) for c in (train_chunk, val_chunk)
      ]
      losses = update.losses(problem, state, *batches)
      inner, _ = update.inner_update(problem, state, losses[0])
      outer, _ = update.outer_update(problem, state, *losses)
      return inner, outer

    args = state, *_chunks(jnp.float64, 0, 1)
    compiled = both.lower(*args).compile()
    inner, outer = compiled(*args)
    return Levels(state, inner, outer, compiled.cost_analysis()['flops'])


def _bump(x):
  return x + 0.01 if jnp.issubdtype(x.dtype, jnp.floating) else x + 3


def test_inner_update_moves_params_and_nothing_else(levels):
  state, inner = levels.state, levels.inner
  for field in dataclasses.fields(state):
    before, after = getattr(state, field.name), getattr(inner, field.name)
    assert _same(before, after) == (field.name not in PARTS_OF_PARAMS)


def test_outer_update_moves_alphas_and_nothing_else(levels):
  state, outer = levels.state, levels.outer
  for field in dataclasses.fields(state):
    before, after = getattr(state, field.name), getattr(outer, field.name)
    assert _same(before, after) == (field.name not in PARTS_OF_ALPHAS)


def test_bilevel_update_is_both_levels_read_from_one_state(
  levels, program, x64
):
  state, inner, outer = levels[:3]
  after, _ = program('unrolled', dtype=jnp.float64)(state)
  assert after.step == state.step + 1
  for name in PARTS_OF_PARAMS:
    _close(getattr(after, name), getattr(inner, name), 1e-12)
  for name in PARTS_OF_ALPHAS:
    _close(getattr(after, name), getattr(outer, name), 1e-12)
  assert _same(after.rng, state.rng)
  assert _same(after.multiplier, state.multiplier)


def test_the_state_is_given_away(program):
  """A donated state is not kept beside its successor."""
  program = program('lookahead')
  state = _state(program.problem)
  after, _ = program.compiled(state, *_chunks(jnp.float32, 0, 1))
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
  assert np.isfinite(_norm(after.params))


def test_alphas_stay_exactly_during_warmup(program):
  """And so does their optimizer; params move from the first step on."""
  program = program('first_order', warmup_steps=2)
  states = [_state(program.problem)]
  for i in range(3):
    states.append(program(states[-1], i)[0])
  start = states[0]
  for state in states[1:3]:
    assert _same(state.alphas, start.alphas)
    assert _same(state.alphas_opt, start.alphas_opt)
    assert not _same(state.params, start.params)
  assert not _same(states[3].alphas, start.alphas)


def test_a_larger_multiplier_finds_faster_networks(program):
  program = program('lookahead')
  ms = []
  for multiplier in (0.0, 0.03, 0.3):
    state, _ = program.search(_state(program.problem, multiplier))
    ms.append(float(_latency(program.problem.probabilities(state))))
  assert ms[0] > ms[1] > ms[2]
  start = program.problem.probabilities(_state(program.problem))
  assert ms[2] < _latency(start)


def test_the_search_learns(program):
  """The loss of the first batch falls: it is a descent, not only a motion."""
  program = program('lookahead')
  state = _state(program.problem)
  _, first = program(state)
  _, last = program(program.search(state)[0])
  assert last['train_loss'] < first['train_loss'] - 0.05


@pytest.mark.parametrize('name', sorted(hypergrad.HYPERGRADS))
def test_a_fused_network_takes_the_steps_of_the_plain_one(name, program, x64):
  """Also the derivatives of its written derivatives are the true ones."""
  plain, fast = (
    program(name, dtype=jnp.float64, evaluation=evaluation)
    for evaluation in evaluations.EVALUATIONS
  )
  want, want_metrics = plain.search(_state(plain.problem), 2)
  got, got_metrics = fast.search(_state(fast.problem), 2)
  variables = {'params': got.params, 'batch_stats': got.batch_stats}
  unstacked = evaluations.to_plain(fast.problem.network, variables)
  assert unstacked.keys() == variables.keys()
  _close(unstacked['params'], want.params, 1e-9)
  _close(unstacked['batch_stats'], want.batch_stats, 1e-9)
  _close(got.alphas, want.alphas, 1e-9)
  assert got_metrics.keys() == want_metrics.keys()
  for key, value in want_metrics.items():
    np.testing.assert_allclose(got_metrics[key], value, rtol=1e-8)


def test_both_batches_in_one_pass_are_half_the_convolutions(program):
  """What makes a first-order step of a fused network fast."""
  together = program('first_order', evaluation='fused').lowered.as_text()
  apart = program('lookahead', evaluation='fused').lowered.as_text()
  convolution = 'stablehlo.convolution'
  # Of every convolution there is a value, and a gradient for each operand.
  assert together.count(convolution) < 0.7 * apart.count(convolution)


@pytest.mark.parametrize(
  ('name', 'evaluation'), [('first_order', 'fused'), ('unrolled', 'plain')]
)
def test_a_batch_in_parts_is_the_whole_batch(name, evaluation, program, x64):
  """Micro-batches change neither gradients nor statistics."""
  settings = {'dtype': jnp.float64, 'evaluation': evaluation}
  whole, parts = (
    program(name, batch_parts=n, **settings) for n in (1, GROUPS // 2)
  )
  state = _state(whole.problem)
  want, want_metrics = whole.search(state, 2)
  got, got_metrics = parts.search(state, 2)
  _close(got, want, 1e-9)
  _close(got_metrics, want_metrics, 1e-8)


def test_parts_that_do_not_divide_the_batch_groups_are_refused():
  problem = _problem(batch_parts=3)
  step = update.make_step(problem, _fetch)
  with pytest.raises(ValueError, match='batch_parts is 3.* bn_groups=8'):
    jax.eval_shape(step, _state(problem), *_chunks(jnp.float32, 0, 1))


def test_eight_devices_take_the_fused_step_of_one(program, mesh, x64):
  one, eight = (
    program('first_order', mesh=m, dtype=jnp.float64, evaluation='fused')
    for m in (None, mesh)
  )
  state = _state(one.problem)
  alone, spread = (p.search(state, 4)[0] for p in (one, eight))
  _close(spread.alphas, alone.alphas, 1e-10)
  _close(spread.params, alone.params, 1e-10)
  assert eight.flops < one.flops / 4


def test_steps_in_one_call_are_single_steps(program, x64):
  state = _state(_problem(dtype=jnp.float64))
  single, _ = program('lookahead', dtype=jnp.float64).search(state, 4)
  scanned, metrics = program('lookahead', 2, dtype=jnp.float64).search(state, 4)
  _close(scanned, single, 1e-10)
  assert scanned.step == 4
  assert all(np.shape(m) == () for m in metrics.values())


def test_eight_devices_find_the_alphas_of_one(program, mesh, x64):
  """Each batch group is normalized by itself, wherever it lives."""
  one, eight = (
    program('lookahead', mesh=m, dtype=jnp.float64) for m in (None, mesh)
  )
  state = _state(one.problem)
  alone, _ = one.search(state)
  spread, _ = eight.search(state)
  _close(spread.alphas, alone.alphas, 1e-8)
  _close(spread.params, alone.params, 1e-8)
  assert np.abs(alone.alphas['cell'] - state.alphas['cell']).max() > 0.1


def test_eight_devices_derive_the_genotype_of_one_in_float32(program, mesh):
  one, eight = (program('lookahead', mesh=m) for m in (None, mesh))
  state = _state(one.problem)
  # Adam's first moment after the first step is the hypergradient, scaled.
  grads = [
    np.asarray(optax.tree.get(p(state)[0].alphas_opt, 'mu')['cell'])
    for p in (one, eight)
  ]
  assert _norm(grads[1] - grads[0]) < 1e-5 * _norm(grads[0])
  found = [
    discretize.derive(_spec(), jax.device_get(p.search(state)[0].alphas))
    for p in (one, eight)
  ]
  assert found[0] == found[1]


def test_the_batch_is_spread_over_the_devices(program, mesh):
  """A program that every device runs in full would pass the tests above."""
  one, eight = (program('lookahead', mesh=m) for m in (None, mesh))
  assert eight.flops < one.flops / 4


def test_lookahead_costs_no_more_than_first_order(program):
  """It needs the gradient of the inner step, which is taken anyway."""
  first_order = program('first_order', warmup_steps=2)
  assert program('lookahead').flops < 1.05 * first_order.flops


def test_regularizers_are_added_to_what_alphas_minimize():
  """And only to that; each is a metric of its own."""
  plain = _problem()
  regular = dataclasses.replace(
    plain, regularizers={'beta_decay': {'scale': 7.0}}
  )
  state = _state(plain).replace(step=jnp.asarray(STEPS - 1))
  batches = [_fetch(c, c.indices[0], None) for c in _chunks(jnp.float32, 0, 1)]

  @jax.jit
  def values(state):
    found = []
    for problem in (plain, regular):
      train, val = update.losses(problem, state, *batches)
      at = state.params, state.alphas
      found.append((train(*at)[0], *val(*at)))
    return found

  (train, val, _), (same, more, metrics) = values(state)
  want = 7 * jax.nn.logsumexp(state.alphas['cell'], axis=-1).mean()
  assert train == same
  np.testing.assert_allclose(more - val, want, rtol=1e-5)
  np.testing.assert_allclose(metrics['regularizer/beta_decay'], want, rtol=1e-6)
  np.testing.assert_allclose(metrics['objective'], val, rtol=1e-6)


def test_unrolling_takes_the_inner_gradient_once(levels, program, x64):
  """The bilevel step is a good deal cheaper than its two levels apart."""
  unrolled = program('unrolled', dtype=jnp.float64)
  assert unrolled.flops < 0.85 * levels.flops
