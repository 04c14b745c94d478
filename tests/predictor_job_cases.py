"""Cells and files that the job predictor is given."""

import csv
import functools

import numpy as np

from hwdarts_jax import oracle, spaces
from hwdarts_jax.jobs import common
from hwdarts_jax.latency import measurements
from hwdarts_jax.spaces import discretize, nasbench201

CONFIG = 'configs/predictor.py'


@functools.cache
def _spec():
  return spaces.make('nasbench201')


def _cells(indices):
  return [nasbench201.to_arch_string(oracle.genotype(i)) for i in indices]


def _one_hot(texts):
  genotypes = [nasbench201.from_arch_string(t) for t in texts]
  hots = [discretize.one_hot(_spec(), g)['cell'] for g in genotypes]
  return {'cell': np.stack(hots)}


def _write(path, texts, ms=None):
  columns = {'genotype': texts}
  if ms is not None:
    columns['latency_ms'] = list(ms)
  path.write_text(measurements.to_csv(columns))
  return str(path)


def _read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def _assert_predicts(saved, rows, rtol):
  """A saved predictor gives the figures of a file of predictions."""
  predict = common.predictor_of(saved.spec, saved.fit.variables)
  np.testing.assert_allclose(
    predict(_one_hot([r['genotype'] for r in rows])),
    [float(r['predicted_ms']) for r in rows],
    rtol=rtol,
  )
