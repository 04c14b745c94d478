"""Candidates that share weights: one-hot gates are the derived network."""

import functools

from hypothesis import example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.models import (
  evaluations,
  layers,
  network,
  op,
  ops,
  superkernels,
)
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Choice, Genotype

_SETTINGS = {
  'features': 8,
  'num_blocks': 2,
  'num_stages': 1,
  'num_classes': 3,
  'image_size': 8,
  'stem_stride': 1,
  'kernels': '3,5',
  'expansions': '3,6',
  'fused': True,
  'activations': 'hswish',
}
_NUM_CANDIDATES = 10  # of a block; the second may also be skipped


@pytest.fixture(autouse=True)
def _double():
  with jax.enable_x64(True):
    yield


def _context(affine=False):
  return op.Context(affine, dtype=jnp.float64, depthwise='shift')


@functools.cache
def _supernet():
  """The spec, the supernet on shared weights, its variables, and images."""
  spec = spaces.make('mobile', **_SETTINGS)
  made = evaluations.make(spec, _context(), 'shared')
  variables = network.init(made, jax.random.key(0))
  rng = np.random.default_rng(0)
  # Biases and statistics that are not all alike, or little is compared.
  variables = jax.tree.map(
    lambda v: v + 0.1 * rng.random(v.shape) if v.ndim == 1 else v, variables
  )
  images = jnp.asarray(rng.normal(size=(4, 8, 8, 3)))
  return spec, made, variables, images


@functools.cache
def _loss(train):
  """Of logits, with gradients of params and gates; and the logits."""
  _, made, variables, images = _supernet()

  def loss(params, gates):
    logits, _ = made.apply(
      {**variables, 'params': params},
      images,
      gates,
      train=train,
      mutable=['batch_stats'],
    )
    return jnp.square(logits).sum(), logits

  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def _genotype(spec, *names):
  """The architecture of these ops, one of each searched edge."""
  names = iter(names)
  return Genotype(
    'mobile',
    {
      group: tuple(Choice(next(names), j, j + 1) for j in range(shape.shape[0]))
      for group, shape in spec.groups().items()
    },
  )


