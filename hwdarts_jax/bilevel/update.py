"""The compiled bilevel update: where losses, optimizers and sharding meet.

One step takes a train and a validation batch. Both levels read the same state:

    inner   params' = params - optimizer(d train_loss / d params)
    outer   alphas' = alphas - optimizer(hypergrad)

The levels are simultaneous (DARTS, algorithm 1, updates alphas first), so that
estimators that look through the inner step share its gradient: the compiler
finds the same expression twice. It does not where the gradient is itself
differentiated; there `bilevel_update` shares it by hand. `inner_update`
changes nothing but params, their optimizer and the batch statistics,
`outer_update` nothing but alphas and their optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from hwdarts_jax.bilevel import hypergrad, relax
from hwdarts_jax.bilevel import objective as objective_lib
from hwdarts_jax.models import network as network_lib

Tree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class SearchState(struct.PyTreeNode):
  """Everything that a search is; the whole checkpoint.

  Attributes:
    step: i32[], bilevel steps done.
    params: network weights.
    batch_stats: running statistics of batch norms.
    alphas: for each group f32[E, O].
    params_opt: optimizer state of params.
    alphas_opt: optimizer state of alphas.
    multiplier: f32[], weight of the hardware cost.
    rng: typed key; folded with the step, never changed.
  """

  step: jax.Array
  params: Tree
  batch_stats: Tree
  alphas: dict[str, jax.Array]
  params_opt: Tree
  alphas_opt: Tree
  multiplier: jax.Array
  rng: jax.Array


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a search optimizes, and by what means.

  Attributes:
    network: the supernet.
    latency: gates -> expected ms of the deploy spec, f[].
    params_optimizer: of params.
    alphas_optimizer: of alphas.
    num_steps: length of the search; sets the temperature schedule.
    warmup_steps: steps before alphas start to move.
    learning_rate: step -> learning rate of params, for estimators that need
      it.
    relaxation: name in `relax.RELAXATIONS`.
    temperature_start: of the relaxation, at the first step.
    temperature_end: at the last step.
    hypergrad: name in `hypergrad.HYPERGRADS`.
    hypergrad_settings: keyword arguments of the estimator.
    objective: name in `objective.OBJECTIVES`.
    reference_ms: latency that counts as one in relative objectives.
  """

  network: network_lib.Network
  latency: Callable[[Mapping[str, jax.Array]], jax.Array]
  params_optimizer: optax.GradientTransformation
  alphas_optimizer: optax.GradientTransformation
  num_steps: int
  warmup_steps: int = 0
  learning_rate: Callable[[jax.Array], jax.Array] | None = None
  relaxation: str = 'softmax'
  temperature_start: float = 1.0
  temperature_end: float = 1.0
  hypergrad: str = 'lookahead'
  hypergrad_settings: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )
  objective: str = 'relative'
  reference_ms: float = 1.0

  def temperature(self, step: jax.Array | int) -> jax.Array:
    """Temperature of the relaxation at `step`."""
    progress = jnp.clip(
      jnp.asarray(step) / max(self.num_steps - 1, 1), 0.0, 1.0
    )
    return relax.temperature_at(
      progress, self.temperature_start, self.temperature_end
    )

  def probabilities(self, state: SearchState) -> dict[str, jax.Array]:
    """Distribution over ops at `state`: for each group f32[E, O]."""
    return relax.probabilities(
      self.relaxation, state.alphas, self.temperature(state.step)
    )


def init_state(
  problem: Problem, seed: int, multiplier: float, alphas_scale: float = 1e-3
) -> SearchState:
  """Returns the state before the first step.

  Alphas start near zero with a little noise that breaks ties, as in DARTS.
  """
  network_rng, alphas_rng, step_rng = jax.random.split(jax.random.key(seed), 3)
  variables = network_lib.init(problem.network, network_rng)
  groups = problem.network.spec.groups()
  alphas = {
    g: alphas_scale
    * jax.random.normal(jax.random.fold_in(alphas_rng, i), groups[g].shape)
    for i, g in enumerate(sorted(groups))
  }
  return SearchState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    alphas=alphas,
    params_opt=problem.params_optimizer.init(variables['params']),
    alphas_opt=problem.alphas_optimizer.init(alphas),
    multiplier=jnp.asarray(multiplier, jnp.float32),
    rng=step_rng,
  )


