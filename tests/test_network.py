import functools

from flax import linen as nn
from flax import traverse_util
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from network_cases import _images, _SMALL, _some_genotype, _supernet, _uniform
import numpy as np
import pytest
from quick_jit import quick_jit
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.models import network, ops
from hwdarts_jax.models.network import Network
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Choice, Genotype

every_space = pytest.mark.parametrize('name', spaces.names())


def _paths(tree):
  return set(traverse_util.flatten_dict(tree, sep='/'))


def _count(spec, **settings):
  net = Network(spec, ops.Context(**settings))
  made = jax.eval_shape(
    functools.partial(net.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, *spec.input_shape)),
    _uniform(spec),
  )
  return sum(int(np.prod(v.shape)) for v in jax.tree.leaves(made['params']))


def test_darts_supernet_has_the_parameters_of_the_published_code():
  assert _count(spaces.make('darts'), affine=False) == 1_930_618


def test_nasbench201_network_has_the_parameters_of_the_benchmark():
  spec = spaces.make('nasbench201')
  genotype = Genotype(
    'nasbench201',
    {
      'cell': tuple(
        Choice('nor_conv_3x3', *e) for e in spec.groups()['cell'].edges
      )
    },
  )
  assert _count(discretize.discretize(spec, genotype)) == 1_531_546


@every_space
@hypothesis.settings(max_examples=2)
@hypothesis.given(data=st.data())
def test_one_hot_supernet_is_the_derived_network_to_the_bit(name, data):
  """Op by op, the other ops add exact zeros, in training and evaluation.

  The statistics that both networks have are updated to the same bits, too.
  Nothing promises that under jit, where XLA may fuse the two programs apart and
  sum in another order (jit and op by op differ by 1e-6 in training): there the
  next test allows for rounding.
  """
  net, variables, x = _supernet(name)
  genotype = data.draw(space_strategies.genotypes(net.spec))
  gates = discretize.one_hot(net.spec, genotype)
  derived = Network(discretize.discretize(net.spec, genotype), net.context)
  own, missing = network.inherit(
    network.init(derived, jax.random.key(7)), variables
  )
  assert not missing
  for train in (False, True):
    mutable = ['batch_stats'] if train else False
    soft = net.apply(variables, x, gates, train=train, mutable=mutable)
    hard = derived.apply(own, x, train=train, mutable=mutable)
    if train:
      (soft, soft_stats), (hard, hard_stats) = soft, hard
      soft_stats, hard_stats = (
        traverse_util.flatten_dict(s, sep='/') for s in (soft_stats, hard_stats)
      )
      assert set(hard_stats) <= set(soft_stats)
      for path, value in hard_stats.items():
        np.testing.assert_array_equal(value, soft_stats[path], err_msg=path)
    np.testing.assert_array_equal(soft, hard)


@every_space
@pytest.mark.parametrize('train', [False, True])
def test_compiled_one_hot_supernet_is_the_derived_network(name, train):
  net, variables, x = _supernet(name)
  genotype = _some_genotype(net.spec)
  gates = discretize.one_hot(net.spec, genotype)
  derived = Network(discretize.discretize(net.spec, genotype), net.context)
  own, _ = network.inherit(network.init(derived, jax.random.key(7)), variables)

  mutable = ['batch_stats'] if train else False

  def logits(net, variables, x, gates):
    y = net.apply(variables, x, gates, train=train, mutable=mutable)
    return y[0] if train else y

  # Two programs: in one, the compiler might see what they share.
  soft = quick_jit(functools.partial(logits, net))(variables, x, gates)
  hard = quick_jit(functools.partial(logits, derived))(own, x, None)
  np.testing.assert_allclose(soft, hard, rtol=1e-5, atol=1e-5)


@every_space
def test_derived_parameters_are_paths_of_the_supernet(name):
  net, variables, _ = _supernet(name)
  derived = Network(
    discretize.discretize(net.spec, _some_genotype(net.spec)), net.context
  )
  own = network.init(derived, jax.random.key(7))
  assert _paths(own) < _paths(variables)


