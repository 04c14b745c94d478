"""What the alphas are asked to trade."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax.bilevel import objective

every_objective = pytest.mark.parametrize('name', sorted(objective.OBJECTIVES))
# d objective / d cost, as documented.
SLOPES = {
  'additive': lambda multiplier, cost, reference: multiplier,
  'relative': lambda multiplier, cost, reference: multiplier / reference,
  'log_relative': lambda multiplier, cost, reference: multiplier / cost,
}
UNITLESS = ('relative', 'log_relative')

losses = st.floats(0.0, 10.0)
multipliers = st.floats(0.01, 10.0)
milliseconds = st.floats(0.1, 1000.0)


@every_objective
@hypothesis.given(loss=losses, cost=milliseconds, reference=milliseconds)
def test_without_multiplier_only_the_task_counts(name, loss, cost, reference):
  assert objective.get(name)(loss, cost, 0.0, reference) == loss


@every_objective
@hypothesis.given(
  loss=losses,
  cost=milliseconds,
  reference=milliseconds,
  multiplier=multipliers,
  factor=st.floats(1.1, 10.0),
)
def test_a_slower_network_is_worse(
  name, loss, cost, reference, multiplier, factor
):
  f = objective.get(name)
  with jax.enable_x64(True):
    slower = f(loss, factor * cost, multiplier, reference)
    assert slower > f(loss, cost, multiplier, reference)


@every_objective
@hypothesis.given(
  cost=milliseconds, reference=milliseconds, factor=milliseconds
)
def test_only_the_additive_objective_knows_the_unit(
  name, cost, reference, factor
):
  """Microseconds in cost and reference are the same trade, if relative."""
  hypothesis.assume(abs(factor - 1) > 1e-3)
  f = objective.get(name)
  with jax.enable_x64(True):
    ms = float(f(1.0, cost, 0.5, reference))
    us = float(f(1.0, cost * factor, 0.5, reference * factor))
  assert (abs(ms - us) < 1e-9 * abs(ms) + 1e-12) == (name in UNITLESS)


@every_objective
@hypothesis.given(
  cost=milliseconds, reference=milliseconds, multiplier=multipliers
)
def test_the_slope_in_cost_is_the_documented_one(
  name, cost, reference, multiplier
):
  """And the slope in the task loss is one."""
  with jax.enable_x64(True):
    by_loss, by_cost = _grad(name, 1.0, cost, multiplier, reference)
  np.testing.assert_array_equal(by_loss, 1)
  np.testing.assert_allclose(
    by_cost, SLOPES[name](multiplier, cost, reference), rtol=1e-12
  )


@functools.partial(jax.jit, static_argnums=0)
def _grad(name, *args):
  return jax.grad(objective.get(name), (0, 1))(*args)


def test_a_multiplier_of_one_charges_one_for_the_reference():
  for name, extra in (('relative', 1.0), ('log_relative', 0.0)):
    value = objective.get(name)(2.0, jnp.asarray(7.0), 1.0, 7.0)
    np.testing.assert_allclose(value, 2.0 + extra)


def test_unknown_objective_is_refused_by_the_name_of_the_field():
  with pytest.raises(ValueError, match='objective.name.*additive'):
    objective.get('product')
