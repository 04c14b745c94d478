import functools
import json

import jax
import numpy as np
import pytest

from hwdarts_jax import oracle, spaces
from hwdarts_jax.latency import (
  fewshot,
  fewshot_basis,
  liveness,
  predictor,
  sampling,
)
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, IMAGE, NetworkSpec

every_space = pytest.mark.parametrize('name', spaces.names())


@functools.cache
def _spec(name='nasbench201'):
  return spaces.make(name)


def _cells(cells):
  """Cells of NAS-Bench-201 as gates."""
  return {'cell': np.eye(5, dtype=np.float32)[oracle.load().ops[cells]]}


def _draw(count, seed, device='titanx_1'):
  """Random connected cells that were measured on a device."""
  known = oracle.load().connected & np.isfinite(oracle.latencies(device))
  rng = np.random.default_rng(seed)
  return rng.choice(np.flatnonzero(known), count, replace=False)


def _series(*devices, count=300):
  return {
    d: fewshot.Rows(_cells(c), oracle.latencies(d)[c])
    for d in devices
    for c in [_draw(count, 0, d)]
  }


@functools.cache
def _prior(*devices):
  return fewshot.prepare(_spec(), _series(*devices))


@functools.cache
def _suggested():
  return fewshot.suggest(_spec(), _prior(), count=10)


def _fit(device, cells, prior, factor=1.0):
  ms = factor * oracle.latencies(device)[cells]
  return fewshot.fit(_spec(), _cells(cells), ms, prior)


def _error(model, device, count=400):
  """Mean absolute error on random cells, in per cent."""
  cells = _draw(count, 1000, device)
  ms = oracle.latencies(device)[cells]
  return 100 * np.abs(model.predict(_cells(cells)).mean_ms / ms - 1).mean()


def _random(spec, count, seed=0):
  """Random architectures of any space, for each group f[N, E, O]."""
  even = {
    name: np.full(group.shape, 1 / group.shape[1])
    for name, group in spec.groups().items()
  }
  drawn = sampling.draw(spec, even, 2 * count, np.random.default_rng(seed))
  connected = np.flatnonzero(liveness.is_connected(spec, drawn))[:count]
  return fewshot_basis.take(drawn, connected)


@functools.cache
def _simulated(name='nasbench201'):
  """Devices that no fit has seen, as functions."""
  rng = np.random.default_rng(77)
  return fewshot_basis.make(_spec(name), {}, rng)


def _simulated_ms(name, device, one_hot):
  basis, spec = _simulated(name), _spec(name)
  value = basis(one_hot).simulated[:, device]
  if predictor.is_enumerable(spec):
    return 3 * np.exp(value)
  return 3 * (1 + value)


def test_scaled_copy_of_a_device_is_recovered_from_five_rows():
  """To within what smoothing leaves of a series of little noise."""
  prior = _prior('pixel3', 'titanx_32', 'silver_4210r', '1080ti_256')
  model = _fit('1080ti_256', _draw(5, 1), prior, factor=2.5)
  cells = _draw(400, 2)
  ms = 2.5 * oracle.latencies('1080ti_256')[cells]
  error = np.abs(model.predict(_cells(cells)).mean_ms / ms - 1)
  assert error.mean() < 0.03
  assert max(model.fit.card['alike'], key=model.fit.card['alike'].get) == (
    '1080ti_256'
  )


def test_useless_devices_do_little_harm():
  """Latencies of other cells cost at most a quarter of the error more."""
  rng = np.random.default_rng(0)
  useless = {
    name: rows._replace(latency_ms=rng.permutation(rows.latency_ms))
    for name, rows in _series('pixel3', 'titanx_1', 'gold_6240').items()
  }
  prior = fewshot.prepare(_spec(), useless)
  errors = [
    [
      _error(_fit('pixel4_cpu', _draw(20, seed, 'pixel4_cpu'), p), 'pixel4_cpu')
      for seed in range(3)
    ]
    for p in (prior, _prior())
  ]
  assert np.mean(errors[0]) < 1.25 * np.mean(errors[1])


def test_twenty_rows_overrule_devices_that_are_unlike():
  """Server GPUs pay for dead ops, a Jetson Nano does not."""
  device = 'jetson_nano_gpu_fp32'
  prior = _prior('1080ti_1', '1080ti_256', 'titanx_1', 'titanx_32')
  errors = [
    [
      _error(_fit(device, _draw(20, seed, device), p), device)
      for seed in range(3)
    ]
    for p in (prior, _prior())
  ]
  assert np.mean(errors[0]) < 1.25 * np.mean(errors[1])
  assert np.mean(errors[0]) < 10


