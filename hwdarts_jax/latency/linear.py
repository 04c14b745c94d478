"""Latencies that are linear in ops and in adjacent pairs of ops."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import features, pairs
from hwdarts_jax.latency.cost import CostTable
from hwdarts_jax.spaces.spec import NetworkSpec

# Parameters of ops that every semantics has; the others add to them.
OPS_NAME = {
  'eager': '{}_per_op',
  'pruned': '{}_pruned_per_op',
  'compiled': '{}_compiled_per_op',
}


class Weights:
  """Adds up weights of linear features into variables of the predictor.

  Attributes:
    fixed: the constant, in ms.
  """

  def __init__(self, spec: NetworkSpec):
    self._spec = spec
    self.fixed = 0.0
    self._per_op: dict[str, dict[str, np.ndarray]] = {}
    self._costs('eager')
    groups = spec.groups()
    self._pairs = [
      np.zeros(
        (
          len(p.left),
          groups[p.left_group].shape[1],
          groups[p.right_group].shape[1],
        )
      )
      for p in pairs.adjacent(spec)
    ]

  def add_table(self, table: CostTable, semantics: str) -> None:
    """Adds costs of ops that count where the runtime pays for them."""
    self.fixed += table.fixed
    for name, costs in table.per_op.items():
      self._costs(semantics)[name] += costs

  def add(self, kernel: str, weights: np.ndarray) -> None:
    """Adds weights f[F] of the features of a linear kernel of `kernels`."""
    if kernel == 'pairs':
      self._add_pairs(weights)
    elif kernel == 'meetings':
      self._add_meetings(weights)
    else:
      semantics, _, kind = kernel.rpartition('_')
      self._add_ops(self._costs(semantics), weights, tied=kind == 'counts')

  def variables(self, factor: float = 1.0) -> dict[str, Any]:
    """The variables of `LatencyPredictor`, all multiplied by a factor."""
    found = {'fixed': np.asarray(self.fixed)}
    for semantics, costs in self._per_op.items():
      for name, values in costs.items():
        found[OPS_NAME[semantics].format(name)] = values
    for p, values in zip(pairs.adjacent(self._spec), self._pairs, strict=True):
      found[p.name] = values
    return {
      'params': {
        name: jnp.asarray(factor * values, jnp.float32)
        for name, values in found.items()
      }
    }

  def _costs(self, semantics: str) -> dict[str, np.ndarray]:
    if semantics not in self._per_op:
      self._per_op[semantics] = {
        name: np.zeros(group.shape)
        for name, group in self._spec.groups().items()
      }
    return self._per_op[semantics]

  def _add_ops(self, costs, weights: np.ndarray, tied: bool) -> None:
    at, seen = 0, dict[tuple[str, ...], np.ndarray]()
    for name, group in self._spec.groups().items():
      if tied:
        if group.ops not in seen:
          seen[group.ops] = weights[at : at + len(group.ops)]
          at += len(group.ops)
        costs[name] += seen[group.ops]
      else:
        size = math.prod(group.shape)
        costs[name] += weights[at : at + size].reshape(group.shape)
        at += size

  def _add_pairs(self, weights: np.ndarray) -> None:
    at = 0
    for values in self._pairs:
      values += weights[at : at + values.size].reshape(values.shape)
      at += values.size

  def _add_meetings(self, weights: np.ndarray) -> None:
    at, seen = 0, dict[tuple, np.ndarray]()
    for key, mask, values in features.meeting_parts(self._spec, self._pairs):
      if key not in seen:
        size = math.prod(values.shape[1:])
        seen[key] = weights[at : at + size].reshape(values.shape[1:])
        at += size
      values[mask] += seen[key]
