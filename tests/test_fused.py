"""The fused evaluation does what the plain one does, in fewer arrays."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_jit import quick_jit
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.models import evaluations, network, ops, shifts, stacking
from hwdarts_jax.models.fused import FusedNetwork
from hwdarts_jax.models.network import Network

every_space = pytest.mark.parametrize('name', spaces.names())
GROUPS, BATCH = 2, 8

# The smallest supernets with every kind of cell, of enough pixels that every
# batch norm has a variance to speak of.
_SMALL = {
  'darts': {'features': 2, 'num_cells': 1, 'num_nodes': 2, 'image_size': 8},
  'mobile': space_strategies.SMALL_MOBILE,
  'nasbench201': {'features': 2, 'num_cells': 2, 'image_size': 8},
}


def _spec(name):
  """A small supernet; of NAS-Bench-201 only the first two stages."""
  spec = spaces.make(name, **_SMALL.get(name, {}))
  if name != 'nasbench201':
    return spec
  cells = [c for c in spec.cells if 'stage_2' not in c.name]
  cells = [c for c in cells if c.name != 'reduction_2']
  last, pool, dense = spec.head
  width = cells[-1].features
  last = dataclasses.replace(
    last, inputs=((0, cells[-1].name),), features=width
  )
  whole = dataclasses.replace(pool.edges[0], stride=4)
  pool = dataclasses.replace(pool, edges=(whole,), features=width)
  return dataclasses.replace(spec, cells=tuple(cells), head=(last, pool, dense))


def _with_op(spec, old, new):
  """The spec with another candidate in the place of one."""

  def swap(cell):
    edges = tuple(
      dataclasses.replace(e, ops=tuple(new if o == old else o for o in e.ops))
      if len(e.ops) > 1
      else e
      for e in cell.edges
    )
    return dataclasses.replace(cell, edges=edges)

  return dataclasses.replace(spec, cells=tuple(map(swap, spec.cells)))


class Case:
  """A supernet in both evaluations, its variables and two batches."""

  def __init__(self, spec):
    context = ops.Context(affine=False, bn_groups=GROUPS, depthwise='shift')
    self.spec = spec
    self.plain = Network(spec, context)
    self.fused = FusedNetwork(spec, context)
    variables = network.init(self.plain, jax.random.key(0))
    # Running statistics unlike those of any batch.
    keys = iter(jax.random.split(jax.random.key(7), 1000))
    variables['batch_stats'] = jax.tree.map(
      lambda v: v + jax.random.uniform(next(keys), v.shape, minval=-1) / 2,
      variables['batch_stats'],
    )
    self.variables = variables
    self.stacked = stacking.stack(spec, variables)
    self.images = tuple(
      jax.random.normal(jax.random.key(i), (BATCH, *spec.input_shape))
      for i in (1, 2)
    )
    self.alphas = {
      g: jax.random.normal(jax.random.key(3), s.shape)
      for g, s in spec.groups().items()
    }

  def losses(self, net, variables, train, image):
    """Loss with its gradients, logits and new statistics."""

    def loss(params, alphas):
      logits, updates = net.apply(
        {'params': params, 'batch_stats': variables['batch_stats']},
        image,
        jax.tree.map(jax.nn.softmax, alphas),
        train=train,
        mutable=['batch_stats'],
      )
      return _cross_entropy(logits), (logits, updates['batch_stats'])

    grads, (logits, stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
      variables['params'], self.alphas
    )
    return grads[0], grads[1], logits, stats

  @functools.cached_property
  def reference(self):
    """What the plain network computes, for the first and second batch."""
    run = quick_jit(functools.partial(self.losses, self.plain, train=True))
    return [run(self.variables, image=image) for image in self.images]

  def unstacked(self, tree):
    return stacking.unstack(self.spec, {'tree': tree})['tree']


@functools.cache
def _case(name):
  return Case(_spec(name))


def _cross_entropy(logits):
  labels = jnp.arange(len(logits)) % logits.shape[-1]
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _far(a, b):
  """Norm of the difference of two trees, in units of that of the first."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  apart = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
  return float(apart / optax.tree.norm(a))


def _assert_same(want, got, case):
  of_params, of_alphas, logits, stats = got
  got = case.unstacked(of_params), of_alphas, logits, case.unstacked(stats)
  for name, a, b in zip(
    ('params', 'alphas', 'logits', 'statistics'), want, got, strict=True
  ):
    assert _far(a, b) < 1e-5, name


@every_space
def test_values_and_gradients_equal_those_of_the_plain_network(name):
  case = _case(name)
  run = quick_jit(functools.partial(case.losses, case.fused, train=True))
  _assert_same(case.reference[0], run(case.stacked, image=case.images[0]), case)


