"""From alphas to a genotype, and from a genotype to a discrete spec.

Discretization is spec to spec: the derived network is a `NetworkSpec` whose
edges have one op, interpreted by the same network class as the supernet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from hwdarts_jax.spaces.spec import (
  CellSpec,
  Choice,
  Genotype,
  GroupSpec,
  NetworkSpec,
)


def derive(spec: NetworkSpec, alphas: Mapping[str, np.ndarray]) -> Genotype:
  """Returns the most probable architecture of the space.

  Each edge takes its best op that may win (`NetworkSpec.excluded`), an op's
  strength being its softmax over all ops; then each node keeps its
  `CellSpec.keep` strongest edges (DARTS, section 2.4).

  Args:
    spec: the space.
    alphas: for each group, logits f32[E, O].

  Raises:
    ValueError: groups or shapes of `alphas` are not those of `spec`, or values
      are not finite.
  """
  groups = spec.groups()
  shapes = {g: np.shape(a) for g, a in alphas.items()}
  want = {g: s.shape for g, s in groups.items()}
  if shapes != want:
    raise ValueError(f'alphas have shapes {shapes}; they must be {want}.')
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  cells = {}
  for name, group in groups.items():
    logits = np.asarray(alphas[name], np.float64)
    if not np.isfinite(logits).all():
      raise ValueError(f'alphas[{name!r}] are not finite: {logits.tolist()}.')
    gates = np.exp(logits - logits.max(axis=1, keepdims=True))
    gates /= gates.sum(axis=1, keepdims=True)
    gates[:, [op in spec.excluded for op in group.ops]] = -1
    best, strength = gates.argmax(axis=1), gates.max(axis=1)
    rows = _strongest(group.edges, strength, keep[name])
    cells[name] = tuple(
      Choice(group.ops[best[r]], *group.edges[r]) for r in rows
    )
  return Genotype(spec.space, cells)


def discretize(spec: NetworkSpec, genotype: Genotype) -> NetworkSpec:
  """Returns the one network of `spec` that `genotype` names.

  Raises:
    ValueError: the genotype is not of this space.
  """
  _check_genotype(spec, genotype)
  chosen = {
    g: {(c.src, c.dst): c.op for c in cs} for g, cs in genotype.cells.items()
  }

  def prune(cell: CellSpec) -> CellSpec:
    if cell.group not in chosen:
      return cell
    ops = chosen[cell.group]
    edges = tuple(
      e if e.row is None else dataclasses.replace(e, ops=(ops[e.src, e.dst],))
      for e in cell.edges
      if e.row is None or (e.src, e.dst) in ops
    )
    return dataclasses.replace(cell, edges=edges)

  return dataclasses.replace(
    spec,
    stem=tuple(map(prune, spec.stem)),
    cells=tuple(map(prune, spec.cells)),
    head=tuple(map(prune, spec.head)),
  )


def num_architectures(spec: NetworkSpec) -> int:
  """Returns how many genotypes there are; 1 if nothing is left to choose."""
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  count = 1
  for name, group in spec.groups().items():
    num_ops = len(set(group.ops) - set(spec.excluded))
    for dst in {d for _, d in group.edges}:
      into = sum(d == dst for _, d in group.edges)
      kept = min(keep[name] or into, into)
      count *= math.comb(into, kept) * num_ops**kept
  return count


def one_hot(spec: NetworkSpec, genotype: Genotype) -> dict[str, np.ndarray]:
  """Returns gates f32[E, O] for each group: 1 where the genotype has an op.

  Rows of edges that the genotype drops are zero.

  Raises:
    ValueError: the genotype is not of this space.
  """
  _check_genotype(spec, genotype)
  gates = {}
  for name, group in spec.groups().items():
    gates[name] = np.zeros(group.shape, np.float32)
    for choice in genotype.cells[name]:
      row = group.edges.index((choice.src, choice.dst))
      gates[name][row, group.ops.index(choice.op)] = 1
  return gates


def uniform(
  spec: NetworkSpec, dtype: type[np.floating] = np.float64
) -> dict[str, np.ndarray]:
  """Returns gates f[E, O] for each group: all ops of an edge equally likely."""
  return {
    name: np.full(group.shape, 1 / group.shape[1], dtype)
    for name, group in spec.groups().items()
  }


def _strongest(
  edges: tuple[tuple[int, int], ...], strength: np.ndarray, keep: int | None
) -> list[int]:
  """Rows that survive, in the order of the spec; ties go to the earlier row."""
  rows = range(len(edges))
  if keep is None:
    return list(rows)
  kept: set[int] = set()
  for dst in {d for _, d in edges}:
    into = [r for r in rows if edges[r][1] == dst]
    kept.update(sorted(into, key=lambda r: (-strength[r], r))[:keep])
  return sorted(kept)


def _check_genotype(spec: NetworkSpec, genotype: Genotype) -> None:
  groups = spec.groups()
  if genotype.space != spec.space or set(genotype.cells) != set(groups):
    raise ValueError(
      f'genotype of space {genotype.space!r} with groups '
      f'{sorted(genotype.cells)} does not belong to space {spec.space!r} '
      f'with groups {sorted(groups)}.'
    )
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  for name, choices in genotype.cells.items():
    _check_choices(name, choices, groups[name], keep[name], spec.excluded)


def _check_choices(
  name: str,
  choices: Sequence[Choice],
  group: GroupSpec,
  keep: int | None,
  excluded: Sequence[str],
) -> None:
  for c in choices:
    if (c.src, c.dst) not in group.edges:
      raise ValueError(
        f'genotype.cells[{name!r}] has edge {c.src}->{c.dst}; '
        f'the space has {list(group.edges)}.'
      )
    if c.op not in group.ops or c.op in excluded:
      allowed = [o for o in group.ops if o not in excluded]
      raise ValueError(
        f'genotype.cells[{name!r}] has op {c.op!r}; allowed are {allowed}.'
      )
  found = [(c.src, c.dst) for c in choices]
  if len(set(found)) != len(found):
    raise ValueError(f'genotype.cells[{name!r}] names an edge twice: {found}.')
  for dst in sorted({d for _, d in group.edges}):
    into = sum(d == dst for _, d in group.edges)
    want = into if keep is None else min(keep, into)
    got = sum(d == dst for _, d in found)
    if got != want:
      raise ValueError(
        f'genotype.cells[{name!r}] has {got} edges into node '
        f'{dst}; the space keeps {want}.'
      )
