"""Ops on several edges that read one input: the unit of fused evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

from flax import struct, traverse_util
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from hwdarts_jax.models import convs, layers, mixing
from hwdarts_jax.models import op as op_lib

Tree = Any
Path = tuple[str, ...]
# Names of outputs of convolutions, the last of an op and others.
_CONV = 'conv'
_FIRST_CONV = 'first conv'
# What a backward pass keeps, by what it computes again; None is everything.
REMATS: dict[str, tuple[str, ...] | None] = {
  'nothing': None,
  'activations': (_CONV, _FIRST_CONV, mixing.MOMENTS),
  'first_convolutions': (_CONV, mixing.MOMENTS),
}
# Convolutions share a call where this share of its taps is not zero.
_MIN_TAPS = 0.5


class Mode(NamedTuple):
  """How a pass goes over the network.

  Attributes:
    train: whether batch norms use the statistics of the batch.
    groups: batch groups, each with statistics of its own.
    halves: whether every other group is of a second batch, which changes
      neither running statistics nor the gradient of params.
  """

  train: bool
  groups: int
  halves: bool


class _Part(NamedTuple):
  """A term of the sum, and where its batch norms keep their statistics."""

  term: mixing.Term
  norms: tuple[Path, ...]  # one for each op, or ()


class _Chain(NamedTuple):
  """An op as a chain of stages, on E edges.

  Attributes:
    name: of the op.
    stages: one or more.
    gates: f32[G or 1, E].
    kernels: of each stage, f[E, K, K, C, features].
  """

  name: str
  stages: tuple[op_lib.Stage, ...]
  gates: jax.Array
  kernels: tuple[jax.Array, ...]

  @property
  def window(self) -> int:
    """Width of the first kernel."""
    return self.kernels[0].shape[1]

  def norm(self, i: int) -> Path:
    """Keys of the statistics of a stage."""
    return (self.name, *self.stages[i].norm)


@struct.dataclass
class Fan:
  """Evaluates the weighted sum of ops for each of E edges.

  Attributes:
    features: channels of the output.
    stride: of the edges.
    context: settings shared by all ops.
    mode: how the pass goes.
    kernels: what `kernels` returns.
    params: of each other op, f[E, ...].
    stats: of each op, f[E, ...].
  """

  features: int = struct.field(pytree_node=False)
  stride: int = struct.field(pytree_node=False)
  context: op_lib.Context = struct.field(pytree_node=False)
  mode: Mode = struct.field(pytree_node=False)
  kernels: Mapping[str, tuple[jax.Array, ...]]
  params: Mapping[str, Any]
  stats: Mapping[str, Any]

  def __call__(
    self, x: jax.Array, gates: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, Tree]:
    """Returns f[B, H', W', E, features] and new statistics.

    Args:
      x: f[B, H, W, C].
      gates: of each op to evaluate, f32[G or 1, E].
    """
    parts: list[_Part] = []
    chains: list[_Chain] = []
    new: dict[Path, jax.Array] = {}
    for name, gate in gates.items():
      op = op_lib.get(name)(self.features, self.stride, self.context)
      in_shape = x.shape[1], x.shape[2], x.shape[3]
      stages, shared = op.stages(in_shape), op.shared(in_shape)
      if stages:
        chains.append(_Chain(name, stages, gate, self.kernels[name]))
      elif shared is not None:
        norms = ((name, *shared.norm),) if shared.norm else ()
        y = self._five(shared.function(x), 1, 1)
        parts.append(self._part(y, [gate], norms))
      else:
        y, updated = self._by_itself(op, name, x, gate.shape[-1])
        parts.append(self._part(y, [gate], ()))
        new |= updated
    if chains:
      x = jax.nn.relu(x)
    for alike in _alike(chains):
      new |= self._run(x, alike, parts)
    y, moments = mixing.mix(
      [part.term for part in parts], self.context.dtype, self.mode.train
    )
    for part, of_part in zip(parts, moments, strict=True):
      new |= self._moved(part.norms, of_part)
    y = y.reshape(-1, *self._size(x), *y.shape[2:])
    return y, traverse_util.unflatten_dict(new)

  def _run(self, x, chains: Sequence[_Chain], parts: list[_Part]):
    """Appends the parts of chains whose first convolutions are one.

    Returns:
      New statistics of all stages but the last.
    """
    widest = max(chains, key=lambda c: c.window)
    count = len(widest.kernels[0])
    kernels = [convs.padded(c.kernels[0], widest.window) for c in chains]
    norms = tuple(c.norm(0) for c in chains)
    is_last = len(widest.stages) == 1
    # Gates of each batch group would need kernels of each.
    if self.context.one_hot and is_last and len(chains[0].gates) == 1:
      kernel = convs.beside(_chosen(kernels, [c.gates for c in chains]))
      y = self._conv(x, kernel, widest.stages[0], _CONV)
      y = self._five(y, 1, count)
      parts.append(self._part_of_chosen(y, [c.gates for c in chains], norms))
      return {}
    kernel = jnp.concatenate([convs.beside(k) for k in kernels], axis=-1)
    name = _CONV if is_last else _FIRST_CONV
    y = self._conv(x, kernel, widest.stages[0], name)
    y = self._five(y, len(chains), count)
    if is_last:
      parts.append(self._part(y, [c.gates for c in chains], norms))
      return {}
    hs, new = self._norm_relu(y, norms)
    for chain, h in zip(chains, hs, strict=True):
      for i, stage in enumerate(chain.stages[1:], start=1):
        kernel = convs.diagonal(chain.kernels[i])
        h = h.reshape(x.shape[0], *self._size(x), kernel.shape[2])
        is_last = i + 1 == len(chain.stages)
        name = _CONV if is_last else _FIRST_CONV
        y = self._five(self._conv(h, kernel, stage, name), 1, count)
        if not is_last:
          (h,), updated = self._norm_relu(y, (chain.norm(i),))
          new |= updated
      parts.append(self._part(y, [chain.gates], (chain.norm(-1),)))
    return new

  def _part(self, y, gates: Sequence[jax.Array], norms: tuple[Path, ...]):
    running = self._running(norms) if norms else None
    term = mixing.Term(y, jnp.stack(gates, axis=1), running)
    return _Part(term, norms)

  def _part_of_chosen(self, y, gates: Sequence[jax.Array], norms):
    """As `_part`, of one output for several ops of which one is chosen."""
    weight = jnp.stack(gates, axis=1)[:, None, :, :, None]
    of_all = self._running(norms)
    running = mixing.Moments(
      *((value * weight).sum(2, keepdims=True) for value in of_all)
    )
    total = sum(gates[1:], gates[0])[:, None]
    return _Part(mixing.Term(y, total, running), norms)

  def _running(self, norms: Sequence[Path]) -> mixing.Moments:
    """Running statistics f32[1, 1, O, E, C] of batch norms."""
    mean, var = (
      jnp.stack([_at(self.stats, norm)[key] for norm in norms])[None, None]
      for key in ('mean', 'var')
    )
    return mixing.Moments(mean, var)

  def _norm_relu(self, y, norms: tuple[Path, ...]):
    hs, moments = mixing.norm_relu(y, self._running(norms), self.mode.train)
    return hs, self._moved(norms, moments)

  def _moved(self, norms: Sequence[Path], moments: mixing.Moments | None):
    """Running statistics after a batch, by their paths."""
    new = {}
    for i, norm in enumerate(norms):
      for key, old in _at(self.stats, norm).items():
        new[*norm, key] = old
        if moments is not None:
          values = getattr(moments, key)
          # Ops of which one is chosen have one output.
          of_groups = values[:, 0, min(i, values.shape[2] - 1)]
          if self.mode.halves:
            of_groups = of_groups[::2]
          keep = self.context.bn_momentum
          new[*norm, key] = keep * old + (1 - keep) * jnp.broadcast_to(
            of_groups.mean(0), old.shape
          )
    return new

  def _conv(self, x, kernel, stage: op_lib.Stage, name: str):
    """A dense convolution; of two batches only the first trains its kernel."""
    if self.mode.halves:
      y = convs.convolve_pair(stage, self.mode.groups // 2, x, kernel)
    else:
      y = convs.convolve(stage, x, kernel, self.context.dense)
    return checkpoint_name(y, name)

  def _by_itself(self, op: op_lib.Op, name: str, x, count: int):
    """Evaluates an op as the plain network does, edge by edge."""
    params, stats = self.params.get(name, {}), self.stats.get(name, {})
    ys, news = [], []
    for i in range(count):
      cut = functools.partial(jax.tree.map, lambda v, i=i: v[i])
      y, new = by_itself(op, x, cut(params), cut(stats), self.mode)
      ys.append(self._five(y, 1, 1))
      news.append(traverse_util.flatten_dict({name: new}))
    stacked = {k: jnp.stack([new[k] for new in news]) for k in news[0]}
    return jnp.concatenate(ys, axis=3), stacked

  def _five(self, y, num_ops: int, count: int):
    """f[B, H, W, O * E * C] -> f[G, N, O, E, C].

    Raises:
      ValueError: B is not divisible by the number of groups.
    """
    convs.check_groups(y.shape[0], self.mode.groups)
    channels = y.shape[-1] // (num_ops * count)
    return y.reshape(self.mode.groups, -1, num_ops, count, channels)

  def _size(self, x) -> list[int]:
    return [-(-n // self.stride) for n in x.shape[1:3]]


@jax.jit
def evaluate(fan: Fan, x: jax.Array, gates: Mapping[str, jax.Array]):
  """`Fan.__call__`, traced once for all fans that are alike."""
  return fan(x, gates)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def kernels(
  names: tuple[str, ...],
  features: int,
  stride: int,
  context: op_lib.Context,
  in_shape: tuple[int, int, int],
  params: Mapping[str, Any],
) -> dict[str, tuple[jax.Array, ...]]:
  """Dense kernels of the ops that are chains of stages.

  For many edges at once, so that their gradients come in few kernels.

  Args:
    names: of ops.
    features: channels of the output.
    stride: of the edges.
    context: settings shared by all ops.
    in_shape: (H, W, C) of the input.
    params: of each op, f[E, ...].

  Returns:
    For each chain and each of its stages f[E, K, K, C', features].
  """
  found = {}
  for name in names:
    stages = op_lib.get(name)(features, stride, context).stages(in_shape)
    if stages:
      found[name] = tuple(
        jax.vmap(stage.kernel)(params[name]).astype(context.dtype)
        for stage in stages
      )
  return found


def by_itself(op: op_lib.Op, x, params, stats, mode: Mode):
  """Evaluates an op as the plain network does: output, new statistics."""

  def apply(x, params):
    y, updated = op.apply(
      {'params': params, 'batch_stats': stats},
      x,
      mode.train,
      mutable=['batch_stats'],
    )
    return y, updated.get('batch_stats', {})

  if not mode.halves:
    return apply(x, params)
  first, second = convs.split_pair(x, mode.groups // 2)
  y, new = apply(first, params)
  z, _ = apply(second, jax.lax.stop_gradient(params))
  return convs.join_pair((y, z), mode.groups // 2), new


def _chosen(kernels: Sequence[jax.Array], gates: Sequence[jax.Array]):
  """Of each edge the kernel whose gate, f32[1, E], is one, or zeros."""
  return sum(
    kernel * gate[0, :, None, None, None, None].astype(kernel.dtype)
    for kernel, gate in zip(kernels, gates, strict=True)
  )


def _alike(chains: Sequence[_Chain]) -> list[list[_Chain]]:
  """Groups chains whose first convolutions can be one, with zero taps."""
  found: list[list[_Chain]] = []
  for chain in sorted(chains, key=lambda c: -c.window):
    for group in found:
      if _can_join(group, chain):
        group.append(chain)
        break
    else:
      found.append([chain])
  return found


def _can_join(group: Sequence[_Chain], chain: _Chain) -> bool:
  """Whether a chain, no larger than those of the group, joins them."""
  first, stage = group[0].stages[0], chain.stages[0]
  same = (first.stride, first.dilation, len(group[0].stages)) == (
    stage.stride,
    stage.dilation,
    len(chain.stages),
  )
  centered = all(
    c.stages[0].padding == layers.same(c.window, c.stages[0].dilation)
    and c.window % 2
    for c in (group[0], chain)
  )
  taps = [c.window**2 for c in (*group, chain)]
  share = sum(taps) / (len(taps) * group[0].window ** 2)
  return bool(same and centered and share >= _MIN_TAPS)


def _at(tree: Any, path: Sequence[str]) -> Any:
  for key in path:
    tree = tree[key]
  return tree
