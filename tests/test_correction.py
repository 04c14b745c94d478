"""What measurements add to a predictor that is kept."""

import numpy as np
import pytest

from hwdarts_jax.latency import correction, sampling
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.spaces import darts, nasbench201

CELLS = nasbench201.make()


def _draw(spec, count, seed):
  gates = {name: np.ones(g.shape) for name, g in spec.groups().items()}
  return sampling.draw(spec, gates, count, np.random.default_rng(seed))


@pytest.mark.parametrize(
  'spec', [CELLS, darts.make()], ids=['nasbench201', 'darts']
)
def test_an_exact_predictor_is_left_alone_and_one_factor_is_found(spec):
  rows, others = _draw(spec, 12, 0), _draw(spec, 50, 1)
  ms = np.linspace(1, 5, 12)
  same = correction.fit(spec, rows, ms, ms)
  np.testing.assert_array_equal(same(others), 1.0)
  slower = correction.fit(spec, rows, 1.3 * ms, ms)
  np.testing.assert_allclose(slower(others), 1.3, rtol=0.01)


def test_networks_of_a_kind_that_errs_are_corrected_and_others_are_not():
  """As in a runtime that has no good kernel of one op."""
  every = corners(CELLS)
  op = nasbench201.OPS.index('nor_conv_3x3')
  last = every['cell'][:, -1, op] > 0
  factor = np.where(last, 1.25, 1.0)
  rng = np.random.default_rng(0)
  rows = rng.choice(len(last), 200, replace=False)
  ms = np.exp(rng.normal(size=len(last)))
  fit = correction.fit(
    CELLS, {'cell': every['cell'][rows]}, (factor * ms)[rows], ms[rows]
  )
  connected = rng.choice(len(last), 2000, replace=False)
  error = np.log(fit({'cell': every['cell'][connected]}) / factor[connected])
  before = np.log(1 / factor[connected])
  assert np.abs(error).mean() < 0.6 * np.abs(before).mean()


def test_one_reading_gone_wrong_moves_nothing_else():
  rows, others = _draw(CELLS, 20, 0), _draw(CELLS, 50, 1)
  ms = np.linspace(1, 5, 20)
  wrong = np.where(np.arange(20) == 7, 3 * ms, ms)
  factor = correction.fit(CELLS, rows, wrong, ms)(others)
  assert np.abs(factor - 1).max() < 0.02
