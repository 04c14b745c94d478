"""What each op costs: tables of ms, MACs and parameters over a spec.

A cost is any function ``value(site, op) -> float``; `tabulate` adds it up over
the sites that share a row of the alphas, so repeated cells are counted as
often as they stand in the network. Add a cost by writing its value function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency.table import LatencyTable
from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import NetworkSpec, Shape, Site

ValueFn = Callable[[Site, str], float]
SUM = 'sum'  # of two edges, at a node of a cell; its key in latency tables


@dataclasses.dataclass(frozen=True, eq=False)
class CostTable:
  """Costs that add up.

  Attributes:
    per_op: for each group f64[E, O].
    fixed: cost of everything that is not searched.
    unit: such as 'ms' or 'macs'.
    per_sum: for each group what one sum of two edges costs, at the same node of
      all its cells; see `liveness.sums`. Groups may be missing.
  """

  per_op: Mapping[str, np.ndarray]
  fixed: float
  unit: str
  per_sum: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def scaled(self, factor: float) -> CostTable:
    """Returns the table with all costs multiplied by a factor."""
    return CostTable(
      {name: factor * costs for name, costs in self.per_op.items()},
      factor * self.fixed,
      self.unit,
      {name: factor * ms for name, ms in self.per_sum.items()},
    )

  def of(self, probs: Mapping[str, Any]) -> float:
    """Returns fixed + sum(probs * per_op) for `probs` f[E, O] of groups.

    Sums of edges are left out: what they cost is no sum over ops.
    """
    return self.fixed + sum(
      float(np.sum(np.asarray(probs[g], np.float64) * c))
      for g, c in self.per_op.items()
    )


def tabulate(spec: NetworkSpec, value: ValueFn, unit: str) -> CostTable:
  """Returns the costs of all ops of `spec`, added up over its sites."""
  groups = spec.groups()
  per_op = {g: np.zeros(s.shape) for g, s in groups.items()}
  fixed = 0.0
  for site in spec.sites():
    costs = np.array([value(site, op) for op in site.ops], np.float64)
    if len(site.ops) == 1:
      fixed += costs[0]
    else:
      assert site.group is not None and site.row is not None
      per_op[site.group][site.row] += costs
  return CostTable(per_op=per_op, fixed=fixed, unit=unit)


def of_entries(spec: NetworkSpec, table: LatencyTable) -> CostTable:
  """Returns what the entries of a latency table say of `spec`, in ms.

  Raises:
    ValueError: an entry is missing. Entries of sums may be.
  """
  found = tabulate(
    spec, lambda site, op: table.lookup(site.key(op)).value_ms, 'ms'
  )
  shapes = summed(spec)
  per_sum: dict[str, float] = {}
  for cell in spec.all_cells:
    key = sum_key(shapes[cell.name]) if cell.name in shapes else ''
    if cell.group is not None and key in table.entries:
      value_ms = table.entries[key].value_ms
      per_sum[cell.group] = per_sum.get(cell.group, 0.0) + value_ms
  return dataclasses.replace(found, per_sum=per_sum)


def summed(spec: NetworkSpec) -> dict[str, Shape]:
  """Shape of the nodes of each cell that sums up edges, by its name."""
  shapes = {s.path.partition('/')[0]: s.out_shape for s in spec.sites()}
  found = {}
  for cell in spec.all_cells:
    ends = [edge.dst for edge in cell.edges]
    if len(set(ends)) < len(ends):
      found[cell.name] = shapes[cell.name]
  return found


def extremes(spec: NetworkSpec, table: CostTable) -> tuple[float, float]:
  """Returns what the cheapest and the dearest architecture cost.

  Over all genotypes of the space, connected or not: costs add up, so each node
  takes its cheapest or dearest edges, and each edge its op.
  """
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  low = high = table.fixed
  for name, group in spec.groups().items():
    allowed = [op not in spec.excluded for op in group.ops]
    costs = table.per_op[name][:, allowed]
    for dst in {d for _, d in group.edges}:
      into = [r for r, (_, d) in enumerate(group.edges) if d == dst]
      kept = keep[name] or len(into)
      low += np.sort(costs[into].min(1))[:kept].sum()
      high += np.sort(costs[into].max(1))[::-1][:kept].sum()
  return float(low), float(high)


def sum_key(shape: Shape) -> str:
  """The key of the sum of two edges in latency tables."""
  return Site('', (SUM,), shape, shape[2], 1, None, None).key(SUM)


def total(spec: NetworkSpec, value: ValueFn) -> float:
  """Returns the cost of a discrete network.

  Raises:
    ValueError: `spec` still has choices.
  """
  if not spec.is_discrete:
    raise ValueError(
      f'the cost of space {spec.space!r} depends on the choice; '
      'discretize it first, or use tabulate.'
    )
  return tabulate(spec, value, '').fixed


def macs(site: Site, op: str) -> float:
  """Multiply-accumulates of convolutions and dense layers, one image."""
  return float(_macs_and_params(site.key(op), site, op)[0])


def params(site: Site, op: str) -> float:
  """Parameters of the op; batch-norm statistics are not parameters."""
  return float(_macs_and_params(site.key(op), site, op)[1])


_CACHE: dict[str, tuple[int, int]] = {}


def _macs_and_params(key: str, site: Site, op: str) -> tuple[int, int]:
  """Traces the op once for each latency key."""
  if key not in _CACHE:
    module = ops.get(op)(
      site.features, site.stride, ops.Context(pool_bn=site.pool_bn)
    )
    image = jax.ShapeDtypeStruct((1, *site.in_shape), jnp.float32)
    variables = jax.eval_shape(
      functools.partial(module.init, train=False), jax.random.key(0), image
    )
    jaxpr = jax.make_jaxpr(functools.partial(module.apply, train=False))(
      variables, image
    )
    count = sum(
      math.prod(leaf.shape)
      for leaf in jax.tree.leaves(variables.get('params', {}))
    )
    _CACHE[key] = _count_macs(jaxpr.jaxpr), count
  return _CACHE[key]


def _count_macs(jaxpr: Any) -> int:
  """Multiply-accumulates of the convolutions and products of a jaxpr."""
  count = 0
  for eqn in jaxpr.eqns:
    out = eqn.outvars[0].aval.shape
    if eqn.primitive.name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
      count += math.prod(out) * math.prod(kernel) // features
    elif eqn.primitive.name == 'dot_general':
      lhs = eqn.invars[0].aval.shape
      contracted = eqn.params['dimension_numbers'][0][0]
      count += math.prod(out) * math.prod(lhs[d] for d in contracted)
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      count += _count_macs(inner)
  return count
