"""Candidates of an edge on one set of weights.

The ops of a `op.Family` differ in sizes only: of a kernel, of a layer. The
smaller one's weights are a part of the larger one's (Cai et al.,
"Once-for-All", ICLR 2020; Stamoulis et al., "Single-Path NAS", ECML 2019), the
centre of a kernel and the first channels, so that a mixture of all costs about
as much as the largest. With one-hot gates a family is that op, exactly, on its
part of the weights; in between it is a relaxation that its class describes.
`Context.superkernels` turns families on; without it every op has its own
weights, and the mixture is the sum that `network.Edge` writes down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import NetworkSpec


def share(part: jax.Array, whole: jax.Array) -> jax.Array:
  """A part of a whole, 0 where the whole is 0; its gradient is finite."""
  return part / jnp.where(whole > 0, whole, 1)


def units(weights: jax.Array, sizes: np.ndarray, count: int) -> jax.Array:
  """How much weight is on ops that have a unit.

  Args:
    weights: f[O], of ops.
    sizes: i64[O], how many units each op has; the first ones.
    count: units in all.

  Returns:
    f[count].
  """
  has = np.arange(count) < np.asarray(sizes)[:, None]
  return weights @ jnp.asarray(has, weights.dtype)


def kernel_mask(
  weights: jax.Array, kernels: np.ndarray, channels: np.ndarray, count: int
) -> jax.Array:
  """The factor of the largest depthwise kernel that mixes nested ones.

  Convolution is linear in its kernel: one by the product of the largest kernel
  with this mask equals the mean of those by the nested kernels, weighted, for
  each channel, by the ops that have it.

  Args:
    weights: f[O], of ops.
    kernels: i64[O], the size of the kernel of each.
    channels: i64[O], how many channels each has; the first ones.
    count: channels in all.

  Returns:
    f[K, K, 1, count], 0 to 1, with the largest kernel's size K.
  """
  largest = int(kernels.max())
  offset = np.abs(np.arange(largest) - largest // 2)
  ring = np.maximum(offset[:, None], offset)  # 0 is the centre
  reaches = kernels[:, None, None] // 2 >= ring  # bool[O, K, K]
  has = np.arange(count) < channels[:, None]  # bool[O, count]
  both = (reaches[:, :, :, None] & has[:, None, None, :]).astype(np.float32)
  of_place = jnp.tensordot(weights, jnp.asarray(both, weights.dtype), 1)
  whole = units(weights, channels, count).reshape(1, 1, 1, count)
  return share(of_place[:, :, None, :], whole)


def has_families(spec: NetworkSpec) -> bool:
  """Whether any searched edge of a spec has ops that can share weights."""
  return any(
    family
    for cell in spec.all_cells
    for edge in cell.edges
    if len(edge.ops) > 1
    for family, _ in op_lib.families(edge.ops)
  )


def to_plain(
  spec: NetworkSpec, variables: Mapping[str, Any], template: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns variables of a network without families: each op's own part.

  Args:
    spec: of the supernet.
    variables: of its network with families.
    template: those of the network without, of arrays or shapes.
  """
  source = traverse_util.flatten_dict(variables)
  homes = {}
  for cell in spec.all_cells:
    for edge in cell.edges:
      if len(edge.ops) == 1:
        continue
      for family, ops in op_lib.families(edge.ops):
        if family is not None:
          for name in ops:
            homes[cell.name, edge.name, name] = family.__name__
  found = {}
  for path, leaf in traverse_util.flatten_dict(template).items():
    collection, cell, edge, op, *rest = path
    home = homes.get((cell, edge, op), op)
    found[path] = crop(source[collection, cell, edge, home, *rest], leaf.shape)
  return traverse_util.unflatten_dict(found)


def crop(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The part of an array that a smaller op has.

  Args:
    value: f[K, K, I, O], a kernel, or f[I, O] or f[O].
    shape: of the part: the centre of a kernel, the first channels.
  """
  pixels = len(shape) - 2 if len(shape) == 4 else 0
  starts = [
    (size - part) // 2 if axis < pixels else 0
    for axis, (size, part) in enumerate(zip(value.shape, shape, strict=True))
  ]
  return value[
    tuple(slice(a, a + n) for a, n in zip(starts, shape, strict=True))
  ]
