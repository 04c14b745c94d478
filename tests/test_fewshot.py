import functools

import numpy as np

from hwdarts_jax import oracle, spaces
from hwdarts_jax.latency import corner, fewshot


@functools.cache
def _spec():
  return spaces.make('nasbench201')


@functools.cache
def _cells():
  return corner.corners(_spec())['cell'].astype(np.float32)


def _rows(device, cells):
  return fewshot.Rows(
    {'cell': _cells()[cells]}, oracle.latencies(device)[cells]
  )


def test_scaled_copy_of_a_device_is_recovered_from_five_rows():
  rng = np.random.default_rng(0)
  known = np.flatnonzero(oracle.load().connected)
  train = rng.choice(known, 900, replace=False)
  devices = ('pixel3', 'titanx_32', 'silver_4210r', '1080ti_256')
  prior = fewshot.prepare(_spec(), {d: _rows(d, train) for d in devices})
  cells = rng.choice(train, 5, replace=False)
  test = rng.choice(known, 500, replace=False)
  ms = 2.5 * oracle.latencies('1080ti_256')
  model = fewshot.fit(_spec(), {'cell': _cells()[cells]}, ms[cells], prior)
  predicted = model.predict({'cell': _cells()[test]})
  error = np.abs(predicted.mean_ms / ms[test] - 1)
  assert error.mean() < 0.03
