import dataclasses
import functools
import json

from flax import serialization
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
from predictor_cases import (
  _draw,
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

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost, judge, liveness, predictor, table
from hwdarts_jax.spaces import discretize


@functools.cache
def _pixel4():
  one_hot, ms = table.load('pixel4_cpu').networks_one_hot(_spec())
  rows = np.random.default_rng(5).permutation(len(ms))[:1000]
  one_hot, ms = {'cell': one_hot['cell'][rows]}, ms[rows]
  return one_hot, ms, predictor.fit(_spec(), one_hot, ms)


def _expected(variables, gates):
  """Mean over all 15,625 cells in numpy, and its gradient, f64."""
  columns = table.enumerate_ops('nasbench201').astype(int)
  ms = _corner_ms(variables)
  p = np.asarray(gates['cell'], np.float64)
  chosen = p[np.arange(6), columns]
  slope = np.zeros_like(p)
  for edge in range(6):
    # The product of the other edges, so that a gate of zero is no trouble.
    others = np.delete(chosen, edge, 1).prod(1)
    np.add.at(slope[edge], columns[:, edge], others * ms)
  return (chosen.prod(1) * ms).sum(), slope


def _corner_ms(variables):
  """Predictions at all cells in the order of `enumerate_ops`, f64."""
  columns = table.enumerate_ops('nasbench201')
  corners = {'cell': np.eye(5, dtype=np.float32)[columns]}
  parts = [
    _predict(_spec(), variables, {'cell': part})
    for part in np.split(corners['cell'], 25)
  ]
  return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('fitted', [True, False])
def test_prediction_inside_is_the_mean_over_all_cells(fitted, seed):
  """Soft gates give the expectation of the corners, and so does the slope.

  The gradients are compared along the simplex: enumeration may add a constant
  to a row, where softmax gates cannot move.
  """
  spec = _spec()
  variables = _pixel4()[2].variables if fitted else _random_variables(spec)
  gates = _gates(spec, seed)
  mean, slope = _expected(variables, gates)
  model = predictor.LatencyPredictor(spec)
  got, grad = jax.jit(jax.value_and_grad(model.apply, argnums=1))(
    variables, gates
  )
  np.testing.assert_allclose(got, mean, rtol=1e-5, atol=1e-5)
  grad = np.asarray(grad['cell'], np.float64)
  grad -= grad.mean(1, keepdims=True)
  slope -= slope.mean(1, keepdims=True)
  cosine = (grad * slope).sum() / np.linalg.norm(grad) / np.linalg.norm(slope)
  assert cosine >= 0.9999
  np.testing.assert_allclose(grad, slope, atol=1e-3 * np.abs(slope).max())


def test_pixel4_cells_that_no_fit_has_seen_are_predicted():
  """Over 97 % within 10 %; recomputed from the returned variables."""
  one_hot, ms, fit = _pixel4()
  report = fit.card['held_out']
  assert report['within_10_percent'] > 97
  assert report['spearman'] > 0.98
  connected = liveness.is_connected(_spec(), one_hot)
  cells, ms = one_hot['cell'][connected], ms[connected]
  order = np.random.default_rng(0).permutation(len(ms))
  test = order[: fit.card['held_out_rows']]
  assert fit.card['rows'] + len(test) == len(ms)
  predicted = _predict(_spec(), fit.variables, {'cell': cells[test]})
  again = predictor.quality(predicted, ms[test])
  for key, value in again.items():
    assert value == pytest.approx(report[key], abs=0.2), key


def test_held_out_rows_do_not_touch_the_fit():
  """Measurements of the held-out rows may be anything."""
  spec = _spec()
  one_hot = _random_one_hot(spec, 60)
  one_hot['cell'][:, 3] = np.eye(5)[3]  # every cell has a path
  ms = np.random.default_rng(1).uniform(1, 2, 60)
  fit = predictor.fit(spec, one_hot, ms, held_out=0.2)
  test = np.random.default_rng(0).permutation(60)[: fit.card['held_out_rows']]
  other = ms.copy()
  other[test] *= 3
  again = predictor.fit(spec, one_hot, other, held_out=0.2)
  jax.tree.map(np.testing.assert_array_equal, fit.variables, again.variables)
  assert again.card['held_out'] != fit.card['held_out']


def test_pairs_are_the_edges_that_share_a_node():
  left, right = predictor.adjacent_edges(_spec().groups()['cell'].edges)
  # 15 pairs of 6 edges, less 0-1 with 2-3, 0-2 with 1-3, and 0-3 with 1-2.
  assert len(left) == 12
  assert {(0, 5), (1, 4), (2, 3)}.isdisjoint(
    zip(left.tolist(), right.tolist(), strict=True)
  )


@pytest.mark.parametrize(
  'semantics, percent', [('eager', 0.1), ('pruned', 1.0), ('compiled', 1.0)]
)
def test_additive_and_pair_latency_is_recovered(semantics, percent):
  """Where the truth is of the model's form, held-out errors are small.

  Which ops the runtime pays for is found as well, and so is the expectation at
  soft gates, on which nothing was trained.
  """
  spec = _spec()
  rng = np.random.default_rng(0)
  left, right = predictor.adjacent_edges(spec.groups()['cell'].edges)
  per_op = rng.uniform(0.2, 1, (6, 5))
  pair = rng.uniform(0, 0.2, (len(left), 5, 5))
  corners = {'cell': np.eye(5)[table.enumerate_ops('nasbench201')]}
  paid = liveness.paid_ops(spec, corners, semantics)['cell']
  truth = 2 + np.einsum('neo,eo->n', paid, per_op)
  truth += np.einsum('npo,npq,poq->n', paid[:, left], paid[:, right], pair)
  rows = rng.permutation(len(truth))[:700]
  fit = predictor.fit(spec, {'cell': corners['cell'][rows]}, truth[rows])
  assert fit.card['semantics'] == semantics
  assert fit.card['held_out']['mape_percent'] < percent
  gates = _gates(spec)
  columns = table.enumerate_ops('nasbench201').astype(int)
  weight = gates['cell'][np.arange(6), columns].astype(np.float64).prod(1)
  np.testing.assert_allclose(
    _predict(spec, fit.variables, gates),
    (weight * truth).sum(),
    rtol=percent / 100,
  )


@pytest.mark.parametrize(
  'device, semantics',
  [('raspberry_pi4_cpu', 'pruned'), ('jetson_nano_gpu_fp16', 'compiled')],
)
def test_what_real_devices_drop_is_found(device, semantics):
  """The Pi runs ops that nothing feeds; the Nano does not."""
  one_hot, ms = table.load(device).networks_one_hot(_spec())
  rows = np.random.default_rng(0).permutation(len(ms))[:200]
  fit = predictor.fit(_spec(), {'cell': one_hot['cell'][rows]}, ms[rows])
  assert fit.card['semantics'] == semantics


def test_what_sums_of_edges_cost_is_part_of_a_prediction():
  """Exactly where cells can be enumerated, else as often as there are some."""
  for name in spaces.names():
    spec = _spec(name)
    plain = _entries(spec)
    group = next(iter(spec.groups()))
    dearer = dataclasses.replace(plain, per_sum={group: 2.0})
    one_hot = _random_one_hot(spec, 6, seed=3)
    extra = 2.0 * liveness.sums(spec, one_hot)[group]
    # A block that stands alone has nothing to be summed with.
    assert (extra.max() > 0) == (spec.groups()[group].shape[0] > 1)
    for i in range(6):
      gates = {g: p[i] for g, p in one_hot.items()}
      got, before = (
        _predict(spec, predictor.from_table(spec, entries).variables, gates)
        for entries in (dearer, plain)
      )
      assert got - before == pytest.approx(extra[i], rel=1e-3)


def test_cells_without_a_path_are_left_out_of_the_fit():
  """Whatever was measured for them, nothing but the count changes."""
  spec = _spec()
  one_hot = _random_one_hot(spec, 60)
  ms = np.random.default_rng(1).uniform(1, 2, 60)
  broken = one_hot['cell'][:3].copy()
  broken[:, [3, 4, 5]] = np.eye(5)[0]  # no edge enters the output
  more = {'cell': np.concatenate([one_hot['cell'], broken])}
  fits = [
    predictor.fit(spec, one_hot, ms),
    predictor.fit(spec, more, np.concatenate([ms, [1e-3, 1e-3, 1e3]])),
  ]
  jax.tree.map(
    np.testing.assert_array_equal, fits[0].variables, fits[1].variables
  )
  left_out = [f.card['disconnected_rows_left_out'] for f in fits]
  assert left_out[1] - left_out[0] == 3


def test_no_architecture_is_faster_than_one_without_ops():
  """Nor does the correction run away far from the measured networks."""
  one_hot, ms, fit = _pixel4()
  del one_hot
  corners = _corner_ms(fit.variables)
  assert 0 < fit.card['floor_ms'] < ms.min()
  np.testing.assert_allclose(corners.min(), fit.card['floor_ms'], rtol=1e-6)
  assert corners.max() < 1.1 * ms.max()


def test_too_few_networks_are_refused():
  spec = _spec()
  count = predictor.MIN_NETWORKS
  one_hot = _random_one_hot(spec, count)
  ms = np.linspace(1, 2, count)
  one_hot['cell'][:, 3] = np.eye(5)[3]  # every cell has a path
  predictor.fit(spec, one_hot, ms)
  with pytest.raises(ValueError, match=f'{count - 1} measured networks'):
    predictor.fit(spec, {'cell': one_hot['cell'][1:]}, ms[1:])


def test_fit_is_a_function_of_its_seed():
  spec = _spec()
  one_hot = _random_one_hot(spec, 50)
  ms = np.random.default_rng(0).uniform(1, 2, 50)
  fits = [predictor.fit(spec, one_hot, ms, seed=s) for s in (3, 3, 4)]
  jax.tree.map(
    np.testing.assert_array_equal, fits[0].variables, fits[1].variables
  )
  assert fits[0].card == fits[1].card
  assert fits[0].card['held_out'] != fits[2].card['held_out']


@every_space
def test_prediction_batches_under_vmap_and_leading_axes(name):
  spec = _spec(name)
  variables = _random_variables(spec)
  model = predictor.LatencyPredictor(spec)
  batch = {
    g: np.stack([_gates(spec, i)[g] for i in range(3)]) for g in spec.groups()
  }
  single = [_predict(spec, variables, _gates(spec, i)) for i in range(3)]
  mapped = jax.jit(jax.vmap(functools.partial(model.apply, variables)))(batch)
  np.testing.assert_allclose(mapped, single, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    _predict(spec, variables, batch), single, rtol=1e-4, atol=1e-4
  )


@every_space
def test_latency_in_other_units_gives_the_same_predictor(name):
  spec = _spec(name)
  one_hot = _draw(spec, 60)
  ms = np.random.default_rng(0).uniform(1, 2, 60)
  fits = [predictor.fit(spec, one_hot, factor * ms) for factor in (1, 1000)]
  gates = _gates(spec)
  small, large = (_predict(spec, f.variables, gates) for f in fits)
  np.testing.assert_allclose(large, 1000 * small, rtol=1e-3)
  errors = [f.card['held_out']['mape_percent'] for f in fits]
  assert errors[0] == pytest.approx(errors[1], rel=1e-2)


@every_space
@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_a_dearer_entry_never_lowers_the_prediction(name, seed):
  """Wherever the gates are, and by no more than it costs where it stands."""
  spec = _spec(name)
  entries = _entries(spec, seed)
  gates = _gates(spec, seed)
  rng = np.random.default_rng(seed)
  costs = {g: c.copy() for g, c in entries.per_op.items()}
  chosen = rng.choice(list(costs))
  row, column = (rng.integers(n) for n in costs[chosen].shape)
  costs[chosen][row, column] += 1
  dearer = cost.CostTable(costs, entries.fixed, 'ms')
  before, after = (
    _predict(spec, predictor.from_table(spec, t).variables, gates)
    for t in (entries, dearer)
  )
  assert before * (1 - 1e-6) <= after <= (before + 1) * (1 + 1e-6)


@every_space
def test_a_fit_outlives_the_process(name):
  """Variables as bytes and the card as JSON come back as they were."""
  spec = _spec(name)
  one_hot = _draw(spec, 40)
  fit = predictor.fit(spec, one_hot, np.linspace(1, 2, 40))
  data = serialization.to_bytes(fit.variables)
  empty = jax.tree.map(np.zeros_like, fit.variables)
  variables = serialization.from_bytes(empty, data)
  gates = _gates(spec)
  np.testing.assert_array_equal(
    _predict(spec, variables, gates), _predict(spec, fit.variables, gates)
  )
  assert json.loads(json.dumps(fit.card)) == fit.card


def test_networks_measured_far_too_slow_do_not_mislead():
  """A fifth of the rows took half again as long; the others decide."""
  spec = _spec()
  rng = np.random.default_rng(0)
  one_hot = _draw(spec, 500)
  one_hot['cell'][:, 3] = np.eye(5)[3]  # every cell has a path
  costs = rng.uniform(0.5, 2, (6, 5))
  truth = 3 + (
    liveness.paid_ops(spec, one_hot, 'compiled')['cell'] * costs
  ).sum((1, 2))
  slow = rng.random(500) < 0.2
  fit = predictor.fit(spec, one_hot, truth * np.where(slow, 1.5, 1))
  got = _predict(spec, fit.variables, one_hot)
  assert np.median(np.abs(got / truth - 1)) < 0.01
  assert (np.abs(got / truth - 1) < 0.05).mean() > 0.95
  sum_of_ops = judge.additive(
    spec, one_hot, truth * np.where(slow, 1.5, 1), 'compiled'
  )
  assert np.median(np.abs(sum_of_ops(one_hot) / truth - 1)) > 0.05


@every_space
@hypothesis.settings(max_examples=10)
@hypothesis.given(data=st.data())
def test_at_a_genotype_the_prediction_is_that_of_the_discretized_spec(
  name, data
):
  """The sum of the entries of the network that is derived and deployed."""
  spec = _spec(name)
  rng = np.random.default_rng(0)
  values: dict[str, float] = {}

  def value(site, op):
    return values.setdefault(site.key(op), rng.uniform(0.1, 1))

  fit = predictor.from_table(spec, cost.tabulate(spec, value, 'ms'))
  genotype = data.draw(space_strategies.genotypes(spec))
  derived = discretize.discretize(spec, genotype)
  got = _predict(spec, fit.variables, discretize.one_hot(spec, genotype))
  np.testing.assert_allclose(got, cost.total(derived, value), rtol=1e-5)


def test_all_rows_are_fitted_where_none_is_held_out():
  spec = _spec()
  one_hot = _draw(spec, 30)
  one_hot['cell'][:, 3] = np.eye(5)[3]  # every cell has a path
  fit = predictor.fit(spec, one_hot, np.linspace(1, 2, 30), held_out=0)
  assert fit.card['rows'] == 30
  assert fit.card['held_out'] is None
