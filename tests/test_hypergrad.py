"""Hypergradients against closed forms and against brute force.

The quadratic bilevel problem has params w, alphas a and

    train = w'Hw / 2 + w'Ma + b'w       val = |w - c|^2_P / 2 + w'Na + a'Ra / 2

with H, P, R symmetric positive definite, so that everything that an estimator
claims to compute is a line of numpy.
"""

from hypergrad_cases import (
  _flat,
  _real_step,
  _relative,
  _sgd,
  _slopes,
  DECAY,
  LR,
)
import hypothesis
from hypothesis import strategies as st
import jax
from jax.flatten_util import ravel_pytree
import numpy as np
import optax
import pytest

from hwdarts_jax.bilevel import hypergrad
from hwdarts_jax.runtime import optimizers

# Trees of several arrays, as a network has them.
PARAMS = {'conv': {'kernel': np.zeros((3, 2)), 'bias': np.zeros(2)}}
ALPHAS = {'normal': np.zeros((2, 2)), 'reduce': np.zeros((1, 3))}
NUM_PARAMS, NUM_ALPHAS = 8, 7
EPSILON, TERMS = 1.0, 4  # of finite_difference and neumann

seeds = st.integers(0, 2**32 - 1)
every_estimator = pytest.mark.parametrize('name', sorted(hypergrad.HYPERGRADS))


def _problem(seed, dtype=np.float64):
  """Matrices of a random problem, with eigenvalues in [0.5, 4]."""
  rng = np.random.default_rng(seed)

  def spd(size):
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (basis * rng.uniform(0.5, 4.0, size)) @ basis.T

  w, a = NUM_PARAMS, NUM_ALPHAS
  matrices = {'H': spd(w), 'P': spd(w), 'R': spd(a)}
  for name, shape in {
    'M': (w, a), 'N': (w, a), 'b': w, 'c': w, 'w': w, 'a': a, 'm': w
  }.items():  # fmt: skip
    matrices[name] = rng.normal(size=shape)
  return {k: v.astype(dtype) for k, v in matrices.items()}


def _losses(q):
  def train(params, alphas):
    w, a = ravel_pytree(params)[0], ravel_pytree(alphas)[0]
    return w @ q['H'] @ w / 2 + w @ q['M'] @ a + q['b'] @ w

  def val(params, alphas):
    w, a = ravel_pytree(params)[0], ravel_pytree(alphas)[0]
    d = w - q['c']
    return d @ q['P'] @ d / 2 + w @ q['N'] @ a + a @ q['R'] @ a / 2

  return train, val


def _trees(q):
  """The params and alphas of a problem, as trees."""
  dtype = q['w'].dtype
  params, alphas = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, ALPHAS))
  return ravel_pytree(params)[1](q['w']), ravel_pytree(alphas)[1](q['a'])


def _settings(name):
  return {
    'finite_difference': {'inner_lr': LR, 'epsilon': EPSILON},
    'neumann': {'inner_lr': LR, 'num_terms': TERMS},
  }.get(name, {})


def _plain_step(params, grads):
  return jax.tree.map(lambda p, g: p - LR * g, params, grads)


def _estimate(q, name, inner_step=_plain_step, **settings):
  params, alphas = _trees(q)
  settings = {**_settings(name), **settings}
  f = hypergrad.get(name)
  return f(*_losses(q), inner_step, params, alphas, **settings)


_estimate_jit = jax.jit(
  _estimate, static_argnames=('name', 'inner_step', 'num_terms')
)


def _grad_train(q, w, a):
  return q['H'] @ w + q['M'] @ a + q['b']


def _val_grads(q, w, a):
  """The gradients of the validation loss: of w and of a."""
  return q['P'] @ (w - q['c']) + q['N'] @ a, q['N'].T @ w + q['R'] @ a


def _neumann_by_hand(q, num_terms):
  vector, direct = _val_grads(q, q['w'], q['a'])
  shrink = np.eye(NUM_PARAMS) - LR * q['H']
  series = sum(
    np.linalg.matrix_power(shrink, k) @ vector for k in range(num_terms + 1)
  )
  return direct - LR * q['M'].T @ series


def _one_step_by_hand(q):
  stepped = q['w'] - LR * _grad_train(q, q['w'], q['a'])
  vector, direct = _val_grads(q, stepped, q['a'])
  return direct - LR * q['M'].T @ vector


