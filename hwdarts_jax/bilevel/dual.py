"""Constraints on expected costs, each with a multiplier that finds itself.

    minimize over alphas   task loss   subject to   cost_k <= target_k

Of each constraint the relative excess ``g = cost / target - 1`` is controlled:
to the hypergradient of the task it adds ``multiplier * dg / d alphas``, with

    multiplier = scale * clip(integral + proportional * g)
    integral'  = clip(integral + integral_gain / num_steps * g)

This is the gradient of the augmented Lagrangian for inequalities,
``(max(0, m + rho g)^2 - m^2) / (2 rho)`` (Nocedal & Wright 2006, section
17.4), with rho = scale * proportional, whose multiplier m is moved a little
in every step, as in PI dual ascent (Stooke et al. 2020, algorithm 2), and not
at minima of the Lagrangian only. Both are clipped to [-lift, most].

With a lift of 0 the bound is an inequality, and where it holds with room to
spare the multiplier is 0. With more it also pulls up towards its target: a
search whose gradients are mostly noise would else stay wherever below it came
by chance. The pull is that share of the task's own gradient at most, so that it
moves no optimum of a task without noise.

What is not in these sources is `scale`, a running ratio of the norms of both
gradients: gains then mean the same whatever the size of the task loss and the
number of its noisy gradients, and a multiplier as large as the scale pulls as
hard as the task. At rest it is a constant, and the multiplier is that of the
Karush-Kuhn-Tucker conditions.

What ships is the most probable architecture, not the mixture. So the cost is
that of probabilities that are `sharpened` as the search goes on.

Everything is a pure function of arrays without a branch on a value: it can be
mapped over many searches, whose targets may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Probabilities = Mapping[str, jax.Array]
Grads = Any

_MOST = 1.0  # larger excess counts as this: twice the target
_TINY = 1e-20
# Where all edges are decided the cost has no gradient left, and the scale must
# not grow without bound.
_LEAST_NORM = 1e-3


@dataclasses.dataclass(frozen=True)
class Constraint:
  """What is bounded; the bound itself is in `Dual.target`.

  Attributes:
    name: such as 'latency_ms'.
    cost: probabilities f[E, O] of each group -> expected cost f[].
  """

  name: str
  cost: Callable[[Probabilities], jax.Array]


class Dual(NamedTuple):
  """What a constraint carries from step to step.

  Attributes:
    target: f[], the bound, in the unit of the cost.
    integral: f[], the multiplier at rest, in units of the scale.
    task_norm: f[], running norm of the hypergradient of the task.
    cost_norm: f[], running norm of the gradient of the excess.
  """

  target: jax.Array
  integral: jax.Array
  task_norm: jax.Array
  cost_norm: jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
  """How multipliers are found; see the module.

  The defaults were chosen on made-up tasks like those of
  `benchmarks.target_latency`, of other seeds than those reported.

  Attributes:
    proportional: gain of the present excess.
    integral: gain of the excess summed up over the search, whose length is 1.
    sharpness: temperature of the probabilities that are bounded, at the end.
    sharp_from: progress at which the sharpening is complete.
    settle_from: progress from which steps of alphas shrink to 0, linearly, so
      that the search comes to rest at its targets.
    memory: share of the running norms that a step keeps.
    most: largest pull towards a target from above, in units of the scale.
    lift: largest pull from below, below 1; 0: the bound is an inequality.
  """

  proportional: float = 5.0
  integral: float = 20.0
  sharpness: float = 0.1
  sharp_from: float = 0.5
  settle_from: float = 0.7
  memory: float = 0.95
  most: float = 1.5
  lift: float = 0.1


def start(target: float | jax.Array) -> Dual:
  """Returns the state of a constraint before the first step."""
  # Arrays of their own: a state is donated, and a buffer only once.
  zeros = (jnp.zeros((), jnp.float32) for _ in range(3))
  return Dual(jnp.array(target, jnp.float32), *zeros)


def sharpened(
  probs: Probabilities, progress: jax.Array | float, settings: Settings
) -> dict[str, jax.Array]:
  """Returns probabilities nearer to those of the most probable architecture.

  They are ``p^(1/t)``, normalized; t goes from 1 to `Settings.sharpness` on an
  exponential schedule.

  Args:
    probs: for each group f[E, O].
    progress: of the search, 0 to 1.
    settings: when and how far.
  """
  late = jnp.clip(progress / settings.sharp_from, 0.0, 1.0)
  temperature = jnp.asarray(settings.sharpness) ** late
  return {
    name: jax.nn.softmax(jnp.log(jnp.maximum(p, _TINY)) / temperature, -1)
    for name, p in probs.items()
  }


def excess(cost: jax.Array, target: jax.Array) -> jax.Array:
  """By which share f[] a cost exceeds its target; negative below it."""
  return cost / target - 1


def observe(
  dual: Dual, task_grads: Grads, cost_grads: Grads, settings: Settings
) -> Dual:
  """Takes both gradients into the running norms."""

  def mean(old, grads):
    return settings.memory * old + (1 - settings.memory) * optax.tree.norm(
      grads
    )

  return dual._replace(
    task_norm=mean(dual.task_norm, task_grads),
    cost_norm=mean(dual.cost_norm, cost_grads),
  )


def multiplier(dual: Dual, excess: jax.Array, settings: Settings) -> jax.Array:
  """The weight f[] of the excess in the loss of alphas."""
  # Both norms begin at 0, so that what they lack cancels out.
  scale = dual.task_norm / jnp.maximum(dual.cost_norm, _LEAST_NORM)
  pull = dual.integral + settings.proportional * jnp.minimum(excess, _MOST)
  return scale * jnp.clip(pull, -settings.lift, settings.most)


def ascend(
  dual: Dual, excess: jax.Array, num_steps: int, settings: Settings
) -> Dual:
  """One step of the multiplier, up where the target is exceeded."""
  gain = settings.integral / num_steps
  moved = dual.integral + gain * jnp.minimum(excess, _MOST)
  return dual._replace(integral=jnp.clip(moved, -settings.lift, settings.most))


def step_size(progress: jax.Array | float, settings: Settings) -> jax.Array:
  """What steps of alphas are multiplied by, f[]."""
  left = (1 - progress) / max(1 - settings.settle_from, _TINY)
  return jnp.clip(left, 0.0, 1.0)