def test_known_devices_help_where_rows_are_few():
  """Six rows with the devices of a family beat six rows alone."""
  prior = _prior('titanx_1', 'titanx_32', '1080ti_1', 'pixel3')
  errors = [
    [_error(_fit('1080ti_32', _draw(6, s), p), '1080ti_32') for s in range(3)]
    for p in (prior, _prior())
  ]
  assert np.mean(errors[0]) < 0.7 * np.mean(errors[1])


@every_space
def test_intervals_cover_devices_that_are_drawn_from_the_model(name):
  """Simulated devices with noise of 5 %: 90 % of measurements are inside."""
  spec = _spec(name)
  prior = fewshot.prepare(spec)
  rows, test = _random(spec, 20, seed=1), _random(spec, 200, seed=2)
  rng = np.random.default_rng(3)
  inside = []
  for device in range(12):
    ms, want = (
      _simulated_ms(name, device, hot)
      * np.exp(0.05 * rng.normal(size=len(next(iter(hot.values())))))
      for hot in (rows, test)
    )
    mean, std = fewshot.fit(spec, rows, ms, prior).predict(test)
    inside.append((np.abs(want - mean) <= 1.645 * std).mean())
  assert 0.82 < np.mean(inside) < 0.98


@every_space
@pytest.mark.parametrize('num_devices', [0, 3])
def test_search_is_given_the_same_latencies(name, num_devices):
  """At one-hot gates the predictor says what `predict` says."""
  spec = _spec(name)
  known = _random(spec, 80, seed=4)
  series = {
    f'device_{i}': fewshot.Rows(known, _simulated_ms(name, i, known))
    for i in range(num_devices)
  }
  rows = _random(spec, 12, seed=5)
  ms = _simulated_ms(name, 20, rows)
  model = fewshot.fit(spec, rows, ms, series)
  test = _random(spec, 50, seed=6)
  gates = {g: p.astype(np.float32) for g, p in test.items()}
  apply = jax.jit(predictor.LatencyPredictor(spec).apply)
  np.testing.assert_allclose(
    apply(model.fit.variables, gates), model.predict(test).mean_ms, rtol=2e-4
  )


