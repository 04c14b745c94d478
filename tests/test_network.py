import functools

from flax import linen as nn
from flax import traverse_util
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.models import network, ops
from hwdarts_jax.models.network import Network
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import CellSpec, Choice, Genotype

every_space = pytest.mark.parametrize('name', spaces.names())

# The smallest networks in which every kind of cell occurs.
_SMALL = {
  'darts': {'features': 2, 'num_cells': 2, 'num_nodes': 2, 'image_size': 4},
  'mobile': space_strategies.SMALL_MOBILE,
  'nasbench201': {'features': 2, 'num_cells': 1, 'image_size': 4},
}

_jit = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  },
)


@functools.cache
def _supernet(name, affine=False):
  """A small supernet, its variables and a batch of images."""
  spec = spaces.make(name, **_SMALL.get(name, {}))
  net = Network(spec, ops.Context(affine=affine))
  variables = network.init(net, jax.random.key(0))
  return net, variables, _images(spec)


def _images(spec, dtype=jnp.float32, batch=4):
  return jax.random.normal(jax.random.key(1), (batch, *spec.input_shape), dtype)


def _uniform(spec, dtype=jnp.float32):
  return {
    g: jnp.full(s.shape, 1 / s.shape[1], dtype)
    for g, s in spec.groups().items()
  }


def _some_genotype(spec):
  """The genotype of a convolution on the first edges."""
  cells = {}
  for name, group in spec.groups().items():
    keep = {c.keep for c in spec.cells if c.group == name}.pop()
    cells[name] = tuple(
      Choice(group.ops[-2], src, dst)
      for dst in sorted({d for _, d in group.edges})
      for src, d in [e for e in group.edges if e[1] == dst][:keep]
    )
  return Genotype(spec.space, cells)


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
  soft = _jit(functools.partial(logits, net))(variables, x, gates)
  hard = _jit(functools.partial(logits, derived))(own, x, None)
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

    loss_and_grad = _jit(jax.value_and_grad(loss))
    _, grads = loss_and_grad(gates)
    ahead, _ = loss_and_grad({g: p + step[g] for g, p in gates.items()})
    behind, _ = loss_and_grad({g: p - step[g] for g, p in gates.items()})
    got = sum((grads[g] * step[g]).sum() for g in gates)
    np.testing.assert_allclose(got, (ahead - behind) / 2, rtol=1e-5)
    for grad, group in zip(grads.values(), spec.groups().values(), strict=True):
      zero = [ops.is_zero(op) for op in group.ops]
      assert (grad[:, zero] == 0).all()
      assert (grad[:, ~np.array(zero)] != 0).all()


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
  traced = _jit(
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
