"""The fast evaluation of a supernet; equal to the plain one up to rounding.

A step of a search moves far more bytes than it computes, in far too many
kernels. Here all edges that leave a node are evaluated together (a fan):

  * Convolutions with nothing between them, such as depthwise and pointwise, are
    composed into one dense convolution; one call serves the fan.
  * Ops without params are evaluated once a node, not once an edge.
  * Batch norm, gate and the sum over ops are one affine map of each
    convolution's output, so nothing but those outputs and the sum are written.
  * Params and statistics are few stacked arrays (`stacking`).

What a layer computes stays in `ops`: `Op.stages` and `Op.shared`. Ops with
neither are evaluated by themselves, as in the plain network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from hwdarts_jax.models import convs, fans, layers, stacking
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import EdgeSpec, IMAGE, NetworkSpec

Tree = Any


@dataclasses.dataclass(frozen=True)
class FusedNetwork:
  """A supernet, to be used like `network.Network`; no Flax module.

  Attributes:
    spec: what to compute; searched ops have no affine batch norms.
    context: settings shared by all ops; `spec.pool_bn` overrides its own.
    scan: evaluate equal cells in a loop: a smaller program, compiled sooner.
    remat: what the backward pass computes again, see `fans.REMATS`: nothing,
      activations (all but convolutions), or also first_convolutions, those
      that another one of the same op follows.
  """

  spec: NetworkSpec
  context: op_lib.Context = op_lib.Context(affine=False)
  scan: bool = False
  remat: str = 'nothing'

  def __post_init__(self):
    if self.context.affine:
      raise ValueError(
        'context.affine is True; the fused evaluation takes False, which '
        'supernets have.'
      )

  @property
  def remats(self) -> tuple[str, ...]:
    """All `remat` that differ for this network, from most to least kept."""
    stages = (
      op_lib.get(op)(run.cells[0].features, bundle.stride, self.context).stages(
        bundle.in_shape
      )
      for run in stacking.runs(self.spec)
      for bundle in run.bundles
      for op in bundle.ops
    )
    has_first = any(found and len(found) > 1 for found in stages)
    return tuple(fans.REMATS) if has_first else tuple(fans.REMATS)[:-1]

  @property
  def plain(self) -> network_lib.Network:
    """The reference evaluation of the same supernet."""
    return network_lib.Network(self.spec, self.context)

  def lazy_init(self, rng, image, gates, *, train: bool) -> dict[str, Any]:
    """Returns the variables of the plain network, stacked."""
    variables = self.plain.lazy_init(rng, image, gates, train=train)
    return stacking.stack(self.spec, variables)

  def apply(
    self,
    variables: Mapping[str, Any],
    x: jax.Array,
    gates: network_lib.Gates,
    *,
    train: bool,
    mutable: Sequence[str] = (),
  ) -> Any:
    """Returns logits, and with `mutable` also {'batch_stats': updated}.

    Args:
      variables: 'params' and 'batch_stats', stacked.
      x: f[B, H, W, C], images.
      gates: for each group f32[E, O].
      train: whether batch norms use the statistics of the batch.
      mutable: ('batch_stats',) or ().

    Returns:
      f32[B, num_classes].
    """
    groups = self.context.bn_groups
    grouped = {name: g[None] for name, g in gates.items()}
    logits, stats = self._evaluate(
      variables, x, grouped, fans.Mode(train, groups, False)
    )
    return (logits, {'batch_stats': stats}) if mutable else logits

  def apply_pair(
    self,
    variables: Mapping[str, Any],
    images: tuple[jax.Array, jax.Array],
    gates: tuple[network_lib.Gates, network_lib.Gates],
  ) -> tuple[jax.Array, jax.Array, Tree]:
    """Evaluates two batches in one pass, each for its own gradient.

    Both are evaluated in training mode, each with its own statistics. The
    gradient with respect to params is that of the first batch alone. So the
    gradient of the sum of a train loss and a validation loss is at once that
    of the first with respect to params and, with constant gates on the first
    batch, that of the second with respect to gates.

    Args:
      variables: 'params' and 'batch_stats', stacked.
      images: two batches f[B, H, W, C].
      gates: of each batch.

    Returns:
      Logits f32[B, num_classes] of both, and the statistics updated by the
      first.
    """
    groups = self.context.bn_groups
    mode = fans.Mode(True, 2 * groups, True)
    stacked = {
      name: jnp.tile(jnp.stack([g, gates[1][name]]), (groups, 1, 1))
      for name, g in gates[0].items()
    }
    logits, stats = self._evaluate(
      variables, convs.join_pair(images, groups), stacked, mode
    )
    first, second = convs.split_pair(logits, groups)
    return first, second, stats

  def apply_members(
    self, variables: Mapping[str, Any], x: jax.Array, gates: network_lib.Gates
  ) -> tuple[jax.Array, Tree]:
    """See `evaluations.apply_members`."""
    groups = len(x) * self.context.bn_groups
    context = dataclasses.replace(self.context, bn_groups=groups)
    of_groups = {
      name: jnp.repeat(g, self.context.bn_groups, axis=0)
      for name, g in gates.items()
    }
    logits, stats = dataclasses.replace(self, context=context)._evaluate(
      variables,
      x.reshape(-1, *x.shape[2:]),
      of_groups,
      fans.Mode(True, groups, False),
    )
    return logits.reshape(*x.shape[:2], -1), stats

  def _evaluate(self, variables, x, gates, mode):
    """Returns logits and new statistics; gates f32[1 or groups, E, O]."""
    spec = self.spec
    context = dataclasses.replace(self.context, pool_bn=spec.pool_bn)
    outputs = {IMAGE: x.astype(context.dtype)}
    stats: dict[str, Any] = {}
    for run in stacking.runs(spec):
      cell: Any = functools.partial(_cell, run, context, mode)
      kept = fans.REMATS[self.remat]
      if kept is not None:
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        cell = jax.checkpoint(cell, policy=policy)
      inputs = {node: outputs[source] for node, source in run.cells[0].inputs}
      own = tuple(
        variables[c].get(run.name, {}) for c in ('params', 'batch_stats')
      )
      row_gates = gates.get(run.cells[0].group or '')
      y, new = self._run(run, cell, inputs, own, row_gates)
      outputs[run.cells[-1].name] = y
      if new:
        stats[run.name] = new
    logits = outputs[spec.all_cells[-1].name]
    logits = logits.reshape(x.shape[0], spec.num_classes)
    wide = jnp.promote_types(jnp.float32, context.dtype)
    return logits.astype(wide), stats

  def _run(self, run, cell, inputs, variables, gates):
    """Evaluates the cells of a run, one after the other."""
    if len(run.cells) == 1:
      return cell(inputs, variables, gates)
    ((node, x),) = inputs.items()

    def step(x, own):
      return cell({node: x}, own, gates)

    # A loop of convolutions is an order of magnitude slower on CPU.
    if self.scan and jax.default_backend() != 'cpu':
      return jax.lax.scan(step, x, variables)
    news = []
    for i in range(len(run.cells)):
      x, new = step(x, jax.tree.map(lambda v, i=i: v[i], variables))
      news.append(new)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *news)


class _Cell:
  """Evaluates one cell; a fan at a time."""

  def __init__(self, run: stacking.Run, context, mode, params, stats, gates):
    self._spec = run.cells[0]
    self._bundles = {edge: b for b in run.bundles for edge in b.edges}
    self._context, self._mode = context, mode
    self._params, self._stats, self._gates = params, stats, gates
    self._terms: dict[int, list[jax.Array]] = {}
    self._new: dict[str, list[Any]] = {}  # of the fans of each bundle
    self._pieces: dict[str, dict[int, Tree]] = {}  # of those of each bundle

  def __call__(self, inputs: Mapping[int, jax.Array]):
    """Returns the output of the cell and new statistics."""
    self._terms |= {node: [x] for node, x in inputs.items()}
    values: dict[int, jax.Array] = {}
    done: set[tuple[int, str]] = set()
    for edge in self._spec.edges:
      if edge.src not in values:  # complete, since an edge reads it
        values[edge.src] = _total(self._terms[edge.src])
      x = values[edge.src]
      if edge not in self._bundles:
        self._fixed(edge, x)
      elif (edge.src, self._bundles[edge].name) not in done:
        done.add((edge.src, self._bundles[edge].name))
        self._fan(self._bundles[edge], edge.src, x)
    new = {n: stacking.join(news) for n, news in self._new.items() if news[0]}
    return self._combine(), new

  def _fixed(self, edge: EdgeSpec, x) -> None:
    name = edge.name
    params, stats = self._params.get(name, {}), self._stats.get(name, {})
    op_name = edge.ops[0]
    op = op_lib.get(op_name)(self._spec.features, edge.stride, self._context)
    if op.stages(x.shape[1:]):
      add_edge = functools.partial(jax.tree.map, lambda v: v[None])
      kernels = self._kernels(edge, x.shape[1:], add_edge(params))
      fan = self._make_fan(edge, kernels, {}, add_edge(stats))
      y, new = fans.evaluate(fan, x, {op_name: jnp.ones((1, 1), jnp.float32)})
      y, new = y[..., 0, :], jax.tree.map(lambda v: v[0], new)
    else:
      own = params.get(op_name, {}), stats.get(op_name, {})
      y, new = fans.by_itself(op, x, *own, self._mode)
      new = {op_name: new} if new else {}
    self._terms.setdefault(edge.dst, []).append(y)
    self._new[name] = [new]

  def _fan(self, bundle: stacking.Bundle, src: int, x) -> None:
    if bundle.name not in self._pieces:
      self._pieces[bundle.name] = self._cut(bundle)
    kernels, params, stats, gates = self._pieces[bundle.name][src]
    edges = [e for e in bundle.edges if e.src == src]
    y, new = fans.evaluate(
      self._make_fan(edges[0], kernels, params, stats),
      x,
      {
        name: gates[..., column].T
        for column, name in enumerate(bundle.ops)
        if not op_lib.is_zero(name)
      },
    )
    for i, edge in enumerate(edges):
      self._terms.setdefault(edge.dst, []).append(y[..., i, :])
    self._new.setdefault(bundle.name, []).append(new)

  def _cut(self, bundle: stacking.Bundle) -> dict[int, Tree]:
    """Kernels, params, statistics and gates f32[E, G, O] of each fan.

    The whole bundle is prepared at once and cut by `split`, whose gradient is
    one concatenation.
    """
    params = self._params.get(bundle.name, {})
    kernels = self._kernels(bundle.edges[0], bundle.in_shape, params)
    leaves, structure = jax.tree.flatten(
      (
        kernels,
        {name: p for name, p in params.items() if name not in kernels},
        self._stats.get(bundle.name, {}),
        jnp.stack([self._gates[:, e.row] for e in bundle.edges]),
      )
    )
    sources = [e.src for e in bundle.edges]
    fans_of = sorted(set(sources))
    bounds = [sources.index(src) for src in fans_of[1:]]
    cuts = zip(*(jnp.split(leaf, bounds) for leaf in leaves), strict=True)
    return {
      src: jax.tree.unflatten(structure, cut)
      for src, cut in zip(fans_of, cuts, strict=True)
    }

  def _kernels(self, edge: EdgeSpec, in_shape, params):
    return fans.kernels(
      edge.ops,
      self._spec.features,
      edge.stride,
      self._context,
      tuple(in_shape),
      params,
    )

  def _make_fan(self, edge: EdgeSpec, kernels, params, stats) -> fans.Fan:
    return fans.Fan(
      self._spec.features,
      edge.stride,
      self._context,
      self._mode,
      kernels,
      params,
      stats,
    )

  def _combine(self) -> jax.Array:
    outputs = [_total(self._terms[node]) for node in self._spec.outputs]
    if self._spec.combine == 'concat':
      return jnp.concatenate(outputs, axis=-1)
    return _total(outputs)


def _cell(run, context, mode, inputs, variables, gates):
  """A cell as a function of arrays, for loops and rematerialization."""
  params, stats = variables
  return _Cell(run, context, mode, params, stats, gates)(inputs)


def _total(terms: Sequence[jax.Array]) -> jax.Array:
  """The sum, taken in at least float32."""
  if len(terms) == 1:
    return terms[0]
  dtype = terms[0].dtype
  wide = [t.astype(layers.param_dtype(dtype)) for t in terms]
  return functools.reduce(jnp.add, wide).astype(dtype)
