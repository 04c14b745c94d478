"""The job `predictor`: from CSV files to a predictor that a search can use."""

import importlib
import json
import shutil

import numpy as np
from predictor_job_cases import (
  _assert_predicts,
  _cells,
  _one_hot,
  _read,
  _spec,
  _write,
  CONFIG,
)
import pytest
import tiny_runs

from hwdarts_jax import oracle
from hwdarts_jax.jobs import predictor as job
from hwdarts_jax.jobs import predictor_files, settings
from hwdarts_jax.latency import liveness

_COSTS = np.array([0.0, 0.2, 1.0, 3.0, 0.5])  # ms of the ops of a cell


def _device(one_hot):
  """Latency f[N] on a made-up device that runs only what it must."""
  paid = liveness.paid_ops(_spec(), one_hot, 'compiled')['cell']
  return 2.0 + (paid * _COSTS * np.arange(1, 7)[:, None]).sum((1, 2))


@pytest.fixture
def load(monkeypatch):
  """Loads the config as main does."""
  monkeypatch.syspath_prepend(str(tiny_runs.ROOT))

  def load(arg=None, **overrides):
    config = importlib.import_module('configs.predictor').get_config(arg)
    config.update_from_flattened_dict(overrides)
    return config.lock()

  return load


@pytest.fixture
def files(tmp_path):
  """CSV files of 60 measured cells and of 43 to predict."""
  return _files(tmp_path)


def _files(folder):
  rng = np.random.default_rng(0)
  connected = np.flatnonzero(oracle.load().connected)
  cells = _cells(rng.permutation(connected)[:100])
  train, predict = cells[:60], cells[60:] + cells[:1] + cells[60:62]
  return {
    'measurements': _write(
      folder / 'phone.csv', train, _device(_one_hot(train))
    ),
    'predict': _write(folder / 'all.csv', predict),
  }


@pytest.fixture(scope='module')
def fitted(nursery, tmp_path_factory):
  """Folder of the files, with the workdir `w` of the fit; and its output."""
  folder = tmp_path_factory.mktemp('fitted')
  files = _files(folder)
  result = nursery.run(*_command(files), f'--workdir={folder / "w"}')
  assert result.code == 0, result.err
  return folder, result.out


def _command(files):
  return [
    f'--config={CONFIG}',
    '--config.space=nasbench201',
    f'--config.measurements={files["measurements"]}',
    f'--config.predict={files["predict"]}',
    '--config.exclude_devices=pixel3,pixel4_cpu',
  ]


def test_what_was_measured_predicts_what_was_not(fitted):
  """Rows come back in their order, as text of the same cells."""
  folder, out = fitted
  rows = _read(folder / 'w' / 'predictions.csv')
  texts = [r['genotype'] for r in _read(folder / 'all.csv')]
  assert [r['genotype'] for r in rows] == texts
  assert list(rows[0]) == ['genotype', 'predicted_ms']
  ms = np.array([float(r['predicted_ms']) for r in rows])
  np.testing.assert_allclose(ms, _device(_one_hot(texts)), rtol=0.05)
  assert 'phone' in out and 'within 10 %' in out
  assert f'--config.latency.predictor={folder / "w" / "predictor"}' in out
  assert (folder / 'w' / 'predictor.png').stat().st_size > 10_000


def test_metrics_stand_beside_those_of_sums_of_ops(fitted):
  """A device that drops dead ops is no sum of ops, and says so."""
  record = json.loads((fitted[0] / 'w' / 'metrics.json').read_text())
  ours, additive, pruned = (
    record['figures'][m] for m in ('predictor', 'additive', 'pruned')
  )
  assert ours['within_10_percent'] > 95 and ours['spearman'] > 0.99
  assert additive['within_10_percent'] < 80 and additive['spearman'] < 0.98
  assert additive['interior_error_percent'] < 0.01
  # It is right about architectures, and wrong about what lies between.
  assert pruned['spearman'] > 0.99
  assert pruned['interior_error_percent'] > 2
  assert pruned['gradient_cosine'] < 0.99
  assert ours['interior_error_percent'] < 0.01
  assert ours['gradient_cosine'] > 0.999
  assert record['held_out_rows'] == record['rows'] == 60


def test_the_saved_predictor_says_what_was_written(fitted):
  """Loaded again, it gives the figures of predictions.csv."""
  workdir = fitted[0] / 'w'
  saved = predictor_files.load(workdir / 'predictor')
  assert saved.spec == _spec() and saved.device == 'phone'
  record = json.loads((workdir / 'metrics.json').read_text())
  held_out = saved.fit.card['held_out']
  assert held_out.items() <= record['figures']['predictor'].items()
  _assert_predicts(saved, _read(workdir / 'predictions.csv'), 1e-6)


def _contents(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file() and p.name != '.lock'
  }


def _settings(folder):
  return {
    'measurements': str(folder / 'phone.csv'),
    'predict': str(folder / 'all.csv'),
    'exclude_devices': 'pixel3,pixel4_cpu',
  }


