"""Our optimizers are those of PyTorch, written out by hand in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwdarts_jax.runtime import optimizers

STEPS = 6
LR = 0.1


def _run(name, num_steps=STEPS, **settings):
  """Ours: params after each step, of gradients that depend on the params."""
  params = _start()
  optimizer = optimizers.make(name, LR, num_steps, **settings)
  state = optimizer.init(params)
  seen = []
  for t in range(STEPS):
    updates, state = optimizer.update(_gradient(params, t), state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen


def _start():
  return {'kernel': jnp.asarray([[1.0, -2.0]]), 'bn_scale': jnp.asarray([3.0])}


def _gradient(params, t):
  return jax.tree.map(lambda p: jnp.sin(3 * p + t) + 0.1, params)


def _by_hand(rule, clip=None):
  """Theirs: `rule(p, g, memory, t)` for each leaf, after clipping by norm."""
  params = {k: np.asarray(v, np.float64) for k, v in _start().items()}
  memories = {k: {} for k in params}
  seen = []
  for t in range(STEPS):
    grads = {k: np.sin(3 * p + t) + 0.1 for k, p in params.items()}
    if clip is not None:
      norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
      scale = min(1.0, clip / (norm + 1e-6))
      grads = {k: scale * g for k, g in grads.items()}
    params = {k: rule(p, grads[k], memories[k], t) for k, p in params.items()}
    seen.append(params)
  return seen


def _assert_equal(ours, theirs):
  assert len(ours) == len(theirs) == STEPS
  for a, b in zip(ours, theirs, strict=True):
    for k in b:
      np.testing.assert_allclose(a[k], b[k], rtol=2e-5, atol=1e-6)


def _cosine(t, final=0.0):
  return final + (LR - final) * 0.5 * (1 + np.cos(np.pi * t / STEPS))


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('clip', [None, 0.7])
def test_sgd_is_that_of_pytorch(nesterov, clip):
  def rule(p, g, memory, t):
    g = g + 0.3 * p
    memory['buffer'] = 0.9 * memory['buffer'] + g if memory else g
    step = g + 0.9 * memory['buffer'] if nesterov else memory['buffer']
    return p - _cosine(t, 0.01) * step

  ours = _run(
    'sgd', momentum=0.9, nesterov=nesterov, weight_decay=0.3,
    final_learning_rate=0.01, clip_norm=clip or 0.0,
  )  # fmt: skip
  _assert_equal(ours, _by_hand(rule, clip))


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_adam_decays_before_the_moments_and_adamw_after(name):
  def rule(p, g, memory, t):
    if name == 'adam':
      g = g + 0.3 * p
    else:
      p = p * (1 - LR * 0.3)
    memory['m'] = 0.5 * memory.get('m', 0) + 0.5 * g
    memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * g**2
    m = memory['m'] / (1 - 0.5 ** (t + 1))
    v = memory['v'] / (1 - 0.999 ** (t + 1))
    return p - LR * m / (np.sqrt(v) + 1e-8)

  ours = _run(name, schedule='constant', b1=0.5, b2=0.999, weight_decay=0.3)
  _assert_equal(ours, _by_hand(rule))


def test_rmsprop_is_that_of_pytorch():
  def rule(p, g, memory, t):
    g = g + 0.3 * p
    memory['v'] = 0.9 * memory.get('v', 0) + 0.1 * g**2
    step = g / (np.sqrt(memory['v']) + 1e-3)
    memory['buffer'] = 0.8 * memory.get('buffer', 0) + step
    return p - LR * memory['buffer']

  ours = _run(
    'rmsprop', schedule='constant', decay=0.9, momentum=0.8, eps=1e-3,
    weight_decay=0.3,
  )  # fmt: skip
  _assert_equal(ours, _by_hand(rule))


def test_a_small_gradient_is_not_clipped():
  plain, clipped = _run('sgd'), _run('sgd', clip_norm=1e3)
  for a, b in zip(plain, clipped, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_rate_rises_to_the_peak_and_falls_to_the_end():
  rate = optimizers.make_schedule(
    1.0, 110, warmup_steps=10, final_learning_rate=0.2
  )
  got = np.asarray([rate(t) for t in range(121)])
  np.testing.assert_allclose(got[:11], [*np.arange(1, 11) / 10, 1], rtol=1e-6)
  assert np.all(np.diff(got[10:111]) < 0)
  np.testing.assert_allclose(got[60], 0.6, rtol=1e-5)
  np.testing.assert_allclose(got[110:], 0.2, rtol=1e-6)


def test_a_constant_rate_stays():
  rate = optimizers.make_schedule(0.5, 10, schedule='constant', warmup_steps=2)
  assert [float(rate(t)) for t in (0, 1, 2, 9)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
  ('name', 'settings'),
  [('sgd', {'clip_norm': 1.0, 'nesterov': True, 'weight_decay': 0.1}),
   ('adam', {'eps_root': 1e-8}),
   ('rmsprop', {'eps_in_sqrt': True})],
)  # fmt: skip
def test_a_step_has_derivatives_even_where_a_gradient_is_zero(name, settings):
  optimizer = optimizers.make(name, LR, 10, **settings)

  def loss_after_step(alpha):
    params = jnp.asarray([1.0, 2.0])
    grads = jax.grad(lambda p: (alpha * p * jnp.asarray([1.0, 0.0])).sum())(
      params
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return (optax.apply_updates(params, updates) ** 2).sum()

  assert np.isfinite(jax.grad(loss_after_step)(0.5))


@pytest.mark.parametrize(
  ('name', 'settings', 'words'),
  [
    ('sdg', {}, r"optimizer\.name is 'sdg'; it must be one of sgd, adam"),
    (
      'sgd',
      {'momentun': 0.9},
      r'optimizer\.momentun is no setting of sgd; .*m',
    ),
    ('sgd', {'b1': 0.9}, r'optimizer\.b1 is no setting of sgd'),
    ('adam', {'momentum': 0.9}, r'optimizer\.momentum is no setting of adam'),
    ('sgd', {'schedule': 'cos'}, r'one of cosine, constant'),
    ('sgd', {'momentum': 1.0}, r'momentum is 1\.0.*below 1'),
    ('sgd', {'weight_decay': -1}, r'weight_decay is -1'),
    ('sgd', {'clip_norm': 'x'}, r"clip_norm is 'x'"),
    ('sgd', {'warmup_steps': 7}, r'warmup_steps is 7.*from 0 to 6'),
    ('sgd', {'nesterov': True, 'momentum': 0.0}, r'needs momentum'),
    ('sgd', {'schedule': 'constant', 'final_learning_rate': 0.1}, r'must be 0'),
    ('adam', {'eps': float('nan')}, r'eps is nan'),
  ],
)
def test_a_typo_is_an_error_that_names_it(name, settings, words):
  with pytest.raises(ValueError, match=words):
    optimizers.make(name, LR, STEPS, **settings)


def test_a_schedule_needs_steps_and_a_rate():
  with pytest.raises(ValueError, match='num_steps is 0'):
    optimizers.make('sgd', LR, 0)
  with pytest.raises(ValueError, match=r'learning_rate is -0\.1'):
    optimizers.make('sgd', -0.1, 1)


def test_the_exponential_schedule_falls_in_stairs():
  """Times 0.5 after every 3 updates, those of the warm-up included."""
  rate = optimizers.make_schedule(
    0.8, 20, schedule='exponential', warmup_steps=2, decay_rate=0.5,
    decay_steps=3,
  )  # fmt: skip
  found = [float(rate(step)) for step in range(8)]
  np.testing.assert_allclose(
    found, [0.4, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2], rtol=1e-6
  )


def test_rmsprop_can_begin_as_in_tensorflow():
  """Averages of squares begin with ones, and the epsilon is in the root."""

  def rule(p, g, memory, t):
    memory['v'] = 0.9 * memory.get('v', 1) + 0.1 * g**2
    memory['buffer'] = 0.8 * memory.get('buffer', 0) + g / np.sqrt(
      memory['v'] + 1e-3
    )
    return p - LR * memory['buffer']

  ours = _run(
    'rmsprop', schedule='constant', decay=0.9, momentum=0.8, eps=1e-3,
    eps_in_sqrt=True, initial_scale=1.0,
  )  # fmt: skip
  _assert_equal(ours, _by_hand(rule))


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw', 'rmsprop'])
def test_weight_decay_can_spare_biases_and_batch_norms(name):
  """Leaves of one axis move as without decay, kernels as with it."""
  params = {'bias': jnp.array([1.0, -2.0]), 'kernel': jnp.array([[1.0, -2.0]])}
  grads = jax.tree.map(lambda p: 0.1 * p, params)

  def moved(**settings):
    optimizer = optimizers.make(name, 0.1, 1, schedule='constant', **settings)
    state = optimizer.init(params)
    return optimizer.update(grads, state, params)[0]

  spared = moved(weight_decay=0.5, decay_kernels_only=True)
  plain, decayed = moved(), moved(weight_decay=0.5)
  np.testing.assert_array_equal(spared['bias'], plain['bias'])
  np.testing.assert_array_equal(spared['kernel'], decayed['kernel'])
  # Adam decays before it normalizes, so that its first step does not tell.
  if name != 'adam':
    assert not np.array_equal(plain['kernel'], decayed['kernel'])
