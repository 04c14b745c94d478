"""The kernels of a space: which functions a latency may be a sum of.

Lengths are in ops: a function of the number of convolutions, say, that is
about the same for two architectures unless they differ by more than one or
two.
"""

from __future__ import annotations

from collections.abc import Mapping
import math

import numpy as np

from hwdarts_jax.latency import features, liveness, reachability
from hwdarts_jax.latency.corner import is_enumerable
from hwdarts_jax.latency.gaussian import Kernel
from hwdarts_jax.spaces.spec import NetworkSpec

_SHORT, _LONG = 1.5, 2.0
_FEW_MATTER, _MANY_MATTER = 1.0, math.sqrt(3.0)  # mismatches of ops


def semantics(spec: NetworkSpec) -> tuple[str, ...]:
  """Those of `liveness.SEMANTICS` that differ in a space and can be told."""
  cells = [c for c in spec.all_cells if c.group is not None]
  small = all(
    len(reachability.inner_nodes(c)) <= reachability.MAX_NODES for c in cells
  )
  if liveness.has_dead_ops(spec) and (is_enumerable(spec) or small):
    return liveness.SEMANTICS
  return ('eager',)


def make(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  chosen: str,
  scales: Mapping[str, float] | None = None,
  alone: bool = False,
) -> dict[str, Kernel]:
  """Kernels of architectures.

  Args:
    spec: the space.
    one_hot: for each group f[N, E, O].
    chosen: the semantics that the graph of ops is seen under.
    scales: of linear kernels; None takes those of these architectures.
    alone: whether to leave out the other semantics and the shape of the graph.

  Returns:
    By name; in a space that is not enumerable all are linear, and named as
    `linear.Weights.add` knows them.
  """
  enumerable = is_enumerable(spec)
  linear: dict[str, np.ndarray] = {}
  shaped: dict[str, Kernel] = {}
  for name in (chosen,) if alone else semantics(spec):
    paid = liveness.paid_ops(spec, one_hot, name)
    linear[f'{name}_ops'] = features.per_op(paid)
    if name == 'eager' or enumerable:
      linear[f'{name}_counts'] = features.counts(spec, paid)
    if enumerable:
      matches = features.categories(paid)
      shaped[f'{name}_matches'] = Kernel(matches, _MANY_MATTER)
      if name == chosen:
        shaped['close_matches'] = Kernel(matches, _FEW_MATTER)
  graph = chosen if enumerable else 'eager'
  paid = liveness.paid_ops(spec, one_hot, graph)
  linear['pairs'] = features.per_pair(spec, paid)
  linear['meetings'] = features.meetings(spec, paid)
  if enumerable and not alone:
    shaped |= {
      'counts': Kernel(features.counts(spec, paid), _SHORT),
      'degrees': Kernel(features.degrees(spec, paid), _SHORT),
      'additions': Kernel(features.additions(spec, paid), _SHORT),
      'sequences': Kernel(features.sequences(spec, paid), _SHORT),
      'meetings_shape': Kernel(linear['meetings'], _LONG),
    }
  if scales is None:
    scales = {k: _mean_square(values) for k, values in linear.items()}
  return shaped | {
    name: Kernel(values, scale=scales[name])
    for name, values in linear.items()
    if values.shape[1]
  }


def _mean_square(values: np.ndarray) -> float:
  return max(float(np.square(values).sum(1).mean()), 1e-9)
