import functools

import jax
import jax.numpy as jnp
import numpy as np
from op_cases import _apply, _images, _init, _numpy_norm
import op_cover
from op_references import _numpy_depthwise, REFERENCES
import pytest
from quick_jit import quick_jit

from hwdarts_jax import spaces
from hwdarts_jax.models import mobile_ops, ops
from hwdarts_jax.models.ops import Context
from hwdarts_jax.spaces import blocks

every_op = pytest.mark.parametrize('name', op_cover.names())

# Ops of the head and the stem that do not take every size and stride: triples
# (height, width, stride). An op that is not named here must take all of them.
_SIZES = {'bn_relu': ((5, 6, 1),), 'dense': ((1, 1, 1),)}
_SIZES |= {'dense_relu': ((1, 1, 1),), 'dense_hswish': ((1, 1, 1),)}
_SIZES['global_avg_pool'] = ((5, 5, 5), (6, 6, 6))
_ALL_SIZES = ((5, 6, 1), (5, 6, 2))


def _make(name, stride=1, features=4, **settings):
  return ops.get(name)(features, stride, Context(**settings))


@every_op
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_op_keeps_the_contract_of_shapes_types_and_gradients(name, dtype):
  """Every op writes ceil(size / stride) pixels, and has finite gradients."""
  for height, width, stride in _SIZES.get(name, _ALL_SIZES):
    op = _make(name, stride, dtype=dtype)
    x = _images((2, height, width, 4), dtype)
    variables = _init(op, x)
    assert {v.dtype for v in jax.tree.leaves(variables)} <= {
      jnp.dtype('float32')
    }

    def loss(params, x, train, op=op, variables=variables):
      y = _apply(op, {**variables, 'params': params}, x, train)
      return jnp.square(y.astype(jnp.float32)).sum(), y

    @quick_jit
    def both(params, x, loss=loss):
      grad = jax.grad(loss, (0, 1), has_aux=True)
      return grad(params, x, True), grad(params, x, False)

    for grads, y in both(variables.get('params', {}), x):
      assert y.shape == (2, -(-height // stride), -(-width // stride), 4)
      assert y.dtype == dtype
      assert jnp.isfinite(y).all()
      assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@every_op
def test_op_has_the_second_derivative_that_hypergradients_need(name):
  """In float64, grad of grad is the finite difference of grad."""
  with jax.enable_x64(True):
    height, width, stride = _SIZES.get(name, _ALL_SIZES)[-1]
    op = _make(name, stride, features=2, dtype=jnp.float64)
    x = _images((2, height, width, 2), jnp.float64)
    variables = _init(op, x)
    assert {v.dtype for v in jax.tree.leaves(variables)} <= {
      jnp.dtype('float64')
    }
    point = (variables.get('params', {}), x)
    rng = np.random.default_rng(2)
    direction = jax.tree.map(
      lambda v: jnp.asarray(rng.normal(size=v.shape)), point
    )

    def loss(point):
      params, x = point
      y = _apply(op, {**variables, 'params': params}, x, train=True)
      return jnp.sin(3 * y).sum() + jnp.square(y).sum()

    def along(grads):
      products = jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)
      return jax.tree.reduce(jnp.add, products)

    def slope(point):
      return along(jax.grad(loss)(point))

    slope_and_second = quick_jit(jax.value_and_grad(slope))
    exact = along(slope_and_second(point)[1])
    ahead, behind = (
      slope_and_second(
        jax.tree.map(lambda p, d, s=s: p + s * d, point, direction)
      )
      for s in (1e-6, -1e-6)
    )
    assert exact.dtype == jnp.float64
    np.testing.assert_allclose(
      exact, (ahead[0] - behind[0]) / 2e-6, rtol=1e-5, atol=1e-7
    )
    assert (exact == 0) == (name == 'none')


# Independent references: loops over pixels, as a reader of the papers would
# write them.


@every_op
def test_op_computes_what_its_paper_says(name):
  """Values are those of loops over pixels, also at odd sizes and stride 2."""
  for height, width, stride in _SIZES.get(name, _ALL_SIZES):
    if name == 'factorized_reduce' and stride == 1:
      continue
    op = _make(name, stride)
    # All negative in places: padding with zeros would win a maximum.
    x = _images((2, height, width, 4)) - 1
    variables = _init(op, x)
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), variables)
    got = quick_jit(functools.partial(_apply, op, train=True))(variables, x)
    want = REFERENCES[name](
      np.asarray(x, np.float64), p.get('params', {}), stride
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_every_op_has_a_reference():
  assert set(REFERENCES) == set(ops.OPS)


def test_name_of_a_block_says_what_it_is():
  """Each of the blocks has the settings that are in its name."""
  for name, made in ops.OPS.items():
    if issubclass(made.func, mobile_ops.InvertedResidual):
      assert blocks.MBConv(**made.keywords).name == name
  made = ops.get('mb_conv_5x5_e3_se_hswish')(4)
  assert (made.kernel, made.expansion, made.squeeze) == (5, 3, True)
  assert made.activation == 'hswish'


@pytest.mark.parametrize(
  'name, hidden, squeezed',
  [
    ('mb_conv_3x3_e1_se', 16, 8),
    ('mb_conv_5x5_e3_se', 48, 16),
    ('mb_conv_3x3_e6_se_hswish', 96, 24),
    ('mb_conv_3x3_e6_se_silu', 96, 4),
  ],
)
def test_squeeze_is_a_fourth_of_hidden_or_of_input_channels(
  name, hidden, squeezed
):
  """A multiple of 8 in MobileNetV3; EfficientNet takes those of the input."""
  op = ops.get(name)(16)
  made = jax.eval_shape(
    functools.partial(op.init, train=False),
    jax.random.key(0),
    _images((1, 4, 4, 16)),
  )
  assert made['params']['Dense_0']['kernel'].shape == (hidden, squeezed)
  assert made['params']['Dense_1']['kernel'].shape == (squeezed, hidden)


def test_divisible_channels_are_those_of_the_published_code():
  """Never less than 90 % of what is asked for."""
  got = [blocks.make_divisible(n) for n in (1, 18, 20, 22.4, 30, 36, 120 / 4)]
  assert got == [8, 24, 24, 24, 32, 40, 32]


def test_every_candidate_of_every_space_is_an_op():
  for space in spaces.names():
    for site in spaces.make(space).sites():
      assert set(site.ops) <= set(ops.OPS)


@pytest.mark.parametrize('name', ['avg_pool_3x3', 'max_pool_3x3'])
def test_pooling_ends_in_a_norm_without_parameters_where_asked(name):
  x = _images((2, 5, 5, 4))
  op = _make(name, pool_bn=True, affine=True)
  variables = op.init(jax.random.key(0), x, train=False)
  assert 'params' not in variables
  plain = _apply(_make(name), {}, x)
  np.testing.assert_allclose(
    _apply(op, variables, x, train=True),
    _numpy_norm(np.asarray(plain, np.float64)),
    atol=1e-5,
  )


@pytest.mark.parametrize('features', [1, 3])
def test_factorized_reduce_splits_odd_features(features):
  """The offset grid gets the larger half, and all of a single feature."""
  op = _make('factorized_reduce', 2, features)
  x = _images((2, 6, 6, 4))
  variables = op.init(jax.random.key(0), x, train=False)
  assert _apply(op, variables, x).shape == (2, 3, 3, features)
  widths = [
    v['kernel'].shape[-1] for k, v in variables['params'].items() if 'Conv' in k
  ]
  assert widths == [w for w in (features // 2, features - features // 2) if w]


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel', [3, 5])
def test_shifted_depthwise_is_the_grouped_convolution(kernel, stride, dilation):
  """Values, and the gradients of input and kernel, agree up to rounding."""
  results = {}
  for method in ('conv', 'shift'):
    module = ops.DepthwiseConv(kernel, stride, dilation, method=method)
    x = _images((2, 5, 6, 3))
    variables = module.init(jax.random.key(0), x)

    def loss(variables, x, module=module):
      y = module.apply(variables, x)
      return jnp.sin(y).sum(), y

    results[method] = quick_jit(jax.grad(loss, (0, 1), has_aux=True))(
      variables, x
    )
  target = _numpy_depthwise(
    np.asarray(x, np.float64),
    np.asarray(variables['params']['kernel'], np.float64),
    stride,
    dilation,
  )
  np.testing.assert_allclose(results['shift'][1], target, atol=1e-5)
  for a, b in zip(
    *map(jax.tree.leaves, (results['conv'], results['shift'])), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_unknown_op_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"'typo'.*max_pool_3x3"):
    ops.get('typo')
  with pytest.raises(ValueError, match='typo'):
    ops.is_skip('typo')


def test_an_op_is_registered_once():
  with pytest.raises(ValueError, match="'none' is registered twice"):
    ops.register('none')(ops.Zero)
