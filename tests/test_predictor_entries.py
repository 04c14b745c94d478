"""Predictors made from entries of ops, and calibrated by few networks."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
from predictor_cases import (
  _entries,
  _gates,
  _predict,
  _random_one_hot,
  _random_variables,
  _spec,
  every_space,
)
import pytest
import space_strategies

from hwdarts_jax.latency import liveness, predictor, sampling
from hwdarts_jax.spaces import discretize


@every_space
@hypothesis.settings(max_examples=10)
@hypothesis.given(data=st.data())
def test_table_of_entries_alone_predicts_its_sum(name, data):
  spec = _spec(name)
  entries = _entries(spec)
  fit = predictor.from_table(spec, entries)
  gates = discretize.one_hot(spec, data.draw(space_strategies.genotypes(spec)))
  np.testing.assert_allclose(
    _predict(spec, fit.variables, gates), entries.of(gates), rtol=1e-6
  )


def test_table_of_entries_alone_predicts_the_expected_sum():
  spec = _spec()
  entries = _entries(spec)
  gates = _gates(spec)
  fit = predictor.from_table(spec, entries)
  np.testing.assert_allclose(
    _predict(spec, fit.variables, gates), entries.of(gates), rtol=1e-6
  )


@every_space
def test_made_variables_are_those_of_the_model(name):
  """Whatever makes them, they have the paths and shapes that Flax expects."""
  spec = _spec(name)
  want = jax.tree.map(np.shape, _random_variables(spec))
  one_hot = _random_one_hot(spec, 30)
  fit = predictor.fit(spec, one_hot, np.arange(1.0, 31.0))
  assert jax.tree.map(np.shape, fit.variables) == want
  fit = predictor.from_table(spec, _entries(spec))
  assert jax.tree.map(np.shape, fit.variables) == want


@every_space
def test_prior_is_scaled_to_whole_networks(name):
  """A device that is 1.7 times its entries needs no more than a few rows."""
  spec = _spec(name)
  entries = _entries(spec)

  def truth(one_hot):
    count = len(next(iter(one_hot.values())))
    rows = [{g: p[i] for g, p in one_hot.items()} for i in range(count)]
    return 1.7 * np.array([entries.of(row) for row in rows])

  one_hot = _random_one_hot(spec, 24)
  if name == 'nasbench201':
    one_hot['cell'][:, 3] = np.eye(5)[3]  # every cell has a path
  fit = predictor.fit(spec, one_hot, truth(one_hot), entries)
  assert fit.card['table_scale'] == pytest.approx(1.7)
  inside = {g: p[[0, 1, 2, 3]] for g, p in one_hot.items()}
  np.testing.assert_allclose(
    _predict(spec, fit.variables, inside), truth(inside), rtol=0.02
  )
  assert fit.card['held_out']['mape_percent'] < 0.1


@every_space
def test_a_few_networks_calibrate_a_table(name):
  """Three measured networks, one of them off, set the scale of all."""
  spec = _spec(name)
  entries = _entries(spec)
  one_hot = _random_one_hot(spec, 3)
  sums = np.array(
    [entries.of({g: p[i] for g, p in one_hot.items()}) for i in range(3)]
  )
  scaled = predictor.calibrate(spec, entries, one_hot, sums * [1.5, 1.5, 9.0])
  assert scaled.fixed == pytest.approx(1.5 * entries.fixed)
  for group, costs in entries.per_op.items():
    np.testing.assert_allclose(scaled.per_op[group], 1.5 * costs)


def test_ten_networks_on_a_table_tell_nothing_that_they_do_not_know():
  """Neither a runtime that pays for dead ops nor a bound above fast cells."""
  spec = _spec()
  entries = dataclasses.replace(_entries(spec), per_sum={'cell': 0.3})
  uniform = {'cell': np.full((6, 5), 0.2)}
  corners = predictor.corners(spec)
  connected = liveness.is_connected(spec, corners)
  truth = predictor.sum_costs(spec, entries, corners, liveness.MERGED)
  for seed in range(4):
    rng = np.random.default_rng(seed)
    rows = sampling.draw(spec, uniform, 20, rng)
    rows = {'cell': rows['cell'][liveness.is_connected(spec, rows)][:10]}
    ms = 1.1 * predictor.sum_costs(spec, entries, rows, liveness.MERGED)
    ms *= np.exp(0.05 * rng.normal(size=10))
    fit = predictor.fit(spec, rows, ms, entries, held_out=0)
    assert fit.card['semantics'] == 'compiled'
    assert fit.card['floor_ms'] < 1.1 * truth[connected].min()
    predicted = np.asarray(fit.variables['params']['corners_ms'])
    error = np.abs(predicted / (1.1 * truth) - 1)[connected]
    assert error.mean() < 0.05
    assert error.max() < 0.4
