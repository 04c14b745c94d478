"""Bad input ends in one message, exit code 2, and nothing written."""

import functools
import importlib
import json
import pkgutil
import re
import shlex

from absl import flags
import ml_collections
import pytest
import tiny_runs

from hwdarts_jax import jobs
from hwdarts_jax.jobs import common, feeding, settings, summary
from hwdarts_jax.latency import table as table_lib

CONFIGS = sorted(
  p.stem
  for p in (tiny_runs.ROOT / 'configs').glob('*.py')
  if p.stem not in ('__init__', 'common', 'recipes')
)


def _check_message(result, *words):
  """One message on stderr that has all words, and the exit code of misuse."""
  assert result.code == 2, (result.code, result.err)
  assert 'Traceback' not in result.err + result.out, result.err
  errors = [x for x in result.err.splitlines() if 'Error' in x]
  assert len(errors) == 1 and errors[0].startswith('Error: '), result.err
  for word in words:
    assert word in result.err, (word, result.err)


@pytest.fixture
def refusal(monkeypatch, table, tmp_path):
  """Runs the job in this process; returns its message, checks the rest."""
  monkeypatch.chdir(tiny_runs.ROOT)

  def refuse(overrides, remove=False):
    config = tiny_runs.tiny('get_config')()
    config.latency.table = str(table)
    config.num_devices = 1
    config = config.to_dict()
    for name, value in overrides.items():
      *sections, field = name.split('.')
      inner = functools.reduce(dict.__getitem__, sections, config)
      if remove:
        del inner[field]
      else:
        inner[field] = value
    workdir = tmp_path / 'run'
    config = ml_collections.ConfigDict(config).lock()
    job = importlib.import_module(f'hwdarts_jax.jobs.{config.job}')
    with pytest.raises(ValueError) as error:
      job.run(config, str(workdir))
    assert not workdir.exists()
    return str(error.value)

  return refuse


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ([], ['--config is missing', 'configs/pixel4.py']),
    (['--config=configs/pixel9.py'], ['pixel9', 'configs/pixel4.py']),
    (['--config', 'configs/pixel9.py'], ['pixel9', 'configs/pixel4.py']),
    (['--config=configs/pixel4.py:spice=1'], ['spice', 'space', 'dataset']),
    (['--config=configs/pixel4.py:space=mars'], ['mars', 'nasbench201']),
    (['--config=configs/pixel4.py:runlocal=no'], ['runlocal', 'true or']),
    (['--config=configs/pixel4.py', 'configs'], ['configs', '--config.name=']),
    (
      ['--config=configs/pixel4.py', '--config.search.num_step=3'],
      ['num_step', "'num_steps'"],
    ),
    (['--config=configs/pixel4.py', '--config.serch.x=3'], ['serch']),
    (['--config=configs/pixel4.py', '--wrkdir=x'], ['wrkdir', 'workdir']),
    (
      ['--config=configs/pixel4.py', '--config.search.num_steps=1.5'],
      ['config.search.num_steps', '1.5'],
    ),
    (
      ['--config=configs/pixel4.py', '--config.objective.multiplier=abc'],
      ['config.objective.multiplier', 'abc'],
    ),
    (
      ['--config=configs/pixel4.py', '--config.hypergrad={"name":"exact"}'],
      ['hypergrad.name', 'exact', 'unrolled'],
    ),
    (
      ['--config=configs/pixel4.py', '--config.latency.table=pixel99'],
      ['pixel99', 'available', 'pixel4_cpu'],
    ),
    (
      ['--config=configs/pixel4.py', '--config.job=retrain'],
      ['retrain.search_workdir', 'retrain.genotype'],
    ),
    (
      ['--config=configs/pixel4.py', '--config.job=dance'],
      ['config.job', 'dance', 'retrain', 'search'],
    ),
    (
      ['--config=configs/pixel4.py:space=darts'],
      ['pixel4_cpu.darts', 'available', 'hwdarts_jax.harness', '--runner=adb'],
    ),
  ],
)
def test_a_command_that_cannot_be_is_one_message(
  nursery, tmp_path, args, words
):
  """It names what is wrong and what is known, and makes no workdir."""
  workdir = tmp_path / 'run'
  _check_message(nursery.run(*args, f'--workdir={workdir}'), *words)
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'latency.table': 'pixel99'}, ['pixel99', 'available', 'pixel4_cpu']),
    ({'latency.table': 'no/such.json'}, ['latency.table', 'no/such.json']),
    ({'space.name': 'mars'}, ['space.name', 'mars', 'darts']),
    ({'space.deploy.num_nodes': 2}, ['space.search and space.deploy']),
    ({'space.search.num_classes': 7}, ['num_classes', '7', '10', 'digits']),
    ({'space.search.image_size': 9}, ['space.search', '(9, 9, 1)', '(8, 8']),
    ({'search.num_steps': 15}, ['num_steps', '15', 'log_every_steps']),
    ({'search.num_steps': 0}, ['search.num_steps', '0', 'at least 1']),
    ({'search.batch_size': 9}, ['search.batch_size', '9', '8 or 10']),
    ({'search.eval_every_steps': 3}, ['eval_every_steps', '3', 'multiple']),
    ({'seed': 2**40}, ['seed', str(2**40), '2**31']),
    ({'network.dtype': 'float64'}, ['network.dtype', 'JAX_ENABLE_X64']),
    ({'search.batch_size': 8000}, ['batch_size', '8000', '718']),
    ({'search.eval_batch_size': 0}, ['eval_batch_size', '0', 'at least 1']),
    ({'network.bn_groups': 3}, ['search.batch_size', '8', '3']),
    ({'network.dtype': 'float8'}, ['network.dtype', 'float8', 'bfloat16']),
    ({'network.depthwise': 'deep'}, ['depthwise', 'deep', 'conv', 'shift']),
    ({'network.bn_momentum': 1.5}, ['bn_momentum', '1.5']),
    ({'num_devices': 50}, ['num_devices', '50', '8']),
    ({'seed': -1}, ['seed', '-1']),
    ({'objective.name': 'best'}, ['objective.name', 'best', 'relative']),
    ({'objective.reference_ms': -1.0}, ['objective.reference_ms', '-1']),
    ({'relaxation.name': 'hard'}, ['relaxation.name', 'hard', 'softmax']),
    (
      {'relaxation.temperature_end': 0.0},
      ['relaxation.temperature_end', '0.0'],
    ),
    ({'hypergrad.name': 'exact'}, ['hypergrad.name', 'exact', 'unrolled']),
    (
      {'hypergrad': {'name': 'neumann', 'num_term': 2}},
      ['hypergrad.num_term', 'num_terms', 'neumann'],
    ),
    ({'regularizers': {'decay': {}}}, ['regularizers', 'decay', 'beta_decay']),
    (
      {'regularizers': {'beta_decay': {'weight': 1.0}}},
      ['regularizers.beta_decay.weight', 'scale'],
    ),
    (
      {'regularizers': {'beta_decay': 50.0}},
      ['regularizers.beta_decay', '50.0', 'scale'],
    ),
    ({'search.warmup_gates': 'even'}, ['search.warmup_gates', 'uniform']),
    ({'search.selection': 'best'}, ['search.selection', 'perturbation']),
    (
      {'diagnostics.every_steps': 3},
      ['diagnostics.every_steps', '3', 'log_every_steps = 2'],
    ),
    (
      {'diagnostics.early_stop': True},
      ['diagnostics.early_stop', 'diagnostics.every_steps'],
    ),
    (
      {'diagnostics.eigenvalue_factor': 1.0},
      ['diagnostics.eigenvalue_factor', '1.0', 'above 1'],
    ),
    (
      {'hypergrad': {'name': 'first_order', 'num_terms': 2}},
      ['hypergrad.num_terms', 'first_order'],
    ),
    (
      {'params_optimizer.name': 'sdg'},
      ['params_optimizer.name', 'sdg', 'rmsprop'],
    ),
    (
      {'alphas_optimizer.name': 'sdg'},
      ['alphas_optimizer.name', 'sdg', 'rmsprop'],
    ),
    (
      {'params_optimizer': {'name': 'sgd', 'learning_rte': 0.1}},
      ['params_optimizer.learning_rte', 'learning_rate'],
    ),
    (
      {'alphas_optimizer': {'name': 'adam', 'b1': 0.5}},
      ['alphas_optimizer.learning_rate'],
    ),
    ({'params_optimizer.learning_rate': -1.0}, ['learning_rate', '-1']),
    ({'data.name': 'cifar11'}, ['data.name', 'cifar11', 'tfds build']),
    ({'data.resident': 'maybe'}, ['resident', 'maybe', 'auto']),
    ({'data.augment.pad': -1}, ['augment.pad', '-1']),
    ({'data.image_size': -8}, ['data.image_size', '-8']),
  ],
)
def test_a_setting_that_cannot_be_is_one_message(
  refusal, tmp_path, overrides, words
):
  """It names the field and what is allowed, and makes no workdir."""
  message = refusal({'data.data_dir': str(tmp_path), **overrides})
  assert all(w in message for w in words), message


