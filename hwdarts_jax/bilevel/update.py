"""The compiled bilevel update: where losses, optimizers and sharding meet.

One step takes a train and a validation batch. Both levels read the same state:

    inner   params' = params - optimizer(d train_loss / d params)
    outer   alphas' = alphas - optimizer(hypergrad)

The levels are simultaneous (DARTS, algorithm 1, updates alphas first), so that
estimators that look through the inner step share its gradient: the compiler
finds the same expression twice. It does not where the gradient is itself
differentiated; there `bilevel_update` shares it by hand. First-order gradients
are even read at the same params: a fused network takes both batches in one
pass, with half as many kernels. `inner_update` changes nothing but params,
their optimizer and the batch statistics, `outer_update` nothing but alphas,
their optimizer and the multipliers of constraints.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import optax

from hwdarts_jax.bilevel import dual, hypergrad, relax
from hwdarts_jax.bilevel.losses import gradients, losses
from hwdarts_jax.bilevel.problem import (
  Batch,
  init_state,
  Metrics,
  Problem,
  SearchState,
)
from hwdarts_jax.runtime import optimizers, packing

__all__ = (
  'Problem',
  'SearchState',
  'bilevel_update',
  'constrained',
  'gradients',
  'init_state',
  'inner_update',
  'losses',
  'make_step',
  'move_alphas',
  'move_params',
  'outer_update',
)


def inner_update(
  problem: Problem, state: SearchState, train_loss
) -> tuple[SearchState, Metrics]:
  """One optimizer step of params; alphas stay as they are."""
  grads, (batch_stats, metrics) = jax.grad(train_loss, has_aux=True)(
    state.params, state.alphas
  )
  state, norm = move_params(problem, state, grads, batch_stats)
  return state, {**metrics, **norm}


def move_params(
  problem: Problem, state: SearchState, grads, batch_stats
) -> tuple[SearchState, Metrics]:
  """Moves params along their gradients; takes over the batch statistics."""
  updates, params_opt = problem.params_optimizer.update(
    grads, state.params_opt, state.params
  )
  state = state.replace(
    params=optax.apply_updates(state.params, updates),
    params_opt=params_opt,
    batch_stats=batch_stats,
  )
  return state, {'grad_norm': optimizers.global_norm(grads)}


def outer_update(
  problem: Problem, state: SearchState, train_loss, val_loss
) -> tuple[SearchState, Metrics]:
  """One optimizer step of alphas and multipliers; params stay as they are."""
  grads = _hypergrad(problem, state, train_loss, val_loss)
  return move_alphas(problem, state, grads)


def move_alphas(
  problem: Problem, state: SearchState, grads
) -> tuple[SearchState, Metrics]:
  """Moves alphas and multipliers along the hypergradient of the task."""
  metrics = {'hypergrad_norm': optax.tree.norm(grads)}
  grads, duals, of_constraints = constrained(problem, state, grads)
  updates, alphas_opt = problem.alphas_optimizer.update(
    grads, state.alphas_opt, state.alphas
  )
  if problem.constraints:
    size = dual.step_size(problem.progress(state.step), problem.dual)
    updates = jax.tree.map(lambda u: size.astype(u.dtype) * u, updates)
  alphas = optax.apply_updates(state.alphas, updates)
  # A select, not a branch: convolutions inside XLA control flow are slow on
  # CPU.
  warm = state.step >= problem.warmup_steps
  alphas, alphas_opt, duals = jax.tree.map(
    lambda new, old: jnp.where(warm, new, old),
    (alphas, alphas_opt, duals),
    (state.alphas, state.alphas_opt, state.duals),
  )
  state = state.replace(alphas=alphas, alphas_opt=alphas_opt, duals=duals)
  return state, metrics | of_constraints


def constrained(
  problem: Problem, state: SearchState, grads
) -> tuple[dict[str, jax.Array], dict[str, dual.Dual], Metrics]:
  """Adds what the constraints pull to the hypergradient of the task.

  Constraints depend on alphas alone, so that their gradient is exact with every
  estimator.

  Args:
    problem: whose constraints.
    state: at whose alphas.
    grads: the hypergradient, for each group f[E, O].

  Returns:
    The gradient of the Lagrangian, the duals after this step, and metrics:
    'expected/<name>', the cost that is bounded, and 'multiplier/<name>'.
  """
  settings, progress = problem.dual, problem.progress(state.step)
  temperature = problem.temperature(state.step)

  def cost_of(constraint, alphas):
    probs = relax.probabilities(problem.relaxation, alphas, temperature)
    return constraint.cost(dual.sharpened(probs, progress, settings))

  total, duals = grads, {}
  metrics: Metrics = {}
  for constraint in problem.constraints:
    name, old = constraint.name, state.duals[constraint.name]
    cost, pullback = jax.vjp(
      functools.partial(cost_of, constraint), state.alphas
    )
    (slope,) = pullback((1 / old.target).astype(cost.dtype))
    excess = dual.excess(cost, old.target)
    seen = dual.observe(old, grads, slope, settings)
    weight = dual.multiplier(seen, excess, settings)
    total = jax.tree.map(lambda t, s, w=weight: t + w * s, total, slope)
    duals[name] = dual.ascend(seen, excess, problem.num_steps, settings)
    metrics |= {f'expected/{name}': cost, f'multiplier/{name}': weight}
  return total, duals, metrics


def bilevel_update(
  problem: Problem, state: SearchState, train_batch: Batch, val_batch: Batch
) -> tuple[SearchState, Metrics]:
  """One bilevel step: both updates, read from the same state.

  Returns:
    The next state, and scalars: losses, accuracies, 'expected_ms',
    'gate_entropy', the norms of both gradients, and what `constrained` says.
  """
  if problem.takes_both_batches:
    of_params, of_alphas, batch_stats, metrics = gradients(
      problem, state, train_batch, val_batch
    )
    inner, norm = move_params(problem, state, of_params, batch_stats)
    outer, hyper_norm = move_alphas(problem, state, of_alphas)
    return _joined(inner, outer), {**metrics, **norm, **hyper_norm}
  train_loss, val_loss = losses(problem, state, train_batch, val_batch)
  if problem.hypergrad in hypergrad.DIFFERENTIATE_INNER:
    train_loss = _remembered(train_loss, state)
  inner, train_metrics = inner_update(problem, state, train_loss)
  outer, outer_metrics = outer_update(problem, state, train_loss, val_loss)
  # Where the estimator evaluates the validation loss, so that the compiler
  # finds the same forward pass twice and runs it once.
  stepped = problem.hypergrad in hypergrad.AT_STEPPED_PARAMS
  at = inner.params if stepped else state.params
  _, val_metrics = val_loss(at, state.alphas)
  metrics = {**train_metrics, **outer_metrics, **val_metrics}
  return _joined(inner, outer), metrics


def _joined(inner: SearchState, outer: SearchState) -> SearchState:
  """The next state: params of one, alphas and duals of the other."""
  return inner.replace(
    step=inner.step + 1,
    alphas=outer.alphas,
    alphas_opt=outer.alphas_opt,
    duals=outer.duals,
  )


def make_step(
  problem: Problem,
  fetch: Callable[..., Batch],
  constrain: Callable[[Batch], Batch] = lambda batch: batch,
  advance: Callable[..., tuple[SearchState, Metrics]] = bilevel_update,
):
  """Returns ``step(state, train_chunk, val_chunk) -> (state, metrics)``.

  A chunk holds images, labels and indices i32[K, B]: K bilevel steps run in
  one call, in a scan if K > 1. Metrics are means over the K steps. The state
  may be packed (`packing.transparent`).

  Args:
    problem: what to optimize.
    fetch: (chunk, indices i32[B], rng) -> batch, with augmentation.
    constrain: puts a sharding on a batch.
    advance: makes one step, like `bilevel_update`.
  """

  @packing.transparent
  def one(state, train_chunk, val_chunk, train_indices, val_indices):
    rng = jax.random.fold_in(state.rng, state.step)
    train_rng, val_rng = jax.random.split(jax.random.fold_in(rng, 1))
    return advance(
      problem,
      state,
      constrain(fetch(train_chunk, train_indices, train_rng)),
      constrain(fetch(val_chunk, val_indices, val_rng)),
    )

  def step(state, train_chunk, val_chunk):
    indices = train_chunk.indices, val_chunk.indices
    if indices[0].shape[0] == 1:
      return one(state, train_chunk, val_chunk, indices[0][0], indices[1][0])
    state, metrics = jax.lax.scan(
      lambda s, i: one(s, train_chunk, val_chunk, *i), state, indices
    )
    return state, jax.tree.map(lambda m: m.mean(0), metrics)

  return step


def _remembered(train_loss, state):
  """A stand-in with the gradient of the train loss, evaluated once.

  Its gradient with respect to params is that of `train_loss` at the params and
  alphas of `state`, wherever it is asked for, and the derivative of that with
  respect to alphas is the true one. Its value means nothing.
  """
  gradient = functools.partial(jax.grad(train_loss, has_aux=True), state.params)
  grads, pullback, aux = jax.vjp(gradient, state.alphas, has_aux=True)

  @jax.custom_vjp
  def recall(alphas):
    del alphas
    return grads

  recall.defvjp(
    lambda alphas: (grads, None), lambda _, cotangent: pullback(cotangent)
  )
  return lambda params, alphas: (optax.tree.vdot(params, recall(alphas)), aux)


def _hypergrad(problem, state, train_loss, val_loss):
  """The hypergradient by the problem's estimator."""

  def inner_step(params, grads):
    updates, _ = problem.params_optimizer.update(
      grads, state.params_opt, params
    )
    return optax.apply_updates(params, updates)

  settings = dict(problem.hypergrad_settings)
  if problem.hypergrad in hypergrad.NEEDS_INNER_LR:
    assert problem.learning_rate is not None
    settings.setdefault('inner_lr', problem.learning_rate(state.step))
  return hypergrad.get(problem.hypergrad)(
    lambda p, a: train_loss(p, a)[0],
    lambda p, a: val_loss(p, a)[0],
    inner_step,
    state.params,
    state.alphas,
    **settings,
  )
