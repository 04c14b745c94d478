"""Signs of collapse mean what they say."""

import dataclasses
import functools

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import three_nodes

from hwdarts_jax import spaces
from hwdarts_jax.bilevel import diagnostics, losses, problem
from hwdarts_jax.models import evaluations, ops

NAS = spaces.make('nasbench201', features=2, num_cells=1)
DARTS = spaces.make('darts', features=2, num_cells=3, num_nodes=2)


def _uniform(spec):
  return {g: np.full(s.shape, 1 / s.shape[1]) for g, s in spec.groups().items()}


def test_copies_are_skips_that_keep_the_shape():
  """Edges of a reduction that read its inputs have none."""
  found = diagnostics.copying(DARTS)
  for group, columns in found.items():
    edges = DARTS.groups()[group].edges
    reads_input = [group == 'reduce' and src < 2 for src, _ in edges]
    assert (columns.sum(-1) == np.where(reads_input, 0, 1)).all()
    x = jnp.ones((1, 4, 4, 2))
    for op in np.array(DARTS.groups()[group].ops)[columns.any(0)]:
      made = ops.get(str(op))(2, 1, ops.Context())
      assert (made.apply({}, x, False) == x).all()


def test_zero_columns_are_those_of_ops_without_output():
  for group, columns in diagnostics.zeros(NAS).items():
    names = np.array(NAS.groups()[group].ops)[columns.all(0)]
    assert len(names) == 1 and (columns.any(0) == columns.all(0)).all()
    made = ops.get(str(names[0]))(2, 1, ops.Context())
    assert not made.apply({}, jnp.ones((1, 4, 4, 2)), False).any()


@pytest.mark.parametrize('spec', [NAS, DARTS], ids=['nasbench201', 'darts'])
def test_mass_goes_from_even_to_all(spec):
  columns = diagnostics.copying(spec)
  probs = _uniform(spec)
  share = 1 / next(iter(probs.values())).shape[1]
  np.testing.assert_allclose(diagnostics.mass(probs, columns), share)
  collapsed = {g: columns[g] * 1.0 for g in probs}
  assert diagnostics.mass(collapsed, columns) == 1
  gone = {g: p * ~columns[g] for g, p in probs.items()}
  assert diagnostics.mass(gone, columns) == 0
  assert (
    diagnostics.mass(probs, {g: c & False for g, c in columns.items()}) == 0
  )


def test_row_entropies_tell_the_decided_edges():
  probs = {'g': np.array([[0.25] * 4, [0.0, 1.0, 0.0, 0.0]])}
  np.testing.assert_allclose(
    diagnostics.row_entropies(probs)['g'], [np.log(4), 0], atol=1e-6
  )


matrices = hnp.arrays(
  np.float64, st.tuples(st.integers(1, 8)).map(lambda n: n * 2),
  elements=st.floats(-5, 5, allow_subnormal=False),
)  # fmt: skip


@hypothesis.given(root=matrices, few=st.integers(1, 8))
def test_lanczos_finds_the_top_eigenvalue_and_never_exceeds_it(root, few):
  """Exact after as many products as there are rows; also if degenerate."""
  matrix = root + root.T
  want = np.linalg.eigvalsh(matrix)[-1]
  size, scale = len(matrix), 1e-6 * (1 + np.abs(matrix).max())

  def product(v):
    return matrix @ v

  found = diagnostics.top_eigenvalue(product, size, num_products=size)
  assert abs(found - want) < 100 * scale
  fewer = diagnostics.top_eigenvalue(product, size, num_products=few)
  assert fewer <= want + scale


def test_ten_products_tell_the_top_of_a_hundred_rows():
  """Of a spectrum like that of a Hessian: few large values, many small."""
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(100, 100)))[0]
  spectrum = np.concatenate([[5.0, 3.0, 2.0], rng.uniform(-0.3, 0.3, 97)])
  matrix = (basis * spectrum) @ basis.T
  found = diagnostics.top_eigenvalue(lambda v: matrix @ v, 100)
  np.testing.assert_allclose(found, 5, rtol=1e-4)


