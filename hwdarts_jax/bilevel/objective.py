"""What the alphas minimize: task loss and expected hardware cost.

An objective is a pure function
``f(task_loss, cost, multiplier, reference) -> f[]``, cost and reference in one
unit (ms). Add one by writing the function and entering it in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Objective = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def additive(task_loss, cost, multiplier, reference):
  """task_loss + multiplier * cost; the multiplier is in 1/ms."""
  del reference
  return task_loss + multiplier * cost


def relative(task_loss, cost, multiplier, reference):
  """task_loss + multiplier * cost / reference; the multiplier is a number.

  The same multiplier then means the same trade on a slow and on a fast device.
  """
  return task_loss + multiplier * cost / reference


def log_relative(task_loss, cost, multiplier, reference):
  """task_loss + multiplier * log(cost / reference).

  One per cent of latency costs the same everywhere between slow and fast.
  """
  return task_loss + multiplier * jnp.log(cost / reference)


OBJECTIVES: dict[str, Objective] = {
  f.__name__: f for f in (additive, relative, log_relative)
}


def get(name: str) -> Objective:
  """Returns the objective `name`.

  Raises:
    ValueError: there is none; the message lists the known ones.
  """
  if name not in OBJECTIVES:
    raise ValueError(
      f'objective.name is {name!r}; known are {sorted(OBJECTIVES)}.'
    )
  return OBJECTIVES[name]