def _lookahead_by_hand(q):
  stepped = q['w'] - LR * _grad_train(q, q['w'], q['a'])
  return _val_grads(q, stepped, q['a'])[1]


# What each estimator is on a quadratic with a plain step of SGD. The central
# difference of a quadratic's gradient is exact at every length.
BY_HAND = {
  'first_order': lambda q: _val_grads(q, q['w'], q['a'])[1],
  'lookahead': _lookahead_by_hand,
  'unrolled': _one_step_by_hand,
  'finite_difference': _one_step_by_hand,
  'neumann': lambda q: _neumann_by_hand(q, TERMS),
}


@every_estimator
@hypothesis.given(seed=seeds)
def test_every_estimator_equals_its_formula_on_a_quadratic(name, seed):
  with jax.enable_x64(True):
    q = _problem(seed)
    assert _relative(_flat(_estimate_jit(q, name)), BY_HAND[name](q)) < 1e-10


@every_estimator
def test_jit_changes_nothing_and_the_tree_is_that_of_the_alphas(name):
  with jax.enable_x64(True):
    q = _problem(0)
    eager, compiled = _estimate(q, name), _estimate_jit(q, name)
    alphas = _trees(q)[1]
    assert jax.tree.structure(compiled) == jax.tree.structure(alphas)
    leaves = map(jax.tree.leaves, (eager, compiled, alphas))
    for a, b, like in zip(*leaves, strict=True):
      assert a.shape == b.shape == like.shape
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@hypothesis.given(seed=seeds)
def test_without_mixed_derivative_lookahead_is_exact(seed):
  """The Hessian term, which lookahead leaves out, is all about M."""
  with jax.enable_x64(True):
    q = _problem(seed)
    exact, ours = (
      _flat(_estimate_jit(q, n)) for n in ('unrolled', 'lookahead')
    )
    assert _relative(ours, exact) > 1e-3
    q['M'] *= 0
    exact, ours = (
      _flat(_estimate_jit(q, n)) for n in ('unrolled', 'lookahead')
    )
    assert _relative(ours, exact) < 1e-13


def _after_real_steps(q, optimizer, num_steps):
  """Params and optimizer state after real steps, from optax."""
  params, alphas = _trees(q)
  state = optimizer.init(params)
  for _ in range(num_steps):
    grads = jax.grad(_losses(q)[0])(params, alphas)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def _sgd_unrolled_by_hand(q, num_steps, momentum, nesterov, decay):
  """All in numpy: earlier steps, the step that is unrolled, the chain rule."""
  w, a, buffer = q['w'], q['a'], np.zeros(NUM_PARAMS)
  for _ in range(num_steps + 1):
    grad = _grad_train(q, w, a) + decay * w
    buffer = grad + momentum * buffer
    w = w - LR * (grad + momentum * buffer if nesterov else buffer)
  vector, direct = _val_grads(q, w, a)
  slope = 1 + momentum if nesterov else 1.0
  return direct - LR * slope * q['M'].T @ vector


@pytest.fixture(scope='module')
def sgd_unrolled():
  """The jitted hypergradient through real SGD, one program a setting."""
  programs = {}

  def run(q, num_steps, momentum, nesterov, decay):
    optimizer = _sgd(momentum, nesterov, decay)

    def estimate(q):
      params, state = _after_real_steps(q, optimizer, num_steps)
      step = _real_step(optimizer, state)
      return hypergrad.unrolled(*_losses(q), step, params, _trees(q)[1])

    key = num_steps, momentum, nesterov, decay
    return _flat(programs.setdefault(key, jax.jit(estimate))(q))

  return run


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('num_steps', [0, 3])
@hypothesis.given(seed=seeds)
def test_unrolling_real_sgd_is_exact(sgd_unrolled, num_steps, nesterov, seed):
  """With momentum, its buffer from `num_steps` earlier steps, and decay."""
  settings = num_steps, 0.9, nesterov, DECAY
  q = _problem(seed)
  truth = _sgd_unrolled_by_hand(q, *settings)
  with jax.enable_x64(True):
    assert _relative(sgd_unrolled(q, *settings), truth) < 1e-10
  single = {k: v.astype(np.float32) for k, v in q.items()}
  assert _relative(sgd_unrolled(single, *settings), truth) < 1e-5


