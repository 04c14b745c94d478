"""The ways to evaluate a supernet, by name, and what all of them can do."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax

from hwdarts_jax.models import fused, stacking, superkernels
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import NetworkSpec

EVALUATIONS = ('plain', 'fused')
SHARED = 'shared'


def make(
  spec: NetworkSpec, context: op_lib.Context, evaluation: str
) -> network_lib.Network | fused.FusedNetwork:
  """Returns a supernet.

  Args:
    spec: what to compute.
    context: settings shared by all ops.
    evaluation: one of `EVALUATIONS`; 'auto' is fused but on CPU, where dense
      convolutions cost more than the passes that they save. `SHARED` is another
      supernet: its candidates share weights, where they can.

  Raises:
    ValueError: there is no such evaluation, or nothing to share.
  """
  evaluation = resolve(evaluation)
  makers: dict[str, Any] = {
    'plain': network_lib.Network,
    'fused': fused.FusedNetwork,
    SHARED: _make_shared,
  }
  if evaluation not in makers:
    raise ValueError(
      f'evaluation is {evaluation!r}; it must be one of '
      f'{sorted(("auto", SHARED, *EVALUATIONS))}.'
    )
  return makers[evaluation](spec, context)


def _make_shared(spec: NetworkSpec, context: op_lib.Context):
  """The plain network with families of ops."""
  if not superkernels.has_families(spec):
    raise ValueError(
      f'evaluation is {SHARED!r}, but the ops of space {spec.space!r} have no '
      "weights in common; take 'auto'."
    )
  shared = dataclasses.replace(context, superkernels=True)
  return network_lib.Network(spec, shared)


def resolve(evaluation: str) -> str:
  """The evaluation that 'auto' stands for on this machine."""
  if evaluation != 'auto':
    return evaluation
  return 'plain' if jax.default_backend() == 'cpu' else 'fused'


def apply_members(
  network: network_lib.Network | fused.FusedNetwork,
  variables: Mapping[str, Any],
  x: jax.Array,
  gates: network_lib.Gates,
) -> tuple[jax.Array, Any]:
  """Evaluates a supernet once for each of M members, in training mode.

  Members share the variables; each has its own images, gates and batch
  statistics. The fused evaluation takes them all in one pass, as batch groups,
  for little more than one member with as many images costs.

  Args:
    network: a supernet.
    variables: 'params' and 'batch_stats'.
    x: f[M, B, H, W, C], images.
    gates: for each group f32[M, E, O].

  Returns:
    Logits f32[M, B, num_classes], and the running statistics updated by the
    mean over members.
  """
  if isinstance(network, fused.FusedNetwork):
    return network.apply_members(variables, x, gates)

  def one(x, gates):
    logits, updates = network.apply(
      variables, x, gates, train=True, mutable=['batch_stats']
    )
    return logits, updates.get('batch_stats', {})

  logits, stats = jax.vmap(one)(x, gates)
  return logits, jax.tree.map(lambda s: s.mean(0), stats)


def to_plain(
  network: network_lib.Network | fused.FusedNetwork,
  variables: Mapping[str, Any],
) -> Mapping[str, Any]:
  """Returns variables of a supernet in the layout of the plain network."""
  if isinstance(network, fused.FusedNetwork):
    return stacking.unstack(network.spec, variables)
  if not network.context.superkernels:
    return variables
  own = dataclasses.replace(network.context, superkernels=False)
  plain = network_lib.Network(network.spec, own)
  shapes = jax.eval_shape(
    functools.partial(network_lib.init, plain), jax.random.key(0)
  )
  return superkernels.to_plain(network.spec, variables, shapes)