@every_space
def test_inherit_names_what_the_supernet_lacks(name):
  """An affine derived network lacks scale and bias, and they stay its own."""
  net, variables, _ = _supernet(name)
  spec = discretize.discretize(net.spec, _some_genotype(net.spec))
  fresh = network.init(Network(spec), jax.random.key(7))
  own, missing = network.inherit(fresh, variables)
  assert missing
  assert {p.rpartition('/')[2] for p in missing} == {'scale', 'bias'}
  own, fresh, theirs = (
    traverse_util.flatten_dict(t, sep='/') for t in (own, fresh, variables)
  )
  assert set(own) == set(fresh)
  for path, value in own.items():
    np.testing.assert_array_equal(
      value, fresh[path] if path in missing else theirs[path]
    )


def test_inherit_takes_what_is_there_even_if_it_is_the_same():
  net, variables, _ = _supernet('nasbench201')
  own, missing = network.inherit(variables, variables)
  assert not missing
  assert jax.tree.structure(own) == jax.tree.structure(variables)


def test_inherit_leaves_another_shape_and_an_empty_collection():
  new = {'params': {'a': np.zeros(2), 'b': np.zeros(3)}, 'batch_stats': {}}
  old = {'params': {'a': np.ones(3), 'b': np.ones(3)}}
  own, missing = network.inherit(new, old)
  assert missing == ['params/a']
  assert own['batch_stats'] == {}
  np.testing.assert_array_equal(own['params']['b'], 1)


@every_space
def test_network_with_a_choice_needs_gates(name):
  net, variables, x = _supernet(name)
  for gates in (None, {}):
    with pytest.raises(ValueError, match='the network needs gates'):
      jax.eval_shape(
        lambda v, x, g=gates: net.apply(v, x, g, train=False), variables, x
      )


def test_activations_keep_the_type_of_the_context():
  """Logits are at least float32, whatever the activations are."""
  net, variables, x = _supernet('nasbench201')
  seen = []

  def watch(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    if isinstance(context.module, network.Edge):
      seen.append(y.dtype)
    return y

  narrow = Network(net.spec, ops.Context(affine=False, dtype=jnp.bfloat16))
  with nn.intercept_methods(watch):
    logits = jax.eval_shape(
      lambda v, x, g: narrow.apply(v, x, g, train=False),
      variables,
      x,
      _uniform(net.spec),
    )
  assert logits.dtype == jnp.float32
  assert set(seen) == {jnp.dtype('bfloat16')}


@every_space
def test_gradient_of_the_gates_is_that_of_finite_differences(name):
  with jax.enable_x64(True):
    small = _SMALL.get(name, {})
    sizes = ('num_nodes', 'num_cells', 'num_blocks')
    one_node = {k: 1 for k in small if k in sizes}
    spec = spaces.make(name, **{**small, **one_node})
    context = ops.Context(affine=False, dtype=jnp.float64, depthwise='conv')
    net = Network(spec, context)
    variables = network.init(net, jax.random.key(0))
    x = _images(spec, jnp.float64)
    gates = _uniform(spec, jnp.float64)
    rng = np.random.default_rng(0)
    step = {g: 1e-6 * rng.normal(size=p.shape) for g, p in gates.items()}

    def loss(gates):
      logits, _ = net.apply(
        variables, x, gates, train=True, mutable=['batch_stats']
      )
      return jnp.sin(logits).sum()

    loss_and_grad = quick_jit(jax.value_and_grad(loss))
    _, grads = loss_and_grad(gates)
    ahead, _ = loss_and_grad({g: p + step[g] for g, p in gates.items()})
    behind, _ = loss_and_grad({g: p - step[g] for g, p in gates.items()})
    got = sum((grads[g] * step[g]).sum() for g in gates)
    np.testing.assert_allclose(got, (ahead - behind) / 2, rtol=1e-5)
    for grad, group in zip(grads.values(), spec.groups().values(), strict=True):
      zero = [ops.is_zero(op) for op in group.ops]
      assert (grad[:, zero] == 0).all()
      assert (grad[:, ~np.array(zero)] != 0).all()