def test_the_hessian_product_is_that_of_the_whole_matrix():
  """In float64, of a loss with softmax gates in two groups."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    alphas = {'a': rng.normal(size=(2, 3)), 'b': rng.normal(size=(1, 3))}
    alphas = jax.tree.map(jnp.asarray, alphas)
    weights = jnp.asarray(rng.normal(size=(9, 9)))

    def loss(alphas):
      gates = [jax.nn.softmax(alphas[g]).ravel() for g in sorted(alphas)]
      x = jnp.concatenate(gates)
      return jnp.tanh(weights @ x).sum() + x @ weights @ x

    flat, unravel = jax.flatten_util.ravel_pytree(alphas)
    matrix = jax.hessian(lambda x: loss(unravel(x)))(flat)
    product = functools.partial(diagnostics.hessian_product, loss, alphas)
    np.testing.assert_allclose(
      jax.vmap(product)(jnp.eye(9)), matrix, atol=1e-12
    )
    top = diagnostics.top_eigenvalue(lambda v: product(jnp.asarray(v)), 9)
    np.testing.assert_allclose(top, np.linalg.eigvalsh(matrix)[-1], rtol=1e-9)


@pytest.mark.parametrize('evaluation', evaluations.EVALUATIONS)
def test_the_eigenvalue_of_a_supernet_is_that_of_its_loss(evaluation):
  """Against the whole Hessian by differences of the gradient, in float64.

  Also in parts: a batch group is normalized by itself.
  """
  with jax.enable_x64(True):
    spec = three_nodes.cut(spaces.make(
      'nasbench201', features=2, num_cells=1, num_classes=3, image_size=4,
      image_channels=1,
    ))  # fmt: skip
    context = ops.Context(affine=False, bn_groups=2, dtype=jnp.float64)
    toy = problem.Problem(
      evaluations.make(spec, context, evaluation),
      None,
      _Nothing(),
      _Nothing(),
      10,
    )
    state = jax.tree.map(_double, problem.init_state(toy, 0, 0.0, 0.5))
    rng = np.random.default_rng(0)
    batch = {
      'image': jnp.asarray(rng.normal(size=(8, 4, 4, 1))),
      'label': jnp.asarray(rng.integers(0, 3, 8)),
    }
    flat, unravel = jax.flatten_util.ravel_pytree(state.alphas)

    @functools.partial(jax.jit, static_argnums=0)
    def product(parts, vector):
      loss = losses.noiseless_val_loss(
        dataclasses.replace(toy, batch_parts=parts), state, batch
      )
      return diagnostics.hessian_product(loss, state.alphas, vector)

    @jax.jit
    def gradient(x):
      loss = losses.noiseless_val_loss(toy, state, batch)
      return jax.grad(lambda x: loss(unravel(x)))(x)

    steps = 1e-5 * np.eye(flat.size)
    matrix = np.stack(
      [(gradient(flat + h) - gradient(flat - h)) / 2e-5 for h in steps]
    )
    want = np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]
    for parts in (1, 2):
      found = diagnostics.top_eigenvalue(
        functools.partial(product, parts), flat.size
      )
      np.testing.assert_allclose(found, want, rtol=1e-5)


class _Nothing:
  """An optimizer that keeps nothing."""

  def init(self, params):
    del params
    return ()


def _double(x):
  return x.astype(jnp.float64) if x.dtype == jnp.float32 else x


def test_growth_is_seen_once_it_is_there_and_points_before_it():
  steady = [1.0, 1.1, 0.9, 1.0, 1.05] * 3
  assert diagnostics.first_growth(steady, 1.3) is None
  grown = [*steady, 1.2, 1.8, 2.5, 4.0]
  found = diagnostics.first_growth(grown, 1.3)
  assert found is not None
  assert len(steady) < found.at < len(grown)
  assert found.before < len(steady)  # still in the steady time
  # What comes later changes nothing.
  again = diagnostics.first_growth(grown[: found.at + 1], 1.3)
  assert again == found
  assert diagnostics.first_growth(grown[: found.at], 1.3) is None


def test_slow_growth_is_seen_against_the_smallest_value():
  """5 % a measurement: less than the factor over any two of them."""
  slow = [1.05**i for i in range(20)]
  found = diagnostics.first_growth(slow, 1.3)
  assert found is not None
  smoothed = [np.mean(slow[i : i + 5]) for i in range(16)]
  assert smoothed[found.at - 4] > 1.3 * smoothed[0]


@hypothesis.given(
  st.lists(st.floats(0.01, 100), max_size=20),
  st.floats(1.05, 3.0),
  st.floats(0.1, 10.0),
)
def test_growth_does_not_depend_on_the_unit_of_the_loss(values, factor, unit):
  """Nor does a falling series have any."""
  scaled = [unit * v for v in values]
  one = diagnostics.first_growth(values, factor)
  two = diagnostics.first_growth(scaled, factor * (1 - 1e-9))
  assert one is None or (two is not None and two.at <= one.at)
  falling = sorted(values, reverse=True)
  assert diagnostics.first_growth(falling, factor) is None