@every_space
def test_running_statistics_normalize_as_in_the_plain_network(name):
  case = _case(name)
  gates = jax.tree.map(jax.nn.softmax, case.alphas)
  want, got = (
    quick_jit(functools.partial(net.apply, train=False))(
      variables, case.images[0], gates
    )
    for net, variables in (
      (case.plain, case.variables),
      (case.fused, case.stacked),
    )
  )
  assert _far(want, got) < 1e-5


@every_space
def test_one_pass_over_two_batches_gives_each_level_its_own_gradient(name):
  """Params follow the first batch, alphas the second, as in two passes."""
  case = _case(name)

  def both(params, alphas):
    gates = jax.tree.map(jax.nn.softmax, alphas)
    first, second, stats = case.fused.apply_pair(
      {'params': params, 'batch_stats': case.stacked['batch_stats']},
      case.images,
      (jax.lax.stop_gradient(gates), gates),
    )
    return _cross_entropy(first) + _cross_entropy(second), (first, stats)

  (of_params, of_alphas), (logits, stats) = quick_jit(
    jax.grad(both, argnums=(0, 1), has_aux=True)
  )(case.stacked['params'], case.alphas)
  train, val = case.reference
  want = train[0], val[1], train[2], train[3]
  _assert_same(want, (of_params, of_alphas, logits, stats), case)


@every_space
@pytest.mark.parametrize('evaluation', ['plain', 'fused'])
def test_members_of_one_pass_are_as_if_each_were_alone(name, evaluation):
  """Values, statistics, and gradients of gates; members have other gates."""
  case = _case(name)
  net = getattr(case, evaluation)
  variables = case.variables if evaluation == 'plain' else case.stacked
  uneven = jax.tree.map(jax.nn.softmax, case.alphas)
  gates = jax.tree.map(
    lambda g: jnp.stack([g, jnp.full_like(g, 1 / g.shape[-1])]), uneven
  )

  def loss(gates):
    logits, stats = evaluations.apply_members(
      net, variables, jnp.stack(case.images), gates
    )
    return sum(map(_cross_entropy, logits)), (logits, stats)

  of_gates, (logits, stats) = quick_jit(jax.grad(loss, has_aux=True))(gates)
  alone = quick_jit(functools.partial(_alone, case))
  wants = [
    alone(image, jax.tree.map(lambda g, i=i: g[i], gates))
    for i, image in enumerate(case.images)
  ]
  for i, (want_gates, want_logits, _) in enumerate(wants):
    assert _far(want_logits, logits[i]) < 1e-5
    assert _far(want_gates, jax.tree.map(lambda g, i=i: g[i], of_gates)) < 1e-5
  if evaluation == 'fused':
    stats = case.unstacked(stats)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *(want[2] for want in wants))
  assert _far(mean, stats) < 1e-5


def _alone(case, image, gates):
  """Gradient of the gates, logits and statistics of the plain network."""

  def loss(gates):
    logits, updates = case.plain.apply(
      case.variables, image, gates, train=True, mutable=['batch_stats']
    )
    return _cross_entropy(logits), (logits, updates['batch_stats'])

  grads, (logits, stats) = jax.grad(loss, has_aux=True)(gates)
  return grads, logits, stats


@pytest.mark.parametrize('name', ['darts', 'nasbench201'])
def test_one_convolution_for_several_candidates_is_that_of_the_chosen(name):
  """Values in training, gradients, and values by the statistics thereafter."""
  case = _case(name)
  gates = {
    group: jax.nn.one_hot(jnp.arange(len(a)) % a.shape[1], a.shape[1])
    for group, a in case.alphas.items()
  }

  def run(context, params):
    net = FusedNetwork(case.spec, context)

    def loss(params):
      logits, updates = net.apply(
        {'params': params, 'batch_stats': case.stacked['batch_stats']},
        case.images[0],
        gates,
        train=True,
        mutable=['batch_stats'],
      )
      return _cross_entropy(logits), (logits, updates)

    grads, (logits, updates) = jax.grad(loss, has_aux=True)(params)
    later = net.apply(
      {'params': params, **updates}, case.images[1], gates, train=False
    )
    return grads, logits, later

  context = case.fused.context
  wants, gots = (
    quick_jit(functools.partial(run, c))(case.stacked['params'])
    for c in (context, dataclasses.replace(context, one_hot=True))
  )
  for want, got in zip(wants, gots, strict=True):
    assert _far(want, got) < 1e-5


