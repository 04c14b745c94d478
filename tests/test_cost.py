import importlib
import inspect

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost
from hwdarts_jax.models import network, ops
from hwdarts_jax.spaces import discretize, nasbench201
from hwdarts_jax.spaces.spec import Site

every_space = pytest.mark.parametrize('name', spaces.names())


def _make(name, **wanted):
  """A space with those of the settings that it has, and few candidates."""
  module = importlib.import_module(f'hwdarts_jax.spaces.{name}')
  wanted |= {'num_blocks': 2, 'num_stages': 3, 'expansions': '3'}
  known = inspect.signature(module.make).parameters
  return spaces.make(name, **{k: v for k, v in wanted.items() if k in known})


def _site(op, shape, features, stride, pool_bn=False):
  return Site('c/e', (op,), shape, features, stride, None, None, pool_bn)


# Hand formulas of (macs, params) at a site with p output pixels, c channels of
# the input and f features. A batch norm has 2 parameters for each feature.
_FORMULAS = {
  'none': lambda p, c, f: (0, 0),
  'nor_conv_1x1': lambda p, c, f: (p * c * f, c * f + 2 * f),
  'nor_conv_3x3': lambda p, c, f: (9 * p * c * f, 9 * c * f + 2 * f),
  'conv_bn_3x3': lambda p, c, f: (9 * p * c * f, 9 * c * f + 2 * f),
  'relu_conv_bn_1x1': lambda p, c, f: (p * c * f, c * f + 2 * f),
  'factorized_reduce': lambda p, c, f: (p * c * f, c * f + 2 * f),
  'sep_conv_3x3': lambda p, c, f: (
    p * c * (9 + c) + p * c * (9 + f),
    c * (9 + c) + 2 * c + c * (9 + f) + 2 * f,
  ),
  'sep_conv_5x5': lambda p, c, f: (
    p * c * (25 + c) + p * c * (25 + f),
    c * (25 + c) + 2 * c + c * (25 + f) + 2 * f,
  ),
  'dil_conv_3x3': lambda p, c, f: (p * c * (9 + f), c * (9 + f) + 2 * f),
  'dil_conv_5x5': lambda p, c, f: (p * c * (25 + f), c * (25 + f) + 2 * f),
  'residual_block_3x3': lambda p, c, f: (
    9 * p * c * f + 9 * p * f * f + p * c * f,
    9 * c * f + 9 * f * f + c * f + 4 * f,
  ),
}


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('op', sorted(_FORMULAS))
def test_macs_and_params_are_those_of_the_hand_formula(op, stride):
  """A depthwise convolution pays once for each channel, not C x F times."""
  if op == 'factorized_reduce' and stride == 1:
    pytest.skip('it reduces')
  site = _site(op, (7, 10, 6), 8, stride)
  height, width, features = site.out_shape
  want = _FORMULAS[op](height * width, 6, features)
  assert (cost.macs(site, op), cost.params(site, op)) == want


def test_ops_that_only_move_data_cost_no_macs():
  for op in ('max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'bn_relu'):
    assert cost.macs(_site(op, (6, 6, 4), 4, 1), op) == 0
  assert cost.params(_site('max_pool_3x3', (6, 6, 4), 4, 1, True), 'none') == 0
  dense = _site('dense', (1, 1, 64), 10, 1)
  assert cost.macs(dense, 'dense') == 640
  assert cost.params(dense, 'dense') == 650


def test_the_largest_nasbench201_cell_costs_what_the_benchmark_says():
  """220.12 M and 1.53 M, as recalled of it; the digits after are ours."""
  arch = (
    '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+'
    '|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|'
  )
  derived = discretize.discretize(
    spaces.make('nasbench201'), nasbench201.from_arch_string(arch)
  )
  assert cost.total(derived, cost.macs) == 220_119_680
  assert cost.total(derived, cost.params) == 1_531_546


@every_space
def test_params_of_the_cost_model_are_those_of_the_network(name):
  """Added up over sites, parameters are exactly those that Flax makes."""
  spec = _make(name, features=4, num_cells=2, image_size=8)
  made = jax.eval_shape(
    lambda key: network.init(network.Network(spec), key), jax.random.key(0)
  )
  count = sum(int(np.prod(v.shape)) for v in jax.tree.leaves(made['params']))
  table = cost.tabulate(spec, cost.params, 'params')
  assert (
    table.of({g: np.ones(c.shape) for g, c in table.per_op.items()}) == count
  )


@every_space
def test_a_table_adds_every_site_that_repeats_a_row(name):
  """Costs of 1 a site count the cells of a group; fixed sites are apart."""
  spec = _make(name, num_cells=5)
  table = cost.tabulate(spec, lambda site, op: 1.0, 'sites')
  assert table.unit == 'sites'
  for group, costs in table.per_op.items():
    cells = sum(c.group == group for c in spec.cells)
    np.testing.assert_array_equal(costs, cells)
  searched = sum(len(s.ops) > 1 for s in spec.sites())
  assert table.fixed == len(spec.sites()) - searched


def _value(site, op):
  """Some cost that depends on all that a site has."""
  height, width, channels = site.in_shape
  return len(op) * height + width * channels + 7 * site.features / site.stride


@every_space
@pytest.mark.parametrize('value', [_value, cost.macs], ids=['any', 'macs'])
@settings(max_examples=20)
@given(data=st.data())
def test_cost_of_the_derived_network_is_that_of_its_gates(name, value, data):
  """total(discretize(spec, genotype)) == tabulate(spec).of(one_hot)."""
  spec = _make(name, num_cells=3, features=4, image_size=8)
  genotype = data.draw(space_strategies.genotypes(spec))
  derived = discretize.discretize(spec, genotype)
  table = cost.tabulate(spec, value, 'unit')
  gates = discretize.one_hot(spec, genotype)
  assert cost.total(derived, value) == pytest.approx(table.of(gates), rel=1e-12)


@every_space
def test_a_network_with_a_choice_has_no_total(name):
  with pytest.raises(ValueError, match='discretize it first'):
    cost.total(spaces.make(name), cost.macs)


def test_macs_are_about_half_the_operations_that_the_compiler_counts():
  site = _site('sep_conv_3x3', (8, 8, 4), 4, 1)
  module = ops.get('sep_conv_3x3')(4, 1, ops.Context(depthwise='conv'))
  x = jnp.zeros((1, 8, 8, 4))
  variables = module.init(jax.random.key(0), x, False)
  compiled = jax.jit(lambda v, x: module.apply(v, x, False))
  flops = compiled.lower(variables, x).compile().cost_analysis()['flops']
  # The compiler also counts norms and ReLU, and leaves out what meets padding.
  assert cost.macs(site, 'sep_conv_3x3') == pytest.approx(flops / 2, rel=0.3)
