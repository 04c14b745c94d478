"""Expected latency in closed form is the mean over all architectures."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import space_strategies
from test_expectation import _gates

from hwdarts_jax import spaces
from hwdarts_jax.latency import (
  expectation,
  liveness,
  pairs,
  reachability,
  sampling,
)
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, IMAGE, NetworkSpec


def _all_architectures(spec, gates):
  """Every architecture, f[N, E, O] of each group, and its probability f[N]."""
  groups = spec.groups()
  found = {g: np.zeros((1, *s.shape)) for g, s in groups.items()}
  chance = np.ones(1)
  for block in sampling.blocks(spec):
    values = sampling.choices(spec, block)
    rows = list(block.rows)
    weight = sampling.chances(values, np.float64(gates[block.group])[rows])
    found = {g: np.repeat(p, len(values), 0) for g, p in found.items()}
    found[block.group][:, rows] = np.tile(values, (len(chance), 1, 1))
    chance = (chance[:, None] * weight).ravel()
  return found, chance


@functools.cache
def _paid_ms(spec, semantics):
  """Jitted: gates and costs of ops to the expected sum of paid costs."""

  def ms(gates, costs):
    paid = expectation.paid(spec, gates, semantics)
    return sum((paid[g] * c).sum() for g, c in costs.items())

  return jax.jit(jax.value_and_grad(ms))


_NASBENCH201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
# Of rows of edges, from a node to another.
_PATHS = {
  (0, 1): [[0]],
  (0, 2): [[1], [0, 2]],
  (0, 3): [[3], [0, 4], [1, 5], [0, 2, 5]],
  (1, 3): [[4], [2, 5]],
  (2, 3): [[5]],
}


@functools.cache
def _nasbench201_paid(semantics):
  """Paid ops bool[15625, 6, 5] of all cells, by their paths; plain numpy."""
  digits = np.indices((5,) * 6).reshape(6, -1).T  # op 0 is none
  live = digits != 0

  def is_open(src, dst):
    if src == dst:
      return np.ones(len(live), bool)
    return np.any([live[:, p].all(1) for p in _PATHS[src, dst]], 0)

  paid = digits[..., None] == np.arange(5)
  if semantics != 'eager':
    paid[..., 0] = False
    for row, (src, dst) in enumerate(_NASBENCH201_EDGES):
      runs = is_open(dst, 3)
      if semantics == 'compiled':
        runs &= is_open(0, src)
      paid[:, row] &= runs[:, None]
  return digits, paid


@pytest.mark.parametrize('semantics', liveness.SEMANTICS)
@hypothesis.settings(max_examples=20)
@hypothesis.given(
  seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 3.0, 8.0])
)
def test_closed_form_is_the_mean_over_all_nasbench201_cells(
  semantics, seed, scale
):
  """Expected additive latency of 15,625 cells, to 1e-5 of it; plain numpy."""
  spec = spaces.make('nasbench201')
  assert spec.groups()['cell'].edges == _NASBENCH201_EDGES
  gates = _gates(spec, seed, scale)
  costs = np.random.default_rng(seed).uniform(0, 1, (6, 5))
  digits, paid = _nasbench201_paid(semantics)
  chance = gates['cell'].astype(np.float64)[np.arange(6), digits].prod(1)
  ms = (paid * costs).sum((1, 2))
  got, _ = _paid_ms(spec, semantics)(gates, {'cell': np.float32(costs)})
  # Chances of float32 gates sum to 1 only to their own precision.
  np.testing.assert_allclose(got, (chance @ ms) / chance.sum(), rtol=1e-5)


@pytest.mark.parametrize('semantics', liveness.SEMANTICS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(
  spec=space_strategies.small_specs(), seed=st.integers(0, 2**31)
)
def test_closed_form_is_the_mean_in_any_small_cell(semantics, spec, seed):
  """With fixed edges, dropped edges and excluded ops; each op by itself."""
  gates = _gates(spec, seed)
  one_hot, chance = _all_architectures(spec, gates)
  paid = liveness.paid_ops(spec, one_hot, semantics)
  got = expectation.paid(spec, gates, semantics)
  for name, p in paid.items():
    want = np.tensordot(chance, p, axes=1)
    np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-6)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  spec=space_strategies.small_specs(), seed=st.integers(0, 2**31)
)
def test_two_ops_are_together_as_often_as_enumeration_says(spec, seed):
  gates = _gates(spec, seed)
  one_hot, chance = _all_architectures(spec, gates)
  for each in pairs.adjacent(spec):
    p, q = one_hot[each.left_group], one_hot[each.right_group]
    want = np.einsum(
      'n,npo,npq->poq', chance, p[:, each.left], q[:, each.right]
    )
    first, second = expectation.pair_marginals(spec, gates, each)
    got = np.asarray(first)[..., :, None] * np.asarray(second)[..., None, :]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('semantics', liveness.SEMANTICS)
def test_gradient_of_the_closed_form_is_that_of_finite_differences(semantics):
  with jax.enable_x64(True):
    spec = spaces.make('nasbench201')
    gates = {'cell': jnp.asarray(_gates(spec)['cell'], jnp.float64)}
    rng = np.random.default_rng(1)
    costs = {'cell': rng.uniform(0, 1, (6, 5))}
    step = {'cell': 1e-6 * rng.normal(size=(6, 5))}
    value = _paid_ms(spec, semantics)
    _, grads = value(gates, costs)
    ahead, behind = (
      value({'cell': gates['cell'] + sign * step['cell']}, costs)[0]
      for sign in (1, -1)
    )
    got = (grads['cell'] * step['cell']).sum()
    np.testing.assert_allclose(got, (ahead - behind) / 2, rtol=1e-6)


@pytest.mark.parametrize('semantics', liveness.SEMANTICS)
@hypothesis.settings(max_examples=20)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_a_dearer_op_never_lowers_the_expectation(semantics, seed):
  spec = spaces.make('nasbench201')
  rng = np.random.default_rng(seed)
  gates = _gates(spec, seed, 3.0)
  costs = rng.uniform(0, 1, (6, 5)).astype(np.float32)
  dearer = costs.copy()
  dearer[rng.integers(6), rng.integers(5)] += 1
  before, _ = _paid_ms(spec, semantics)(gates, {'cell': costs})
  after, _ = _paid_ms(spec, semantics)(gates, {'cell': dearer})
  assert after >= before * (1 - 1e-6)


def test_a_cell_of_too_many_nodes_is_refused():
  count = reachability.MAX_NODES + 1
  cell = CellSpec(
    'c',
    ((0, IMAGE),),
    tuple(EdgeSpec(i, i + 1, ('none', 'p'), i) for i in range(count)),
    (count,),
    2,
    group='g',
  )
  head = CellSpec(
    'h', ((0, 'c'),), (EdgeSpec(0, 1, ('pool',), None, 4),), (1,), 2
  )
  spec = NetworkSpec('t', (4, 4, 2), (), (cell,), (head,), 2)
  gates = {'g': np.full((count, 2), 0.5, np.float32)}
  expectation.paid(spec, gates, 'eager')
  with pytest.raises(ValueError, match=f'is {count}; it must be at most'):
    expectation.paid(spec, gates, 'compiled')
