"""Hypergradients: d validation loss / d alphas, as pure functions.

All share one signature,

    f(train_loss, val_loss, inner_step, params, alphas, **settings) -> grads

with ``train_loss``, ``val_loss``: (params, alphas) -> f[], and ``inner_step``:
(params, grads) -> params, the real optimizer step, whose momentum and decay
are differentiated where the estimator differentiates the step. ``grads`` has
the tree of ``alphas``. Add an estimator by writing the function and entering
it in `HYPERGRADS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any
Loss = Callable[[Tree, Tree], jax.Array]
InnerStep = Callable[[Tree, Tree], Tree]


def first_order(
  train_loss: Loss,
  val_loss: Loss,
  inner_step: InnerStep,
  params: Tree,
  alphas: Tree,
) -> Tree:
  """The gradient at the current params: DARTS with inner_lr = 0."""
  del train_loss, inner_step
  return jax.grad(val_loss, 1)(params, alphas)


def lookahead(
  train_loss: Loss,
  val_loss: Loss,
  inner_step: InnerStep,
  params: Tree,
  alphas: Tree,
) -> Tree:
  """The validation gradient at the stepped params, without the Hessian term.

  The first term of DARTS, equation 7.
  """
  stepped = inner_step(params, jax.grad(train_loss)(params, alphas))
  return jax.grad(val_loss, 1)(stepped, alphas)


def unrolled(
  train_loss: Loss,
  val_loss: Loss,
  inner_step: InnerStep,
  params: Tree,
  alphas: Tree,
) -> Tree:
  """The exact gradient through one inner step: DARTS, equation 6."""

  def outer(alphas):
    stepped = inner_step(params, jax.grad(train_loss)(params, alphas))
    return val_loss(stepped, alphas)

  return jax.grad(outer)(alphas)


def finite_difference(
  train_loss: Loss,
  val_loss: Loss,
  inner_step: InnerStep,
  params: Tree,
  alphas: Tree,
  *,
  inner_lr: float,
  epsilon: float = 0.01,
) -> Tree:
  """DARTS, equations 7 and 8: the Hessian term by a central difference.

  For parity with the paper and for comparison only: networks with ReLU or max
  pooling have kinks within the step, and the error can exceed the value. As in
  the published code the Hessian term assumes that the step is linear in the
  gradient with slope `inner_lr`, which is true of SGD with momentum.

  Args:
    train_loss: see the module.
    val_loss: see the module.
    inner_step: see the module.
    params: see the module.
    alphas: see the module.
    inner_lr: learning rate of the inner step.
    epsilon: length of the difference, before division by the norm of the
      validation gradient.

  Returns:
    The hypergradient.
  """
  stepped = inner_step(params, jax.grad(train_loss)(params, alphas))
  vector, direct = jax.grad(val_loss, (0, 1))(stepped, alphas)
  length = epsilon / jnp.maximum(optax.tree.norm(vector), 1e-12)

  def at(sign):
    moved = jax.tree.map(lambda p, v: p + sign * length * v, params, vector)
    return jax.grad(train_loss, 1)(moved, alphas)

  return jax.tree.map(
    lambda d, plus, minus: d - inner_lr * (plus - minus) / (2 * length),
    direct,
    at(1.0),
    at(-1.0),
  )


def neumann(
  train_loss: Loss,
  val_loss: Loss,
  inner_step: InnerStep,
  params: Tree,
  alphas: Tree,
  *,
  inner_lr: float,
  num_terms: int = 3,
) -> Tree:
  """The implicit gradient with the inverse Hessian as a Neumann series.

  Lorraine, Vicol & Duvenaud 2020, algorithm 3. At an optimum of the train loss
  it converges to the implicit function theorem's gradient, with the rate
  ``max |1 - inner_lr * eigenvalue|`` of the Hessian.

  Args:
    train_loss: see the module.
    val_loss: see the module.
    inner_step: not used: the series is about the optimum, not one step.
    params: see the module.
    alphas: see the module.
    inner_lr: scale of the series; below 2 / largest eigenvalue.
    num_terms: Hessian-vector products.

  Returns:
    The hypergradient.
  """
  del inner_step
  vector, direct = jax.grad(val_loss, (0, 1))(params, alphas)
  grad_train = jax.grad(train_loss)
  _, hessian_vector = jax.linearize(lambda p: grad_train(p, alphas), params)
  total = vector
  for _ in range(num_terms):
    vector = jax.tree.map(
      lambda v, hv: v - inner_lr * hv, vector, hessian_vector(vector)
    )
    total = jax.tree.map(jnp.add, total, vector)
  _, mixed = jax.vjp(lambda a: grad_train(params, a), alphas)
  (indirect,) = mixed(total)
  return jax.tree.map(lambda d, i: d - inner_lr * i, direct, indirect)


HYPERGRADS: dict[str, Callable[..., Tree]] = {
  f.__name__: f
  for f in (first_order, lookahead, unrolled, finite_difference, neumann)
}
# Estimators that evaluate the validation loss after the inner step.
AT_STEPPED_PARAMS = frozenset({'lookahead', 'unrolled', 'finite_difference'})
# Estimators that differentiate the train gradient, at the current params only.
DIFFERENTIATE_INNER = frozenset({'unrolled'})
# Estimators that need to be told the learning rate of the inner step.
NEEDS_INNER_LR = frozenset({'finite_difference', 'neumann'})


def get(name: str) -> Callable[..., Tree]:
  """Returns the estimator `name`.

  Raises:
    ValueError: there is none; the message lists the known ones.
  """
  if name not in HYPERGRADS:
    raise ValueError(
      f'hypergrad.name is {name!r}; known are {sorted(HYPERGRADS)}.'
    )
  return HYPERGRADS[name]
