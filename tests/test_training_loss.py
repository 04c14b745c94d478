"""What a training minimizes: each option against its definition."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwdarts_jax.jobs import training_loss

_MIXED = jax.jit(training_loss.mixed, static_argnums=(3, 4))


def batch(num=6, size=8, classes=4, seed=0):
  """Images whose pixels are the number of their example, and targets."""
  rng = np.random.default_rng(seed)
  image = jnp.broadcast_to(
    jnp.arange(1.0, num + 1).reshape(num, 1, 1, 1), (num, size, size, 3)
  )
  target = jax.nn.one_hot(rng.integers(0, classes, num), classes)
  return image, target


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20)
def test_the_loss_of_mixed_targets_is_the_mix_of_losses(seed):
  """Cross-entropy is linear in targets, so mixup's two losses are one."""
  image, target = batch(seed=seed)
  mixed_image, mixed_target = _MIXED(
    jax.random.key(seed), image, target, 0.4, 0.0
  )
  share = float(
    (mixed_image[1, 0, 0, 0] - image[0, 0, 0, 0])
    / (image[1, 0, 0, 0] - image[0, 0, 0, 0])
  )
  logits = jax.random.normal(jax.random.key(seed + 1), target.shape)
  own = optax.softmax_cross_entropy(logits, target)
  partner = optax.softmax_cross_entropy(logits, jnp.roll(target, 1, 0))
  np.testing.assert_allclose(
    training_loss.cross_entropy(logits, mixed_target),
    (share * own + (1 - share) * partner).mean(),
    rtol=1e-4,
  )


def test_mixup_draws_its_share_from_the_beta_distribution():
  """Mean one half; the variance of Beta(a, a) is 1 / (4 (2a + 1))."""
  image, target = batch(2)
  shares = np.array(
    [
      float(_MIXED(jax.random.key(i), image, target, 0.5, 0.0)[0][1, 0, 0, 0])
      for i in range(500)
    ]
  )
  shares -= 1.0
  assert shares.mean() == pytest.approx(0.5, abs=0.05)
  assert shares.var() == pytest.approx(1 / 8, abs=0.02)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30)
def test_cutmix_weighs_targets_by_the_area_that_it_pastes(seed):
  """One rectangle, at the same place in all images, and no pixel is mixed."""
  image, target = batch(classes=6)
  target = jnp.eye(6)
  pasted, weights = _MIXED(jax.random.key(seed), image, target, 0.0, 1.0)
  foreign = np.asarray(pasted != image)
  assert (foreign == foreign[:1]).all()
  np.testing.assert_array_equal(
    pasted, np.where(foreign, np.roll(image, 1, 0), image)
  )
  rows, columns = foreign[0, ..., 0].any(1), foreign[0, ..., 0].any(0)
  np.testing.assert_array_equal(foreign[0, ..., 0], np.outer(rows, columns))
  for line in (rows, columns):  # without gaps
    assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() <= 2
  area = foreign[0, ..., 0].mean()
  np.testing.assert_allclose(np.diag(weights), 1 - area, atol=1e-6)
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_with_both_a_step_is_one_of_them():
  """By chance about half of the steps paste, and half blend."""
  image, target = batch()
  seen = {True: 0, False: 0}
  for i in range(100):
    found = _MIXED(jax.random.key(i), image, target, 1.0, 1.0)[0]
    whole = np.asarray(found) % 1 == 0
    seen[bool(whole.all())] += 1
  assert min(seen.values()) > 30


def test_nothing_is_mixed_unless_it_is_asked_for():
  image, target = batch()
  found = training_loss.mixed(jax.random.key(0), image, target, 0.0, 0.0)
  assert found[0] is image
  assert found[1] is target


@given(
  smoothing=st.floats(0, 0.9), label=st.integers(0, 4), num=st.integers(5, 9)
)
@settings(max_examples=20)
def test_smoothed_targets_are_distributions(smoothing, label, num):
  """The right class keeps 1 - s + s / N, each other one gets s / N."""
  found = training_loss.soft_targets(jnp.array([label]), num, smoothing)[0]
  np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(
    found[label], 1 - smoothing + smoothing / num, rtol=1e-5
  )
  np.testing.assert_allclose(
    np.delete(found, label), smoothing / num, rtol=1e-4, atol=1e-7
  )


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_a_network_learns_nothing_from_itself(temperature):
  """With itself as the teacher both loss and gradient are zero; also with one
  whose logits differ by a constant.
  """
  logits = 3 * jax.random.normal(jax.random.key(0), (5, 7))
  for teacher in (logits, logits + 2.0):
    loss, grad = jax.value_and_grad(training_loss.distillation)(
      logits, teacher, temperature
    )
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(grad, 0, atol=1e-5)


def test_distillation_is_a_divergence_in_one_direction():
  """At temperature 1 it is cross-entropy less the teacher's own entropy."""
  keys = jax.random.split(jax.random.key(1))
  logits, teacher = (jax.random.normal(k, (5, 7)) for k in keys)
  wanted = jax.nn.softmax(teacher)
  entropy = -(wanted * jnp.log(wanted)).sum(-1).mean()
  np.testing.assert_allclose(
    training_loss.distillation(logits, teacher, 1.0),
    training_loss.cross_entropy(logits, wanted) - entropy,
    rtol=1e-5,
  )
  # The gradient is that of Hinton et al.: T (softmax - softmax) / B.
  grad = jax.grad(training_loss.distillation)(logits, teacher, 3.0)
  soft = [jax.nn.softmax(x / 3) for x in (logits, teacher)]
  np.testing.assert_allclose(grad, 3 * (soft[0] - soft[1]) / 5, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
  logits = jax.random.normal(jax.random.key(0), (5, 7))
  grad = jax.grad(training_loss.distillation, 1)(logits, 2 * logits, 2.0)
  np.testing.assert_array_equal(grad, 0)


def test_the_average_is_its_recurrence():
  """a <- d a + (1 - d) x, where d is at most (1 + step) / (10 + step)."""
  values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  average = wanted = np.zeros(3, np.float32)
  for step, value in enumerate(values):
    average = training_loss.average(average, value, 0.6, jnp.asarray(step))
    decay = min(0.6, (1 + step) / (10 + step))
    wanted = decay * wanted + (1 - decay) * value
  np.testing.assert_allclose(average, wanted, rtol=1e-5)
  assert decay == 0.6
