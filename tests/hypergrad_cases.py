"""Optimizers and measures that hypergradients are tested with."""

from jax.flatten_util import ravel_pytree
import numpy as np
import optax

from hwdarts_jax.runtime import optimizers

LR, DECAY = 0.1, 0.05


def _flat(tree):
  return np.asarray(ravel_pytree(tree)[0])


def _relative(value, truth):
  return np.linalg.norm(value - truth) / np.linalg.norm(truth)


def _sgd(momentum=0.9, nesterov=False, decay=DECAY):
  return optimizers.make(
    'sgd', LR, 10, schedule='constant', momentum=momentum, nesterov=nesterov,
    weight_decay=decay,
  )  # fmt: skip


def _real_step(optimizer, state):
  def step(params, grads):
    updates, _ = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates)

  return step


def _slopes(f, alphas, length=1e-5):
  flat, restore = ravel_pytree(alphas)
  moves = length * np.eye(flat.size)
  return np.asarray(
    [
      (f(restore(flat + d)) - f(restore(flat - d))) / (2 * length)
      for d in moves
    ]
  )
