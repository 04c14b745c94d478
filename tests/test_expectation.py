import itertools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.latency import expectation, pairs
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, IMAGE, NetworkSpec

every_space = pytest.mark.parametrize('name', spaces.names())


def _gates(spec, seed=0, scale=1.0, batch=()):
  rng = np.random.default_rng(seed)
  gates = {}
  for name, group in spec.groups().items():
    logits = rng.normal(scale=scale, size=(*batch, *group.shape))
    e = np.exp(logits - logits.max(-1, keepdims=True))
    gates[name] = (e / e.sum(-1, keepdims=True)).astype(np.float32)
  return gates


def _marginals(spec, gates):
  return {
    g: np.asarray(p)
    for g, p in jax.jit(lambda x: expectation.marginals(spec, x))(gates).items()
  }


def _keep(spec, name):
  return {c.keep for c in spec.all_cells if c.group == name}.pop()


def _into(group):
  """Rows of the edges into each node."""
  nodes = sorted({d for _, d in group.edges})
  return [[r for r, (_, d) in enumerate(group.edges) if d == n] for n in nodes]


def _enumerated(spec, gates):
  """The definition: all sets of edges, weighted by their strengths."""
  out = {}
  for name, group in spec.groups().items():
    p = np.array(gates[name], np.float64)
    if not spec.excluded and _keep(spec, name) is None:
      out[name] = p
      continue
    p[:, [op in spec.excluded for op in group.ops]] = 0
    strength = p.sum(1)
    kept = np.zeros(len(p))
    for into in _into(group):
      count = min(_keep(spec, name) or len(into), len(into))
      total = 0.0
      chance = dict.fromkeys(into, 0.0)
      for rows in itertools.combinations(into, count):
        weight = np.prod(strength[list(rows)])
        total += weight
        for row in rows:
          chance[row] += weight
      for row in into:
        kept[row] = chance[row] / total
    out[name] = p / strength[:, None] * kept[:, None]
  return out


@every_space
@pytest.mark.parametrize('scale', [0.1, 1.0, 5.0])
def test_marginals_are_those_of_the_enumeration(name, scale):
  spec = spaces.make(name)
  gates = _gates(spec, scale=scale)
  want = _enumerated(spec, gates)
  for group, p in _marginals(spec, gates).items():
    np.testing.assert_allclose(p, want[group], rtol=1e-5, atol=1e-7)


def _node_spec(num_edges, keep):
  """A cell of one node."""
  cell = CellSpec(
    'c',
    tuple((i, IMAGE) for i in range(num_edges)),
    tuple(
      EdgeSpec(i, num_edges, ('p', 'none', 'q'), i) for i in range(num_edges)
    ),
    (num_edges,),
    2,
    group='g',
    keep=keep,
  )
  head = CellSpec(
    'h', ((0, 'c'),), (EdgeSpec(0, 1, ('pool',), None, 4),), (1,), 2
  )
  return NetworkSpec('t', (4, 4, 2), (), (cell,), (head,), 2, ('none',))


@pytest.mark.parametrize('keep', [1, 2, 3, 4, None])
def test_any_number_of_kept_edges_is_that_of_the_enumeration(keep):
  spec = _node_spec(4, keep)
  gates = _gates(spec)
  np.testing.assert_allclose(
    _marginals(spec, gates)['g'], _enumerated(spec, gates)['g'], rtol=1e-4
  )


@pytest.mark.parametrize('keep', [1, 2, 3, 4, 5])
def test_two_of_any_number_of_kept_edges_are_those_of_the_enumeration(keep):
  """Also where a strength is zero; as chances and as their gradient."""
  spec = _node_spec(5, keep)
  (each,) = pairs.adjacent(spec)
  with jax.enable_x64(True):
    gates = _gates(spec)['g'].astype(np.float64)
    gates[3] = [0, 1, 0]
    weights = np.random.default_rng(1).normal(size=len(each.left))

    def ours(gates):
      first, second = expectation.pair_marginals(spec, {'g': gates}, each)
      return (first.sum(-1) * second.sum(-1) * weights).sum()

    def enumerated(gates):
      strength = gates[:, 0] + gates[:, 2]
      found = total = 0.0
      for rows in itertools.combinations(range(5), keep):
        chance = jnp.prod(strength[np.array(rows)])
        total += chance
        inside = np.isin(each.left, rows) & np.isin(each.right, rows)
        found += chance * weights[inside].sum()
      return found / total

    if keep == 5:
      gates[3] = [0.2, 0.5, 0.3]  # or the only set would have no chance
    got, want = (jax.value_and_grad(f)(gates) for f in (ours, enumerated))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-3, atol=1e-4)


def test_more_edges_are_no_larger_program():
  """Compilers take longer for scalars of edges than for a whole network."""

  def num_lines(num_nodes):
    spec = spaces.make('darts', num_nodes=num_nodes)

    def value(gates):
      found = [
        expectation.pair_marginals(spec, gates, each)
        for each in pairs.adjacent(spec)
      ]
      return sum(p.sum() for p in jax.tree.leaves(found))

    return jax.jit(jax.grad(value)).lower(_gates(spec)).as_text().count('\n')

  assert num_lines(6) < 1.1 * num_lines(3)


def test_where_every_edge_is_kept_the_marginals_are_the_gates():
  spec = spaces.make('nasbench201')
  gates = _gates(spec)
  np.testing.assert_array_equal(_marginals(spec, gates)['cell'], gates['cell'])