@pytest.mark.parametrize(
  'train, pairs',
  [
    # Either kernel and expansion, with and without squeeze, dense, skipped.
    (True, [(0, 0), (3, 7), (8, 6)]),
    (False, [(5, 10)]),
    pytest.param(
      True, [(i % 10, i) for i in range(11)], marks=pytest.mark.slow
    ),
  ],
)
def test_one_hot_gates_are_the_derived_network(train, pairs):
  """Logits, and gradients of all weights; of one candidate after the other."""
  spec, made, variables, images = _supernet()
  first, rest = (s.ops for s in spec.sites() if len(s.ops) > 1)
  assert (len(first), len(rest)) == (_NUM_CANDIDATES, _NUM_CANDIDATES + 1)
  plain = evaluations.to_plain(made, variables)
  for i, j in pairs:
    genotype = _genotype(spec, first[i], rest[j])
    gates = discretize.one_hot(spec, genotype)
    (_, logits), (of_params, of_gates) = _loss(train)(
      variables['params'], gates
    )
    derived = network.Network(discretize.discretize(spec, genotype), _context())
    template = network.init(derived, jax.random.key(1))
    own, missing = network.inherit(template, plain)
    assert not missing

    def loss(params, derived=derived, own=own):
      y, _ = derived.apply(
        {**own, 'params': params}, images, train=train, mutable=['batch_stats']
      )
      return jnp.square(y).sum(), y

    evaluate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, expected), grads = evaluate(own['params'])
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-12)
    of_plain = evaluations.to_plain(made, {**variables, 'params': of_params})
    got, _ = network.inherit({'params': grads}, of_plain)
    for a, b in zip(
      jax.tree.leaves(got['params']), jax.tree.leaves(grads), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    assert all(np.isfinite(g).all() for g in of_gates.values())


def test_weights_outside_the_chosen_op_do_not_matter():
  """The gradient of what only a larger candidate has is zero."""
  spec, _, variables, _ = _supernet()
  first, rest = (s.ops for s in spec.sites() if len(s.ops) > 1)
  genotype = _genotype(spec, first[0], rest[0])  # 3x3, expansion 3; skipped
  _, (grads, _) = _loss(True)(
    variables['params'], discretize.one_hot(spec, genotype)
  )
  edge = grads['stage_1_first']['0_to_1']
  kernel = np.array(edge['InvertedResiduals']['DepthwiseConv_0']['kernel'])
  half = kernel.shape[-1] // 2
  assert np.abs(kernel[1:-1, 1:-1, :, :half]).min() > 0
  kernel[1:-1, 1:-1, :, :half] = 0
  assert not kernel.any()
  assert not any(
    np.asarray(v).any() for v in jax.tree.leaves(edge['FusedInvertedResiduals'])
  )


@settings(deadline=None, max_examples=20)
@given(
  # XLA takes numbers below the normal ones for 0, numpy does not.
  st.lists(st.floats(0, 1, allow_subnormal=False), min_size=4, max_size=4),
  st.integers(1, 2),
)
@example([0.0, 0.0, 0.0, float(np.finfo(np.float64).tiny)], 1)
def test_one_mixed_kernel_is_the_mean_of_nested_convolutions(gates, stride):
  """Exactly, before what follows; for each channel, of the ops that have it."""
  kernels, channels = np.array([3, 5, 7, 3]), np.array([4, 6, 4, 6])
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 9, 9, 6)))
  weights = jnp.asarray(gates)
  layer = layers.DepthwiseConv(7, stride, dtype=jnp.float64, method='shift')
  variables = layer.init(jax.random.key(0), x)
  mask = superkernels.kernel_mask(weights, kernels, channels, 6)
  mixed = layer.apply(variables, x, mask)
  total, whole = np.zeros(mixed.shape), np.zeros(6)
  for weight, k, c in zip(gates, kernels, channels, strict=True):
    own = superkernels.crop(variables['params']['kernel'], (k, k, 1, c))
    small = layers.DepthwiseConv(k, stride, dtype=jnp.float64, method='shift')
    y = small.apply({'params': {'kernel': own}}, x[..., :c])
    total[..., :c] += weight * np.asarray(y)
    whole[:c] += weight
  expected = total / np.where(whole > 0, whole, 1)
  np.testing.assert_allclose(mixed, expected, rtol=1e-9, atol=1e-12)


def test_plain_variables_are_those_of_the_unshared_supernet():
  """So that a training inherits from either by the same paths."""
  spec, made, variables, _ = _supernet()
  plain = network.init(network.Network(spec, _context()), jax.random.key(0))
  got = evaluations.to_plain(made, variables)
  shapes = functools.partial(jax.tree.map, jnp.shape)
  assert shapes(got) == shapes(plain)


def test_shared_weights_are_those_of_the_largest_of_each_family():
  spec, made, variables, _ = _supernet()
  name = 'stage_1_first'

  def count(v):
    return sum(leaf.size for leaf in jax.tree.leaves(v['params'][name]))

  first, rest = (s.ops for s in spec.sites() if len(s.ops) > 1)
  largest = [
    network.init(
      network.Network(
        discretize.discretize(spec, _genotype(spec, first[i], rest[0])),
        _context(),
      ),
      jax.random.key(0),
    )
    for i in (7, 9)
  ]
  assert count(variables) == sum(map(count, largest))
  assert count(variables) < count(evaluations.to_plain(made, variables)) / 2


def test_space_without_anything_to_share_says_so():
  spec = spaces.make('nasbench201', features=4, num_cells=1)
  with pytest.raises(ValueError, match="'nasbench201' have no weights in com"):
    evaluations.make(spec, _context(), 'shared')


def test_one_op_of_a_kind_shares_with_nobody():
  spec = spaces.make('mobile', **_SETTINGS)
  names = [s.ops for s in spec.sites() if len(s.ops) > 1][1]
  skip, *blocks, dense_2, _ = names
  parts = ops.families([skip, blocks[0], blocks[1], dense_2])
  assert [n for family, n in parts if family] == [(blocks[0], blocks[1])]
  assert [n for family, n in parts if not family] == [(skip,), (dense_2,)]
