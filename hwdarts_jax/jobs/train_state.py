"""The state of a training: made fresh, or as a template of a checkpoint."""

from __future__ import annotations

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from hwdarts_jax.models import network as network_lib


class TrainState(struct.PyTreeNode):
  """The state of a training; the whole checkpoint.

  Attributes:
    step: i32[], steps done.
    variables: 'params' and 'batch_stats'.
    average: exponential moving average of `variables`.
    opt: optimizer state.
    rng: typed key; folded with the step, never changed.
  """

  step: jax.Array
  variables: Any
  average: Any
  opt: Any
  rng: jax.Array


def init(
  network: network_lib.Network,
  optimizer: optax.GradientTransformation,
  seed: int,
  variables: Any = None,
) -> TrainState:
  """The state before the first step.

  Args:
    network: what is trained.
    optimizer: of its params.
    seed: of params and steps.
    variables: to start from; None: fresh ones.
  """
  init_rng, step_rng = jax.random.split(jax.random.key(seed))
  if variables is None:
    variables = network_lib.init(network, init_rng)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    # A copy: donated buffers must not be shared.
    average=jax.tree.map(jnp.copy, variables),
    opt=optimizer.init(variables['params']),
    rng=step_rng,
  )