@pytest.mark.parametrize('num_nodes', [1, 2, 4])
def test_darts_nodes_keep_two_edges_and_never_none(num_nodes):
  """The masses into a node sum to two, and each is at most one."""
  spec = spaces.make('darts', num_nodes=num_nodes)
  for name, p in _marginals(spec, _gates(spec)).items():
    group = spec.groups()[name]
    assert (p[:, group.ops.index('none')] == 0).all()
    assert (p.sum(1) <= 1 + 1e-6).all()
    for into in _into(group):
      np.testing.assert_allclose(p[into].sum(), 2, rtol=1e-6)


def test_darts_nodes_keep_two_edges_also_where_none_takes_nearly_all():
  """Only ratios of strengths count, however small the strengths are."""
  spec = spaces.make('darts')
  gates = _gates(spec)
  column = spec.groups()['normal'].ops.index('none')
  want = _marginals(spec, gates)
  for factor in (1e-4, 1e-8, 1e-12, 1e-20):
    small = {g: np.array(p) * np.float32(factor) for g, p in gates.items()}
    for p in small.values():
      p[:, column] = 1
    for name, p in _marginals(spec, small).items():
      np.testing.assert_allclose(p, want[name], rtol=1e-5)


def test_one_edge_may_dominate_its_node():
  """The second edge is then shared out among the others."""
  spec = spaces.make('darts', num_cells=1, num_nodes=2)
  gates = {g: np.zeros(s.shape, np.float32) for g, s in spec.groups().items()}
  (name,) = gates
  gates[name][:, 3] = [1, 1, 1, 1e-7, 3e-7]
  p = _marginals(spec, gates)[name][:, 3]
  np.testing.assert_allclose(p, [1, 1, 1, 0.25, 0.75], rtol=1e-5)


@every_space
@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
def test_at_a_genotype_the_marginals_are_the_genotype(name, data):
  """Exactly: there is no gap between the corner and the derived network."""
  spec = spaces.make(name)
  genotype = data.draw(space_strategies.genotypes(spec))
  gates = discretize.one_hot(spec, genotype)
  for group, p in _marginals(spec, gates).items():
    np.testing.assert_array_equal(p, gates[group])


def _slopes(spec, gates, seed=3):
  """Gradient of a fixed weighting of the marginals, and its function."""
  rng = np.random.default_rng(seed)
  weights = {
    g: rng.normal(size=s.shape).astype(np.float32)
    for g, s in spec.groups().items()
  }

  def value(gates):
    p = expectation.marginals(spec, gates)
    return sum((p[g] * weights[g]).sum() for g in p)

  return jax.jit(jax.grad(value))(gates), value


@every_space
def test_gradient_is_that_of_finite_differences(name):
  with jax.enable_x64(True):
    spec = spaces.make(name)
    gates = {g: jnp.asarray(p, jnp.float64) for g, p in _gates(spec).items()}
    grads, value = _slopes(spec, gates)
    rng = np.random.default_rng(1)
    step = {g: 1e-6 * rng.normal(size=p.shape) for g, p in gates.items()}
    ahead = {g: p + step[g] for g, p in gates.items()}
    behind = {g: p - step[g] for g, p in gates.items()}
    want = (value(ahead) - value(behind)) / 2
    got = sum((grads[g] * step[g]).sum() for g in gates)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@every_space
@hypothesis.settings(max_examples=10)
@hypothesis.given(data=st.data())
def test_gradient_at_a_corner_is_the_limit_from_inside(name, data):
  """Rows that the genotype drops have their true gradient, not zero."""
  spec = spaces.make(name)
  genotype = data.draw(space_strategies.genotypes(spec))
  corner = discretize.one_hot(spec, genotype)
  inside = _gates(spec)
  near = {g: p + np.float32(1e-6) * inside[g] for g, p in corner.items()}
  at_corner, _ = _slopes(spec, corner)
  at_near, _ = _slopes(spec, near)
  for group, grad in at_corner.items():
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, at_near[group], rtol=1e-3, atol=1e-3)


def test_too_few_edges_with_mass_are_kept_and_nothing_is_nan():
  """A node with fewer edges than it keeps has those, and finite gradients."""
  spec = spaces.make('darts')
  gates = {g: np.zeros(s.shape, np.float32) for g, s in spec.groups().items()}
  gates['normal'][2:5, 4] = [0, 0.5, 0]  # one edge into node 3
  p = _marginals(spec, gates)
  assert p['normal'][3, 4] == 1
  assert p['normal'].sum() == 1
  assert not p['reduce'].any()
  grads, _ = _slopes(spec, gates)
  for grad in grads.values():
    assert np.isfinite(grad).all()


@every_space
@pytest.mark.parametrize('scale', [1.0, 30.0, 300.0])
def test_alphas_of_any_size_have_finite_gradients(name, scale):
  """Also where the softmax has underflowed to a corner."""
  spec = spaces.make(name)
  rng = np.random.default_rng(0)
  alphas = {
    g: jnp.asarray(rng.normal(scale=scale, size=s.shape), jnp.float32)
    for g, s in spec.groups().items()
  }

  @jax.jit
  @jax.grad
  def slope(alphas):
    gates = {g: jax.nn.softmax(a) for g, a in alphas.items()}
    p = expectation.marginals(spec, gates)
    return sum(
      (v * jnp.arange(1.0, v.size + 1).reshape(v.shape)).sum()
      for v in p.values()
    )

  for grad in slope(alphas).values():
    assert np.isfinite(grad).all()


@every_space
def test_leading_axes_are_independent_architectures(name):
  spec = spaces.make(name)
  gates = _gates(spec, batch=(2, 3))
  together = _marginals(spec, gates)
  alone = _marginals(spec, {g: p[1, 2] for g, p in gates.items()})
  for group, p in together.items():
    np.testing.assert_allclose(p[1, 2], alone[group], rtol=1e-5)
