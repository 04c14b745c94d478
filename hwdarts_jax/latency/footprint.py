"""What an op asks of memory: its constants, and the images it keeps meanwhile.

Read off the jaxpr of the op in inference, the way an inference runtime would
run it: batch norm and other products and sums with constants are part of what
computes their operand; ReLU is part of it as well where nobody else reads that;
padding that is neither 'same' nor 'valid' is an image of its own; a sum of two
images is written over one of them. Images are those of one float32 example.

Nothing here knows the name of an op.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models import ops
from hwdarts_jax.spaces.spec import Shape, Site

FLOAT_BYTES = 4
_RAW, _ACTIVATED = -1, -2  # the input of the op, and its ReLU
_CONSTANT = None
_INNER = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
# They leave the numbers, and the memory that holds them, as they are.
_VIEWS = (
  'broadcast_in_dim',
  'convert_element_type',
  'copy',
  'reshape',
  'squeeze',
  'stop_gradient',
)
_PRODUCTS = ('conv_general_dilated', 'dot_general')
_WINDOWS = ('reduce_window', 'reduce_window_max', 'reduce_window_sum')


class Step(NamedTuple):
  """One operation of a runtime, by what it reads from outside the op.

  Attributes:
    reads_input: whether it reads the input of the op.
    reads_activated: whether it reads the ReLU of the input.
  """

  reads_input: bool
  reads_activated: bool


class Inner(NamedTuple):
  """An image inside an op, needed from one of its steps to another.

  Attributes:
    size: bytes.
    first: step that writes it.
    last: the last step that reads it.
  """

  size: int
  first: int
  last: int


@dataclasses.dataclass(frozen=True)
class Footprint:
  """What an op at a site asks of memory.

  Attributes:
    steps: operations in the order in which they run; none where the op hands
      on its input, or zeros.
    inner: images inside the op.
    out_bytes: of the image that it writes.
    out_step: the first step that writes to it; the last one, unless that adds
      something to it.
    constant_bytes: of kernels and biases.
    num_tensors: constants and images that a file has to name.
    is_zero: whether it adds nothing.
  """

  steps: tuple[Step, ...]
  inner: tuple[Inner, ...]
  out_bytes: int
  out_step: int
  constant_bytes: int
  num_tensors: int
  is_zero: bool

  def inner_bytes(self, step: int) -> int:
    """Of the images inside the op that are there during a step."""
    return sum(i.size for i in self.inner if i.first <= step <= i.last)

  @property
  def kept_bytes(self) -> int:
    """Of the images inside the op that the last step reads."""
    end = len(self.steps) - 1
    return sum(i.size for i in self.inner if i.first < end == i.last)

  @property
  def is_identity(self) -> bool:
    """Whether the output is the input itself."""
    return not self.steps and not self.is_zero

  @property
  def is_shared(self) -> bool:
    """Whether two of it on one input are computed once."""
    return bool(self.steps) and not self.constant_bytes


def of(site: Site, op: str) -> Footprint:
  """Returns the footprint of an op at a site."""
  return _of(op, site.in_shape, site.features, site.stride, site.pool_bn)


@functools.cache
def _of(
  op: str, in_shape: Shape, features: int, stride: int, pool_bn: bool
) -> Footprint:
  module = ops.get(op)(features, stride, ops.Context(pool_bn=pool_bn))
  image = jax.ShapeDtypeStruct((1, *in_shape), jnp.float32)
  variables = jax.eval_shape(
    functools.partial(module.init, train=False), jax.random.key(0), image
  )
  closed = jax.make_jaxpr(functools.partial(module.apply, train=False))(
    variables, image
  )
  trace = _Trace()
  num_constants = len(jax.tree.leaves(variables))
  ids = [_CONSTANT] * num_constants + [_RAW]
  out = trace.run(closed.jaxpr, ids)[0]
  size = FLOAT_BYTES * math.prod(closed.jaxpr.outvars[0].aval.shape)
  return trace.footprint(out, size, ops.is_zero(op))


@dataclasses.dataclass
class _Instruction:
  """Reads images and writes one; `writes` may be one of those it reads."""

  reads: tuple[int, ...]
  writes: int


class _Trace:
  """Follows the images of an op through its jaxpr."""

  def __init__(self):
    self._instructions: list[_Instruction] = []
    self._bytes: list[int] = []
    self._constant_bytes = 0
    self._num_constants = 0
    self._folds: set[int] = set()  # images whose constants are in a kernel

  def run(self, jaxpr: Any, ids: list[int | None]) -> list[int | None]:
    """Ids of the outputs, given those of the inputs; constants are None."""
    env: dict[Any, int | None] = dict(zip(jaxpr.invars, ids, strict=True))
    uses = collections.Counter(
      a for e in jaxpr.eqns for a in e.invars if not isinstance(a, jex.Literal)
    )
    uses.update(a for a in jaxpr.outvars if not isinstance(a, jex.Literal))

    def read(atom: Any) -> int | None:
      return _CONSTANT if isinstance(atom, jex.Literal) else env.get(atom)

    for eqn in jaxpr.eqns:
      inner = next((eqn.params[n] for n in _INNER if n in eqn.params), None)
      found = [read(a) for a in eqn.invars]
      if all(i is _CONSTANT for i in found):
        outs: list[int | None] = [_CONSTANT] * len(eqn.outvars)
      elif inner is not None:
        outs = self.run(getattr(inner, 'jaxpr', inner), found)
      else:
        images = [i for i in found if i is not _CONSTANT]
        alone = all(
          uses[a] == 1
          for a, i in zip(eqn.invars, found, strict=True)
          if i is not _CONSTANT
        )
        outs = [self._equation(eqn, images, alone)] * len(eqn.outvars)
      env.update(zip(eqn.outvars, outs, strict=True))
    return [read(a) for a in jaxpr.outvars]

  def _equation(self, eqn: Any, images: list[int], alone: bool) -> int:
    """The image that an equation of one or more images writes."""
    name, first = eqn.primitive.name, images[0]
    if name in _VIEWS:
      return first
    if name in _PRODUCTS:
      return self._product(eqn, first)
    if name in _WINDOWS:
      windows = eqn.params
      return self._write(
        eqn,
        self._padded(
          eqn.invars[0].aval.shape,
          windows['padding'],
          windows['window_dimensions'],
          windows['window_strides'],
          first,
        ),
      )
    same_size = eqn.outvars[0].aval.shape == max(
      (a.aval.shape for a in eqn.invars), key=math.prod
    )
    elementwise = same_size and name in ('add', 'div', 'max', 'mul', 'sub')
    if elementwise and len(images) == 1:
      return self._with_constant(eqn, first, alone)
    if elementwise and alone and max(images) >= 0:
      own = max(images)  # of two the one that was computed last
      self._instructions.append(_Instruction(tuple(images), own))
      return own
    return self._write(eqn, *images)

  def _with_constant(self, eqn: Any, image: int, alone: bool) -> int:
    """A sum, product or maximum of an image and a constant."""
    if eqn.primitive.name == 'max':
      if image == _RAW:
        return _ACTIVATED
      return image if alone or image == _ACTIVATED else self._write(eqn, image)
    if eqn.primitive.name != 'div' and image not in self._folds:
      constant = min((a.aval.shape for a in eqn.invars), key=math.prod)
      self._add_constant(math.prod(constant))
    return image if image >= 0 and alone else self._write(eqn, image)

  def _product(self, eqn: Any, image: int) -> int:
    kernel = eqn.invars[1].aval.shape
    self._add_constant(math.prod(kernel))
    self._add_constant(eqn.outvars[0].aval.shape[-1])  # the bias
    if eqn.primitive.name == 'conv_general_dilated':
      numbers = eqn.params['dimension_numbers']
      spatial = [kernel[d] for d in numbers.rhs_spec[2:]]
      window = [
        (k - 1) * d + 1
        for k, d in zip(spatial, eqn.params['rhs_dilation'], strict=True)
      ]
      image = self._padded(
        eqn.invars[0].aval.shape,
        ((0, 0), *eqn.params['padding'], (0, 0)),
        (1, *window, 1),
        (1, *eqn.params['window_strides'], 1),
        image,
      )
    out = self._write(eqn, image)
    self._folds.add(out)
    return out

  def _padded(self, shape, padding, window, strides, image: int) -> int:
    """`image` if a runtime pads by itself, else a padded copy."""
    same = lax.padtype_to_pads(shape, window, strides, 'SAME')
    pads = tuple(map(tuple, padding))
    if pads == tuple(map(tuple, same)) or not np.any(pads):
      return image
    size = math.prod(n + sum(p) for n, p in zip(shape, pads, strict=True))
    return self._new(FLOAT_BYTES * size, image)

  def _write(self, eqn: Any, *images: int) -> int:
    return self._new(
      FLOAT_BYTES * math.prod(eqn.outvars[0].aval.shape), *images
    )

  def _new(self, size: int, *images: int) -> int:
    self._bytes.append(size)
    out = len(self._bytes) - 1
    self._instructions.append(_Instruction(images, out))
    return out

  def _add_constant(self, count: int) -> None:
    self._constant_bytes += FLOAT_BYTES * count
    self._num_constants += 1

  def footprint(
    self, out: int | None, out_bytes: int, is_zero: bool
  ) -> Footprint:
    """What was traced, seen from outside."""
    ends, first = {}, dict[int, int]()
    for at, step in enumerate(self._instructions):
      first.setdefault(step.writes, at)
      ends[step.writes] = at
      ends.update(dict.fromkeys(step.reads, at))
    inner = tuple(
      Inner(self._bytes[i], start, ends[i])
      for i, start in first.items()
      if i != out
    )
    steps = tuple(
      Step(_RAW in step.reads, _ACTIVATED in step.reads)
      for step in self._instructions
    )
    return Footprint(
      steps,
      inner,
      out_bytes,
      first.get(-3 if out is None else out, 0),
      self._constant_bytes,
      self._num_constants + len(steps),
      is_zero,
    )