@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    ('nasbench201', {'scan': True}),
    ('nasbench201', {'remat': 'activations'}),
    ('darts', {'remat': 'first_convolutions'}),
  ],
  ids=['scan', 'remat', 'more remat'],
)
def test_a_loop_over_cells_or_less_memory_changes_no_gradient(
  name, settings, monkeypatch
):
  case = _case(name)
  # The loop is left out where it is slow, on CPU.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  net = dataclasses.replace(case.fused, **settings)
  run = quick_jit(functools.partial(case.losses, net, train=True))
  _assert_same(case.reference[0], run(case.stacked, image=case.images[0]), case)


def test_op_that_says_nothing_of_itself_is_evaluated_as_it_is():
  """An affine batch norm is no stage; neither evaluation asks for one."""
  spec = _with_op(_spec('nasbench201'), 'nor_conv_1x1', 'conv_bn_3x3')
  cells = spec.cells[:1]
  last, pool, dense = spec.head
  last = dataclasses.replace(last, inputs=((0, cells[0].name),), features=2)
  whole = dataclasses.replace(pool.edges[0], stride=8)
  pool = dataclasses.replace(pool, edges=(whole,), features=2)
  case = Case(dataclasses.replace(spec, cells=cells, head=(last, pool, dense)))
  run = quick_jit(functools.partial(case.losses, case.fused, train=True))
  _assert_same(case.reference[0], run(case.stacked, image=case.images[0]), case)


@every_space
def test_stacking_loses_nothing(name):
  case = _case(name)
  back = stacking.unstack(case.spec, case.stacked)
  assert jax.tree.structure(back) == jax.tree.structure(case.variables)
  jax.tree.map(np.testing.assert_array_equal, back, case.variables)


@pytest.mark.parametrize('name', ['darts', 'nasbench201'])
def test_full_supernet_is_stacked_in_few_arrays(name):
  """Not that of `mobile`, whose blocks are evaluated one by one."""
  full = jax.eval_shape(
    lambda rng: network.init(FusedNetwork(spaces.make(name)), rng),
    jax.random.key(0),
  )
  assert len(jax.tree.leaves(full)) < 500


def test_params_of_the_darts_supernet_are_all_there():
  made = jax.eval_shape(
    lambda rng: network.init(FusedNetwork(spaces.make('darts')), rng),
    jax.random.key(0),
  )
  sizes = [np.prod(v.shape) for v in jax.tree.leaves(made['params'])]
  assert sum(sizes) == 1_930_618


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [7, 8])
def test_pooling_by_shifts_is_pooling(stride, size):
  x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
  pad = ((1, 1), (1, 1))
  for name, by_shifts in (
    ('max_pool_3x3', shifts.max_pool),
    ('avg_pool_3x3', shifts.average_pool),
  ):
    op = ops.get(name)(3, stride, ops.Context())
    want, pull = jax.vjp(functools.partial(op.apply, {}, train=False), x)
    got, pull_shifts = jax.vjp(lambda x, f=by_shifts: f(x, 3, stride, pad), x)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    dy = jax.random.normal(jax.random.key(1), want.shape)
    np.testing.assert_allclose(pull_shifts(dy)[0], pull(dy)[0], rtol=1e-5)


def test_the_first_of_equal_maxima_has_the_whole_gradient():
  x = jnp.ones((1, 3, 3, 1))
  grad = jax.grad(lambda x: shifts.max_pool(x, 3, 1, ((0, 0),) * 2).sum())(x)
  want = np.zeros((1, 3, 3, 1))
  want[0, 0, 0, 0] = 1
  np.testing.assert_array_equal(grad, want)


def test_second_derivatives_pass_through_the_written_first_ones():
  x, v = jax.random.normal(jax.random.key(0), (2, 1, 6, 6, 2))
  pad = ((1, 1), (1, 1))

  def curvature(pool):
    def value(x):
      return jnp.sin(pool(x)).sum()

    return jax.grad(lambda x: (jax.grad(value)(x) * v).sum())(x)

  got = curvature(lambda x: shifts.max_pool(x, 3, 1, pad))
  want = curvature(lambda x: nn.max_pool(x, (3, 3), (1, 1), pad))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_affine_supernet_is_refused():
  with pytest.raises(ValueError, match=r'context\.affine is True'):
    FusedNetwork(spaces.make('nasbench201'), ops.Context())


def test_evaluation_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match="evaluation is 'magic'.*plain"):
    evaluations.make(
      spaces.make('nasbench201'), ops.Context(affine=False), 'magic'
    )


def test_batch_that_groups_do_not_divide_is_refused():
  case = _case('nasbench201')
  gates = jax.tree.map(jax.nn.softmax, case.alphas)
  with pytest.raises(ValueError, match='batch of 3 .* batch_groups=2'):
    jax.eval_shape(
      functools.partial(case.fused.apply, train=True),
      case.stacked,
      jnp.zeros((3, *case.spec.input_shape)),
      gates,
    )
