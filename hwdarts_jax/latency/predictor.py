"""Differentiable latency predictor: gates to expected milliseconds.

What the search needs is the *expected* latency of a soft architecture. A space
with few architectures (`is_enumerable`) keeps ms(a) of every one and the
predictor contracts them with the gates: the exact expectation, whatever the
model. In others the latency is

    ms(a) = fixed + sum_e cost[e, a_e] + sum_(e, f) pair[e, f, a_e, a_f]

over edges e and pairs (e, f) of edges that meet, with further costs for ops
that the runtime pays for only where they are not dead. It is evaluated at the
marginals of the random architecture and of its pairs (`expectation`), which is
the exact expectation as well.

How the figures come about is told in `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from hwdarts_jax.latency import expectation, kernels, linear, pairs
from hwdarts_jax.latency.corner import adjacent_edges, corners, is_enumerable
from hwdarts_jax.latency.fit import (
  Fit,
  fit,
  from_table,
  HeldOut,
  MIN_NETWORKS,
  MIN_WITH_PRIOR,
)
from hwdarts_jax.latency.judge import quality
from hwdarts_jax.latency.sums import calibrate, counted_ops, sum_costs
from hwdarts_jax.spaces.spec import NetworkSpec

__all__ = (
  'adjacent_edges',
  'calibrate',
  'corners',
  'counted_ops',
  'fit',
  'Fit',
  'from_table',
  'HeldOut',
  'is_enumerable',
  'LatencyPredictor',
  'MIN_NETWORKS',
  'MIN_WITH_PRIOR',
  'quality',
  'sum_costs',
)


class LatencyPredictor(nn.Module):
  """The model of this file; see its docstring.

  Attributes:
    spec: the space whose gates it reads.
  """

  spec: NetworkSpec

  @nn.compact
  def __call__(self, gates: Mapping[str, jax.Array]) -> jax.Array:
    """Returns expected ms f[...] for gates f[..., E, O] of each group."""
    if is_enumerable(self.spec):
      return self._contract(gates)
    ms = self.param('fixed', nn.initializers.zeros, ())
    groups = self.spec.groups()
    for semantics in kernels.semantics(self.spec):
      names = [linear.OPS_NAME[semantics].format(name) for name in groups]
      if not all(self._is_used(name, semantics == 'eager') for name in names):
        continue
      probs = expectation.paid(self.spec, gates, semantics)
      for name, (group_name, group) in zip(names, groups.items(), strict=True):
        costs = self.param(name, nn.initializers.zeros, group.shape)
        ms = ms + jnp.einsum('...eo,eo->...', probs[group_name], costs)
    for each in pairs.adjacent(self.spec):
      if self._is_used(each.name, each.left_group == each.right_group):
        ms = ms + self._pair_ms(each, gates)
    return ms

  def _is_used(self, name: str, always: bool) -> bool:
    """Whether a parameter is there; models without some are good as well."""
    given = self.has_variable('params', name)
    return always or given or self.is_initializing()

  def _pair_ms(
    self, each: pairs.Pairs, gates: Mapping[str, jax.Array]
  ) -> jax.Array:
    """Expected ms f[...] that pairs add."""
    groups = self.spec.groups()
    shape = (
      len(each.left),
      groups[each.left_group].shape[1],
      groups[each.right_group].shape[1],
    )
    costs = self.param(each.name, nn.initializers.zeros, shape)
    first, second = expectation.pair_marginals(self.spec, gates, each)
    return jnp.einsum('...po,...pq,poq->...', first, second, costs)

  def _contract(self, gates: Mapping[str, jax.Array]) -> jax.Array:
    """Sum over a of ms(a) * prod over e of gates[e, a_e]."""
    rows = [
      gates[name][..., row, :]
      for name, group in self.spec.groups().items()
      for row in range(group.shape[0])
    ]
    sizes = tuple(r.shape[-1] for r in rows)
    ms = self.param('corners_ms', nn.initializers.zeros, (math.prod(sizes),))
    ms = jnp.tensordot(rows[0], ms.reshape(sizes[0], -1), axes=1)
    for row in rows[1:]:
      ms = ms.reshape(*ms.shape[:-1], row.shape[-1], -1)
      ms = jnp.einsum('...o,...ok->...k', row, ms)
    return ms.reshape(ms.shape[:-1])
