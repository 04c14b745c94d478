"""What the outer loss adds to the task against collapse."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from hwdarts_jax.bilevel import regularizers, relax

SHAPE = (3, 5)
numbers = st.floats(-3, 3, width=32, allow_subnormal=False)
logits = hnp.arrays(np.float32, SHAPE, elements=numbers)
shares = st.floats(0.0, 1.0)


@pytest.mark.parametrize('name', sorted(regularizers.REGULARIZERS))
@hypothesis.given(alphas=logits, progress=shares)
def test_edges_count_alike_in_whatever_group_they_stand(name, alphas, progress):
  """And a value is a finite number with finite gradients."""
  f = regularizers.get(name)
  whole = f({'g': jnp.asarray(alphas)}, progress)
  parts = f({'a': alphas[:1], 'b': alphas[1:]}, progress)
  np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
  grads = jax.grad(lambda a: f({'g': a}, progress))(alphas)
  assert jnp.isfinite(whole) and jnp.isfinite(grads).all()


@hypothesis.given(alphas=logits, progress=shares)
def test_beta_decay_takes_from_each_alpha_by_its_gate(alphas, progress):
  """Its pull is the softmax over the edges, with a weight that grows."""
  grads = jax.grad(
    lambda a: regularizers.beta_decay({'g': a}, progress, scale=50.0)
  )(alphas)
  gates = np.asarray(jax.nn.softmax(alphas))
  np.testing.assert_allclose(
    grads, 50 * progress * gates / SHAPE[0], rtol=1e-4, atol=1e-7
  )


def test_beta_decay_keeps_an_early_advantage_from_running_away():
  """Gradient descent on alphas of which one is favoured by the loss.

  A constant slope of the loss, such as identity's early on, moves that alpha
  without end; with beta decay all gates of the edge stay in play.
  """
  advantage = jnp.asarray([[0.0, -1.0, 0.0]])

  def search(scale):
    alphas = jnp.zeros((1, 3))
    for i in range(400):
      grads = jax.grad(
        lambda a, i=i: (
          (a * advantage).sum()
          + regularizers.beta_decay({'g': a}, i / 400, scale=scale)
        )
      )(alphas)
      alphas = alphas - 0.03 * grads
    return jax.nn.softmax(alphas)[0, 1]

  assert search(0.0) > 0.99
  assert search(50.0) < 0.6


@hypothesis.given(alphas=logits)
def test_the_dirichlet_distance_is_zero_at_zero_alphas_only(alphas):
  def distance(a):
    return regularizers.dirichlet_distance({'g': a}, 0.5, scale=1.0)

  np.testing.assert_allclose(distance(jnp.zeros(SHAPE)), 0, atol=1e-5)
  hypothesis.assume(np.abs(alphas).max() > 0.5)
  assert distance(jnp.asarray(alphas)) > 0.01


def test_the_dirichlet_distance_is_the_divergence_of_the_samples():
  """The mean log ratio of densities over 5,000 samples of the gates."""
  alphas = jnp.asarray([[0.5, -1.0, 2.0]])
  law = scipy.stats.dirichlet(np.asarray(relax.concentration(alphas))[0])
  uniform = scipy.stats.dirichlet([1.0, 1.0, 1.0])
  samples = law.rvs(5000, np.random.default_rng(0))
  ratios = [law.logpdf(s) - uniform.logpdf(s) for s in samples]
  sigma = np.std(ratios) / np.sqrt(len(ratios))
  value = regularizers.dirichlet_distance({'g': alphas}, 0.0, scale=1.0)
  assert abs(value - np.mean(ratios)) < 4 * sigma


@hypothesis.given(alphas=logits, start=st.floats(-1, 0), end=st.floats(0.1, 1))
def test_the_entropy_weight_goes_from_start_to_end(alphas, start, end):
  """Negative: the gradient step mixes the ops; positive: it parts them."""
  probs = scipy.special.softmax(alphas.astype(np.float64), -1)
  nats = scipy.special.entr(probs).sum(-1).mean()
  for progress, weight in ((0.0, start), (0.5, (start + end) / 2), (1.0, end)):
    value = regularizers.entropy({'g': alphas}, progress, start=start, end=end)
    np.testing.assert_allclose(value, weight * nats, rtol=1e-4, atol=1e-6)


def test_only_what_is_named_counts():
  alphas = {'g': jnp.ones(SHAPE)}
  assert regularizers.values({}, alphas, 0.5) == {}
  found = regularizers.values({'beta_decay': {'scale': 2.0}}, alphas, 0.5)
  np.testing.assert_allclose(found['beta_decay'], 1 + np.log(5), rtol=1e-6)
  assert len(found) == 1


def test_unknown_regularizer_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match='regularizers.*weight.*beta_decay'):
    regularizers.values({'weight': {}}, {'g': jnp.zeros(SHAPE)}, 0.0)
