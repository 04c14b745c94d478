"""Which ops a runtime pays for.

An op whose result never reaches the output, or that is fed by nothing, need
not run; runtimes differ in what they remove.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import CellSpec, NetworkSpec

# 'eager' runs everything; 'pruned' drops ops whose result never reaches the
# output; 'compiled' keeps only ops on a path from an input to the output.
SEMANTICS = ('eager', 'pruned', 'compiled')


def paid_ops(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray], semantics: str
) -> dict[str, np.ndarray]:
  """Returns the ops that a runtime with these semantics runs.

  Args:
    spec: the space.
    one_hot: architectures: for each group f[N, E, O].
    semantics: one of `SEMANTICS`.

  Returns:
    For each group f[N, E, O]: `one_hot` where the op runs, else 0. Zero ops
    run in 'eager' only.
  """
  if semantics == 'eager':
    return {name: np.asarray(p, np.float64) for name, p in one_hot.items()}
  cells = {c.group: c for c in spec.all_cells if c.group in one_hot}
  paid = {}
  for name, group in spec.groups().items():
    does = np.array([not ops.is_zero(op) for op in group.ops], np.float64)
    kept = np.asarray(one_hot[name], np.float64) * does.reshape(1, 1, -1)
    live = np.asarray(kept.any(-1))
    needed = _reaches_output(cells[name], live)
    if semantics == 'compiled':
      needed = needed & _fed(cells[name], live)
    paid[name] = kept * needed[..., None]
  return paid


def is_connected(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> np.ndarray:
  """bool[N]: architectures that have a path from input to output.

  Every group must have one, since the cells of a network follow each other.
  """
  paid = paid_ops(spec, one_hot, 'compiled')
  return np.asarray(np.stack([p.any((1, 2)) for p in paid.values()]).all(0))


def has_dead_ops(spec: NetworkSpec) -> bool:
  """Whether an architecture of the space can have ops that need not run."""
  return any(
    ops.is_zero(op) and op not in spec.excluded
    for group in spec.groups().values()
    for op in group.ops
  )


def _fed(cell: CellSpec, live: np.ndarray) -> np.ndarray:
  """bool[N, E]: edges whose source is computed from an input of the cell."""
  count = len(live)
  nodes = {node: np.ones(count, bool) for node, _ in cell.inputs}
  fed = np.zeros(live.shape, bool)
  for edge in cell.edges:  # in the order of evaluation
    source = nodes.get(edge.src, np.zeros(count, bool))
    runs = source if edge.row is None else source & live[:, edge.row]
    if edge.row is not None:
      fed[:, edge.row] = source
    nodes[edge.dst] = nodes.get(edge.dst, np.zeros(count, bool)) | runs
  return fed


def _reaches_output(cell: CellSpec, live: np.ndarray) -> np.ndarray:
  """bool[N, E]: edges whose result reaches an output of the cell."""
  count = len(live)
  nodes = {node: np.ones(count, bool) for node in cell.outputs}
  reaches = np.zeros(live.shape, bool)
  for edge in reversed(cell.edges):
    needed = nodes.get(edge.dst, np.zeros(count, bool))
    runs = needed if edge.row is None else needed & live[:, edge.row]
    if edge.row is not None:
      reaches[:, edge.row] = needed
    nodes[edge.src] = nodes.get(edge.src, np.zeros(count, bool)) | runs
  return reaches
