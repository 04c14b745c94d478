"""Milliseconds are divided fairly, and long curves keep what matters."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import report_runs

from hwdarts_jax import spaces
from hwdarts_jax.report import costs, curves


@hypothesis.given(
  weights=st.lists(st.floats(-5, 5), min_size=1, max_size=7),
  bonus=st.floats(-5, 5),
)
def test_shapley_values_are_fair(weights, bonus):
  """What is additive goes to its player; what two make together is halved."""

  def value(masks):
    both = masks[:, 0] & masks[:, -1]
    return masks @ np.array(weights) + bonus * both

  found = costs.shapley(value, len(weights))
  want = np.array(weights, np.float64)
  want[0] += bonus / 2
  want[-1] += bonus / 2
  np.testing.assert_allclose(found, want, atol=1e-9)


def test_drawn_shapley_values_add_up_and_come_near():
  """For 12 players, of whom pairs work together."""
  pairs = [(i, i + 1) for i in range(11)]

  def value(masks):
    return masks.sum(1) + sum(masks[:, i] & masks[:, j] for i, j in pairs)

  found = costs.shapley(value, 12)
  assert found.sum() == pytest.approx(12 + 11)
  want = 1 + np.array([0.5] + [1.0] * 10 + [0.5])
  np.testing.assert_allclose(found, want, atol=0.1)


def test_milliseconds_of_whole_networks_are_divided_without_rest():
  """A runtime that drops dead ops: they take nothing, and the sum is right."""
  spec = spaces.make('nasbench201', **report_runs.DEPLOY['nasbench201'])
  genotype = spaces.from_text(
    'nasbench201',
    '|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|none~2|',
  )

  def predict(gates):  # nothing but the edge 0 -> 3 is on a path
    return 2.0 + 3.0 * gates['cell'][..., 3, 1]

  split = costs.of(spec, genotype, predict, None)
  assert split.how == 'shapley'
  assert split.total_ms == pytest.approx(5.0)
  by_row = {p.row: p.ms for p in split.parts if p.row is not None}
  assert by_row == pytest.approx({0: 0, 1: 0, 2: 0, 3: 3.0, 4: 0, 5: 0})


@hypothesis.given(st.integers(1, 5000))
def test_thinned_lines_keep_both_ends(count):
  picked = curves.thin(count)
  assert picked[0] == 0 and picked[-1] == count - 1
  assert len(picked) == len(set(picked)) <= curves.MAX_POINTS


def test_figures_that_are_not_finite_are_gaps():
  rows = [
    {'step': s, 'train_loss': float('nan') if s == 2 else 1 / s}
    for s in (1, 2, 3)
  ]
  (panel,) = curves.panels(rows, curves.SEARCH)
  assert [v for _, v in panel['lines'][0]['points']] == [1.0, None, 0.33333]
