"""What regularizes a training: drop path, and dropout before the classifier."""

import functools

import jax
import jax.numpy as jnp
from network_cases import _some_genotype, _supernet, _uniform
import numpy as np
import pytest
from quick_jit import quick_jit

from hwdarts_jax import spaces
from hwdarts_jax.models import network, ops
from hwdarts_jax.models.network import Network
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import CellSpec, Genotype


def _derived(name='nasbench201', op='nor_conv_1x1'):
  """A small derived network all of whose edges run `op`."""
  net, variables, x = _supernet(name)
  genotype = _some_genotype(net.spec)
  genotype = Genotype(
    name,
    {
      g: tuple(c._replace(op=op) for c in cs)
      for g, cs in genotype.cells.items()
    },
  )
  derived = Network(discretize.discretize(net.spec, genotype), net.context)
  own, _ = network.inherit(network.init(derived, jax.random.key(7)), variables)
  return derived, own, x


def _run(net, variables, x, rng=None, **kwargs):
  rngs = {} if rng is None else {'drop_path': rng}
  return net.apply(variables, x, rngs=rngs, mutable=['batch_stats'], **kwargs)[
    0
  ]


@pytest.mark.parametrize('rate', [0, 0.0])
def test_drop_path_at_rate_zero_is_the_same_network(rate):
  """It needs no random numbers either."""
  net, variables, x = _derived()
  want = _run(net, variables, x, train=True)
  got = _run(net, variables, x, train=True, drop_path=rate)
  np.testing.assert_array_equal(got, want)
  traced = quick_jit(
    lambda rate: _run(
      net, variables, x, jax.random.key(0), train=True, drop_path=rate
    )
  )(0.0)
  np.testing.assert_allclose(traced, want, atol=1e-5)


def test_drop_path_is_off_in_evaluation():
  net, variables, x = _derived()
  np.testing.assert_array_equal(
    _run(net, variables, x, train=False, drop_path=0.9),
    _run(net, variables, x, train=False),
  )


def test_drop_path_never_drops_an_identity():
  net, variables, x = _derived(op='skip_connect')
  np.testing.assert_array_equal(
    _run(net, variables, x, jax.random.key(0), train=True, drop_path=0.9),
    _run(net, variables, x, train=True),
  )


def test_drop_path_drops_a_skip_that_has_weights():
  """At stride 2 a skip is a factorized reduction, as in the published code."""
  net, variables, x = _derived('darts', 'skip_connect')
  assert any(
    e.stride == 2 and e.row is not None for c in net.spec.cells for e in c.edges
  )
  dropped = _run(
    net, variables, x, jax.random.key(0), train=True, drop_path=0.9
  )
  assert not np.array_equal(dropped, _run(net, variables, x, train=True))


def test_drop_path_drops_examples_and_keeps_the_expectation():
  """An edge of 0 or 1 / keep times its output, each example by itself."""
  spec = spaces.make('nasbench201', features=2, num_cells=1, image_size=4)
  cell = spec.cells[0]
  edges = tuple(
    e.__class__(e.src, e.dst, ('avg_pool_3x3',), e.row)
    for e in cell.edges
    if (e.src, e.dst) == (0, 3)
  )
  one_edge = network.Cell(
    cell.__class__('c', cell.inputs, edges, (3,), 2, group='cell'),
    ops.Context(),
  )
  x = jax.random.normal(jax.random.key(0), (4000, 2, 2, 2))
  whole = one_edge.apply({}, {0: x}, None, True, 0.0)
  y = one_edge.apply(
    {}, {0: x}, None, True, 0.25, rngs={'drop_path': jax.random.key(1)}
  )
  factor = np.asarray(y / whole)
  np.testing.assert_allclose(
    factor, np.broadcast_to(factor[:, :1, :1, :1], factor.shape), rtol=1e-5
  )
  factor = factor[:, 0, 0, 0]
  kept = factor != 0
  np.testing.assert_allclose(factor[kept], 1 / 0.75, rtol=1e-5)
  # Four standard deviations of the mean of 4000.
  assert abs(factor.mean() - 1) < 4 * np.sqrt(0.25 / 0.75 / 4000)


def test_supernets_are_not_dropped():
  net, variables, x = _supernet('nasbench201')
  gates = _uniform(net.spec)
  apply = functools.partial(
    net.apply, variables, x, gates, train=True, mutable=['batch_stats']
  )
  dropped = apply(drop_path=0.9, rngs={'drop_path': jax.random.key(0)})[0]
  np.testing.assert_array_equal(dropped, apply()[0])


def test_drop_path_of_each_cell_is_that_of_all_where_they_agree():
  """A mapping names the cells that are dropped; others are left alone."""
  net, variables, x = _derived('darts', 'dil_conv_3x3')
  run = functools.partial(
    _run, net, variables, x, jax.random.key(0), train=True
  )
  names = [c.name for c in net.spec.all_cells]
  np.testing.assert_array_equal(
    run(drop_path=dict.fromkeys(names, 0.6)), run(drop_path=0.6)
  )
  np.testing.assert_array_equal(run(drop_path={}), run())
  last = [c.name for c in net.spec.cells][-1]
  assert not np.array_equal(run(drop_path={last: 0.6}), run())


def test_drop_path_drops_what_fixed_residual_blocks_add():
  """Stochastic depth: x, or x and what the block adds over keep; the mean
  stays. A fixed op that adds nothing of its input is never dropped.
  """
  for name, kept in (('mb_conv_3x3_e1', False), ('conv_bn_3x3', True)):
    cell = CellSpec.fixed('c', 'image', name, 2)
    block = network.Cell(cell, ops.Context())
    x = jax.random.normal(jax.random.key(0), (2000, 2, 2, 2))
    variables = block.init(jax.random.key(1), {0: x}, None, False, 0.0)
    run = functools.partial(
      block.apply, variables, {0: x}, None, True, mutable=['batch_stats']
    )
    whole = run(0.0)[0]
    dropped = run(0.2, rngs={'drop_path': jax.random.key(2)})[0]
    if kept:
      np.testing.assert_array_equal(dropped, whole)
      continue
    factor = ((dropped - x) * (whole - x)).sum((1, 2, 3)) / (
      (whole - x) ** 2
    ).sum((1, 2, 3))
    is_kept = np.asarray(factor) > 0.5
    np.testing.assert_allclose(factor[is_kept], 1 / 0.8, rtol=1e-3)
    np.testing.assert_allclose(factor[~is_kept], 0, atol=1e-3)
    assert abs(factor.mean() - 1) < 4 * np.sqrt(0.2 / 0.8 / 2000)


def test_dropout_before_the_classifier_keeps_the_expectation():
  """Logits scatter around those of all features, and only in training."""
  net, variables, x = _derived()
  same = jnp.tile(x, (750, 1, 1, 1))  # statistics are those of four
  run = functools.partial(net.apply, variables, same, mutable=['batch_stats'])
  whole = run(train=True)[0][0]
  rngs = {'dropout': jax.random.key(0)}
  found = run(train=True, dropout=0.4, rngs=rngs)[0][::4]
  spread = found.std(0)
  assert (spread > 0).all()
  assert (abs(found.mean(0) - whole) < 4.5 * spread / np.sqrt(750)).all()
  np.testing.assert_array_equal(
    run(train=False, dropout=0.4)[0], run(train=False)[0]
  )
