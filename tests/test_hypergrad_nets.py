"""Hypergradients on small networks, against slopes of the whole map."""

import functools

from flax import linen as nn
from hypergrad_cases import _flat, _real_step, _relative, _sgd, _slopes, LR
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwdarts_jax.bilevel import hypergrad


def _net(activation, pool):
  """A small convolutional supernet with two choices: params, alphas, losses."""
  rng = np.random.default_rng(0)

  def normal(*shape, scale=1.0):
    return jnp.asarray(scale * rng.normal(size=shape))

  params = {
    'stem': normal(3, 3, 1, 4, scale=0.5),
    'conv': normal(3, 3, 4, 4, scale=0.25),
    'point': normal(1, 1, 4, 4, scale=0.7),
    'dense': normal(4, 3),
  }
  alphas = {'cell': normal(2, 3, scale=0.3)}

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def logits(params, alphas, x):
    x = conv(x, params['stem'])
    for gates in jax.nn.softmax(alphas['cell']):
      y = activation(x)
      x = (
        gates[0] * conv(y, params['conv'])
        + gates[1] * conv(y, params['point'])
        + gates[2] * pool(x)
      )
    return activation(x).mean((1, 2)) @ params['dense']

  def loss_on(images, labels):
    def loss(params, alphas):
      return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, alphas, images), labels
      ).mean()

    return loss

  losses = [
    loss_on(normal(16, 8, 8, 1), jnp.asarray(rng.integers(0, 3, 16)))
    for _ in range(2)
  ]
  return params, alphas, *losses


def _max_pool(x):
  return nn.max_pool(x, (3, 3), padding='SAME')


def _avg_pool(x):
  return nn.avg_pool(x, (3, 3), padding='SAME')


def _errors(params, alphas, train, val):
  """Of each estimator, relative to brute force, after a step of real SGD."""
  optimizer = _sgd()
  state = optimizer.init(params)
  grads = jax.jit(jax.grad(train))(params, alphas)
  updates, state = optimizer.update(grads, state, params)
  params = optax.apply_updates(params, updates)
  step = _real_step(optimizer, state)

  @jax.jit
  def whole(alphas):
    return val(step(params, jax.grad(train)(params, alphas)), alphas)

  # Short, so that a kink between the two ends is unlikely.
  truth = _slopes(whole, alphas, 1e-6)

  @functools.partial(jax.jit, static_argnums=0)
  def estimate(name, **settings):
    f = hypergrad.get(name)
    return f(train, val, step, params, alphas, **settings)

  return {
    'unrolled': _relative(_flat(estimate('unrolled')), truth),
    'lookahead': _relative(_flat(estimate('lookahead')), truth),
    'first_order': _relative(_flat(estimate('first_order')), truth),
    'finite_difference': _relative(
      _flat(estimate('finite_difference', inner_lr=LR)), truth
    ),
  }


@pytest.fixture(scope='module')
def errors_on_nets():
  with jax.enable_x64(True):
    return {
      'smooth': _errors(*_net(nn.silu, _avg_pool)),
      'kinked': _errors(*_net(nn.relu, _max_pool)),
    }


@pytest.mark.parametrize('net', ['smooth', 'kinked'])
def test_unrolling_a_network_is_the_slope_of_the_whole_map(errors_on_nets, net):
  """Brute force: central differences over alphas of step and loss together.

  SGD with momentum from an earlier step and with decay; also with ReLU and max
  pooling, which are differentiable almost everywhere.
  """
  assert errors_on_nets[net]['unrolled'] < 1e-6


def test_finite_differences_are_good_only_on_smooth_networks(errors_on_nets):
  """In float64 at the published epsilon: it is kinks, not rounding."""
  smooth = errors_on_nets['smooth']['finite_difference']
  kinked = errors_on_nets['kinked']['finite_difference']
  assert smooth < 1e-5
  assert kinked > 0.1
  assert errors_on_nets['kinked']['unrolled'] < 1e-6 * kinked


@pytest.mark.parametrize('net', ['smooth', 'kinked'])
def test_lookahead_is_nearer_to_the_truth_than_first_order(errors_on_nets, net):
  lookahead = errors_on_nets[net]['lookahead']
  assert 1e-3 < lookahead < errors_on_nets[net]['first_order']
