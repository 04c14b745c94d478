"""Members of one program are trained as each would be by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import three_nodes

from hwdarts_jax import spaces
from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.jobs import shortlist_training
from hwdarts_jax.models import evaluations, layers, members, ops, patches
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import optimizers, sharding
from hwdarts_jax.spaces import discretize

SPEC = three_nodes.cut(
  spaces.make('nasbench201', features=4, num_cells=1, image_size=8)
)
CONTEXT = ops.Context(affine=False, bn_groups=2, depthwise='shift')
OPTIMIZER = optimizers.make('sgd', 0.05, 10, warmup_steps=2, nesterov=True)
AUGMENT = Augment(pad=1, flip=True)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
STEPS, SEED = 3, 4


def _genotype(*names):
  (group,) = SPEC.groups().items()
  alphas = np.zeros(group[1].shape)
  for row, name in enumerate(names):
    alphas[row, group[1].ops.index(name)] = 9
  return discretize.derive(SPEC, {group[0]: alphas})


GENOTYPES = [
  _genotype('nor_conv_3x3', 'avg_pool_3x3', 'nor_conv_1x1'),
  _genotype('skip_connect', 'none', 'nor_conv_3x3'),
]


def _chunk(step):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
  labels = rng.integers(0, 10, 64).astype(np.int32)
  indices = pipeline.batch_indices(64, 16, SEED, step)[None]
  return pipeline.Chunk(jnp.asarray(images), jnp.asarray(labels), indices)


def _alone(genotype):
  """Variables of a derived network, trained by itself, from the same start."""
  init, rng = jax.random.split(jax.random.key(SEED))
  supernet = network_lib.init(network_lib.Network(SPEC, CONTEXT), init)
  network = network_lib.Network(discretize.discretize(SPEC, genotype), CONTEXT)
  fresh = network_lib.init(network, init)
  variables, missing = network_lib.inherit(fresh, supernet)
  assert not missing
  opt = OPTIMIZER.init(variables['params'])

  @jax.jit
  def update(variables, opt, batch):
    def loss(params):
      logits, new = network.apply(
        variables | {'params': params},
        batch['image'],
        train=True,
        mutable=['batch_stats'],
      )
      cost = optax.softmax_cross_entropy_with_integer_labels
      return cost(logits, batch['label']).mean(), new

    grads, new = jax.grad(loss, has_aux=True)(variables['params'])
    updates, opt = OPTIMIZER.update(grads, opt, variables['params'])
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, **new}, opt

  for step in range(STEPS):
    chunk = _chunk(step)
    batch = pipeline.make_batch(
      chunk.images,
      chunk.labels,
      chunk.indices[0],
      jax.random.fold_in(rng, step),
      AUGMENT,
      MEAN,
      STD,
    )
    variables, opt = update(variables, opt, batch)
  return variables


@pytest.fixture(scope='module')
def alone():
  return [_alone(genotype) for genotype in GENOTYPES]


def _together(network, evaluation, num_devices=1):
  """The trainer, the state and the gates after as many steps."""
  trainer = shortlist_training.Trainer(
    members.make(SPEC, CONTEXT, network, evaluation),
    OPTIMIZER,
    AUGMENT,
    MEAN,
    STD,
    evaluation,
    sharding.make_mesh(num_devices),
  )
  gates = shortlist_training.stack_gates(SPEC, GENOTYPES, trainer.mesh)
  state, step = trainer.init(SEED, len(GENOTYPES)), jax.jit(trainer.step)
  for i in range(STEPS):
    state, _ = step(state, gates, jax.device_get(_chunk(i)))
  return trainer, state, gates


@pytest.mark.parametrize(
  ('network', 'evaluation', 'num_devices'),
  [
    ('plain', 'loop', 1),
    ('plain', 'matmul', 2),  # spread over devices, the same numbers
    ('fused', 'vmap', 1),
    pytest.param('fused', 'matmul', 1, marks=pytest.mark.slow),
  ],
)
def test_a_member_is_trained_like_the_derived_network_alone(
  alone, network, evaluation, num_devices
):
  """Params and running statistics after three steps, so gradients too."""
  trainer, state, _ = _together(network, evaluation, num_devices)
  for i, wanted in enumerate(alone):
    own = {'params': state.params, 'batch_stats': state.batch_stats}
    own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], own)
    plain = evaluations.to_plain(trainer.network, own)
    found, missing = network_lib.inherit(wanted, plain)
    assert not missing
    for a, b in zip(
      jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_right_answers_are_counted_for_each_member(alone):
  """By its running statistics, without images that only fill a batch."""
  trainer, state, gates = _together('plain', 'matmul', 2)
  chunk = _chunk(0)
  mask = np.arange(64) < 50
  batch = {'image': chunk.images, 'label': chunk.labels, 'mask': mask}
  found = jax.jit(trainer.count_correct)(state, gates, jax.device_get(batch))
  image = pipeline.normalize(chunk.images, MEAN, STD)
  for count, genotype, variables in zip(found, GENOTYPES, alone, strict=True):
    spec = discretize.discretize(SPEC, genotype)
    network = network_lib.Network(spec, CONTEXT)
    logits = network.apply(variables, image, train=False)
    right = np.asarray(logits).argmax(-1) == np.asarray(chunk.labels)
    assert count == right[mask].sum()


@pytest.mark.parametrize(
  ('size', 'window', 'stride', 'dilation'),
  [(7, 1, 1, 1), (8, 1, 2, 1), (7, 3, 1, 1), (8, 3, 2, 1), (9, 5, 2, 2)],
)
def test_products_over_patches_are_convolutions(size, window, stride, dilation):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, size, size + 1, 3)).astype(np.float32)
  kernel = rng.normal(size=(window, window, 3, 4)).astype(np.float32)
  settings = {
    'window_strides': (stride, stride),
    'padding': layers.same(window, dilation),
    'rhs_dilation': (dilation, dilation),
    'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
  }
  found = patches.DENSE['matmul'](x, kernel, **settings)
  want = patches.DENSE['conv'](x, kernel, **settings)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_an_unknown_evaluation_is_named():
  with pytest.raises(ValueError, match="evaluation is 'pmap'.*'loop'"):
    members.over(lambda x: x, 'pmap')


def test_products_compute_what_the_network_of_a_search_does():
  """The context of members, with nothing else changed."""
  context = dataclasses.replace(CONTEXT, dense='matmul')
  variables = network_lib.init(
    network_lib.Network(SPEC, CONTEXT), jax.random.key(0)
  )
  image = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
  gates = discretize.uniform(SPEC, np.float32)
  found, want = (
    network_lib.Network(SPEC, c).apply(variables, image, gates, train=False)
    for c in (context, CONTEXT)
  )
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
