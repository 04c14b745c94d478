"""The one module that interprets a `NetworkSpec`.

Supernet and derived network are the same class: a searched edge is the sum of
its ops weighted by gates, a fixed edge is its op. Parameters live under
``cell/edge/op``, so a derived network finds its parameters in the supernet by
path.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, IMAGE, NetworkSpec

Gates = Mapping[str, jax.Array]
Rate = jax.Array | float


class Network(nn.Module):
  """A network of a space: plain reference evaluation.

  Attributes:
    spec: what to compute.
    context: settings shared by all ops; `spec.pool_bn` overrides its own.
  """

  spec: NetworkSpec
  context: ops.Context = ops.Context()

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    gates: Gates | None = None,
    *,
    train: bool,
    drop_path: Rate | Mapping[str, Rate] = 0.0,
    dropout: float = 0.0,
  ) -> jax.Array:
    """Returns logits.

    Args:
      x: f[B, H, W, C], images.
      gates: for each group f32[E, O]; needed where an edge has a choice.
      train: whether batch norms use the statistics of the batch.
      drop_path: probability of dropping a searched edge of a discrete network
        (Larsson et al. 2017), or what any residual op adds (Huang et al. 2016),
        for each example; or that of each cell, by name. Needs the 'drop_path'
        rng. Only used with `train`, and skipped if it is the number 0.
      dropout: probability of dropping a feature before the classifier, the last
        cell; needs the 'dropout' rng. Only used with `train`.

    Returns:
      f32[B, num_classes].

    Raises:
      ValueError: gates are missing.
    """
    context = dataclasses.replace(self.context, pool_bn=self.spec.pool_bn)
    rates = drop_path if isinstance(drop_path, Mapping) else {}
    common = 0.0 if isinstance(drop_path, Mapping) else drop_path
    outputs = {IMAGE: x.astype(context.dtype)}
    for cell in self.spec.all_cells:
      inputs = {node: outputs[source] for node, source in cell.inputs}
      row_gates = None if gates is None else gates.get(cell.group or '')
      if train and dropout and cell is self.spec.all_cells[-1]:
        inputs = {n: self._dropped(y, dropout) for n, y in inputs.items()}
      drop = rates.get(cell.name, common) if train else 0.0
      outputs[cell.name] = Cell(cell, context, name=cell.name)(
        inputs, row_gates, train, drop
      )
    logits = outputs[self.spec.all_cells[-1].name]
    logits = logits.reshape(x.shape[0], self.spec.num_classes)
    return logits.astype(jnp.promote_types(jnp.float32, context.dtype))

  def _dropped(self, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes features at random and scales up the others."""
    keep = 1.0 - rate
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, x.shape)
    return x * (mask / keep).astype(x.dtype)


class Cell(nn.Module):
  """A cell: sums edges into nodes, then combines its outputs."""

  spec: CellSpec
  context: ops.Context

  @nn.compact
  def __call__(
    self,
    inputs: dict[int, jax.Array],
    gates: jax.Array | None,
    train: bool,
    drop_path: jax.Array | float,
  ) -> jax.Array:
    """Returns the output of the cell; `gates` is f32[E, O] of its group."""
    nodes = dict(inputs)
    for edge in self.spec.edges:
      y = Edge(edge, self.spec.features, self.context, name=edge.name)(
        nodes[edge.src], gates, train
      )
      y = self._drop(edge, nodes[edge.src], y, drop_path)
      nodes[edge.dst] = nodes[edge.dst] + y if edge.dst in nodes else y
    parts = [nodes[n] for n in self.spec.outputs]
    if self.spec.combine == 'concat':
      return jnp.concatenate(parts, axis=-1)
    return sum(parts[1:], parts[0])

  def _drop(self, edge: EdgeSpec, x, y, drop_path):
    """Drops the edge for some examples; see `Network.__call__`."""
    off = isinstance(drop_path, int | float) and drop_path == 0
    # A skip of stride 2 has weights, and is dropped like any other op.
    identity = edge.stride == 1 and ops.is_skip(edge.ops[0])
    residual = ops.is_residual(edge.ops[0])
    kept = edge.row is None and not residual
    if off or kept or len(edge.ops) > 1 or identity:
      return y
    if residual and (edge.stride > 1 or x.shape != y.shape):
      return y
    keep = 1.0 - drop_path
    mask = jax.random.bernoulli(
      self.make_rng('drop_path'), keep, (y.shape[0], 1, 1, 1)
    )
    scale = (mask / keep).astype(y.dtype)
    return x + (y - x) * scale if residual else y * scale