def test_a_finished_workdir_is_not_touched(load, fitted, capsys):
  folder = fitted[0]
  config = load(**_settings(folder))
  before = _contents(folder / 'w')
  job.run(config, str(folder / 'w'))
  out = capsys.readouterr().out
  assert 'finished already' in out and fitted[1].strip() in out
  with pytest.raises(ValueError, match='seed'):
    job.run(load(seed=1, **_settings(folder)), str(folder / 'w'))
  text = (folder / 'phone.csv').read_bytes()
  try:
    (folder / 'phone.csv').write_bytes(text.replace(b'\n', b'\r\n'))
    with pytest.raises(ValueError, match='hash of measurements'):
      job.run(config, str(folder / 'w'))
  finally:
    (folder / 'phone.csv').write_bytes(text)
  assert _contents(folder / 'w') == before


def test_a_run_that_was_killed_ends_like_one_that_was_not(
  nursery, fitted, tmp_path
):
  """The last file is the one that says it is finished."""
  shutil.copytree(fitted[0] / 'w', tmp_path / 'w')
  names = ('metrics.json', 'predictions.csv', 'predictor/card.json')
  whole = {n: (tmp_path / 'w' / n).read_bytes() for n in names}
  (tmp_path / 'w' / 'metrics.json').unlink()
  (tmp_path / 'w' / 'predictor' / 'card.json').write_text('{')
  shutil.rmtree(tmp_path / 'w' / 'predictor' / 'variables' / '0' / 'state')
  command = _command(_settings(fitted[0]))
  result = nursery.run(*command, f'--workdir={tmp_path / "w"}')
  assert result.code == 0, result.err
  assert whole == {n: (tmp_path / 'w' / n).read_bytes() for n in whole}


