"""Which ops a runtime pays for.

An op whose result never reaches the output, or that is fed by nothing, need
not run; runtimes differ in what they remove.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import CellSpec, NetworkSpec, Site

# 'eager' runs everything; 'pruned' drops ops whose result never reaches the
# output; 'compiled' keeps only ops on a path from an input to the output.
SEMANTICS = ('eager', 'pruned', 'compiled')
# As 'compiled', and equal results are computed once: two poolings of one node.
# Of sums of ops only, since it has no expectation in closed form.
MERGED = 'merged'


def paid_ops(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray], semantics: str
) -> dict[str, np.ndarray]:
  """Returns the ops that a runtime with these semantics runs.

  Args:
    spec: the space.
    one_hot: architectures: for each group f[N, E, O].
    semantics: one of `SEMANTICS`, or `MERGED`.

  Returns:
    For each group f[N, E, O]: `one_hot` where the op runs, else 0. Zero ops
    run in 'eager' only.
  """
  if semantics == MERGED:
    return _merged(spec, paid_ops(spec, one_hot, 'compiled'))
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


def sums(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns how often two edges are added up in one cell of each group, f[N].

  What adds zeros is dropped, and so is what nothing reads. An op with params
  that is fed by nothing leaves an image that does not depend on the input: all
  of these at a node are one term.
  """
  shared = without_params(spec)
  found = {}
  for cell in {
    c.group: c for c in spec.all_cells if c.group in one_hot
  }.values():
    name = str(cell.group)
    hot = np.asarray(one_hot[name])
    does = np.array([not ops.is_zero(op) for op in spec.groups()[name].ops])
    needed = _reaches_output(cell, (hot * does).any(-1))
    # Terms that are computed at each node, and whether there is a constant.
    zero = np.zeros(len(hot)), np.zeros(len(hot), bool)
    nodes = {node: (np.ones(len(hot)), zero[1]) for node, _ in cell.inputs}
    total = np.zeros(len(hot))
    ends: dict[int, np.ndarray] = {}
    for edge in cell.edges:
      computed, constant = nodes.get(edge.src, zero)
      varies = computed > 0
      image = ~varies & constant
      runs: Any = np.ones(len(hot), bool)
      if edge.row is not None:
        runs = hot[:, edge.row, does].any(-1)
        ends[edge.dst] = needed[:, edge.row]
        made = [o for o in edge.ops if (name, edge.row, o) not in shared]
        columns = [edge.ops.index(o) for o in made if not ops.is_zero(o)]
        image |= ~varies & hot[:, edge.row, columns].any(-1)
      terms, one = nodes.get(edge.dst, zero)
      nodes[edge.dst] = terms + (varies & runs), one | (image & runs)
    for node, (terms, one) in nodes.items():
      counted = np.maximum(terms - 1, 0) + (one & (terms > 0))
      total += ends.get(node, np.ones(len(hot))) * counted
    found[name] = total
  return found


def has_dead_ops(spec: NetworkSpec) -> bool:
  """Whether an architecture of the space can have ops that need not run."""
  return any(
    ops.is_zero(op) and op not in spec.excluded
    for group in spec.groups().values()
    for op in group.ops
  )


def _merged(
  spec: NetworkSpec, paid: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """`paid` without ops whose result another edge of the cell has already.

  Every result is stood for by a random number, which is the same for the same
  op without params on the same input, and different for all others.
  """
  shared = without_params(spec)
  rng = np.random.default_rng(0)
  result = {}
  for cell in {c.group: c for c in spec.all_cells if c.group in paid}.values():
    name = str(cell.group)
    kept = np.array(paid[name])
    nodes = {
      node: np.full(len(kept), rng.uniform(1, 2)) for node, _ in cell.inputs
    }
    seen: list[tuple[int, Any]] = []
    for edge in cell.edges:
      source = nodes.get(edge.src, np.zeros(len(kept)))
      value = np.zeros(len(kept))
      for column, op in enumerate(edge.ops):
        if ops.is_zero(op):
          continue
        runs = np.ones(len(kept), bool)
        if edge.row is not None:
          runs = paid[name][:, edge.row, column] > 0
        if (name, edge.row, op) not in shared:
          value = np.where(runs, rng.uniform(1, 2, len(kept)), value)
        elif ops.is_skip(op):
          value = np.where(runs, source, value)
        else:
          made = np.where(runs, np.sin((1e3 + column) * source), np.nan)
          for other, before in seen:
            if other == column:
              kept[made == before, edge.row, column] = 0
          seen.append((column, made))
          value = np.where(runs, made, value)
      nodes[edge.dst] = nodes.get(edge.dst, np.zeros(len(kept))) + value
    result[name] = kept
  return result


def without_params(spec: NetworkSpec) -> set[tuple[str | None, int, str]]:
  """Group, row and name of searched ops that have no params."""
  return {
    (site.group, site.row, op)
    for site in spec.sites()
    for op in site.ops
    if site.row is not None and _is_shared(site, op)
  }


def _is_shared(site: Site, op: str) -> bool:
  """Whether the op at this site has no params or statistics of its own."""
  context = ops.Context(pool_bn=site.pool_bn)
  found = ops.get(op)(site.features, site.stride, context).shared(site.in_shape)
  return found is not None and not found.norm


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
