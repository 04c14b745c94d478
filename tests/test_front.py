"""Fronts and verdicts are those that a plain look at all cells gives."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from hwdarts_jax import front, oracle
from hwdarts_jax.spaces import nasbench201

DEVICES = ('pixel4_cpu', 'raspberry_pi4_cpu')
NOTHING = nasbench201.from_arch_string(
  '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'
)


def allowed(device):
  return np.flatnonzero(
    oracle.load().connected & np.isfinite(oracle.latencies(device))
  )


def points(cells, dataset, device):
  return oracle.latencies(device)[cells], oracle.accuracies(dataset)[cells]


@pytest.mark.parametrize('device', DEVICES)
def test_no_measured_cell_beats_one_of_the_front(device):
  cells = front.of('cifar100', device)
  ms, accuracy = points(cells, 'cifar100', device)
  all_ms, all_accuracy = points(allowed(device), 'cifar100', device)
  assert (np.diff(ms) > 0).all() and (np.diff(accuracy) > 0).all()
  for t, a in zip(ms, accuracy, strict=True):
    assert not ((all_ms <= t) & (all_accuracy > a)).any()
    assert not ((all_ms < t) & (all_accuracy >= a)).any()
  # And every measured cell is beaten or equalled by one of the front.
  beaten = (ms <= all_ms[:, None]) & (accuracy >= all_accuracy[:, None])
  assert beaten.any(1).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 30))
def test_hypervolume_is_the_share_of_random_points_that_are_dominated(
  seed, count
):
  """Points are drawn in the box between the reference and the true front."""
  device, dataset = 'raspberry_pi4_cpu', 'cifar10'
  rng = np.random.default_rng(seed)
  true = front.of(dataset, device)
  cells = np.append(
    rng.choice(allowed(device), count), rng.choice(true[1:-1], count)
  )
  ms, accuracy = points(true, dataset, device)
  x = rng.uniform(ms[0], ms[-1], 20000)
  y = rng.uniform(accuracy[0], accuracy[-1], 20000)

  def dominated(some):
    t, a = points(some, dataset, device)
    return ((t <= x[:, None]) & (a >= y[:, None])).any(1).mean()

  want = dominated(cells) / dominated(true)
  got = front.hypervolume(cells, dataset, device)
  assert 0 <= got <= 1
  np.testing.assert_allclose(got, want, atol=0.03)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_more_cells_never_reach_less(seed):
  rng = np.random.default_rng(seed)
  device = 'pixel4_cpu'
  cells = rng.choice(allowed(device), 12, replace=False)
  found = [
    front.hypervolume(cells[:n], 'cifar10', device) for n in range(0, 13, 3)
  ]
  assert found[0] == 0 and (np.diff(found) >= 0).all()
  whole = front.of('cifar10', device)
  assert front.hypervolume(whole, 'cifar10', device) == pytest.approx(1)
  # The fastest and the most accurate one are where the reference point is.
  assert front.hypervolume(whole[[0, -1]], 'cifar10', device) == 0


def test_cells_that_do_not_count_are_refused():
  absent = int(np.flatnonzero(np.isnan(oracle.latencies('pixel4_cpu')))[0])
  with pytest.raises(ValueError, match=f'{absent}.*not measured on'):
    front.hypervolume([absent], 'cifar10', 'pixel4_cpu')
  nothing = oracle.index(NOTHING)
  with pytest.raises(ValueError, match='not connected'):
    front.hypervolume([nothing], 'cifar10', 'raspberry_pi4_cpu')
  with pytest.raises(ValueError, match='index is'):
    front.hypervolume([-1], 'cifar10', 'pixel4_cpu')


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), quantile=st.floats(0.05, 1))
def test_a_verdict_is_that_of_a_plain_scan(seed, quantile):
  device, dataset = 'raspberry_pi4_cpu', 'imagenet16_120'
  rng = np.random.default_rng(seed)
  cell = int(rng.choice(allowed(device)))
  ms, accuracy = points(allowed(device), dataset, device)
  budget = float(np.quantile(ms, quantile))
  found = oracle.judge(oracle.genotype(cell), dataset, device, budget)
  own_ms, own = points(cell, dataset, device)
  within = accuracy[ms <= budget]
  assert found.accuracy == own and found.latency_ms == own_ms
  assert found.num_ranked == len(within)
  assert found.best.accuracy == within.max()
  assert found.meets_budget == (own_ms <= budget)
  if found.meets_budget:
    assert found.regret == within.max() - own >= 0
    assert found.rank == 1 + (within > own).sum()
  else:
    assert found.regret is None and found.rank is None


def test_a_violated_budget_is_no_regret_even_of_the_most_accurate_cell():
  best = oracle.best('cifar10', 'pixel4_cpu')
  budget = 0.9 * best.latency_ms
  found = oracle.judge(best.genotype, 'cifar10', 'pixel4_cpu', budget)
  assert not found.meets_budget
  assert found.regret is None
  free = oracle.judge(best.genotype, 'cifar10', 'pixel4_cpu')
  assert free.regret == 0 and free.rank == 1
  with pytest.raises(ValueError, match='no path'):
    oracle.judge(NOTHING, 'cifar10')


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_projection_is_the_most_probable_cell_that_was_measured(seed):
  probs = np.random.default_rng(seed).dirichlet(np.ones(5), 6)
  logs = oracle.log_probabilities(probs)
  assert np.exp(logs).sum() == pytest.approx(1)
  found = oracle.project(logs, 'pixel4_cpu')
  best = max(allowed('pixel4_cpu'), key=lambda cell: logs[cell])
  assert oracle.index(found) == best
  within = oracle.project(logs, 'pixel4_cpu', budget_ms=10.0)
  assert oracle.latency(within, 'pixel4_cpu') <= 10.0
  assert logs[oracle.index(within)] <= logs[best]


def test_scores_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r'scores have shape \(3,\)'):
    oracle.project(np.zeros(3), 'pixel4_cpu')
  with pytest.raises(ValueError, match='1 NaN'):
    oracle.project(
      np.append(np.zeros(oracle.NUM_CELLS - 1), np.nan), 'pixel4_cpu'
    )
  with pytest.raises(ValueError, match=r'probs have shape \(5, 6\)'):
    oracle.log_probabilities(np.ones((5, 6)))
