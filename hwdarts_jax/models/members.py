"""Networks of one space that are trained side by side, each on its own params.

Their architectures are data: all are one supernet with one-hot gates, so one
program serves any of them. An op that no member has is computed all the same,
but for convolutions that can be one (`Context.one_hot`).
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from hwdarts_jax.models import evaluations, fused
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import NetworkSpec

Function = Callable[..., Any]


def _looped(function: Function) -> Function:
  """Applies `function` to one member after the other, in a loop."""
  return lambda *args: jax.lax.map(lambda each: function(*each), args)


# How a function of one member becomes one of all: the same numbers up to
# rounding. A member at a time fills an accelerator if its batch is large;
# loops of convolutions are an order of magnitude slower on CPU.
EVALUATIONS: dict[str, Callable[[Function], Function]] = {
  'vmap': jax.vmap,
  'matmul': jax.vmap,
  'loop': _looped,
}


def resolve(evaluation: str) -> str:
  """The evaluation that 'auto' stands for on this machine."""
  if evaluation != 'auto':
    return evaluation
  return 'matmul' if jax.default_backend() == 'cpu' else 'loop'


def make(
  spec: NetworkSpec, context: op_lib.Context, network: str, evaluation: str
) -> network_lib.Network | fused.FusedNetwork:
  """The supernet whose one-hot gates are the members.

  Args:
    spec: what to compute.
    context: settings shared by all ops; searched ops have no affine norms.
    network: of `evaluations.EVALUATIONS`, or 'auto'. Candidates on shared
      weights are another network, and not what a member is.
    evaluation: of `EVALUATIONS`, or 'auto'.
  """
  context = dataclasses.replace(context, one_hot=True)
  if resolve(evaluation) == 'matmul':
    context = dataclasses.replace(context, dense='matmul', depthwise='shift')
  return evaluations.make(spec, context, network)


def over(function: Function, evaluation: str) -> Function:
  """`function` of one member, of all of them: a leading axis everywhere.

  Args:
    function: of pytrees, to a pytree.
    evaluation: of `EVALUATIONS`, or 'auto'.

  Raises:
    ValueError: there is no such evaluation.
  """
  evaluation = resolve(evaluation)
  if evaluation not in EVALUATIONS:
    raise ValueError(
      f'evaluation is {evaluation!r}; it must be one of '
      f'{sorted(("auto", *EVALUATIONS))}.'
    )
  return EVALUATIONS[evaluation](function)
