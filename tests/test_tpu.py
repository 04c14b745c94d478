"""Every compiled update is lowered for TPU, which was not at hand to run it.

Lowering is all that JAX itself does: traced as it would be on a TPU, and turned
into the StableHLO that the TPU compiler reads.
"""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import three_nodes
import tiny_config

from configs import common as configs
from hwdarts_jax import spaces
from hwdarts_jax.bilevel import hypergrad, population, update
from hwdarts_jax.data import pipeline, sources
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.jobs import loop, retrain, search, train_step
from hwdarts_jax.models import evaluations, ops
from hwdarts_jax.runtime import optimizers, sharding
from hwdarts_jax.spaces import discretize

_DATA = {'num_classes': 3, 'image_size': 8, 'image_channels': 1}
_SPACES = {
  'nasbench201': {'features': 2, 'num_cells': 1},
  'darts': {'features': 2, 'num_cells': 1, 'num_nodes': 1},
  'mobile': configs.SMALL_SEARCH_SPECS['mobile']
  | {'stem_stride': 1, 'num_stages': 1, 'num_blocks': 1}
  | {'kernels': '3', 'expansions': '3'},
}
_SETTINGS = {'neumann': {'num_terms': 1}}  # each is the same program again
_STEPS, _BATCH = 10, 4


@pytest.fixture
def as_on_tpu(monkeypatch):
  """What depends on the platform is chosen as it would be there."""
  jax.devices()  # of the real platform
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')


def _spec(space):
  spec = spaces.make(space, **_SPACES[space] | _DATA)
  # Half of the edges of one cell: the others only repeat them.
  return three_nodes.cut(spec) if space == 'nasbench201' else spec


def _problem(space, name, evaluation):
  context = ops.Context(affine=False, bn_groups=2, dtype=jnp.bfloat16)
  constant = {'schedule': 'constant', 'weight_decay': 1e-3}
  return update.Problem(
    network=evaluations.make(_spec(space), context, evaluation),
    latency=lambda gates: sum(g.sum() for g in gates.values()),
    params_optimizer=optimizers.make(
      'sgd', 0.1, _STEPS, momentum=0.9, clip_norm=5.0, **constant
    ),
    alphas_optimizer=optimizers.make('adam', 0.1, _STEPS, **constant),
    num_steps=_STEPS,
    learning_rate=optimizers.make_schedule(0.1, _STEPS, schedule='constant'),
    hypergrad=name,
    hypergrad_settings=_SETTINGS.get(name, {}),
  )


def _lowered(problem, state, advance=update.bilevel_update):
  """The StableHLO of the step that a search compiles, for TPU."""
  shape = jax.ShapeDtypeStruct
  images = np.zeros((1, 8, 8, 1), np.uint8)
  train = sources.Dataset('', images, np.zeros(1, np.int32), 3, (0.5,), (0.5,))
  chunk = pipeline.Chunk(
    shape((8, 8, 8, 1), jnp.uint8),
    shape((8,), jnp.int32),
    shape((1, _BATCH), jnp.int32),
  )
  step = search.jitted_step(
    problem,
    train,
    Augment(pad=1, flip=True, cutout=2),
    sharding.make_mesh(1),
    jnp.bfloat16,
    advance,
  )
  exported = jax.export.export(step, platforms=['tpu'])(state, chunk, chunk)
  assert exported.platforms == ('tpu',)
  return exported.mlir_module()


def _calls(text):
  """Targets of custom calls: what StableHLO itself has no op for."""
  return set(re.findall(r'custom_call @(\w+)', text))


@pytest.mark.usefixtures('as_on_tpu')
@pytest.mark.parametrize('evaluation', evaluations.EVALUATIONS)
@pytest.mark.parametrize('name', hypergrad.HYPERGRADS)
@pytest.mark.parametrize('space', _SPACES)
def test_every_update_is_lowered_for_tpu(space, name, evaluation):
  """In bfloat16, without an op that only another platform has."""
  problem = _problem(space, name, evaluation)
  state = jax.eval_shape(lambda: update.init_state(problem, 0, 0.1))
  text = _lowered(problem, state)
  assert 'stablehlo.convolution' in text
  assert 'xbf16>' in text
  assert not _calls(text)


def test_no_space_is_left_out():
  """A new space needs its line above."""
  assert set(_SPACES) == set(spaces.names())


@pytest.mark.usefixtures('as_on_tpu')
def test_the_update_of_a_front_is_lowered_for_tpu():
  """Two of four members in one pass over the network."""
  problem = _problem('mobile', 'lookahead', 'fused')
  group = population.Population(problem, problem, 4, 2)
  state = jax.eval_shape(
    lambda: population.init_state(group, 0, range(4), [0.1] * 4, {})
  )
  text = _lowered(group, state, population.population_update)
  assert 'stablehlo.convolution' in text
  assert not _calls(text)


@pytest.mark.usefixtures('as_on_tpu')
def test_the_step_of_a_training_is_lowered_for_tpu(table, tmp_path):
  """That of the job, with its augmentation and moving average."""
  genotype = tmp_path / 'genotype.json'
  config = tiny_config.get_config()
  spec = spaces.make('darts', **tiny_config.SPEC)
  found = discretize.derive(spec, discretize.uniform(spec))
  genotype.write_text(json.dumps(found.to_dict()))
  config.latency.table = str(table)
  config.network.depthwise = 'auto'
  config.network.dtype = 'bfloat16'
  config.num_devices = 1
  config.retrain.genotype = str(genotype)
  config.retrain.update(mixup=0.2, cutmix=1.0, dropout=0.1)
  training = retrain.make(config)
  assert training.network.context.depthwise == 'conv'  # as on accelerators
  shape = jax.ShapeDtypeStruct
  size = config.retrain.batch_size
  chunk = pipeline.Chunk(
    shape(training.train.images.shape, jnp.uint8),
    shape(training.train.labels.shape, jnp.int32),
    shape((1, size), jnp.int32),
  )
  step = jax.jit(functools.partial(train_step.step, training))
  state = jax.eval_shape(lambda: retrain.init_state(training))
  exported = jax.export.export(step, platforms=['tpu'])(state, None, chunk)
  assert not _calls(exported.mlir_module())


@pytest.mark.parametrize('platform', ['tpu', 'cpu'])
def test_no_flag_of_a_gpu_reaches_another_compiler(platform, monkeypatch):
  """Also of a run that must be deterministic; a GPU gets one."""
  given = []

  class Lowered:
    def lower(self):
      return self

    def compile(self, compiler_options):
      given.append(compiler_options)

  for name in (platform, 'gpu'):
    monkeypatch.setattr(jax, 'default_backend', lambda name=name: name)
    loop.compile_together('', [(Lowered(), ())], deterministic=True)
  assert given[0] == {}
  assert given[1] == {'xla_gpu_deterministic_ops': True}


def test_no_module_sets_flags_of_xla_on_its_own():
  """So that what a platform does not know cannot end a run there."""
  package = pathlib.Path(loop.__file__).parents[1]
  where = {
    str(path.relative_to(package))
    for path in package.rglob('*.py')
    if re.search(r'xla_gpu_|xla_tpu_|LIBTPU', path.read_text())
  }
  assert where == {'jobs/loop.py'}
