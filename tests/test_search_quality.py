"""The judge of searches, where the right verdict is known."""

from absl import flags
import numpy as np
import pytest

from benchmarks import search_quality
from hwdarts_jax import oracle

DEVICE = 'intel_ncs2'


@pytest.fixture(autouse=True)
def _flags():
  flags.FLAGS(['test', '--devices=intel_ncs2', '--rows=50'])


def _budget(quantile):
  ms = oracle.latencies(DEVICE)[oracle.candidates(DEVICE)]
  return float(np.quantile(ms, quantile))


@pytest.mark.parametrize('quantile', [0.1, 0.5, 0.9])
def test_who_knows_the_truth_has_no_regret(quantile):
  truth, ms = oracle.accuracies('cifar10'), oracle.latencies(DEVICE)
  found = search_quality.answer(truth, ms, DEVICE, _budget(quantile))
  assert found.regret == 0


def test_an_answer_that_is_too_slow_is_a_failure_and_has_no_regret():
  """Who takes all cells for quick is not saved by their accuracy."""
  slow = np.nan_to_num(oracle.latencies(DEVICE), nan=0.0)
  quick = np.full(oracle.NUM_CELLS, 1e-3)
  found = search_quality.answer(slow, quick, DEVICE, _budget(0.5))
  assert found.regret is None


def test_what_was_not_measured_is_projected_and_counted():
  """The best of all cells is not among the 1,999; its place is taken."""
  wanted = int(np.flatnonzero(np.isnan(oracle.latencies(DEVICE)))[-1])
  scores = oracle.accuracies('cifar10').copy()
  scores[wanted] = 200.0
  quick = np.full(oracle.NUM_CELLS, 1e-3)
  found = search_quality.answer(scores, quick, DEVICE, _budget(1.0))
  assert found.is_projected
  assert found.regret == 0


def test_nothing_within_a_budget_is_no_answer():
  slow = np.full(oracle.NUM_CELLS, 1e9)
  assert search_quality.answer(slow, slow, DEVICE, 1.0) is None


def test_every_method_sees_the_same_rows_and_seeds_see_others():
  first, again = (search_quality.drawn_rows(DEVICE, 0) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  other = search_quality.drawn_rows(DEVICE, 1)
  assert set(first) != set(other)
  assert oracle.candidates(DEVICE)[first].all()
