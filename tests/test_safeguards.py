"""A search that collapses by construction, and what saves it.

One edge chooses between identity and a "convolution", which multiplies by a
param w that starts at 0 and decays. Only the convolution can reach the target,
but identity is useful from the first step on: its gate grows, less gradient
reaches w, and the convolution is never trained.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwdarts_jax.bilevel import exploration, problem, regularizers
from hwdarts_jax.models import evaluations, network, ops
from hwdarts_jax.spaces import discretize, nasbench201
from hwdarts_jax.spaces.spec import GroupSpec

TARGET, STEPS, LR, DECAY = 1.6, 600, 0.1, 0.1
OPS = ('skip_connect', 'nor_conv_3x3')
SPEC = types.SimpleNamespace(groups=lambda: {'cell': GroupSpec(OPS, ((0, 1),))})
every_evaluation = pytest.mark.parametrize(
  'evaluation', evaluations.EVALUATIONS
)


def _problem(**settings):
  return problem.Problem(
    network=types.SimpleNamespace(spec=SPEC),
    latency=None,
    params_optimizer=None,
    alphas_optimizer=optax.adam(0.05, b1=0.5),
    num_steps=STEPS,
    **settings,
  )


@functools.partial(jax.jit, static_argnums=0)
def _search(settings, seed):
  """Mass on skip after the search, and w."""
  toy = _problem(**{k: v() if callable(v) else v for k, v in settings})

  def task(alphas, w, step, rng):
    gates = toy.gates(alphas, step, rng)['cell'][0]
    return jnp.square(gates[0] + gates[1] * w - TARGET) / 2

  def outer(alphas, w, step, rng):
    extra = regularizers.values(toy.regularizers, alphas, toy.progress(step))
    return sum(extra.values(), task(alphas, w, step, rng))

  def body(carry, step):
    alphas, w, opt = carry
    rngs = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    of_w = jax.grad(task, 1)(alphas, w, step, rngs[0]) + DECAY * w
    updates, new_opt = toy.alphas_optimizer.update(
      jax.grad(outer)(alphas, w, step, rngs[1]), opt
    )
    moved = optax.apply_updates(alphas, updates), new_opt
    alphas, opt = jax.tree.map(
      lambda new, old: jnp.where(step >= toy.warmup_steps, new, old),
      moved,
      (alphas, opt),
    )
    return (alphas, w - LR * of_w, opt), None

  alphas = {'cell': 1e-3 * jax.random.normal(jax.random.key(seed), (1, 2))}
  start = alphas, jnp.zeros(()), toy.alphas_optimizer.init(alphas)
  (alphas, w, _), _ = jax.lax.scan(body, start, jnp.arange(STEPS))
  return jax.nn.softmax(alphas['cell'])[0, 0], w


def _found(**settings):
  """Masses on skip and ws of three seeds."""
  found = [_search(tuple(settings.items()), seed) for seed in range(3)]
  return np.asarray(found).T


def test_plain_darts_collapses_to_skip_in_every_seed():
  skip, w = _found()
  assert (skip > 0.99).all() and (w < 0.1).all()


@pytest.mark.parametrize(
  'settings',
  [
    {
      'relaxation': 'dirichlet',
      'regularizers': lambda: {'dirichlet_distance': {'scale': 0.01}},
    },
    {'regularizers': lambda: {'entropy': {'start': -0.3, 'end': 0.05}}},
    {'warmup_steps': 100},
    {'warmup_steps': 100, 'warmup_gates': 'uniform'},
  ],
  ids=['dirichlet', 'entropy', 'warm-up', 'uniform warm-up'],
)
def test_a_safeguard_finds_the_convolution_in_every_seed(settings):
  skip, w = _found(**settings)
  assert (skip < 0.2).all() and (w > 1).all()


def test_beta_decay_keeps_the_convolution_in_play():
  """It is trained and keeps its gate, though identity leads by a little."""
  skip, w = _found(regularizers=lambda: {'beta_decay': {'scale': 1.0}})
  assert (skip < 0.6).all() and (w > 1).all()


def test_the_auxiliary_skip_alone_does_not_save_this_search():
  """It takes over what the convolution would learn, and leaves too late: it
  is meant for identities that help gradients to pass, of which there are none.
  """
  skip, w = _found(auxiliary_skip=1.0)
  assert (skip > 0.99).all() and (w < 0.1).all()


def test_uniform_warm_up_takes_every_op_equally_often_and_then_ends():
  toy = _problem(warmup_steps=10, warmup_gates='uniform')
  alphas = {'cell': jnp.asarray([[5.0, 0.0]])}
  keys = jax.random.split(jax.random.key(0), 4000)

  def draw(step):
    gates = jax.vmap(lambda rng: toy.gates(alphas, step, rng)['cell'][0])
    return np.asarray(gates(keys))

  early = draw(9)
  assert set(early.ravel()) == {0, 1} and (early.sum(-1) == 1).all()
  assert abs(early[:, 0].mean() - 0.5) < 4 * 0.5 / np.sqrt(len(early))
  np.testing.assert_allclose(
    draw(10), np.tile(jax.nn.softmax(alphas['cell']), (4000, 1)), rtol=1e-6
  )


def test_the_auxiliary_skip_decays_to_nothing():
  """And the distribution that alphas stand for does not know of it."""
  plain, toy = _problem(), _problem(auxiliary_skip=0.8)
  alphas = {'cell': jnp.asarray([[0.3, 0.0]])}
  rng = jax.random.key(0)
  for step, extra in ((0, 0.8), ((STEPS - 1) // 2, 0.4), (STEPS - 1, 0.0)):
    added = (
      toy.gates(alphas, step, rng)['cell']
      - plain.gates(alphas, step, rng)['cell']
    )
    np.testing.assert_allclose(added, [[extra, 0]], atol=1e-3)
    state = types.SimpleNamespace(alphas=alphas, step=step)
    np.testing.assert_array_equal(
      toy.probabilities(state)['cell'], plain.probabilities(state)['cell']
    )


@every_evaluation
def test_the_auxiliary_skip_is_an_identity_on_every_searched_edge(evaluation):
  """With gates of zero and a coefficient of one, nothing but skips is left."""
  spec = nasbench201.make(2, 1, num_classes=4, image_size=4, image_channels=1)
  context = ops.Context(affine=False)
  net = evaluations.make(spec, context, evaluation)
  variables = network.init(net, jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
  gates = exploration.auxiliary_skip(spec, {'cell': jnp.zeros((6, 5))}, 1.0)
  found = net.apply(variables, images, gates, train=False)

  text = '|skip_connect~0|+|skip_connect~0|skip_connect~1|+|{0}~0|{0}~1|{0}~2|'
  skips = nasbench201.from_arch_string(text.format('skip_connect'))
  only = network.Network(discretize.discretize(spec, skips), context)
  own, missing = network.inherit(
    network.init(only, jax.random.key(2)), evaluations.to_plain(net, variables)
  )
  assert not missing
  np.testing.assert_allclose(
    found, only.apply(own, images, train=False), rtol=1e-5, atol=1e-6
  )


def test_an_auxiliary_skip_without_a_skip_op_is_refused():
  spec = types.SimpleNamespace(
    groups=lambda: {'cell': GroupSpec(('none', 'nor_conv_3x3'), ((0, 1),))}
  )
  with pytest.raises(ValueError, match=r'search\.auxiliary_skip.*cell.*none'):
    exploration.check_skips(spec)
