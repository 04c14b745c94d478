"""The job predictor with ten measurements of a new device."""

import json

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

from hwdarts_jax import oracle
from hwdarts_jax.jobs import predictor_files
from hwdarts_jax.latency import liveness, measurements

_TARGET = 'jetson_nano_gpu_fp32'
_OTHERS = 'jetson_nano_gpu_fp16,snapdragon855_cpu_int8,titanx_32,pixel4_cpu'


@pytest.fixture(scope='module')
def few(nursery, tmp_path_factory):
  """Workdir and output of a fit to ten cells of a shipped device."""
  folder = tmp_path_factory.mktemp('few')
  connected = oracle.load().connected & np.isfinite(oracle.latencies(_TARGET))
  cells = np.random.default_rng(0).permutation(np.flatnonzero(connected))[:310]
  ms = oracle.latencies(_TARGET)[cells]
  train = _write(folder / 'm.csv', _cells(cells[:10]), ms[:10])
  predict = _write(folder / 'p.csv', _cells(cells[10:]))
  result = nursery.run(
    f'--config={CONFIG}',
    f'--config.measurements={train}',
    f'--config.predict={predict}',
    '--config.prior=shipped',
    f'--config.prior_devices={_OTHERS}',
    '--config.exclude_devices=pixel4_cpu',
    '--config.suggest=5',
    f'--workdir={folder / "w"}',
  )
  assert result.code == 0, result.err
  return folder / 'w', result.out, ms[10:]


def test_ten_measurements_and_other_devices_predict_the_rest(few):
  """Far better than ten rows alone could, with an honest uncertainty."""
  workdir, out, measured = few
  rows = _read(workdir / 'predictions.csv')
  assert list(rows[0]) == ['genotype', 'predicted_ms', 'std_ms']
  ms, std = (
    np.array([float(r[k]) for r in rows]) for k in ('predicted_ms', 'std_ms')
  )
  assert np.abs(ms / measured - 1).mean() < 0.1
  assert np.corrcoef(np.log(ms), np.log(measured))[0, 1] > 0.95
  assert (np.abs(ms - measured) < 1.645 * std).mean() > 0.75
  assert std.max() < 0.4 * ms.max()
  assert f'{ms[0]:.3f} ± {std[0]:.3f} ms' in out
  record = json.loads((workdir / 'metrics.json').read_text())
  assert record['prior_devices'] == _OTHERS.split(',')[:3]
  assert record['held_out_rows'] == record['rows'] == 10
  assert (
    record['figures']['predictor']['mape_percent']
    < (record['figures']['additive']['mape_percent'])
  )


def test_a_few_shot_predictor_is_saved_like_any_other(few):
  """What the search will follow is what predictions.csv says."""
  saved = predictor_files.load(few[0] / 'predictor')
  _assert_predicts(saved, _read(few[0] / 'predictions.csv'), 1e-5)


def test_suggestions_are_new_cells_with_a_path_to_be_filled_in(few):
  """The file is one of measurements, as soon as it has latencies."""
  rows = _read(few[0] / 'suggest.csv')
  texts = [r['genotype'] for r in rows]
  assert len(set(texts)) == 5 and not any(r['latency_ms'] for r in rows)
  measured = {r['genotype'] for r in _read(few[0].parent / 'm.csv')}
  assert not measured & set(texts)
  assert liveness.is_connected(_spec(), _one_hot(texts)).all()
  assert all(t in few[1] for t in texts)
  with pytest.raises(ValueError, match=r"row 1 \(line 2\): latency_ms is ''"):
    measurements.read(few[0] / 'suggest.csv', _spec())
