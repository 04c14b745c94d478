"""Bad input ends in one message, exit code 2, and nothing written."""

import functools
import importlib
import json

import ml_collections
import pytest
import tiny_runs


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
    (
      {'network.depthwise_gradient': 'fast'},
      ['depthwise_gradient', 'fast', 'conv', 'padded', 'pairs'],
    ),
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
