"""Every config builds, says how to run it, and has its jobs."""

import importlib
import pkgutil
import re

from absl import flags
import pytest
import tiny_runs

from hwdarts_jax import jobs
from hwdarts_jax.jobs import common, feeding, settings
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime import sweep_table

CONFIGS = sorted(
  p.stem
  for p in (tiny_runs.ROOT / 'configs').glob('*.py')
  if p.stem not in ('__init__', 'common', 'mobile', 'recipes')
)


@pytest.fixture
def load_config(monkeypatch):
  """Loads a config as main does: (name, arg) -> config."""
  monkeypatch.syspath_prepend(str(tiny_runs.ROOT))

  def load(name, arg=None):
    return importlib.import_module(f'configs.{name}').get_config(arg)

  return load


@pytest.mark.parametrize('arg', [None, 'runlocal'])
@pytest.mark.parametrize(
  'name', sorted({*CONFIGS} - {'predictor', 'references'})
)
def test_every_config_builds_and_its_table_covers_it(load_config, name, arg):
  """Both specs exist and the table tells what the deployed networks cost."""
  config = load_config(name, arg)
  settings.check(config.to_dict())
  dataset = feeding.load_data(config.data.to_dict(), 'test')
  common.fit_search_spec(config, dataset)
  specs = common.make_specs(config.space.to_dict())
  common.check_data(dataset, specs.search, 'search')
  if name == 'host_cpu' and config.latency.table not in table_lib.available():
    with pytest.raises(ValueError, match=r'python -m hwdarts_jax\.harness'):
      table_lib.load(config.latency.table)
  else:
    table_lib.load(config.latency.table).check_covers(specs.deploy)
  assert config.source.split(':')[0] == f'configs/{name}.py'
  if arg:
    assert config.search.num_steps <= 20
    assert config.retrain.num_epochs <= 2


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_says_how_to_run_it(name):
  """The docstring has the command with this very file."""
  text = (tiny_runs.ROOT / 'configs' / f'{name}.py').read_text()
  docstring = text.split('"""')[1]
  assert f'python -m hwdarts_jax.main --config=configs/{name}.py' in docstring


@pytest.fixture(scope='module')
def main_module():
  """The entry point without its flags, which would join those of pytest."""
  before = set(flags.FLAGS)
  module = importlib.import_module('hwdarts_jax.main')
  yield module
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def _leaves(section, prefix=''):
  for name, value in section.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def test_jobs_are_the_modules_that_run(main_module):
  """The table of names lacks none of them, and has no other."""
  names = [module.name for module in pkgutil.iter_modules(jobs.__path__)]
  found = [
    name
    for name in names
    if hasattr(importlib.import_module(f'hwdarts_jax.jobs.{name}'), 'run')
  ]
  assert tuple(found) == main_module.JOBS


def test_help_tells_of_every_job(main_module):
  """And of the flags that a first run needs; the docstring is what it shows."""
  told = re.findall(r'^  (\w+) ', main_module.__doc__, re.M)
  assert set(main_module.JOBS) <= set(told)
  assert (
    '--config=' in main_module.__doc__ and '--workdir' in main_module.__doc__
  )


def test_the_default_workdir_belongs_to_the_settings(load_config, main_module):
  """It is the same for the same settings and another for each change."""
  first = load_config('pixel4', 'runlocal')
  folder = main_module.default_workdir(first)
  assert folder.startswith('runs/pixel4-search-')
  assert folder == main_module.default_workdir(
    load_config('pixel4', 'runlocal')
  )
  seen = {folder}
  for name, value in _leaves(first.to_dict()):
    config = load_config('pixel4', 'runlocal')
    by_type = {str: lambda v: f'{v}x', tuple: lambda v: (*v, 1.0)}
    changed = by_type.get(type(value), lambda v: v + 1)(value)
    with config.unlocked(), config.ignore_type():
      config.update_from_flattened_dict({name: changed})
    seen.add(main_module.default_workdir(config))
  assert len(seen) == 1 + len(list(_leaves(first.to_dict())))


def test_every_job_has_a_row_in_the_table_of_a_sweep(main_module):
  """A report has none of its own: it is made of another's workdir."""
  assert {*sweep_table.RESULTS} == {*main_module.JOBS} - {'report'}
