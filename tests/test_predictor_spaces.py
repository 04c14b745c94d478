"""The job predictor in other spaces, and searches that use what it fits."""

import json
import shutil

import ml_collections
import numpy as np
from predictor_job_cases import _read, _write, CONFIG
import pytest
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, predictor_files
from hwdarts_jax.jobs import predictor as job
from hwdarts_jax.latency import measurements
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import discretize


@pytest.fixture(scope='module')
def tiny_predictor(tmp_path_factory):
  """A predictor of the tiny deploy spec of DARTS, from JSON genotypes."""
  folder = tmp_path_factory.mktemp('tiny')
  deploy = tiny_runs.tiny('DEPLOY')
  spec = spaces.make('darts', **deploy)
  rng = np.random.default_rng(0)
  rows = {}
  for _ in range(400):
    alphas = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
    genotype = discretize.derive(spec, alphas)
    rows[genotype.to_json()] = _toy_ms(genotype)
  path = folder / 'toy.csv'
  path.write_text(
    measurements.to_csv(
      {'genotype': list(rows), 'latency_ms': [*rows.values()]}
    )
  )
  config = ml_collections.ConfigDict(
    _config(
      measurements=str(path), predict=str(path), space='darts', deploy=deploy
    )
  )
  job.run(config.lock(), str(folder / 'w'))
  return folder / 'w'


def _toy_ms(genotype):
  choices = [c for cs in genotype.cells.values() for c in cs]
  return 2 + sum(
    (1 + c.src) * (2 * ('conv' in c.op) + ('5x5' in c.op)) for c in choices
  )


def _config(deploy, **overrides):
  import runpy
  import sys

  sys.path.insert(0, str(tiny_runs.ROOT))
  try:
    get_config = runpy.run_path(str(tiny_runs.ROOT / CONFIG))['get_config']
  finally:
    sys.path.remove(str(tiny_runs.ROOT))
  return get_config().to_dict() | {'deploy': {'darts': deploy}} | overrides


@pytest.mark.parametrize('count', [0, 10])
def test_op_entries_are_scaled_to_a_few_whole_networks(
  table, tiny_predictor, tmp_path, count
):
  """As many as there are: without any, the sum is what the table says."""
  deploy = tiny_runs.tiny('DEPLOY')
  spec = spaces.make('darts', **deploy)
  entries = common.sum_of_entries(table_lib.load(table), spec)
  texts = [r['genotype'] for r in _read(tiny_predictor / 'predictions.csv')]
  hots = [discretize.one_hot(spec, spaces.from_text('darts', t)) for t in texts]
  sums = np.array([entries.of(h) for h in hots])
  ratio = 1.3 if count else 1.0
  overrides = {'table': str(table), 'space': 'darts'}
  overrides['predict'] = _write(tmp_path / 'p.csv', texts)
  if count:
    overrides['measurements'] = _write(
      tmp_path / 'm.csv', texts[:count], ratio * sums[:count]
    )
  config = ml_collections.ConfigDict(_config(deploy, **overrides))
  job.run(config.lock(), str(tmp_path / 'w'))
  rows = _read(tmp_path / 'w' / 'predictions.csv')
  np.testing.assert_allclose(
    [float(r['predicted_ms']) for r in rows], ratio * sums, rtol=1e-5
  )
  record = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
  assert record['rows'] == record['held_out_rows'] == count
  assert record['device'] == 'toy'


def test_other_spaces_are_measured_in_json(tiny_predictor):
  """Order and text are those of the file, quotes and commas included."""
  rows = _read(tiny_predictor / 'predictions.csv')
  for row in rows:
    want = _toy_ms(spaces.from_text('darts', row['genotype']))
    assert float(row['predicted_ms']) == pytest.approx(want, rel=0.05)
  assert len({r['genotype'] for r in rows}) == len(rows) > 30


def test_a_search_follows_the_fitted_predictor(
  nursery, command, tiny_predictor, tmp_path
):
  """Its latency is that of the predictor, which its workdir names."""
  folder = tiny_predictor / 'predictor'
  args = command(tmp_path / 's', **{'latency.predictor': folder})
  result = nursery.run(*args)
  assert result.code == 0, result.err
  saved = predictor_files.load(folder)
  record = json.loads((tmp_path / 's' / 'genotype.json').read_text())
  genotype = spaces.from_text('darts', json.dumps(record))
  predict = common.predictor_of(saved.spec, saved.fit.variables)
  want = predict(discretize.one_hot(saved.spec, genotype))
  assert record['deploy']['predicted_ms'] == pytest.approx(float(want))
  assert record['deploy']['device'] == 'toy'
  assert record['deploy']['latency_predictor_hash'] == saved.digest()
  assert 'latency_table_hash' not in record['deploy']
  hashes = json.loads((tmp_path / 's' / 'config.json').read_text())['hashes']
  assert hashes['latency_predictor'] == saved.digest()
  assert ', on toy:' in result.out


def test_a_predictor_of_other_networks_is_refused(tiny_predictor, monkeypatch):
  """What was measured is what is deployed, or nothing."""
  folder = str(tiny_predictor / 'predictor')
  make = common.load_latency({'predictor': folder, 'table': ''})
  deploy = tiny_runs.tiny('DEPLOY')
  assert make(spaces.make('darts', **deploy)).device == 'toy'
  other = spaces.make('darts', **deploy | {'features': 8})
  with pytest.raises(ValueError, match=r'latency.predictor .*space.deploy'):
    make(other)


@pytest.mark.parametrize('how', ['none', 'torn', 'card', 'swapped', 'format'])
def test_a_damaged_predictor_is_refused(tiny_predictor, tmp_path, how):
  folder = tmp_path / 'predictor'
  shutil.copytree(tiny_predictor / 'predictor', folder)
  card = json.loads((folder / 'card.json').read_text())
  if how == 'none':
    shutil.rmtree(folder)
  elif how == 'torn':
    (folder / 'card.json').write_text(json.dumps(card)[:50])
  elif how == 'card':
    del card['fit']
    (folder / 'card.json').write_text(json.dumps(card))
  elif how == 'format':
    (folder / 'card.json').write_text(json.dumps(card | {'format': 2}))
  else:
    saved = predictor_files.load(folder)
    variables = saved.fit.variables
    variables['params']['fixed'] = variables['params']['fixed'] + 1
    predictor_files.save(saved, folder)
    (folder / 'card.json').write_text(json.dumps(card))
  with pytest.raises(ValueError, match=r'predictor'):
    predictor_files.load(folder)