class Edge(nn.Module):
  """An edge: its op, or the sum of its ops weighted by gates."""

  spec: EdgeSpec
  features: int
  context: ops.Context

  @nn.compact
  def __call__(
    self, x: jax.Array, gates: jax.Array | None, train: bool
  ) -> jax.Array:
    """x: f[B, H, W, C], gates: f32[E, O] -> f[B, H', W', features]."""
    if len(self.spec.ops) == 1:
      return _one(self.spec.ops[0], self)(x, train)
    if gates is None:
      raise ValueError(
        f'edge {self.spec.name} has a choice of '
        f'{list(self.spec.ops)}: the network needs gates.'
      )
    row = gates[self.spec.row]
    column = self.spec.ops.index
    alone = [(None, (name,)) for name in self.spec.ops]
    shared = self.context.superkernels
    total: jax.Array | None = None
    for family, names in ops.families(self.spec.ops) if shared else alone:
      if family is not None:
        own = row[np.asarray([column(name) for name in names])]
        y = _together(family, names, self)(x, own, train)
      elif ops.is_zero(names[0]):
        continue
      else:
        y = _one(names[0], self)(x, train)
        # In the type of the gates, so that their gradients are summed in it.
        y = (y * row[column(names[0])]).astype(y.dtype)
      total = y if total is None else total + y
    assert total is not None, self.spec
    return total


def _one(name: str, where: Edge) -> ops.Op:
  """An op of an edge."""
  return ops.get(name)(
    where.features, where.spec.stride, where.context, name=name
  )


def _together(family: Any, names: tuple[str, ...], where: Edge) -> ops.Op:
  """Ops of an edge on shared weights."""
  settings = [ops.OPS[name].keywords for name in names]
  same = {  # of all of them, such as the activation
    key: value
    for key, value in settings[0].items()
    if all(s[key] == value for s in settings)
    and key in family.__dataclass_fields__
  }
  return family(
    where.features,
    where.spec.stride,
    where.context,
    **same,
    settings=tuple(settings),
    name=family.__name__,
  )


def init(network: Any, rng: jax.Array) -> dict[str, Any]:
  """Returns fresh variables: 'params' and 'batch_stats'.

  Only initializers run; the network itself is never evaluated or compiled.

  Args:
    network: a `Network`, or what is used like one (`fused.FusedNetwork`).
    rng: key.
  """
  spec = network.spec
  image = jax.ShapeDtypeStruct((1, *spec.input_shape), jnp.float32)
  gates = {
    g: jax.ShapeDtypeStruct(s.shape, jnp.float32)
    for g, s in spec.groups().items()
  }
  variables = network.lazy_init(rng, image, gates, train=False)
  return {
    name: jax.device_put(variables.get(name, {}))
    for name in ('params', 'batch_stats')
  }


def count_correct(
  network: Any,
  variables: Any,
  image: jax.Array,
  batch: Mapping[str, jax.Array],
  gates: Gates | None = None,
) -> jax.Array:
  """Returns the number of correct answers, i32[].

  Args:
    network: as in `init`; evaluated with running statistics.
    variables: 'params' and 'batch_stats'.
    image: f[B, H, W, C], normalized.
    batch: 'label' i32[B], and 'mask' bool[B] of the examples that count.
    gates: for each group f32[E, O], where there is a choice.
  """
  logits = network.apply(variables, image, gates, train=False)
  assert isinstance(logits, jax.Array)
  return ((logits.argmax(-1) == batch['label']) & batch['mask']).sum()


def inherit(variables: Any, source: Any) -> tuple[Any, list[str]]:
  """Takes over by path what another network already has.

  Args:
    variables: variables of the new network.
    source: variables of a network that holds it, such as its supernet.

  Returns:
    `variables` with every leaf replaced that `source` has at the same path in
    the same shape, and the paths of the leaves that it lacks (affine batch
    norms, when the supernet had none).
  """
  own = traverse_util.flatten_dict(variables, keep_empty_nodes=True, sep='/')
  theirs = traverse_util.flatten_dict(source, sep='/')
  found = {
    k: theirs[k]
    for k, v in own.items()
    if k in theirs and theirs[k].shape == v.shape
  }
  empty = traverse_util.empty_node
  missing = sorted(k for k in own.keys() - found if own[k] is not empty)
  return traverse_util.unflatten_dict({**own, **found}, sep='/'), missing