def losses(
  problem: Problem, state: SearchState, train_batch: Batch, val_batch: Batch
):
  """Returns train_loss and val_loss, both (params, alphas) -> (f[], aux).

  The aux of the train loss is (batch_stats, metrics), that of the validation
  loss is metrics. Relaxations that sample use other numbers on each level.
  """
  step_rng = jax.random.fold_in(state.rng, state.step)
  train_rng, val_rng = jax.random.split(step_rng)
  temperature = problem.temperature(state.step)

  def task(params, alphas, batch, rng):
    gates = relax.gates(problem.relaxation, alphas, temperature, rng)
    logits, updates = problem.network.apply(
      {'params': params, 'batch_stats': state.batch_stats},
      batch['image'],
      gates,
      train=True,
      mutable=['batch_stats'],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    ).mean()
    accuracy = (logits.argmax(-1) == batch['label']).mean()
    return loss, accuracy, updates['batch_stats']

  def train_loss(params, alphas):
    loss, accuracy, batch_stats = task(params, alphas, train_batch, train_rng)
    return loss, (batch_stats, {'train_loss': loss, 'train_accuracy': accuracy})

  def val_loss(params, alphas):
    loss, accuracy, _ = task(params, alphas, val_batch, val_rng)
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
    return objective, metrics

  return train_loss, val_loss


def inner_update(
  problem: Problem, state: SearchState, train_loss
) -> tuple[SearchState, Metrics]:
  """One optimizer step of params; alphas stay as they are."""
  grads, (batch_stats, metrics) = jax.grad(train_loss, has_aux=True)(
    state.params, state.alphas
  )
  updates, params_opt = problem.params_optimizer.update(
    grads, state.params_opt, state.params
  )
  state = state.replace(
    params=optax.apply_updates(state.params, updates),
    params_opt=params_opt,
    batch_stats=batch_stats,
  )
  return state, {**metrics, 'grad_norm': optax.tree.norm(grads)}


def outer_update(
  problem: Problem, state: SearchState, train_loss, val_loss
) -> tuple[SearchState, Metrics]:
  """One optimizer step of alphas; params stay as they are."""
  grads = _hypergrad(problem, state, train_loss, val_loss)
  updates, alphas_opt = problem.alphas_optimizer.update(
    grads, state.alphas_opt, state.alphas
  )
  alphas = optax.apply_updates(state.alphas, updates)
  # A select, not a branch: convolutions inside XLA control flow are slow on
  # CPU.
  warm = state.step >= problem.warmup_steps
  alphas, alphas_opt = jax.tree.map(
    lambda new, old: jnp.where(warm, new, old),
    (alphas, alphas_opt),
    (state.alphas, state.alphas_opt),
  )
  state = state.replace(alphas=alphas, alphas_opt=alphas_opt)
  return state, {'hypergrad_norm': optax.tree.norm(grads)}


def bilevel_update(
  problem: Problem, state: SearchState, train_batch: Batch, val_batch: Batch
) -> tuple[SearchState, Metrics]:
  """One bilevel step: both updates, read from the same state.

  Returns:
    The next state, and scalars: losses, accuracies, 'expected_ms',
    'gate_entropy' and the norms of both gradients.
  """
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
  state = inner.replace(
    step=state.step + 1, alphas=outer.alphas, alphas_opt=outer.alphas_opt
  )
  return state, {**train_metrics, **outer_metrics, **val_metrics}


def make_step(
  problem: Problem,
  fetch: Callable[..., Batch],
  constrain: Callable[[Batch], Batch] = lambda batch: batch,
):
  """Returns ``step(state, train_chunk, val_chunk) -> (state, metrics)``.

  A chunk holds images, labels and indices i32[K, B]: K bilevel steps run in
  one call, in a scan if K > 1. Metrics are means over the K steps.

  Args:
    problem: what to optimize.
    fetch: (chunk, indices i32[B], rng) -> batch, with augmentation.
    constrain: puts a sharding on a batch.
  """

  def one(state, train_chunk, val_chunk, train_indices, val_indices):
    rng = jax.random.fold_in(state.rng, state.step)
    train_rng, val_rng = jax.random.split(jax.random.fold_in(rng, 1))
    return bilevel_update(
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
