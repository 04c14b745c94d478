import jax
import jax.numpy as jnp
import numpy as np
from predictor_cases import _gates, _spec, every_space
import pytest

from hwdarts_jax.latency import judge, liveness, predictor, sampling, table
from hwdarts_jax.spaces import discretize


def _additive_predict(spec, seed=0):
  """Gates to a random sum that is exact for independent edges."""
  rng = np.random.default_rng(seed)
  costs = {
    g: jnp.asarray(rng.uniform(1, 2, s.shape), jnp.float32)
    for g, s in spec.groups().items()
  }

  def predict(gates):
    sums = [jnp.einsum('...eo,eo->...', gates[g], c) for g, c in costs.items()]
    return sum(sums)

  return predict


def test_quality_counts_relative_errors_and_ranks():
  measured = np.array([1.0, 2.0, 4.0, 8.0])
  report = judge.quality(measured * [1.0, 1.04, 0.92, 1.2], measured)
  assert report == pytest.approx(
    {
      'mape_percent': 8.0,
      'within_5_percent': 50.0,
      'within_10_percent': 75.0,
      'slower_p99_percent': 100 / 0.92 - 100,
      'spearman': 1.0,
      'kendall_tau': 1.0,
    }
  )
  # Ties share their rank, so that a constant half correlates half.
  tied = judge.quality(np.array([1.0, 1.0, 2.0, 2.0]), measured)
  assert tied['spearman'] == pytest.approx(2 / np.sqrt(5))
  # One of six pairs is in the wrong order.
  turned = judge.quality(np.array([1.0, 3.0, 2.0, 8.0]), measured)
  assert turned['kendall_tau'] == pytest.approx(4 / 6)


def test_a_multilinear_function_has_no_interior_error():
  spec = _spec()
  report = judge.interior(spec, _additive_predict(spec))
  assert report['interior_is_exact']
  assert report['interior_error_percent'] < 1e-3
  assert report['gradient_cosine'] > 0.999999


def test_a_function_that_bends_between_the_corners_is_caught():
  """The same at every architecture; inside it is off by what was added."""
  spec = _spec()
  predict = _additive_predict(spec)

  def bent(gates):
    p = gates['cell']
    return predict(gates) + (p * (1 - p)).sum((-1, -2))

  report = judge.interior(spec, bent)
  assert report['interior_error_percent'] > 10
  assert report['gradient_cosine'] < 0.99


def test_in_a_space_too_large_to_enumerate_architectures_are_drawn():
  """Pairs of edges make darts latency more than a sum; sampling sees it."""
  spec = _spec('darts')
  predict = _additive_predict(spec)
  report = judge.interior(spec, predict, count=4, num_samples=4000)
  assert not report['interior_is_exact']
  # The bare sum forgets that a node keeps two edges and never 'none'.
  assert report['interior_error_percent'] > 10


@every_space
def test_drawn_architectures_come_as_often_as_enumeration_says(name):
  spec = _spec(name)
  gates = _gates(spec)
  count = 20_000
  drawn = sampling.draw(spec, gates, count, np.random.default_rng(0))
  for block in sampling.blocks(spec):
    values = sampling.choices(spec, block)
    rows = list(block.rows)
    chance = sampling.chances(values, gates[block.group][rows])
    got = drawn[block.group][:, rows].mean(0)
    want = np.tensordot(chance, values, axes=1)
    np.testing.assert_allclose(got, want, atol=5 * 0.5 / np.sqrt(count))


@every_space
def test_choices_of_the_blocks_are_the_architectures_of_the_space(name):
  """Any derived genotype is one choice of each block, and chances sum to 1."""
  spec = _spec(name)
  rng = np.random.default_rng(0)
  alphas = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
  hot = discretize.one_hot(spec, discretize.derive(spec, alphas))
  seen = {g: np.zeros(p.shape[0], int) for g, p in hot.items()}
  for block in sampling.blocks(spec):
    rows = list(block.rows)
    seen[block.group][rows] += 1
    values = sampling.choices(spec, block)
    assert (values == hot[block.group][rows]).all((1, 2)).sum() == 1
    chance = sampling.chances(values, _gates(spec)[block.group][rows])
    assert chance.sum() == pytest.approx(1)
  assert all((s == 1).all() for s in seen.values())


