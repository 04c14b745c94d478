import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost, liveness, predictor, table
from hwdarts_jax.spaces import discretize

every_space = pytest.mark.parametrize('name', spaces.names())


@functools.cache
def _spec(name='nasbench201'):
  return spaces.make(name)


def _gates(spec, seed=0):
  rng = np.random.default_rng(seed)
  gates = {}
  for name, group in spec.groups().items():
    e = np.exp(rng.normal(size=group.shape))
    gates[name] = (e / e.sum(1, keepdims=True)).astype(np.float32)
  return gates


def _random_one_hot(spec, count, seed=0):
  """Random genotypes as gates, for each group f[N, E, O]."""
  rng = np.random.default_rng(seed)
  alphas = [
    {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
    for _ in range(count)
  ]
  hots = [discretize.one_hot(spec, discretize.derive(spec, a)) for a in alphas]
  return {g: np.stack([h[g] for h in hots]) for g in spec.groups()}


def _random_variables(spec, seed=0):
  model = predictor.LatencyPredictor(spec)
  made = jax.eval_shape(model.init, jax.random.key(0), _gates(spec))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda v: jnp.asarray(rng.normal(size=v.shape), jnp.float32), made
  )


def _predict(spec, variables, gates):
  return np.asarray(_compiled(spec)(variables, gates))


@functools.cache
def _compiled(spec):
  return jax.jit(predictor.LatencyPredictor(spec).apply)


@functools.cache
def _pixel4():
  one_hot, ms = table.load('pixel4_cpu').networks_one_hot(_spec())
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
  rows = rng.permutation(len(truth))[:3000]
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


def _entries(spec, seed=0):
  """A table of op entries for all keys of a space."""
  rng = np.random.default_rng(seed)
  values = {
    s.key(op): rng.uniform(0.1, 1) for s in spec.sites() for op in s.ops
  }
  return cost.tabulate(spec, lambda site, op: values[site.key(op)], 'ms')


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

  one_hot = _random_one_hot(spec, 40)
  fit = predictor.fit(spec, one_hot, truth(one_hot), entries)
  assert fit.card['fixed_ms'] == pytest.approx(1.7 * entries.fixed)
  inside = {g: p[[0, 1, 2, 3]] for g, p in one_hot.items()}
  np.testing.assert_allclose(
    _predict(spec, fit.variables, inside), truth(inside), rtol=0.02
  )
  alone = predictor.fit(spec, one_hot, truth(one_hot))
  assert (
    fit.card['held_out']['mape_percent']
    < alone.card['held_out']['mape_percent']
  )


@every_space
def test_a_few_networks_calibrate_a_table(name):
  """Three measured networks, one of them off, set the scale of all."""
  spec = _spec(name)
  entries = _entries(spec)
  one_hot = _random_one_hot(spec, 3)
  sums = np.array(
    [entries.of({g: p[i] for g, p in one_hot.items()}) for i in range(3)]
  )
  scaled = predictor.calibrate(entries, one_hot, sums * [1.5, 1.5, 9.0])
  assert scaled.fixed == pytest.approx(1.5 * entries.fixed)
  for group, costs in entries.per_op.items():
    np.testing.assert_allclose(scaled.per_op[group], 1.5 * costs)


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
