"""The losses of both levels, and their gradients from one pass over both.

Batches may be evaluated in parts (`Problem.batch_parts`), to save memory.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from hwdarts_jax.bilevel import objective as objective_lib
from hwdarts_jax.bilevel import regularizers, relax
from hwdarts_jax.bilevel.problem import Batch, Problem, SearchState
from hwdarts_jax.models import fused


def losses(
  problem: Problem, state: SearchState, train_batch: Batch, val_batch: Batch
):
  """Returns train_loss and val_loss, both (params, alphas) -> (f[], aux).

  The aux of the train loss is (batch_stats, metrics), that of the validation
  loss is metrics. Relaxations that sample use other numbers on each level.
  """
  draw = _Gates(problem, state)
  network = of_a_part(problem)

  def task(params, alphas, batch, rng):
    gates = draw(alphas, rng)

    def forward(batch):
      logits, updates = network.apply(
        {'params': params, 'batch_stats': state.batch_stats},
        batch['image'],
        gates,
        train=True,
        mutable=['batch_stats'],
      )
      return *loss_and_accuracy(logits, batch), updates['batch_stats']

    return _mean_over_parts(problem, forward, batch)

  def train_loss(params, alphas):
    loss, accuracy, batch_stats = task(
      params, alphas, train_batch, draw.train_rng
    )
    return loss, (batch_stats, {'train_loss': loss, 'train_accuracy': accuracy})

  def val_loss(params, alphas):
    loss, accuracy, _ = task(params, alphas, val_batch, draw.val_rng)
    return objective_of(problem, state, alphas, loss, accuracy)

  return train_loss, val_loss


def gradients(
  problem: Problem, state: SearchState, train_batch: Batch, val_batch: Batch
):
  """Returns the gradients of both levels from one pass over the network.

  The same as those of `losses` with the estimator first_order, up to rounding.
  The network must be a `fused.FusedNetwork`.

  Returns:
    The gradient of the train loss with respect to params, that of the
    validation loss with respect to alphas, the new batch statistics, and the
    metrics of both losses.
  """
  network = of_a_part(problem)
  assert isinstance(network, fused.FusedNetwork)
  draw = _Gates(problem, state)

  def both(params, alphas):
    gates = (
      draw(jax.lax.stop_gradient(alphas), draw.train_rng),
      draw(alphas, draw.val_rng),
    )

    def forward(batches):
      *logits, batch_stats = network.apply_pair(
        {'params': params, 'batch_stats': state.batch_stats},
        tuple(batch['image'] for batch in batches),
        gates,
      )
      return [
        loss_and_accuracy(*pair) for pair in zip(logits, batches, strict=True)
      ], batch_stats

    ((loss, accuracy), of_val), batch_stats = _mean_over_parts(
      problem, forward, (train_batch, val_batch)
    )
    value, metrics = objective_of(problem, state, alphas, *of_val)
    metrics |= {'train_loss': loss, 'train_accuracy': accuracy}
    return loss + value, (batch_stats, metrics)

  (of_params, of_alphas), (batch_stats, metrics) = jax.grad(
    both, argnums=(0, 1), has_aux=True
  )(state.params, state.alphas)
  return of_params, of_alphas, batch_stats, metrics


def noiseless_val_loss(problem: Problem, state: SearchState, val_batch: Batch):
  """Returns alphas -> f[]: the validation loss of the task, without noise.

  For diagnostics: gates are not sampled, and neither hardware costs nor
  regularizers count. Params are those of `state`.
  """
  network = of_a_part(problem)

  def loss(alphas):
    gates = problem.evaluation_gates(state.replace(alphas=alphas))

    def forward(batch):
      logits, _ = network.apply(
        {'params': state.params, 'batch_stats': state.batch_stats},
        batch['image'],
        gates,
        train=True,
        mutable=['batch_stats'],
      )
      return loss_and_accuracy(logits, batch)[0]

    return _mean_over_parts(problem, forward, val_batch)

  return loss


def of_a_part(problem: Problem):
  """Returns the network for a part of a batch, which has fewer batch groups.

  Raises:
    ValueError: parts do not divide the batch groups.
  """
  network, parts = problem.network, problem.batch_parts
  if parts == 1:
    return network
  if network.context.bn_groups % parts:
    raise ValueError(
      f'batch_parts is {parts}; it must divide bn_groups='
      f'{network.context.bn_groups}.'
    )
  groups = network.context.bn_groups // parts
  context = dataclasses.replace(network.context, bn_groups=groups)
  return dataclasses.replace(network, context=context)


def _mean_over_parts(problem: Problem, forward, batches):
  """The mean of `forward` over parts of the batches, one after the other.

  Batch groups share no statistics, so that the mean and its gradient are those
  of the whole batch. Only one part at a time keeps what its backward pass
  needs, at the price of a second forward pass.
  """
  parts = problem.batch_parts
  if parts == 1:
    return forward(batches)
  groups = problem.network.context.bn_groups

  def split(x):
    # Every part has groups of every device.
    x = x.reshape(groups // parts, parts, -1, *x.shape[1:])
    x = jnp.moveaxis(x, 1, 0)
    return x.reshape(parts, -1, *x.shape[3:])

  def one(_, part):
    return None, jax.checkpoint(forward)(part)

  _, results = jax.lax.scan(one, None, jax.tree.map(split, batches))
  return jax.tree.map(lambda x: x.mean(0), results)


class _Gates:
  """Draws the gates of a step; other numbers on each level."""

  def __init__(self, problem: Problem, state: SearchState):
    step_rng = jax.random.fold_in(state.rng, state.step)
    self.train_rng, self.val_rng = jax.random.split(step_rng)
    self._problem, self._step = problem, state.step

  def __call__(self, alphas, rng):
    return self._problem.gates(alphas, self._step, rng)


def loss_and_accuracy(
  logits: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Mean cross-entropy f[] and share of correct answers f[] of a batch."""
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['label']
  ).mean()
  return loss, (logits.argmax(-1) == batch['label']).mean()


def objective_of(
  problem: Problem, state: SearchState, alphas, loss, accuracy
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """What alphas minimize, and the metrics of the validation batch.

  Args:
    problem: what is optimized.
    state: has the step and the multiplier.
    alphas: for each group f[E, O].
    loss: of the validation batch, f[].
    accuracy: on it, f[].
  """
  temperature = problem.temperature(state.step)
  probs = relax.probabilities(problem.relaxation, alphas, temperature)
  ms = problem.latency(probs)
  objective = objective_lib.get(problem.objective)(
    loss, ms, state.multiplier, jnp.asarray(problem.reference_ms)
  )
  metrics = {
    'val_loss': loss,
    'val_accuracy': accuracy,
    'expected_ms': ms,
    'objective': objective,
    'gate_entropy': relax.entropy(probs),
  }
  return _regularized(problem, state, alphas, objective, metrics)


def _regularized(problem, state, alphas, objective, metrics):
  """Adds the regularizers to what alphas minimize, and to the metrics."""
  penalties = regularizers.values(
    problem.regularizers, alphas, problem.progress(state.step)
  )
  metrics |= {f'regularizer/{name}': p for name, p in penalties.items()}
  return sum(penalties.values(), objective), metrics
