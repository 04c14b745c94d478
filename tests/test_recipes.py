"""The recipes of configs/recipes.py, and the configs that name them."""

import re

import pytest
import tiny_runs

from configs import common, pixel4, recipes, references
from hwdarts_jax.jobs import expense, retrain_settings, settings
from hwdarts_jax.latency import table as table_lib

DEVICES = [
  'exynos_npu',
  'host_cpu',
  'jetson_nano',
  'ncs2',
  'pixel4',
  'raspberry_pi4',
]


@pytest.mark.parametrize('recipe', recipes.RECIPES)
@pytest.mark.parametrize('dataset', ['cifar10', 'imagenet2012', 'digits'])
def test_every_recipe_trains_every_set(recipe, dataset):
  """The config is whole, also that of published networks."""
  arg = f'dataset={dataset},recipe={recipe}'
  for make in (pixel4, references):
    config = make.get_config(arg).to_dict()
    settings.check_trained(config)
    assert config['retrain']['recipe'] == recipe
    # A mirrored digit is another sign, and small images keep their corners.
    augment = config['retrain']['augment']
    assert augment['flip'] == (dataset != 'digits')
    assert bool(augment['crop_area']) == (dataset == 'imagenet2012')


def test_an_unknown_recipe_is_named():
  with pytest.raises(ValueError, match="recipe is 'no'.*mobilenet_v3"):
    pixel4.get_config('recipe=no')


def test_times_of_an_optimizer_go_with_the_length_of_an_epoch():
  """Epochs become steps; the same in both is refused."""
  section = {'name': 'sgd', 'warmup_epochs': 2.5, 'decay_epochs': 2.4}
  assert retrain_settings.in_steps(section, 100) == {
    'name': 'sgd',
    'warmup_steps': 250,
    'decay_steps': 240,
  }
  with pytest.raises(ValueError, match=r'warmup_epochs.*warmup_steps'):
    retrain_settings.in_steps(section | {'warmup_steps': 3}, 100)


@pytest.mark.parametrize('device', DEVICES)
def test_a_mobile_search_on_imagenet_is_complete(device):
  """It says which table to measure, and by what, and the recipe of training."""
  config = tiny_runs.runpy.run_path(
    str(tiny_runs.ROOT / 'configs' / f'{device}.py')
  )['get_config']('space=mobile,dataset=imagenet2012')
  settings.check(config.to_dict())
  assert config.retrain.recipe == 'mobilenet_v3'
  assert config.data.image_size == config.space.deploy.image_size == 224
  assert config.latency.table not in table_lib.available()
  command = config.latency.measure
  assert f'--out={config.latency.table}.json' in command
  assert f'--config=configs/{device}.py:space=mobile' in command
  assert config.network.dtype == 'bfloat16'


class _Run:
  """What `expense` reads of a training."""

  def __init__(self, config, num_steps, num_devices):
    self.config = config
    self.schedule = type('', (), {'num_steps': num_steps})
    self.mesh = type('', (), {'size': num_devices})


def test_the_cost_is_computed_from_the_stated_rate():
  """Images over rate; more devices take as many device hours."""
  config = pixel4.get_config('space=mobile,dataset=imagenet2012')
  config.retrain.batch_size = 500
  config.retrain.images_per_second = 1000.0
  for devices, hours in ((1, '2.0'), (4, '0.5')):
    text = expense.of_training(_Run(config, 14400, devices))
    assert '7,200,000 images' in text
    assert re.search(rf': {hours} hours, 2\.0 device hours', text), text
  config.retrain.images_per_second = 0.0
  assert 'hour' not in expense.of_training(_Run(config, 14400, 1))


def test_a_search_costs_both_of_its_batches():
  """Train and validation images count alike."""
  config = pixel4.get_config('space=mobile,dataset=imagenet2012')
  config.search.update(num_steps=1000, batch_size=64, images_per_second=64.0)
  text = expense.of_search(_Run(config, 1000, 1))
  assert '128,000 images' in text
  assert '0.6 hours' in text


def test_sections_of_configs_are_their_own():
  """A change of one config is none of another, or of a recipe."""
  first = pixel4.get_config('dataset=cifar10')
  first.retrain.optimizer.learning_rate = 7.0
  first.data.augment.pad = 3
  second = pixel4.get_config('dataset=cifar10')
  assert second.retrain.optimizer.learning_rate != 7.0
  assert common.augment('cifar10')['pad'] == 4