@pytest.mark.parametrize(
  'field',
  [
    'latency.tabel',
    'network.bn_group',
    'relaxation.temperature',
    'objective.weight',
    'search.num_epochs',
    'data.resident_mb',
    'data.augment.mirror',
    'space.sarch',
    'space.search.channels',
    'retrain.epochs',
    'retrain.optimizer.lr',
  ],
)
def test_a_typo_in_a_config_of_ones_own_is_named(refusal, field):
  """A field that no factory knows is an error, not silently without effect."""
  message = refusal({field: 1})
  # A setting of a space is known by the space alone.
  section, _, name = field.rpartition('.')
  assert section in message and name in message, message


@pytest.mark.parametrize(
  'field',
  [
    'seed',
    'latency.table',
    'network.bn_groups',
    'hypergrad.name',
    'params_optimizer.name',
    'alphas_optimizer.learning_rate',
    'objective',
    'data.augment',
    'retrain.ema_decay',
  ],
)
def test_a_field_that_a_config_lacks_is_named(refusal, field):
  """Nothing is filled in silently."""
  message = refusal({field: None}, remove=True)
  assert f'{field} is missing' in message, message


def test_a_typo_in_a_config_file_reaches_the_shell(nursery, command, tmp_path):
  """The config file is found wrong after the flags were parsed."""
  config = f'{tiny_runs.CONFIG}:objective.weight'
  result = nursery.run(*command(tmp_path / 'run', config=config))
  _check_message(result, 'objective.weight', 'multiplier')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    (None, ['entries are missing', 'harness']),
    (-0.5, ['value_ms', '-0.5', 'at least 0']),
    (float('nan'), ['value_ms', 'nan', 'finite']),
  ],
)
def test_a_table_with_a_bad_entry_is_refused(
  nursery, command, table, tmp_path, value, words
):
  """The key of the entry is in the message."""
  record = json.loads(table.read_text())
  key = sorted(k for k in record['entries'] if 'sep_conv_3x3' in k)[0]
  if value is None:
    del record['entries'][key]
  else:
    record['entries'][key]['value_ms'] = value
  path = tmp_path / 'bad.json'
  path.write_text(json.dumps(record))
  args = command(tmp_path / 'run', **{'latency.table': path})
  _check_message(nursery.run(*args), key, *words)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({}, ['retrain.search_workdir', 'retrain.genotype']),
    (
      {'retrain.search_workdir': 'no/where'},
      ['no/where/genotype.json', 'run the search first'],
    ),
    ({'retrain.genotype': 'not/there.json'}, ['not/there.json']),
    ({'retrain.genotype': 'torn'}, ['torn.json', 'not JSON']),
    ({'retrain.genotype': 'list'}, ['list.json', 'genotype']),
    ({'retrain.genotype': 'op'}, ['op.json', 'magic_conv', 'sep_conv_3x3']),
    ({'retrain.genotype': 'edge'}, ['edge.json', '0->7']),
    ({'retrain.genotype': 'space'}, ['space.json', 'nasbench201', 'darts']),
    ({'retrain.genotype': 'good', 'retrain.inherit': True}, ['inherit']),
    ({'retrain.genotype': 'good', 'retrain.spec': 'best'}, ['best', 'deploy']),
    (
      {
        'retrain.genotype': 'good',
        'retrain.spec': 'deploy',
        'space.deploy.num_classes': 7,
      },
      ['entries are missing', 'dense/1x1x8/7/s1'],
    ),
    (
      {'retrain.genotype': 'good', 'latency.table': 'pixel4_cpu'},
      ['pixel4_cpu', 'entries are missing'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.batch_size': 9},
      ['retrain.batch_size', '9', '8 or 10'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.batch_size': 5000},
      ['batch_size', '5000', '1437'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.optimizer.name': 'sdg'},
      ['retrain.optimizer.name', 'sdg', 'sgd'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.label_smoothing': 1.5},
      ['retrain.label_smoothing', '1.5'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.ema_decay': -0.1},
      ['retrain.ema_decay', '-0.1'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.drop_path': 1.0},
      ['retrain.drop_path', '1.0'],
    ),
    (
      {'retrain.genotype': 'good', 'retrain.augment.cutout': -4},
      ['augment.cutout', '-4'],
    ),
  ],
)
def test_a_training_that_cannot_be_is_one_message(
  refusal, finished, tmp_path, overrides, words
):
  """It names the field or the file, and makes no workdir."""
  files = _genotypes(finished[0], tmp_path)
  overrides = {'job': 'retrain'} | overrides
  name = overrides.get('retrain.genotype')
  if name in files:
    overrides['retrain.genotype'] = str(files[name])
  message = refusal(overrides)
  assert all(w in message for w in words), message


def _genotypes(search, folder):
  """Files with a good genotype and with some that are damaged."""
  good = json.loads((search / 'genotype.json').read_text())

  def with_choice(choice):
    cells = {'reduce': [choice, ['skip_connect', 1, 2]]}
    return {'genotype': {'space': 'darts', 'cells': cells}}

  texts = {
    'good': json.dumps(good),
    'torn': json.dumps(good)[:40],
    'list': '[1, 2]',
    'op': json.dumps(with_choice(['magic_conv', 0, 2])),
    'edge': json.dumps(with_choice(['skip_connect', 0, 7])),
    'space': json.dumps(
      good | {'genotype': {'space': 'nasbench201', 'cells': {}}}
    ),
  }
  for name, text in texts.items():
    (folder / f'{name}.json').write_text(text)
  return {name: folder / f'{name}.json' for name in texts}


def _contents(folder):
  return {
    str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
    for p in sorted(folder.rglob('*'))
    if p.is_file() and p.name != '.lock'
  }


def test_a_workdir_of_other_settings_is_not_touched(nursery, command, finished):
  """The message names the field that differs, both values, and the way out."""
  before = _contents(finished[0])
  result = nursery.run(*command(finished[0], **{'objective.multiplier': 0.75}))
  _check_message(result, 'objective.multiplier', '0.2', '0.75', '--workdir')
  assert _contents(finished[0]) == before


def test_a_workdir_of_another_table_is_not_touched(
  nursery, command, table, finished, tmp_path
):
  """A table that changed under its name is noticed by its hash."""
  text = table.read_text()
  before = _contents(finished[0])
  try:
    table.write_text(text.replace('0.1', '0.2'))
    result = nursery.run(*command(finished[0]))
  finally:
    table.write_text(text)
  _check_message(result, 'latency_table', '--workdir')
  assert _contents(finished[0]) == before


def test_a_folder_with_files_of_somebody_is_not_touched(
  nursery, command, tmp_path
):
  """A foreign folder is refused and keeps exactly what it had."""
  (tmp_path / 'thesis.tex').write_text('mine')
  before = _contents(tmp_path)
  _check_message(nursery.run(*command(tmp_path)), 'thesis.tex', '--workdir')
  assert _contents(tmp_path) == before
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_workdir_that_is_a_file_is_not_touched(nursery, command, tmp_path):
  """A path that cannot be a folder is one message."""
  (tmp_path / 'file').write_text('mine')
  _check_message(nursery.run(*command(tmp_path / 'file')), 'file', '--workdir')
  assert (tmp_path / 'file').read_text() == 'mine'


def test_python_m_behaves_like_the_forks(command, tmp_path):
  """The messages reach a shell the same way."""
  result = tiny_runs.Shell(
    *command(tmp_path / 'run', **{'hypergrad.name': 'exact'})
  ).wait()
  _check_message(result, 'hypergrad.name', 'unrolled')


def test_the_printed_command_trains_the_genotype(nursery, finished, tmp_path):
  """It works as it stands, also when the search had overrides."""
  line = next(x for x in finished[1].out.splitlines() if 'retrain' in x)
  args = shlex.split(line)
  # What the data set filled in is not repeated.
  assert 'image_size' not in line
  assert args[0].endswith('python') and args[1:3] == ['-m', 'hwdarts_jax.main']
  result = nursery.run(
    *args[3:], f'--workdir={tmp_path / "run"}', '--config.retrain.num_epochs=1'
  )
  assert result.code == 0, result.err
  found = json.loads((finished[0] / 'genotype.json').read_text())
  trained = json.loads((tmp_path / 'run' / 'retrain.json').read_text())
  assert trained['genotype'] == found['genotype']
  assert trained['deploy']['predicted_ms'] == found['deploy']['predicted_ms']


def test_the_deploy_network_is_trained_on_the_images_that_there_are(
  nursery, finished, tmp_path
):
  """Depth and width are kept; its latency is still that of its own input."""
  line = next(x for x in finished[1].out.splitlines() if 'retrain' in x)
  result = nursery.run(
    *shlex.split(line)[3:],
    f'--workdir={tmp_path / "run"}',
    '--config.retrain.num_epochs=1',
    '--config.retrain.spec=deploy',
    '--config.data.image_size=6',
    '--config.space.search.image_size=6',
  )
  assert result.code == 0, result.err
  record = json.loads((tmp_path / 'run' / 'retrain.json').read_text())
  trained, deploy = record['trained'], record['deploy']
  assert trained['spec']['image_size'] == 6 != deploy['spec']['image_size']
  assert trained['spec']['features'] == deploy['spec']['features']
  assert trained['macs'] < deploy['macs']


def test_the_printed_command_repeats_sections_with_more_fields(
  nursery, monkeypatch, tmp_path
):
  """What the config file lacks is given as the whole section again."""
  monkeypatch.chdir(tiny_runs.ROOT)
  # As in the process that was started with this config.
  monkeypatch.setattr(summary.command, 'is_trusted_config', lambda name: True)
  config = tiny_runs.tiny('get_config')().to_dict()
  config['hypergrad'] = {'name': 'neumann', 'num_terms': 2}
  config['regularizers'] = {'beta_decay': {'scale': 5.0}}
  config['seed'] = 5
  search = tmp_path / 'a search'
  search.mkdir()
  (search / 'config.json').write_text(json.dumps({'config': config}))
  line = summary.retrain_command(search)
  args = shlex.split(line)[3:]
  assert '--config.seed=5' in args and 'num_terms' in line
  assert "--config.regularizers={'beta_decay': {'scale': 5.0}}" in args
  assert len(args) == 6, args
  # All is understood: what is missing is the search.
  result = nursery.run(*args, f'--workdir={tmp_path / "run"}')
  _check_message(result, 'a search/genotype.json', 'does not exist')


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