def test_momentum_and_decay_are_part_of_what_is_differentiated(sgd_unrolled):
  """A truth that forgets either is far away, so the test above can fail."""
  with jax.enable_x64(True):
    q = _problem(3)
    ours = sgd_unrolled(q, 3, 0.9, True, DECAY)
    for wrong in ((0.0, False, DECAY), (0.9, False, DECAY), (0.9, True, 0.0)):
      assert _relative(ours, _sgd_unrolled_by_hand(q, 3, *wrong)) > 1e-3


@pytest.mark.parametrize(
  'optimizer',
  [
    optimizers.make('adam', LR, 10, weight_decay=DECAY),
    optimizers.make('adamw', LR, 10, weight_decay=DECAY, eps_root=1e-8),
    optimizers.make('rmsprop', LR, 10, momentum=0.9),
    optimizers.make('sgd', LR, 10, clip_norm=0.5, weight_decay=DECAY),
  ],
  ids=['adam', 'adamw', 'rmsprop', 'clipped_sgd'],
)
def test_unrolling_other_real_optimizers_is_the_slope_of_the_whole_map(
  optimizer,
):
  """Central differences over alphas of step and validation loss together.

  None of these steps is linear in the gradient, so no formula that assumes a
  learning rate gets them right.
  """
  with jax.enable_x64(True):
    for seed in range(3):
      q = _problem(seed)
      params, state = _after_real_steps(q, optimizer, 2)
      step = _real_step(optimizer, state)
      ours, truth = _against_brute_force(q, params, step)
      assert _relative(ours, truth) < 1e-7


def _against_brute_force(q, params, step):
  """The unrolled hypergradient, and central differences of the whole map."""
  train, val = _losses(q)
  alphas = _trees(q)[1]

  @jax.jit
  def whole(alphas):
    return val(step(params, jax.grad(train)(params, alphas)), alphas)

  ours = hypergrad.unrolled(train, val, step, params, alphas)
  return _flat(ours), _slopes(whole, alphas)


@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=seeds)
def test_neumann_at_the_optimum_converges_to_the_implicit_gradient(seed):
  """At the rate of its theorem, max |1 - lr * eigenvalue|."""
  with jax.enable_x64(True):
    q = _problem(seed)
    q['w'] = -np.linalg.solve(q['H'], q['M'] @ q['a'] + q['b'])
    vector, direct = _val_grads(q, q['w'], q['a'])
    implicit = direct - q['M'].T @ np.linalg.solve(q['H'], vector)
    errors = {}
    for num_terms in (1, 4, 16, 64):
      ours = _flat(_estimate_jit(q, 'neumann', num_terms=num_terms))
      assert _relative(ours, _neumann_by_hand(q, num_terms)) < 1e-10
      errors[num_terms] = np.linalg.norm(ours - implicit)
    eigenvalues, basis = np.linalg.eigh(q['H'])
    shrink = np.abs(1 - LR * eigenvalues)
    # The remainder of the series, eigenvector by eigenvector.
    for num_terms, error in errors.items():
      left = basis @ (
        shrink ** (num_terms + 1) / eigenvalues * (basis.T @ vector)
      )
      np.testing.assert_allclose(
        error, np.linalg.norm(q['M'].T @ left), rtol=1e-6
      )


def test_neumann_errors_fall_by_the_slowest_eigenvalue():
  with jax.enable_x64(True):
    q = _problem(0)
    eigenvalues = np.asarray([0.5, *np.linspace(2.0, 4.0, NUM_PARAMS - 1)])
    basis, _ = np.linalg.qr(q['H'])
    q['H'] = (basis * eigenvalues) @ basis.T
    q['w'] = -np.linalg.solve(q['H'], q['M'] @ q['a'] + q['b'])
    vector, direct = _val_grads(q, q['w'], q['a'])
    implicit = direct - q['M'].T @ np.linalg.solve(q['H'], vector)
    errors = [
      np.linalg.norm(_flat(_estimate_jit(q, 'neumann', num_terms=k)) - implicit)
      for k in (40, 41, 42)
    ]
    ratios = np.divide(errors[1:], errors[:-1])
    np.testing.assert_allclose(ratios, 1 - LR * 0.5, rtol=1e-3)


def test_unknown_estimator_is_refused_by_the_name_of_the_field():
  with pytest.raises(ValueError, match='hypergrad.name.*lookahead'):
    hypergrad.get('look_ahead')
