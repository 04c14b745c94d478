"""The bilevel update on a supernet of one NAS-Bench-201 cell."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import three_nodes

from hwdarts_jax.bilevel import dual, hypergrad, update
from hwdarts_jax.models import evaluations, ops
from hwdarts_jax.runtime import optimizers, sharding
from hwdarts_jax.spaces import discretize, nasbench201

LR, STEPS, BATCH, GROUPS = 0.05, 20, 16, 8
SPLIT = 4  # batches of each half
COST_MS = (0.0, 0.1, 0.5, 2.0, 0.3)  # of each op, on each edge
PARTS_OF_PARAMS = ('params', 'batch_stats', 'params_opt')
PARTS_OF_ALPHAS = ('alphas', 'alphas_opt')


class Chunk(NamedTuple):
  """Batches for K steps: a half of the data, and indices i32[K, B]."""

  images: jax.Array
  labels: jax.Array
  indices: jax.Array


class Levels(NamedTuple):
  """A state, after each level alone, and what both levels cost."""

  state: update.SearchState
  inner: update.SearchState
  outer: update.SearchState
  flops: float


def _spec():
  """Three nodes of a cell of NAS-Bench-201, between its stem and its head."""
  spec = nasbench201.make(2, 1, num_classes=4, image_size=8, image_channels=1)
  return three_nodes.cut(spec)


def _latency(gates):
  return (gates['cell'] * jnp.asarray(COST_MS).reshape(1, -1)).sum()


def _problem(
  hypergrad='lookahead', dtype=jnp.float32, evaluation='plain', **settings
):
  context = ops.Context(affine=False, bn_groups=GROUPS, dtype=dtype)
  constant = {'schedule': 'constant', 'weight_decay': 1e-3}
  settings = {'num_steps': STEPS, 'reference_ms': 3.0, **settings}
  return update.Problem(
    network=evaluations.make(_spec(), context, evaluation),
    latency=_latency,
    params_optimizer=optimizers.make('sgd', LR, STEPS, **constant),
    alphas_optimizer=optimizers.make('adam', 0.02, STEPS, **constant),
    learning_rate=optimizers.make_schedule(LR, STEPS, schedule='constant'),
    hypergrad=hypergrad,
    **settings,
  )


def _state(problem, multiplier=0.5):
  """The first state, all in the precision of the network."""
  targets = {c.name: 1.0 for c in problem.constraints}
  state = update.init_state(problem, 0, multiplier, targets=targets)
  dtype = problem.network.context.dtype

  def cast(x):
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating else x

  return jax.tree.map(cast, state)


def _chunks(dtype, first, num_steps):
  """Of the train and of the validation half: patterns in noise."""
  rng = np.random.default_rng(0)
  patterns = rng.normal(size=(4, 8, 8, 1))
  chunks = []
  for _ in range(2):
    labels = rng.integers(0, 4, SPLIT * BATCH)
    images = patterns[labels] + rng.normal(size=(labels.size, 8, 8, 1))
    order = rng.permuted(np.tile(np.arange(labels.size), (STEPS, 1)), axis=1)
    chunks.append(
      Chunk(
        jnp.asarray(images, dtype),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(order[first : first + num_steps, :BATCH], jnp.int32),
      )
    )
  return chunks


def _fetch(chunk, indices, rng):
  del rng
  return {'image': chunk.images[indices], 'label': chunk.labels[indices]}


class Program:
  """A compiled `make_step` of K steps, on one device or on a mesh of all."""

  def __init__(self, problem, num_steps=1, mesh=None):
    self.problem = problem
    self.num_steps = num_steps
    self.dtype = problem.network.context.dtype
    self.everywhere = None if mesh is None else sharding.replicated(mesh)
    constrain = (lambda batch: batch) if mesh is None else (
      lambda batch: jax.lax.with_sharding_constraint(
        batch, sharding.batched(mesh)
      )
    )  # fmt: skip
    step = update.make_step(problem, _fetch, constrain)
    args = self._place((_state(problem), *_chunks(self.dtype, 0, num_steps)))
    self.lowered = jax.jit(step, donate_argnums=0).lower(*args)
    self.compiled = self.lowered.compile()

  @property
  def flops(self):
    return self.compiled.cost_analysis()['flops']

  def __call__(self, state, first=0):
    """Returns the state after one call that starts with batch `first`."""
    # The call deletes what it is given.
    state = jax.tree.map(jnp.copy, state)
    chunks = _chunks(self.dtype, first, self.num_steps)
    return self.compiled(*self._place((state, *chunks)))

  def search(self, state, num_steps=STEPS):
    for first in range(0, num_steps, self.num_steps):
      state, metrics = self(state, first)
    return state, metrics

  def _place(self, tree):
    return tree if self.everywhere is None else jax.device_put(
      tree, self.everywhere
    )  # fmt: skip


@pytest.fixture(scope='module')
def program():
  """Programs by their settings, each compiled once for all tests."""

  @functools.cache
  def make(hypergrad, num_steps=1, mesh=None, **settings):
    return Program(_problem(hypergrad, **settings), num_steps, mesh)

  return make


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def mesh(devices):
  return sharding.make_mesh(len(devices))


def _numbers(tree):
  """The leaves as numpy; keys as their data."""

  def number(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)

  return [number(x) for x in jax.tree.leaves(tree)]


def _same(a, b):
  pairs = zip(_numbers(a), _numbers(b), strict=True)
  return all((x == y).all() and x.dtype == y.dtype for x, y in pairs)


def _close(a, b, tolerance):
  for x, y in zip(_numbers(a), _numbers(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def _norm(tree):
  return np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in _numbers(tree)))


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


def test_multipliers_wait_for_the_end_of_the_warmup(program):
  """While alphas stay, what they exceed teaches nothing."""
  problem = dataclasses.replace(
    program('first_order', warmup_steps=2).problem,
    constraints=(dual.Constraint('latency_ms', _latency),),
  )
  program = Program(problem)
  states = [_bounded_state(problem, 0.2)]
  for i in range(3):
    states.append(program(states[-1], i)[0])
  assert _same(states[2].duals, states[0].duals)
  assert not _same(states[3].duals, states[0].duals)
