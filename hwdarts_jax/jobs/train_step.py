"""The compiled step of a training: its loss, and what is averaged."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.jobs import training_loss
from hwdarts_jax.jobs.train_state import TrainState
from hwdarts_jax.runtime import packing, sharding


def step(training: Any, state: TrainState, taught_by, chunk):
  """K optimizer steps.

  Args:
    training: a `retrain.Training`.
    state: before the first; it may be packed (`packing.transparent`).
    taught_by: variables of the teacher, if there is one.
    chunk: the data of all steps.

  Returns:
    The state after the last, and metrics f32[] that are means.
  """

  @packing.transparent
  def one(state, indices):
    return _one_step(training, taught_by, chunk, state, indices)

  if chunk.indices.shape[0] == 1:
    return one(state, chunk.indices[0])
  state, metrics = jax.lax.scan(one, state, chunk.indices)
  return state, jax.tree.map(lambda m: m.mean(0), metrics)


def _one_step(training: Any, taught_by, chunk, state: TrainState, indices):
  """One optimizer step, and one of the moving average."""
  settings = training.config.retrain
  rng = jax.random.fold_in(state.rng, state.step)
  data_rng, drop_rng = jax.random.split(rng)
  batch = _batch(training, chunk, indices, data_rng)
  params = state.variables['params']
  grad = jax.value_and_grad(
    functools.partial(loss, training, taught_by, state, batch, drop_rng),
    has_aux=True,
  )
  (_, (stats, metrics)), grads = grad(params)
  updates, opt = training.optimizer.update(grads, state.opt, params)
  variables = {
    'params': optax.apply_updates(params, updates),
    'batch_stats': stats,
  }
  average = training_loss.average(
    state.average, variables, settings.ema_decay, state.step
  )
  metrics['grad_norm'] = optax.tree.norm(grads)
  return TrainState(state.step + 1, variables, average, opt, state.rng), metrics


def _batch(training: Any, chunk, indices, rng) -> dict[str, jax.Array]:
  """Augmented images, mixed, with their targets, split over the devices."""
  settings = training.config.retrain
  batch = pipeline.make_batch(
    chunk.images,
    chunk.labels,
    indices,
    rng,
    Augment(**settings.augment.to_dict()),
    training.train.mean,
    training.train.std,
    training.network.context.dtype,
  )
  image, target = training_loss.mixed(
    jax.random.fold_in(rng, 1),
    batch['image'],
    training_loss.soft_targets(
      batch['label'],
      training.network.spec.num_classes,
      settings.label_smoothing,
    ),
    settings.mixup,
    settings.cutmix,
  )
  return jax.lax.with_sharding_constraint(
    batch | {'image': image, 'target': target}, sharding.batched(training.mesh)
  )


def loss(training: Any, taught_by, state: TrainState, batch, rng, params):
  """The loss of a batch; with it, batch statistics and metrics."""
  settings = training.config.retrain
  logits, updates = training.network.apply(
    {'params': params, 'batch_stats': state.variables['batch_stats']},
    batch['image'],
    train=True,
    drop_path=_drop_path(training, state.step),
    dropout=settings.dropout,
    mutable=['batch_stats'],
    rngs={'drop_path': rng, 'dropout': jax.random.fold_in(rng, 1)},
  )
  target = batch['target'].astype(logits.dtype)
  value = training_loss.cross_entropy(logits, target)
  metrics = {}
  if training.teacher is not None:
    metrics['distillation_loss'] = training_loss.distillation(
      logits,
      training.teacher.logits(taught_by, batch['image']),
      settings.distill.temperature,
    )
    weight = settings.distill.weight
    value = (1 - weight) * value + weight * metrics['distillation_loss']
  metrics |= {
    'train_loss': value,
    # Of the image that is the larger part, where they are mixed.
    'train_accuracy': (logits.argmax(-1) == target.argmax(-1)).mean(),
  }
  return value, (updates['batch_stats'], metrics)


def _drop_path(training: Any, step: jax.Array):
  """The rate of dropping: of all cells alike, or of each by its depth."""
  settings = training.config.retrain
  if settings.drop_path_grows == 'training':
    # Linearly to the end, as in DARTS.
    progress = step / training.schedule.num_steps
    return settings.drop_path * progress if settings.drop_path else 0.0
  cells = training.network.spec.cells
  return {
    cell.name: settings.drop_path * i / len(cells)
    for i, cell in enumerate(cells)
  }
