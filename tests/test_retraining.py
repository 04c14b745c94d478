"""Trainings with a teacher, with mixed images, and of published networks."""

import json

import jax
import numpy as np
import pytest
import tiny_runs

from configs import references
from hwdarts_jax import spaces
from hwdarts_jax.jobs import retrain as retrain_job
from hwdarts_jax.jobs import settings, teacher, train_step
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.spaces import references as models

_MODEL = 'of two blocks'
_REFERENCE = {
  'num_devices': 1,
  'space.deploy.model': _MODEL,
  'space.deploy.width': 0.5,
  'space.deploy.image_size': 8,
  'data.image_size': 8,
  'network.bn_groups': 1,
  'network.depthwise': 'conv',
  'retrain.num_epochs': 1,
  'retrain.batch_size': 479,
}


@pytest.fixture
def make_config(table, finished, monkeypatch):
  """The tiny config that trains what the tiny search found."""
  monkeypatch.chdir(tiny_runs.ROOT)

  def make(**changes):
    config = tiny_runs.tiny('get_config')()
    config.update_from_flattened_dict(
      {
        'job': 'retrain',
        'num_devices': 1,
        'latency.table': str(table),
        'retrain.search_workdir': str(finished[0]),
        'retrain.drop_path': 0.0,
      }
      | changes
    )
    return config

  return make


def gradient(config):
  """The first loss of a training, its metrics and gradients."""
  training = retrain_job.make(config)
  state = retrain_job.init_state(training)
  rng = jax.random.key(3)
  image = jax.random.normal(rng, (32, *training.network.spec.input_shape))
  label = np.arange(32) % 10
  batch = {'image': image, 'target': jax.nn.one_hot(label, 10)}
  taught_by = training.teacher.variables if training.teacher else None

  def loss(params):
    return train_step.loss(training, taught_by, state, batch, rng, params)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(
    state.variables['params']
  )


def test_a_teacher_pulls_by_its_weight(make_config, retrained):
  """The gradient is the mean, by weight, of those of labels and of teacher."""
  grads = {}
  for weight in (0.0, 0.25, 1.0):
    (loss, (_, metrics)), grads[weight] = gradient(
      make_config(
        **{
          'retrain.distill.workdir': str(retrained[0]),
          'retrain.distill.weight': weight,
          'retrain.distill.temperature': 2.0,
        }
      )
    )
    assert metrics['distillation_loss'] > 0.01
    if weight == 1:
      np.testing.assert_allclose(loss, metrics['distillation_loss'])
  (_, _), alone = gradient(make_config())
  jax.tree.map(
    lambda mean, label, own, taught: (
      np.testing.assert_allclose(label, own, rtol=1e-4, atol=1e-6),
      np.testing.assert_allclose(mean, 0.75 * own + 0.25 * taught, atol=1e-5),
    ),
    grads[0.25],
    grads[0.0],
    alone,
    grads[1.0],
  )


def test_the_teacher_is_the_averaged_network_of_the_training(
  make_config, retrained
):
  """Its accuracy on the test set is the one that the training reported."""
  training = retrain_job.make(make_config())
  found = teacher.load(str(retrained[0]), 'digits', training.network.spec)
  image = (training.test.images / 255 - training.train.mean) / np.array(
    training.train.std
  )
  logits = jax.jit(found.logits)(found.variables, image.astype(np.float32))
  right = (np.argmax(logits, -1) == training.test.labels).mean()
  record = json.loads((retrained[0] / retrain_job.RESULT).read_text())
  assert right == pytest.approx(record['trained']['test_accuracy_of_average'])