def _chain(num_blocks=15):
  """A mobile-like space: blocks in a row, each with its own alphas."""
  ops = ('skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'sep_conv_3x3')
  cells, source = [], IMAGE
  for i in range(num_blocks):
    edge = EdgeSpec(i, i + 1, ops, 0)
    cells.append(
      CellSpec(
        f'b{i}', ((i, source),), (edge,), (i + 1,), 3, group=f'block_{i}'
      )
    )
    source = f'b{i}'
  pool = EdgeSpec(0, 1, ('global_avg_pool',), None, 8)
  head = CellSpec('head', ((0, source),), (pool,), (1,), 3)
  return NetworkSpec('chain', (8, 8, 3), (), tuple(cells), (head,), 3)


def _chain_ms(one_hot, seed):
  """Of a device that saves time where two ops of a kind meet."""
  rng = np.random.default_rng(seed)
  rows = np.concatenate(list(one_hot.values()), 1).astype(np.float64)
  ms = 2 + (rows * rng.uniform(0.3, 1.5, rows.shape[1:])).sum((1, 2))
  saved = rng.uniform(0, 0.4, rows.shape[2])
  return ms - (rows[:, :-1] * rows[:, 1:] * saved).sum((1, 2))


def test_chain_too_long_to_enumerate_is_learned_from_few_rows():
  """A device between two known ones, by ten rows; the search gets the same."""
  spec = _chain()
  known, rows, test = (
    _random(spec, count, seed) for seed, count in enumerate((600, 10, 200))
  )
  series = {
    f'device_{i}': fewshot.Rows(known, _chain_ms(known, i)) for i in range(4)
  }

  def target(one_hot):
    return 3 * (0.6 * _chain_ms(one_hot, 0) + 0.4 * _chain_ms(one_hot, 1))

  errors = []
  for prior in (series, {}):
    model = fewshot.fit(spec, rows, target(rows), prior)
    mean_ms = model.predict(test).mean_ms
    errors.append(100 * np.abs(mean_ms / target(test) - 1).mean())
    apply = jax.jit(predictor.LatencyPredictor(spec).apply)
    np.testing.assert_allclose(
      apply(model.fit.variables, test), mean_ms, rtol=1e-4
    )
  assert errors[0] < 2 < errors[1]


@every_space
def test_unit_of_the_measurements_is_that_of_the_predictions(name):
  spec = _spec(name)
  prior = fewshot.prepare(spec)
  rows, test = _random(spec, 15, seed=7), _random(spec, 30, seed=8)
  ms = _simulated_ms(name, 3, rows)
  one, ten = (
    fewshot.fit(spec, rows, factor * ms, prior).predict(test)
    for factor in (1, 10)
  )
  np.testing.assert_allclose(ten.mean_ms, 10 * one.mean_ms, rtol=1e-6)
  np.testing.assert_allclose(ten.std_ms, 10 * one.std_ms, rtol=1e-6)


def test_more_rows_are_more_certain_and_better():
  prior = _prior()
  cells = _draw(50, 0, 'pixel4_cpu')
  few, many = (_fit('pixel4_cpu', cells[:n], prior) for n in (8, 50))
  test = _cells(_draw(300, 1))
  few_std, many_std = (
    (p.std_ms / p.mean_ms).mean()
    for p in (few.predict(test), many.predict(test))
  )
  assert many_std < 0.7 * few_std
  assert _error(many, 'pixel4_cpu') < _error(few, 'pixel4_cpu')


def test_suggested_rows_beat_random_ones():
  """On average over devices that the prior does not know."""
  devices = ('jetson_nano_gpu_fp32', 'titanx_1', 'silver_4210r')
  prior = _prior()
  chosen = _suggested()
  numbers = [oracle.NUM_CELLS // 5**i for i in range(1, 7)]
  suggested = chosen.one_hot['cell'].argmax(-1) @ numbers
  np.testing.assert_array_equal(suggested, chosen.indices)
  better = []
  for device in devices:
    error = _error(_fit(device, suggested, prior), device)
    others = [
      _error(_fit(device, _draw(10, seed, device), prior), device)
      for seed in range(4)
    ]
    better.append(error / np.mean(others))
  assert np.mean(better) < 1


def test_suggestions_are_new_connected_and_different():
  """What was measured counts as if it had just been suggested."""
  ten = _suggested()
  assert len(set(ten.indices.tolist())) == 10
  assert oracle.connected(ten.indices).all()
  eight = fewshot_basis.take(ten.one_hot, slice(8))
  more = fewshot.suggest(_spec(), _prior(), count=2, measured=eight)
  np.testing.assert_array_equal(more.indices, ten.indices[8:])


def test_suggestions_are_among_the_candidates():
  cells = _draw(30, 5)
  found = fewshot.suggest(_spec(), _prior(), 3, candidates=_cells(cells))
  np.testing.assert_array_equal(
    found.one_hot['cell'], _cells(cells[found.indices])['cell']
  )
  with pytest.raises(ValueError, match='only 30 networks'):
    fewshot.suggest(_spec(), _prior(), 31, candidates=_cells(cells))


def test_cells_without_a_path_do_not_touch_the_fit():
  cells = _draw(10, 6)
  broken = np.flatnonzero(~oracle.load().connected)[:3]
  ms = oracle.latencies('titanx_1')[cells]
  models = [
    fewshot.fit(_spec(), _cells(cells), ms, _prior()),
    fewshot.fit(
      _spec(),
      _cells(np.concatenate([cells, broken])),
      np.concatenate([ms, [1e-3, 1e-3, 1e3]]),
      _prior(),
    ),
  ]
  test = _cells(_draw(20, 7))
  np.testing.assert_array_equal(
    *(model.predict(test).mean_ms for model in models)
  )
  assert models[1].fit.card['disconnected_rows_left_out'] == 3


def test_card_can_be_written_and_tells_how_rows_predict_each_other():
  cells = _draw(30, 8)
  model = _fit('1080ti_256', cells, _prior())
  card = json.loads(json.dumps(model.fit.card))
  assert card['rows'] == 30
  # Near what it is on cells that it has not seen.
  unseen = _error(model, '1080ti_256')
  assert 0.4 * unseen < card['held_out']['mape_percent'] < 2.5 * unseen


@pytest.mark.parametrize('count', [2, fewshot.MAX_ROWS + 1])
def test_number_of_rows_is_checked(count):
  with pytest.raises(ValueError, match=f'{count} measured networks'):
    _fit('titanx_1', _draw(count, 9), _prior())


def test_series_of_a_few_rows_is_no_prior():
  with pytest.raises(ValueError, match="'pixel3' has 10 networks"):
    fewshot.prepare(_spec(), _series('pixel3', count=10))
