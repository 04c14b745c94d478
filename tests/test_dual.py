"""Multipliers that find themselves, against closed forms in float64."""

import dataclasses
import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax.bilevel import dual

STEPS = 4000
SETTINGS = dual.Settings()
vectors = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@functools.partial(jax.jit, static_argnames=('size', 'settings'))
def _descend(a, b, targets, size=1.0, settings=SETTINGS):
  """Minimizes |x - a|^2 / 2 * size subject to b[k] . x <= targets[k].

  Returns:
    The last x f[3], and the multipliers f[K] of the relative excesses.
  """

  def step(state, _):
    x, duals = state
    total, weights, after = size * (x - a), [], []
    for k, old in enumerate(duals):
      slope, excess = b[k] / old.target, dual.excess(b[k] @ x, old.target)
      seen = dual.observe(old, size * (x - a), slope, settings)
      weights.append(dual.multiplier(seen, excess, settings))
      total += weights[-1] * slope
      after.append(dual.ascend(seen, excess, STEPS, settings))
    return (x - 0.02 / size * total, after), jnp.stack(weights)

  duals = [
    jax.tree.map(lambda v: v.astype(jnp.float64), dual.start(t))
    for t in targets
  ]
  (x, _), weights = jax.lax.scan(step, (jnp.zeros(3), duals), length=10 * STEPS)
  return x, weights[-1]


@hypothesis.settings(max_examples=25)
@hypothesis.given(a=vectors, b=vectors, share=st.floats(0.3, 0.9))
def test_a_binding_constraint_ends_at_the_kkt_point(a, b, share):
  """x = a - m b / t with b . x = t, and the multiplier is the m of that."""
  a, b = np.array(a), np.array(b)
  hypothesis.assume(a @ b > 0.5)
  target = share * (a @ b)
  x, found = _descend(a, b[None], (target,))
  want = target * (a @ b - target) / (b @ b)
  np.testing.assert_allclose(x, a - want * b / target, atol=1e-5)
  np.testing.assert_allclose(found[0], want, rtol=1e-4)


@hypothesis.settings(max_examples=25)
@hypothesis.given(a=vectors, b=vectors, more=st.floats(1.1, 10.0))
def test_a_constraint_that_holds_anyway_costs_nothing(a, b, more):
  """Its multiplier is zero, not small, where it is an inequality; with a lift
  it vanishes with the gradient of the task.
  """
  a, b = np.array(a), np.array(b)
  target = more * max(a @ b, 0.1)
  plain = dataclasses.replace(SETTINGS, lift=0.0)
  x, found = _descend(a, b[None], (target,), settings=plain)
  np.testing.assert_allclose(x, a, atol=1e-9)
  assert found[0] == 0
  lifted, _ = _descend(a, b[None], (target,))
  np.testing.assert_allclose(lifted, a, atol=1e-6)


def test_two_constraints_have_a_multiplier_each():
  """Both bind: x and the multipliers solve one linear system."""
  a, b = np.array([2.0, 1.0, 1.0]), np.array([[1.0, 0, 0.5], [0, 1.0, 0.5]])
  targets = np.array([1.0, 0.5])
  x, found = _descend(a, b, tuple(targets))
  want = np.linalg.solve(b @ b.T, b @ a - targets) * targets
  assert (want > 0).all()
  np.testing.assert_allclose(found, want, rtol=1e-4)
  np.testing.assert_allclose(b @ x, targets, rtol=1e-5)


def test_gains_mean_the_same_whatever_the_size_of_the_task():
  """A loss in other units has another multiplier and the same solution."""
  a, b = np.array([2.0, 1.0, 1.0]), np.array([[1.0, 0.2, 0.5]])
  x, small = _descend(a, b, (1.0,), size=1e-3)
  y, large = _descend(a, b, (1.0,), size=1e3)
  np.testing.assert_allclose(x, y, atol=1e-9)
  np.testing.assert_allclose(1e6 * small, large, rtol=1e-6)


def test_many_targets_are_one_mapped_search():
  """What vmap makes of a step is what each search does alone."""
  targets = jnp.array([0.5, 1.0, 1.5, 9.0])
  a, b = np.array([2.0, 1.0, 1.0]), np.array([[1.0, 0.2, 0.5]])
  together = jax.vmap(lambda t: _descend(a, b, (t,)))(targets)
  for i, target in enumerate(targets):
    alone = _descend(a, b, (target,))
    for got, want in zip(together, alone, strict=True):
      np.testing.assert_allclose(got[i], want, rtol=1e-12, atol=1e-12)


@hypothesis.given(
  logits=st.lists(st.floats(-4, 4), min_size=2, max_size=6, unique=True),
  progress=st.floats(0, 1),
)
def test_what_is_bounded_moves_from_the_mixture_to_its_strongest_op(
  logits, progress
):
  """At first it is the mixture; the strongest op only ever gains."""
  p = jax.nn.softmax(jnp.array(logits))[None]

  def at(progress):
    return dual.sharpened({'g': p}, progress, SETTINGS)['g'][0]

  np.testing.assert_allclose(at(0.0), p[0], rtol=1e-9)
  best = int(p[0].argmax())
  assert at(progress)[best] >= p[0, best] - 1e-12
  np.testing.assert_allclose(at(progress).sum(), 1, rtol=1e-9)
  # At the end logits count for 1 / sharpness times as much.
  want = jax.nn.softmax(jnp.array(logits) / SETTINGS.sharpness)
  np.testing.assert_allclose(at(1.0), want, rtol=1e-6, atol=1e-12)
  np.testing.assert_array_equal(at(1.0), at(SETTINGS.sharp_from))


def test_a_decided_architecture_is_not_torn_apart_by_a_vanishing_gradient():
  """Where the cost has no slope left the pull stays within that of the task."""
  settings = dataclasses.replace(SETTINGS, memory=0.0)
  seen = dual.observe(
    dual.start(1.0), jnp.ones(4), 1e-9 * jnp.ones(4), settings
  )
  weight = dual.multiplier(seen, jnp.asarray(9.0), settings)
  assert 0 < float(weight) * 1e-9 * 2 < 1e-3
  nothing = dual.observe(dual.start(1.0), jnp.ones(4), jnp.zeros(4), settings)
  assert np.isfinite(dual.multiplier(nothing, jnp.asarray(9.0), settings))


def test_steps_of_alphas_end_at_rest():
  """Whole until the settling begins, then linearly to nothing."""
  sizes = [float(dual.step_size(t, SETTINGS)) for t in (0, 0.7, 0.85, 1.0)]
  np.testing.assert_allclose(sizes, [1, 1, 0.5, 0], atol=1e-9)
