"""A state of many small arrays as one of a few large ones, while a loop runs.

Each array of a state is an argument and a result of every call of a compiled
step. The 500 of a DARTS supernet cost the host most of a millisecond a call, in
which a GPU that is waited for idles, and many of them a small kernel that puts
the new value where the old one was. Packed, a field of a state is one array of
every dtype; the step takes it apart and puts it together again, in few
kernels. Nothing is computed in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.runtime import sharding

_LEAST = 16  # arrays of a field that is worth it


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the leaves of a pytree are; hashable.

  Attributes:
    structure: of the pytree.
    shapes: of its leaves.
    dtypes: of its leaves.
  """

  structure: Any
  shapes: tuple[tuple[int, ...], ...]
  dtypes: tuple[str, ...]

  def join(self, leaves: Sequence[Any], concatenate: Any) -> tuple[Any, ...]:
    """The leaves as vectors, one of each dtype."""
    return tuple(
      concatenate([leaves[i].ravel() for i in some]) for some in self._same()
    )

  def split(self, vectors: Sequence[Any], split: Any) -> list[Any]:
    """The inverse of `join`, by ``split(vector, ends) -> parts``."""
    leaves: list[Any] = [None] * len(self.shapes)
    for vector, some in zip(vectors, self._same(), strict=True):
      ends = np.cumsum([math.prod(self.shapes[i]) for i in some])
      for i, part in zip(some, split(vector, ends[:-1]), strict=True):
        leaves[i] = part.reshape(self.shapes[i])
    return leaves

  def _same(self) -> list[list[int]]:
    """Numbers of the leaves of each dtype."""
    names = sorted(set(self.dtypes))
    return [[i for i, d in enumerate(self.dtypes) if d == n] for n in names]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['vectors'],
  meta_fields=['layout'],
)
@dataclasses.dataclass(frozen=True)
class Packed:
  """The leaves of a pytree, end to end.

  Attributes:
    vectors: one of each dtype, [N].
    layout: where they are.
  """

  vectors: tuple[Any, ...]
  layout: Layout


def pays() -> bool:
  """Whether a loop is faster so: on GPUs.

  A TPU keeps a vector in another order than a kernel, and a CPU would only
  copy.
  """
  return jax.default_backend() == 'gpu'


def packed(state: Any, fields: Collection[str]) -> Any:
  """A state with some of its fields packed; outside of compiled functions.

  Args:
    state: a dataclass whose fields are pytrees of arrays, each the same on
      every device.
    fields: names of those to pack; one of few arrays stays as it is.
  """

  def pack(tree):
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) < _LEAST:
      return tree
    shapes = tuple(leaf.shape for leaf in leaves)
    dtypes = tuple(str(leaf.dtype) for leaf in leaves)
    layout = Layout(structure, shapes, dtypes)
    hosts = [np.asarray(leaf.addressable_data(0)) for leaf in leaves]
    vectors = layout.join(hosts, np.concatenate)
    return Packed(sharding.put(vectors, leaves[0].sharding), layout)

  own = {name: pack(getattr(state, name)) for name in fields}
  return dataclasses.replace(state, **own)


def unpacked(state: Any) -> Any:
  """The inverse of `packed`; also outside of compiled functions.

  By way of the host: a compiled program with some hundred results takes
  seconds to compile.
  """

  def unpack(tree):
    if not isinstance(tree, Packed):
      return tree
    hosts = [np.asarray(v.addressable_data(0)) for v in tree.vectors]
    leaves = sharding.put(
      tree.layout.split(hosts, np.split), tree.vectors[0].sharding
    )
    return tree.layout.structure.unflatten(leaves)

  return _map_fields(unpack, state)


def transparent(step: Callable[..., Any]) -> Callable[..., Any]:
  """Makes ``step(state, *args) -> (state, result)`` take packed states too.

  The state that it returns is packed where the one that it was given is. For
  use inside of compiled functions.
  """

  def of_either(state, *args):
    old = _map_fields(_taken_apart, state)
    new, result = step(old, *args)
    return _map_fields(_put_together, state, old, new), result

  return of_either


def _taken_apart(tree: Any) -> Any:
  """`unpacked`, for tracers."""
  if not isinstance(tree, Packed):
    return tree

  def split(vector, ends):
    return jax.lax.split(vector, np.diff([0, *ends, vector.size]).tolist())

  return tree.layout.structure.unflatten(tree.layout.split(tree.vectors, split))


def _put_together(held: Any, old: Any, new: Any) -> Any:
  """`packed`, for tracers: a new field in the place of one that was held."""
  if not isinstance(held, Packed):
    return new
  if new is old:  # which no compiler need find out
    return held
  leaves = jax.tree.leaves(new)
  return Packed(held.layout.join(leaves, jnp.concatenate), held.layout)


def _map_fields(function: Callable[..., Any], *states: Any) -> Any:
  """The last of some dataclasses, each field made of those of all."""
  last = states[-1]
  return dataclasses.replace(
    last,
    **{
      field.name: function(*(getattr(state, field.name) for state in states))
      for field in dataclasses.fields(last)
    },
  )
