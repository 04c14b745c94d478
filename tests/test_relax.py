"""What every relaxation promises, and what each one means."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hwdarts_jax.bilevel import relax

every_relaxation = pytest.mark.parametrize('name', sorted(relax.RELAXATIONS))
SAMPLING = {'gumbel_softmax', 'sampled'}
NOISY = SAMPLING | {'dirichlet'}
# Relaxations whose gates are one architecture, and their soft counterparts.
HARD = {'straight_through': 'softmax', 'sampled': 'gumbel_softmax'}
every_hard = pytest.mark.parametrize('name', sorted(HARD))

SHAPE = (3, 5)
# XLA takes subnormal numbers for zero.
numbers = st.floats(-5, 5, width=32, allow_subnormal=False)
logits = hnp.arrays(np.float32, SHAPE, elements=numbers)
temperatures = st.floats(0.1, 10.0)
seeds = st.integers(0, 2**31 - 1)


def _gates(name, alphas, temperature=1.0, seed=0):
  """Of one group alone."""
  rng = jax.random.key(seed)
  return relax.gates(name, {'g': jnp.asarray(alphas)}, temperature, rng)['g']


@every_relaxation
@hypothesis.given(alphas=logits, temperature=temperatures, seed=seeds)
def test_gates_of_an_edge_share_one_unit_unless_they_are_independent(
  name, alphas, temperature, seed
):
  gates = _gates(name, alphas, temperature, seed)
  assert gates.dtype == alphas.dtype
  assert ((gates >= 0) & (gates <= 1)).all()
  if name == 'sigmoid':
    np.testing.assert_allclose(
      gates, 1 / (1 + np.exp(-alphas / temperature)), rtol=1e-5
    )
  else:
    np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-6)


@every_relaxation
@hypothesis.given(alphas=logits, temperature=temperatures)
def test_probabilities_are_distributions_that_keep_the_order_of_the_alphas(
  name, alphas, temperature
):
  probs = relax.probabilities(name, {'g': alphas}, temperature)['g']
  np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
  best = np.take_along_axis(np.asarray(probs), alphas.argmax(-1)[:, None], 1)
  assert (best[:, 0] == probs.max(-1)).all()


@pytest.mark.parametrize('name', sorted({*relax.RELAXATIONS} - {'dirichlet'}))
@hypothesis.given(alphas=logits, temperature=temperatures, seed=seeds)
def test_relaxations_can_be_differentiated(name, alphas, temperature, seed):
  """And differently for each gate: no gradient is lost in a sample."""

  def first(alphas):
    return _gates(name, alphas, temperature, seed)[:, 0].sum()

  grads = jax.grad(first)(alphas)
  assert jnp.isfinite(grads).all()
  soft = _gates(HARD.get(name, name), alphas, temperature, seed)[:, 0]
  # The softmax and the sigmoid have slope gate (1 - gate) / temperature.
  np.testing.assert_allclose(
    grads[:, 0], soft * (1 - soft) / temperature, rtol=1e-3, atol=1e-6
  )


@hypothesis.given(alphas=logits.filter(lambda a: _gap(a) > 0.1))
def test_softmax_of_low_temperature_is_the_strongest_op(alphas):
  """And of a high temperature it is uniform."""
  one_hot = np.eye(SHAPE[1])[alphas.argmax(-1)]
  np.testing.assert_allclose(
    _gates('softmax', alphas, 5e-3), one_hot, atol=1e-6
  )
  np.testing.assert_allclose(
    _gates('softmax', alphas, 1e6), 1 / SHAPE[1], atol=1e-5
  )


def _gap(alphas):
  """Lead of the strongest op of each row over the next, the smallest."""
  ranked = np.sort(alphas, -1)
  return (ranked[:, -1] - ranked[:, -2]).min()


@hypothesis.given(alphas=logits, seed=seeds)
def test_gumbel_softmax_of_low_temperature_is_the_sample(alphas, seed):
  sample = _gates('sampled', alphas, 1.0, seed)
  cold = _gates('gumbel_softmax', alphas, 1e-4, seed)
  hypothesis.assume(((cold < 1e-3) | (cold > 1 - 1e-3)).all())  # no near tie
  np.testing.assert_allclose(cold, sample, atol=1e-3)


@every_hard
@pytest.mark.parametrize('jit', [False, True])
@hypothesis.given(alphas=logits, temperature=temperatures, seed=seeds)
def test_hard_gates_are_one_architecture_to_the_bit(
  name, jit, alphas, temperature, seed
):
  run = _gates_jit if jit else _gates
  gates = np.asarray(run(name, alphas, temperature, seed))
  assert (np.sort(gates, -1) == np.eye(SHAPE[1])[-1]).all()


_gates_jit = jax.jit(_gates, static_argnames='name')


@every_hard
@hypothesis.given(
  alphas=logits, weights=logits, temperature=temperatures, seed=seeds
)
def test_hard_gates_have_the_gradient_of_their_soft_ones(
  name, alphas, weights, temperature, seed
):
  def grad(name):
    return jax.grad(
      lambda a: (weights * _gates(name, a, temperature, seed)).sum()
    )(alphas)

  np.testing.assert_array_equal(grad(name), grad(HARD[name]))


@hypothesis.given(alphas=logits, temperature=temperatures)
def test_straight_through_takes_the_strongest_op(alphas, temperature):
  gates = _gates('straight_through', alphas, temperature)
  np.testing.assert_array_equal(gates.argmax(-1), alphas.argmax(-1))


@hypothesis.given(alphas=logits, temperature=st.floats(0.01, 1e9), seed=seeds)
def test_temperature_changes_no_sample(alphas, temperature, seed):
  """Nor at 1e9, where the softmax rounds all ops of an edge to a tie."""
  np.testing.assert_array_equal(
    _gates('sampled', alphas, temperature, seed),
    _gates('sampled', alphas, 1.0, seed),
  )


@pytest.mark.parametrize('temperature', [0.5, 5.0])
@pytest.mark.parametrize('name', sorted(SAMPLING))
def test_samples_are_as_frequent_as_their_probabilities(name, temperature):
  """The strongest gate of 20,000 samples, within four sigma of softmax.

  The probabilities that latency is expected under are those.
  """
  alphas = jnp.asarray([[0.0, 1.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
  count = 20_000
  f = relax.RELAXATIONS[name]
  keys = jax.random.split(jax.random.key(0), count)
  samples = jax.vmap(lambda rng: f(alphas, temperature, rng))(keys)
  chosen = jax.nn.one_hot(samples.argmax(-1), 4).mean(0)
  softmax = jax.nn.softmax(alphas)
  sigma = jnp.sqrt(softmax * (1 - softmax) / count)
  assert (jnp.abs(chosen - softmax) < 4 * sigma).all()
  np.testing.assert_allclose(
    relax.probabilities(name, {'g': alphas}, temperature)['g'], softmax,
    rtol=1e-6,
  )  # fmt: skip


@pytest.mark.parametrize('name', sorted(set(relax.RELAXATIONS) - NOISY))
def test_without_sampling_the_key_does_not_matter(name):
  alphas = np.random.default_rng(0).normal(size=SHAPE)
  np.testing.assert_array_equal(
    _gates(name, alphas, seed=1), _gates(name, alphas, seed=2)
  )


@pytest.mark.parametrize('name', sorted(NOISY))
def test_groups_and_keys_have_samples_of_their_own(name):
  alphas = {g: jnp.zeros((64, 4)) for g in ('normal', 'reduce')}
  one = relax.gates(name, alphas, 1.0, jax.random.key(0))
  same = relax.gates(name, alphas, 1.0, jax.random.key(0))
  other = relax.gates(name, alphas, 1.0, jax.random.key(1))
  np.testing.assert_array_equal(one['normal'], same['normal'])
  assert (one['normal'] != one['reduce']).any()
  assert (one['normal'] != other['normal']).any()


def test_softmax_gates_are_their_own_probabilities():
  alphas = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  probs = relax.probabilities('softmax', {'g': alphas}, 0.3)['g']
  np.testing.assert_allclose(_gates('softmax', alphas, 0.3), probs, rtol=1e-5)


def test_sigmoid_probabilities_are_shares_of_the_gates():
  """Also where all gates of an edge vanish."""
  alphas = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  gates = _gates('sigmoid', alphas, 0.5)
  probs = relax.probabilities('sigmoid', {'g': alphas}, 0.5)['g']
  np.testing.assert_allclose(
    probs, gates / gates.sum(-1, keepdims=True), rtol=1e-5
  )
  far = {'g': jnp.full(SHAPE, -300.0)}
  np.testing.assert_allclose(
    relax.probabilities('sigmoid', far, 1.0)['g'], 1 / SHAPE[1], rtol=1e-6
  )


def test_dirichlet_gates_and_their_gradients_have_the_moments_of_the_law():
  """Mean and variance of 20,000 samples, and the mean of their gradients.

  Within five sigma of the closed forms; the mean gradient is that of the mean.
  """
  alphas = jnp.asarray([[0.5, -1.0, 2.0, 0.0]])
  ones = np.where(alphas > 0, alphas + 1, np.exp(alphas))
  mean = ones / ones.sum()
  variance = mean * (1 - mean) / (1 + ones.sum())

  def first(alphas, rng):
    gates = relax.dirichlet(alphas, 1.0, rng)
    return gates[0, 0], gates

  keys = jax.random.split(jax.random.key(0), 20_000)
  grads, samples = jax.vmap(jax.grad(first, has_aux=True), in_axes=(None, 0))(
    alphas, keys
  )
  grads, samples = np.asarray(grads), np.asarray(samples)
  _check_mean(samples, mean)
  _check_mean((samples - mean) ** 2, variance)
  slopes = jax.grad(
    lambda a: relax.probabilities('dirichlet', {'g': a}, 1.0)['g'][0, 0]
  )(alphas)
  _check_mean(grads, slopes)


def _check_mean(samples, want):
  sigma = samples.std(0) / np.sqrt(len(samples))
  assert (np.abs(samples.mean(0) - want) < 5 * sigma).all()


@pytest.mark.parametrize('alpha', [-2.0, -0.7, 0.0, 2.0, 30.0])
def test_dirichlet_gates_have_the_distribution_of_the_law(alpha):
  """Of one gate of many, which is a beta distribution."""
  alphas = jnp.tile(jnp.asarray([alpha, 0.0, -1.0]), (20_000, 1))
  first = relax.dirichlet(alphas, 1.0, jax.random.key(1))[:, 0]
  mine, *others = np.asarray(relax.concentration(alphas[0]), np.float64)
  law = scipy.stats.beta(mine, sum(others))
  assert (
    scipy.stats.kstest(np.asarray(first, np.float64), law.cdf).pvalue > 0.01
  )


@every_relaxation
def test_no_loop_makes_an_accelerator_wait_for_its_host(name):
  """Nor one of the derivatives, as those of `jax.random.gamma` are."""

  def first(alphas, rng):
    return relax.gates(name, {'g': alphas}, 1.0, rng)['g'][:, 0].sum()

  traced = jax.jit(jax.grad(first)).trace(jnp.zeros(SHAPE), jax.random.key(0))
  program = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert 'stablehlo.while' not in program


@pytest.mark.parametrize('alpha', [-1e4, -20.0, -5.0, 0.0, 5.0, 1e4])
def test_dirichlet_gates_and_gradients_are_numbers_at_all_alphas(alpha):
  alphas = jnp.full(SHAPE, alpha).at[0].set(0.0)

  def first(alphas):
    return relax.dirichlet(alphas, 1.0, jax.random.key(0))[:, 0].sum()

  value, grads = jax.value_and_grad(first)(alphas)
  assert jnp.isfinite(value) and jnp.isfinite(grads).all()
  assert (grads[0] != 0).all()


def test_concentrations_are_one_at_zero_and_keep_the_slope_there():
  """elu(alphas) + 1, written without cancellation."""
  alphas = jnp.linspace(-4, 4, 17)
  np.testing.assert_allclose(
    relax.concentration(alphas), jax.nn.elu(alphas) + 1, rtol=1e-5
  )
  slope = jax.vmap(jax.grad(relax.concentration))
  np.testing.assert_allclose(slope(jnp.asarray([-1e-6, 1e-6])), 1, rtol=1e-5)


@hypothesis.given(start=temperatures, end=temperatures)
def test_temperature_goes_from_start_to_end_without_turning(start, end):
  values = np.asarray(
    [relax.temperature_at(p, start, end) for p in np.linspace(0, 1, 11)]
  )
  np.testing.assert_allclose(values[[0, -1]], [start, end], rtol=1e-5)
  np.testing.assert_allclose(values[5] ** 2, start * end, rtol=1e-5)
  assert (np.diff(values) * np.sign(end - start) >= -1e-6 * values[1:]).all()


def test_entropy_is_that_of_the_mean_edge():
  uniform, certain = jnp.full((2, 5), 0.2), jnp.eye(5)[:2]
  np.testing.assert_allclose(
    relax.entropy({'g': uniform}), np.log(5), rtol=1e-6
  )
  assert relax.entropy({'g': certain}) == 0
  np.testing.assert_allclose(
    relax.entropy({'a': uniform, 'b': certain}), np.log(5) / 2, rtol=1e-6
  )
  grads = jax.grad(lambda p: relax.entropy({'g': p}))(certain)
  assert jnp.isfinite(grads).all()


@pytest.mark.parametrize(
  'call',
  [
    lambda a: relax.gates('soft_max', a, 1.0, jax.random.key(0)),
    lambda a: relax.probabilities('soft_max', a, 1.0),
  ],
  ids=['gates', 'probabilities'],
)
def test_unknown_relaxation_is_refused_by_the_name_of_the_field(call):
  with pytest.raises(ValueError, match='relaxation.name.*straight_through'):
    call({'g': jnp.zeros(SHAPE)})
