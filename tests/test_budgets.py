"""Expected costs are those of architectures, and those of exported files."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from hwdarts_jax.latency import budgets, corner, cost, liveness
from hwdarts_jax.spaces import darts, discretize, nasbench201

CELLS = nasbench201.make(
  features=4, num_cells=1, image_size=8, image_channels=1
)
KEEPING = darts.make(
  features=4, num_cells=2, num_nodes=2, image_size=8, pool_bn=False
)
COMPUTED = ('macs', 'model_mb', 'peak_memory_mb')
arch = nasbench201.from_arch_string


@functools.cache
def budget(name, spec=CELLS):
  return budgets.make(name, spec)


def drawn(spec, seed):
  rng = np.random.default_rng(seed)
  alphas = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
  return discretize.derive(spec, alphas)


@pytest.mark.parametrize('name', COMPUTED)
def test_enumerated_costs_are_expectations_over_all_architectures(name):
  gates = np.random.default_rng(0).dirichlet(np.ones(5), 6)
  one_hot = corner.corners(CELLS)
  chance = np.where(one_hot['cell'] > 0, gates, 1).prod((1, 2))
  assert np.isclose(chance.sum(), 1)
  costs = budget(name)({'cell': one_hot['cell'].astype(np.float32)})
  want = (chance * np.asarray(costs, np.float64)).sum()
  got = budget(name)({'cell': gates.astype(np.float32)})
  np.testing.assert_allclose(got, want, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), keeps=st.booleans())
def test_macs_of_one_hot_gates_are_those_of_the_network(seed, keeps):
  spec = KEEPING if keeps else CELLS
  genotype = drawn(spec, seed)
  network = discretize.discretize(spec, genotype)
  want = cost.total(network, cost.macs)
  np.testing.assert_allclose(budget('macs', spec).of(genotype), want, rtol=1e-6)


def test_images_alive_at_once_can_be_counted_by_hand():
  """An image of the first stage has 8 x 8 x 4 values, the input 8 x 8."""
  image, given_image = 8 * 8 * 4 * 4, 8 * 8 * 4
  padded = 10 * 10 * 4 * 4  # before the convolution of stride 2
  for text, images in (
    # Input and output of one op; reduction keeps its input, its ReLU and that
    # padded.
    ('|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|', 2),
    # The input, its ReLU and two results before they are added.
    (
      '|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|'
      '+|skip_connect~0|skip_connect~1|skip_connect~2|',
      4,
    ),
  ):
    want = given_image + max(images * image, 2 * image + padded)
    got = budget('peak_memory_mb').of(arch(text)) * 1e6
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_dead_ops_need_neither_memory_nor_space_in_the_file():
  lone = '|{}~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|'
  for name in ('model_mb', 'peak_memory_mb'):
    with_it, without = (
      budget(name).of(arch(lone.format(op))) for op in ('nor_conv_3x3', 'none')
    )
    assert with_it == without
  macs = [
    budget('macs').of(arch(lone.format(op))) for op in ('nor_conv_3x3', 'none')
  ]
  assert macs[0] > macs[1]  # as the literature counts


@pytest.mark.parametrize('name', COMPUTED)
@pytest.mark.parametrize('spec', [CELLS, KEEPING], ids=['cells', 'keeping'])
def test_costs_have_a_range_and_a_slope(name, spec):
  found = budget(name, spec)
  low, high, is_exact = (
    found.range.low,
    found.range.high,
    found.range.is_exact,
  )
  assert is_exact == (spec is CELLS)
  uniform = {
    g: np.full(s.shape, 1 / s.shape[1], np.float32)
    for g, s in spec.groups().items()
  }
  assert 0 < low < high or (name == 'peak_memory_mb' and 0 < low <= high)
  if spec is CELLS:
    one_hot = corner.corners(spec)
    one_hot = {g: v[::97].astype(np.float32) for g, v in one_hot.items()}
    costs = np.asarray(found(one_hot))[liveness.is_connected(spec, one_hot)]
    assert (low <= costs).all() and (costs <= high).all()
  slope = jax.grad(lambda g: found(g).sum())(uniform)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(slope))
  if name != 'peak_memory_mb':
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(slope))


def test_unknown_and_unmeasured_costs_are_refused():
  with pytest.raises(ValueError, match=r"'watts'.*known are.*'energy_mj'"):
    budgets.make('watts', CELLS)
  for name in ('energy_mj', 'latency_ms'):
    with pytest.raises(ValueError, match=f'{name}.*needs a predictor'):
      budgets.make(name, CELLS)


def exported(spec, genotype):
  convert = pytest.importorskip('hwdarts_jax.harness.convert')
  pytest.importorskip('litert_converter')
  network = discretize.discretize(spec, genotype)
  return convert.convert(
    convert.network(network), network.input_shape, convert.Target()
  ).data


@pytest.mark.parametrize(
  'text',
  [
    # One that hands on, one that pools twice, one whose op is fed by nothing.
    '|skip_connect~0|+|none~0|avg_pool_3x3~1|'
    '+|none~0|skip_connect~1|avg_pool_3x3~2|',
    '|skip_connect~0|+|avg_pool_3x3~0|avg_pool_3x3~1|'
    '+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_3x3~2|',
    '|none~0|+|skip_connect~0|nor_conv_1x1~1|'
    '+|nor_conv_3x3~0|nor_conv_3x3~1|skip_connect~2|',
    '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|'
    '+|avg_pool_3x3~0|avg_pool_3x3~1|none~2|',
    # One whose last node adds two images that others read as well.
    '|nor_conv_1x1~0|+|nor_conv_1x1~0|avg_pool_3x3~1|'
    '+|skip_connect~0|skip_connect~1|skip_connect~2|',
  ],
)
def test_memory_and_size_are_those_of_litert(text):
  """Of this small network names are much of the file: 15 %, not 10."""
  execute = pytest.importorskip('hwdarts_jax.harness.execute')
  genotype = arch(text)
  data = exported(CELLS, genotype)
  memory = budget('peak_memory_mb').of(genotype) * 1e6
  np.testing.assert_allclose(memory, execute.arena_bytes(data), rtol=0.02)
  size = budget('model_mb').of(genotype) * 1e6
  np.testing.assert_allclose(size, len(data), rtol=0.15)


@pytest.mark.parametrize('seed', [0, 1])
def test_memory_of_a_space_that_drops_edges_is_that_of_litert(seed):
  execute = pytest.importorskip('hwdarts_jax.harness.execute')
  genotype = drawn(KEEPING, seed)
  arena = execute.arena_bytes(exported(KEEPING, genotype))
  found = budget('peak_memory_mb', KEEPING)
  np.testing.assert_allclose(found.of(genotype) * 1e6, arena, rtol=0.1)
  one_hot = discretize.one_hot(KEEPING, genotype)
  # What is alive at once can be no more than what is laid out.
  assert float(found(one_hot)) <= found.of(genotype) * (1 + 1e-6)


def test_a_binding_memory_budget_changes_the_genotype_and_is_met():
  """By its gradient alone: from alphas that want what takes most memory."""
  found = budget('peak_memory_mb')
  one_hot = corner.corners(CELLS)['cell']
  connected = liveness.is_connected(CELLS, {'cell': one_hot})
  costs = np.where(connected, found.costs({'cell': one_hot}), -np.inf)
  wanted = one_hot[costs.argmax()].astype(np.float32)
  target = float(np.median(costs[connected]))
  assert target < costs.max()

  @jax.jit
  def step(alphas, multiplier):
    def loss(alphas):
      gates = jax.nn.softmax(alphas)
      expected = found({'cell': gates})
      value = -(gates * wanted).sum() + multiplier * expected / target
      return value, expected

    grads, expected = jax.grad(loss, has_aux=True)(alphas)
    return alphas - grads, expected

  def search(ascent):
    alphas, multiplier = np.zeros_like(wanted), 0.0
    for _ in range(300):
      alphas, expected = step(alphas, multiplier)
      multiplier = max(0.0, multiplier + ascent * float(expected / target - 1))
    return discretize.derive(CELLS, {'cell': np.asarray(alphas)})

  free, bound = search(0.0), search(1.0)
  assert found.of(free) == pytest.approx(costs.max())
  assert bound != free
  assert found.of(bound) <= target