def test_too_few_networks_are_counted(load, files, tmp_path):
  """The message says how many there are and how many it takes."""
  lines = (tmp_path / 'phone.csv').read_text().splitlines()
  disconnected = _cells(np.flatnonzero(~oracle.load().connected)[:3])
  lines = lines[:20] + [f'{text},1' for text in disconnected]
  (tmp_path / 'phone.csv').write_text('\n'.join(lines))
  with pytest.raises(ValueError, match=r'has 19 measured .* at least 20'):
    job.run(load(**files), str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_no_held_out_figures_are_made_from_too_few_networks(
  load, files, tmp_path, capsys
):
  """It is fitted all the same, and says why its errors are not known."""
  lines = (tmp_path / 'phone.csv').read_text().splitlines()
  (tmp_path / 'phone.csv').write_text('\n'.join(lines[:22]))
  job.run(load(**files), str(tmp_path / 'w'))
  record = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
  assert record['held_out_rows'] == 0 and record['rows'] == 21
  assert 'too few' in record['held_out_by']
  assert not any('mape_percent' in f for f in record['figures'].values())
  assert record['figures']['predictor']['gradient_cosine'] > 0.999
  assert 'too few' in capsys.readouterr().out
  assert len(_read(tmp_path / 'w' / 'predictions.csv')) == 43
  assert not (tmp_path / 'w' / 'predictor.png').exists()


def test_networks_without_a_path_are_left_out_of_errors(load, files, tmp_path):
  """A runtime may delete them whole; they would spoil the fit."""
  with (tmp_path / 'phone.csv').open('a') as f:
    for text in _cells(np.flatnonzero(~oracle.load().connected)[:30]):
      f.write(f'{text},0.01\n')
  job.run(load(**files), str(tmp_path / 'w'))
  record = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
  assert record['rows'] == 60 and record['rows_left_out'] == 30
  assert record['figures']['predictor']['within_10_percent'] > 95


def test_rows_of_a_table_that_are_not_drawn_judge_the_fit(load, tmp_path):
  """runlocal fits to a part of the shipped Pixel 4 and predicts the rest."""
  config = load('runlocal')
  job.run(config, str(tmp_path / 'w'))
  record = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
  assert record['device'] == 'pixel4_cpu'
  assert record['rows'] == config.rows
  assert record['held_out_rows'] == 1999 - config.rows
  ours = record['figures']['predictor']
  assert ours['within_10_percent'] > 97
  assert record['figures']['additive']['within_10_percent'] < 90


def test_suggestions_need_no_measurement(load, tmp_path, capsys):
  job.run(load(suggest=3), str(tmp_path / 'w'))
  texts = [r['genotype'] for r in _read(tmp_path / 'w' / 'suggest.csv')]
  out = capsys.readouterr().out
  assert len(set(texts)) == 3 and all(t in out for t in texts)
  assert not (tmp_path / 'w' / 'predictor').exists()
  assert not (tmp_path / 'w' / 'predictions.csv').exists()
  job.run(load(suggest=3), str(tmp_path / 'w'))
  assert 'finished already' in capsys.readouterr().out


def test_no_prior_knows_the_device_that_is_measured(load):
  """The table of a fit is left out of the devices it may learn from."""
  task = job.make(load(table='pixel4_cpu', rows=10, prior='shipped'))
  assert set(task.series) == {*oracle.devices()} - {'pixel4_cpu'}
  task = job.make(
    load(
      table='pixel4_cpu',
      rows=10,
      prior='shipped',
      exclude_devices=' pixel3, intel_ncs2',
    )
  )
  left_out = {'pixel4_cpu', 'pixel3', 'intel_ncs2'}
  assert set(task.series) == {*oracle.devices()} - left_out
  assert not job.make(load(table='pixel4_cpu', rows=100)).series


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({}, ['measurements is empty', 'genotype', 'latency_ms', 'suggest']),
    ({'measurements': 'no/such.csv'}, ['measurements', 'no/such.csv', 'CSV']),
    ({'table': 'pixel99'}, ['pixel99', 'available', 'pixel4_cpu']),
    ({'table': 'no/such.json'}, ['table', 'no/such.json', 'pixel4_cpu']),
    ({'table': 'pixel4_cpu', 'predict': 'none.csv'}, ['predict', 'none.csv']),
    ({'table': 'pixel4_cpu', 'rows': 2000}, ['rows', '2000', '1999']),
    ({'table': 'pixel4_cpu', 'rows': -1}, ['rows', '-1', 'at least 0']),
    ({'table': 'pixel4_cpu', 'space': 'darts'}, ['pixel4_cpu', 'darts']),
    ({'space': 'mars'}, ['space', 'mars', 'nasbench201']),
    ({'prior': 'all'}, ['prior', 'all', 'none', 'shipped']),
    ({'prior_devices': 'pixel3'}, ['prior_devices', '--config.prior=shipped']),
    (
      {'prior': 'shipped', 'prior_devices': 'pixel3,pixel5'},
      ['prior_devices', "'pixel5'", 'pixel3', 'edge_tpu_int8'],
    ),
    (
      {'prior': 'shipped', 'exclude_devices': 'pixel5'},
      ['exclude_devices', "'pixel5'", 'pixel3', 'edge_tpu_int8'],
    ),
    (
      {
        'prior': 'shipped',
        'prior_devices': 'pixel3',
        'exclude_devices': 'pixel3',
      },
      ['no device is left', 'prior_devices', 'exclude'],
    ),
    (
      {'table': 'pixel4_cpu', 'rows': 4, 'prior': 'shipped'},
      ['has 4 measured', 'at least 5'],
    ),
    (
      {'table': 'pixel4_cpu', 'rows': 10},
      ['has 10 measured', 'at least 20', '--config.prior=shipped', '5'],
    ),
    (
      {'table': 'pixel4_cpu', 'prior': 'shipped'},
      ['has 1999 measured', '1000', '--config.prior=none', '--config.rows'],
    ),
    (
      {'space': 'darts', 'suggest': 3, 'prior': 'shipped'},
      ["no latencies of space 'darts'", '--config.prior=none'],
    ),
    ({'suggest': 2000}, ['suggest', '2000', '1000']),
    ({'suggest': -1}, ['suggest', '-1', 'at least 0']),
    ({'deploy.nasbench201.num_cells': 0}, ['deploy.nasbench201', 'num_cells']),
    ({'job': 'search'}, ['deploy is no setting', 'hypergrad']),
  ],
)
def test_a_setting_that_cannot_be_is_one_message(
  load, tmp_path, overrides, words
):
  """It names the field and what is allowed, and makes no workdir."""
  config = load(**overrides)
  module = importlib.import_module(f'hwdarts_jax.jobs.{config.job}')
  with pytest.raises(ValueError) as error:
    module.run(config, str(tmp_path / 'w'))
  message = str(error.value)
  assert all(w in message for w in words), message
  assert not (tmp_path / 'w').exists()


def test_a_config_of_ones_own_may_not_miss_a_field(load):
  for field in ('measurements', 'prior', 'suggest', 'deploy'):
    config = load().to_dict()
    del config[field]
    with pytest.raises(ValueError, match=f'{field} is missing'):
      settings.check_predictor(config)
    with pytest.raises(ValueError, match='priors'):
      settings.check_predictor(load().to_dict() | {'priors': ''})


def test_a_bad_file_reaches_the_shell_as_one_message(nursery, files, tmp_path):
  """The row, exit code 2, no traceback and no workdir."""
  (tmp_path / 'phone.csv').write_text(
    f'genotype,latency_ms\n{_cells([5])[0]},-3\n'
  )
  result = nursery.run(
    f'--config={CONFIG}',
    f'--config.measurements={files["measurements"]}',
    f'--workdir={tmp_path / "w"}',
  )
  assert result.code == 2
  errors = [x for x in result.err.splitlines() if 'Error' in x]
  assert len(errors) == 1 and 'row 1 (line 2)' in errors[0]
  assert 'Traceback' not in result.err + result.out
  assert not (tmp_path / 'w').exists()
