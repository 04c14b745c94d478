"""Jobs whose images stay on disk: the same runs, however they are stopped."""

import json

import numpy as np
import pytest
from tfds_files import pngs, write_tfds
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import retrain as retrain_job
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.spaces import discretize


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A set of 50 images of three classes, of which 40 are for training."""
  path = tmp_path_factory.mktemp('tfds')
  write_tfds(path, pngs(50, 12, 10)[1], [i % 3 for i in range(50)])
  return path


@pytest.fixture
def make_config(folder, table, monkeypatch):
  """The tiny config on that set, with some fields changed."""
  monkeypatch.chdir(tiny_runs.ROOT)

  def make(**changes):
    config = tiny_runs.tiny('get_config')()
    config.update_from_flattened_dict(
      {
        'num_devices': 2,
        'latency.table': str(table),
        'data.name': 'tiny',
        'data.data_dir': str(folder),
        'data.image_size': 8,
        'search.num_steps': 4,
        'retrain.num_epochs': 2,
        'retrain.batch_size': 8,
      }
      | changes
    )
    return config

  return make


@pytest.fixture(scope='module')
def genotype(tmp_path_factory):
  """A file of an architecture of convolutions."""
  spec = spaces.make('darts', **tiny_runs.tiny('SPEC'))
  gates = {
    g: np.array([['conv' in o for o in s.ops] for _ in s.edges], float)
    for g, s in spec.groups().items()
  }
  path = tmp_path_factory.mktemp('genotype') / 'genotype.json'
  found = discretize.derive(spec, gates)
  path.write_text(json.dumps(found.to_dict()))
  return str(path)


def assert_same_state(left, right):
  states = [tiny_runs.last_state(w) for w in (left, right)]
  assert states[0].keys() == states[1].keys()
  for name, value in states[0].items():
    np.testing.assert_array_equal(states[1][name], value, name)


def test_both_levels_of_a_search_are_fed_from_disk(make_config):
  """The halves are split by record and walked as in memory."""
  memory, disk = (
    search_job.feeds(search_job.make(make_config(**{'data.resident': place})))
    for place in ('true', 'disk')
  )
  for left, right in zip(memory, disk, strict=True):
    for step in (0, 3):
      of_memory, of_disk = left(step, 1), right(step, 1)
      rows = np.asarray(of_memory.indices[0])
      images = np.asarray(of_memory.images)
      np.testing.assert_array_equal(of_disk.images[0], images[rows])
    right.close()


@pytest.mark.slow
def test_a_search_of_images_on_disk_is_that_of_images_in_memory(
  make_config, tmp_path
):
  """To the bit, and so are all rows of metrics."""
  for place in ('true', 'disk'):
    config = make_config(**{'data.resident': place})
    search_job.run(config, str(tmp_path / place))
  assert_same_state(tmp_path / 'true', tmp_path / 'disk')
  rows = [tiny_runs.rows(tmp_path / p) for p in ('true', 'disk')]
  assert rows[0] == rows[1]


def test_a_streamed_training_stopped_in_mid_epoch_ends_the_same(
  make_config, genotype, tmp_path, monkeypatch
):
  """Random crops, colours and RandAugment go on as if nothing had happened."""

  def run(name, **changes):
    config = make_config(
      **{
        'retrain.genotype': genotype,
        'retrain.augment.crop_area': 0.3,
        'retrain.augment.colour': 0.2,
        'retrain.augment.rand_ops': 1,
        'retrain.augment.rand_magnitude': 5.0,
        'retrain.mixup': 0.2,
        'retrain.cutmix': 1.0,
        'retrain.optimizer.warmup_epochs': 1.0,
      }
      | changes
    )
    retrain_job.run(config, str(tmp_path / name))

  run('whole')
  with monkeypatch.context() as patch:
    patch.setattr(loop_lib, 'StopSignal', _after(7))
    run('stopped')
  assert not (tmp_path / 'stopped' / retrain_job.RESULT).exists()
  assert tiny_runs.last_state(tmp_path / 'stopped')['checkpoint'] == 7
  run('stopped')
  assert_same_state(tmp_path / 'whole', tmp_path / 'stopped')
  assert tiny_runs.rows(tmp_path / 'whole') == tiny_runs.rows(
    tmp_path / 'stopped'
  )
  records = [
    json.loads((tmp_path / w / retrain_job.RESULT).read_text())
    for w in ('whole', 'stopped')
  ]
  assert records[0] == records[1]
  run('plain', **{'retrain.augment.crop_area': 0.0})
  plain, varied = (
    tiny_runs.rows(tmp_path / w)[0]['train_loss'] for w in ('plain', 'whole')
  )
  assert plain != varied


def _after(num_steps):
  """A stop signal that comes while a step is in flight."""

  class Stop(loop_lib.StopSignal):
    """Counts how often it is asked: once before each step."""

    asked = 0

    @property
    def received(self):
      self.asked += 1
      return self.asked > num_steps

    @received.setter
    def received(self, value):
      del value

  return Stop


def test_images_that_must_be_varied_on_disk_cannot_be_on_the_device(
  make_config, tmp_path
):
  """The message names both fields and what to do."""
  config = make_config(
    **{'data.resident': 'true', 'data.augment.crop_area': 0.3}
  )
  with pytest.raises(ValueError, match=r"data\.resident.*crop_area.*'auto'"):
    search_job.run(config, str(tmp_path))