@pytest.mark.parametrize('semantics', liveness.SEMANTICS)
def test_additive_baseline_finds_costs_of_its_own_semantics(semantics):
  spec = _spec()
  rng = np.random.default_rng(0)
  hots = {'cell': np.eye(5)[rng.integers(5, size=(400, 6))]}
  costs = rng.uniform(1, 2, (6, 5))
  ms = 3 + (liveness.paid_ops(spec, hots, semantics)['cell'] * costs).sum(
    (1, 2)
  )
  half = {'cell': hots['cell'][:200]}
  corner = judge.additive(spec, half, ms[:200], semantics)
  np.testing.assert_allclose(corner(hots)[200:], ms[200:], rtol=1e-6)
  other = 'compiled' if semantics == 'eager' else 'eager'
  wrong = judge.additive(spec, half, ms[:200], other)
  assert np.abs(wrong(hots) / ms - 1)[200:].mean() > 0.01


def test_perceptron_learns_architectures_but_not_what_lies_between():
  """It beats the sum on unseen cells and is far off at soft gates."""
  spec = _spec()
  one_hot, ms = table.load('pixel4_cpu').networks_one_hot(spec)
  order = np.random.default_rng(0).permutation(len(ms))
  cells, ms = one_hot['cell'][order], ms[order]
  part, rest = {'cell': cells[:1000]}, {'cell': cells[1000:]}
  predict = judge.mlp(part, ms[:1000], num_steps=1000)
  got = judge.quality(judge.corner_ms(predict, rest), ms[1000:])
  additive = judge.additive(spec, part, ms[:1000])
  floor = judge.quality(additive(rest), ms[1000:])
  assert got['within_10_percent'] > floor['within_10_percent'] + 3
  report = judge.interior(spec, predict, count=5)
  assert report['interior_error_percent'] > 2
  assert report['gradient_cosine'] < 0.99


def test_corner_figures_do_not_depend_on_how_rows_are_batched():
  spec = _spec()
  predict = _additive_predict(spec)
  corners = predictor.corners(spec)
  some = {'cell': corners['cell'][4000:4200]}
  np.testing.assert_allclose(
    judge.corner_ms(predict, corners)[4000:4200],
    jax.vmap(predict)(some),
    rtol=1e-6,
  )


def test_a_sum_of_costs_without_dead_ops_is_wrong_inside():
  """Summed over gates, it pays for ops that its own architectures drop."""
  spec = _spec()
  one_hot, ms = table.load('pixel4_cpu').networks_one_hot(spec)
  pruned = judge.additive(spec, one_hot, ms, 'compiled')
  found = judge.interior(spec, pruned.at_gates, corner=pruned)
  eager = judge.additive(spec, one_hot, ms, 'eager')
  none = judge.interior(spec, eager.at_gates, corner=eager)
  assert none['interior_error_percent'] < 1e-3
  assert none['gradient_cosine'] > 0.9999
  assert found['interior_error_percent'] > 2
  assert found['gradient_cosine'] < 0.99


def test_twins_tell_how_much_of_an_error_is_noise():
  """Cells that run the same ops; a fifth of them measured half again as slow.

  Their twins predict all the others exactly, and no row predicts itself.
  """
  spec = _spec()
  rng = np.random.default_rng(0)
  cells = {'cell': np.eye(5)[rng.integers(5, size=(4000, 6))]}
  paid = liveness.paid_ops(spec, cells, 'compiled')['cell']
  ms = 3 + (paid * rng.uniform(0.5, 1, (6, 5))).sum((1, 2))
  slow = rng.random(4000) < 0.2
  noisy = ms * np.where(slow, 1.5, 1)
  found = judge.twins_ms(spec, cells, noisy, 'compiled', least=12)
  known = ~np.isnan(found)
  assert 200 < known.sum() < 4000
  share = (np.abs(found / noisy - 1) <= 0.1)[known].mean()
  assert share == pytest.approx(0.8, abs=0.05)
  np.testing.assert_allclose(found[known] / ms[known], 1, atol=0.1)
  # Where all ops run, hardly two cells of a sample are the same program.
  assert np.isnan(judge.twins_ms(spec, cells, noisy, 'eager')).all()