def test_a_supernet_teaches_by_its_gates(make_config, finished):
  """Logits are those of the mixture that the search ended with."""
  training = retrain_job.make(make_config())
  found = teacher.load(str(finished[0]), 'digits', training.network.spec)
  image = jax.random.normal(
    jax.random.key(0), (4, *training.network.spec.input_shape)
  )
  logits = jax.jit(found.logits)(found.variables, image)
  row = tiny_runs.rows(finished[0])[-1]
  np.testing.assert_allclose(
    found.variables['gates']['reduce'], row['gates/reduce'], atol=1e-5
  )
  supernet = network_lib.Network(
    training.space, training.network.context.__class__(affine=False)
  )
  own = {k: found.variables[k] for k in ('params', 'batch_stats')}
  np.testing.assert_allclose(
    logits,
    jax.jit(lambda v, x, g: supernet.apply(v, x, g, train=False))(
      own, image, found.variables['gates']
    ),
    rtol=1e-3,
    atol=1e-4,
  )


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'workdir': 'no/such'}, r'distill\.workdir.*neither'),
    ({'weight': 1.5}, r'distill\.weight is 1\.5'),
    ({'temperature': 0.0}, r'distill\.temperature is 0'),
  ],
)
def test_a_teacher_that_cannot_be_is_named(make_config, changes, words):
  config = make_config(
    **{f'retrain.distill.{k}': v for k, v in changes.items()}
  )
  with pytest.raises(ValueError, match=words):
    retrain_job.make(config)


def test_a_teacher_of_other_images_is_named(make_config, retrained):
  """Both must read the same images, and know the same classes."""
  training = retrain_job.make(make_config())
  spec = training.network.spec
  with pytest.raises(ValueError, match=r"trained on 'digits'.*'cifar10'"):
    teacher.load(str(retrained[0]), 'cifar10', spec)
  for field in ('num_classes', 'image_size'):
    settings_ = tiny_runs.tiny('SPEC') | {field: 12}
    with pytest.raises(ValueError, match='student has .*12.*both must agree'):
      teacher.load(
        str(retrained[0]), 'digits', spaces.make('darts', **settings_)
      )


@pytest.fixture(scope='module')
def trained_reference(tmp_path_factory):
  """Two blocks of MobileNetV3-Small, trained for three steps on digits."""
  whole = models.MODELS['mobilenet_v3_small']
  small = whole._replace(rows=whole.rows[:1] + whole.rows[4:5])
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, _MODEL, small._replace(head=(16, 16)))
    yield from _trained_reference(tmp_path_factory)


def _trained_reference(tmp_path_factory):
  config = references.get_config('runlocal')
  config.job = 'retrain'
  config.update_from_flattened_dict(_REFERENCE)
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  retrain_job.run(config, str(workdir))
  yield config, workdir


def test_a_published_network_is_trained_by_the_same_job(trained_reference):
  """At any resolution, with figures of what is trained and what is deployed."""
  record = json.loads((trained_reference[1] / retrain_job.RESULT).read_text())
  assert record['text'] == f'model {_MODEL}, width 0.5'
  assert record['trained']['spec']['num_classes'] == 10
  assert record['trained']['spec']['stem_stride'] == 1
  assert record['deploy']['spec']['num_classes'] == 1000
  assert record['deploy']['predicted_ms'] is None
  assert record['deploy']['params'] > record['trained']['params'] + 900
  rows = tiny_runs.rows(trained_reference[1])
  assert [r['step'] for r in rows] == [3]


def test_a_published_network_teaches(trained_reference):
  """Its workdir is a teacher like that of a found network."""
  config, workdir = trained_reference
  training = retrain_job.make(config)
  found = teacher.load(str(workdir), 'digits', training.network.spec)
  state = tiny_runs.last_state(workdir)
  leaves = {
    jax.tree_util.keystr(k): v
    for k, v in jax.tree_util.tree_leaves_with_path(found.variables)
  }
  for name, value in leaves.items():
    np.testing.assert_array_equal(state[f"['average']{name}"], value, name)


def test_published_networks_have_no_supernet_to_inherit():
  """The message says what their section may be."""
  config = references.get_config('runlocal')
  config.retrain.inherit = True
  with pytest.raises(ValueError, match='no choices'):
    settings.check_trained(config.to_dict())
