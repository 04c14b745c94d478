"""Which architectures are one and the same network, trained from scratch.

Dead ops change nothing, an identity passes on what it reads, and sums have no
order: in NAS-Bench-201 15,284 connected cells are 4,929 networks.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwdarts_jax.latency import liveness
from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import CellSpec, Genotype, NetworkSpec


def keys(spec: NetworkSpec, genotypes: Sequence[Genotype]) -> list[str]:
  """Texts that architectures share only if they compute the same.

  An op that nothing feeds counts as none: without the bias of a batch norm it
  adds zeros, and with it a constant. Other equal networks, such as those whose
  nodes are concatenated in another order, may have several texts.

  Args:
    spec: the space.
    genotypes: some of its architectures.
  """
  identities = {
    (group, row, op)
    for group, row, op in liveness.without_params(spec)
    if ops.is_skip(op)
  }
  cells = {c.group: c for c in spec.all_cells if c.group is not None}
  return [
    '; '.join(
      f'{group}: {_of_cell(cells[group], genotype, identities)}'
      for group in sorted(genotype.cells)
    )
    for genotype in genotypes
  ]


def _of_cell(
  cell: CellSpec,
  genotype: Genotype,
  identities: set[tuple[str | None, int, str]],
) -> str:
  """What a cell computes, as an expression whose sums are sorted."""
  chosen = {(c.src, c.dst): c.op for c in genotype.cells[str(cell.group)]}
  nodes: dict[int, list[str]] = {node: [f'x{node}'] for node, _ in cell.inputs}
  for edge in cell.edges:
    searched = edge.row is not None
    op = chosen.get((edge.src, edge.dst)) if searched else edge.ops[0]
    read = nodes.get(edge.src, [])
    terms = nodes.setdefault(edge.dst, [])
    if op is None or ops.is_zero(op) or not read:
      continue
    if (cell.group, edge.row, op) in identities:
      terms += read
    else:
      terms.append(f'{op}({"+".join(sorted(read))})')
  outputs = [nodes.get(node, []) for node in cell.outputs]
  if cell.combine == 'concat':
    return ' | '.join('+'.join(sorted(terms)) for terms in outputs)
  return '+'.join(sorted(term for terms in outputs for term in terms))
