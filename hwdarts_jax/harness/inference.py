"""The function that is deployed: constants folded, in forms runtimes know.

Training code and inference runtimes see the same arithmetic in different
forms. `simplify` evaluates the jaxpr of a function once more and

- computes whatever does not depend on the input, so that the batch norm of
  fixed statistics becomes one product and one sum;
- moves a product with constants into the kernels of the convolutions before
  it, and a sum into what becomes their bias, also through a concatenation;
- drops sums with zero and computes equal expressions once;
- writes average pooling so that it stays one builtin operation;
- writes dense layers on pixels as 1x1 convolutions.

The result is the same function up to rounding, of few primitives.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.runtime.workdir import UserError

Function = Callable[[Any], Any]
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


@dataclasses.dataclass
class _Pending:
  """A result that takes constants for free, while nobody has read it.

  Attributes:
    emit: factor and offset, each None where there is none -> the result.
    takes: whether it takes this factor.
    by_channel: whether it takes any number of factors, then an offset, of one
      value a channel.
    factor: what it took so far.
  """

  emit: Callable[[np.ndarray | None, np.ndarray | None], Any]
  takes: Callable[[np.ndarray], bool]
  by_channel: bool = False
  factor: np.ndarray | None = None


def simplify(
  function: Function, shape: Sequence[int], builtin_pools: bool = True
) -> Function:
  """Returns the deployed form of a function of one array.

  It computes in the type of its input, whatever that of the weights.

  Args:
    function: f32[shape] -> array; its weights are constants.
    shape: of the input.
    builtin_pools: write average pooling as TFLite knows it; else it stays the
      sum of a window, times a constant.
  """
  closed = jax.make_jaxpr(function)(
    jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
  )

  def simplified(x):
    run = _Run(builtin_pools)
    consts = [np.asarray(c) for c in closed.consts]
    (y,) = run.evaluate(closed.jaxpr, consts, [x])
    return run.value(y)

  return simplified


class _Run:
  """One evaluation; an array is known as numpy, or else it is traced."""

  def __init__(self, builtin_pools: bool):
    self.builtin_pools = builtin_pools
    self._seen: dict[Any, list[Any]] = {}
    self._emitted: dict[int, tuple[_Pending, Any]] = {}

  def evaluate(self, jaxpr, consts, args) -> list[Any]:
    """Returns the outputs of a jaxpr."""
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    uses = count_uses(jaxpr)

    def read(atom):
      return (
        np.asarray(atom.val) if isinstance(atom, jex.Literal) else env[atom]
      )

    for eqn in jaxpr.eqns:
      inputs = [read(a) for a in eqn.invars]
      outputs = self._equation(eqn, inputs, uses)
      env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(a) for a in jaxpr.outvars]

  def value(self, value: Any) -> Any:
    """What stands behind a value: a pending one is computed now, once."""
    if not isinstance(value, _Pending):
      return value
    if id(value) not in self._emitted:
      self._emitted[id(value)] = value, value.emit(value.factor, None)
    return self._emitted[id(value)][1]

  def _equation(self, eqn, inputs, uses) -> list[Any]:
    inner = next((eqn.params[n] for n in _CALLS if n in eqn.params), None)
    if inner is not None:
      open_jaxpr = getattr(inner, 'jaxpr', inner)
      consts = [np.asarray(c) for c in getattr(inner, 'consts', ())]
      # A pending value might be read more than once, inside and afterwards.
      values = [self.value(v) for v in inputs]
      results = self.evaluate(open_jaxpr, consts, values)
      return [
        r if uses[v] == 1 else self.value(r)
        for r, v in zip(results, eqn.outvars, strict=True)
      ]
    if all(isinstance(v, np.ndarray) for v in inputs):
      return compute(eqn, inputs)
    rule = _RULES.get(eqn.primitive.name)
    once = all(uses[v] == 1 for v in eqn.outvars)
    found = None if rule is None else rule(self, eqn, inputs, once)
    if found is not None:
      return [found if once else self.value(found)]
    values = [self.value(v) for v in inputs]
    key = (eqn.primitive.name, str(eqn.params), *map(_identity, values))
    if key not in self._seen:
      # The inputs are kept: an id belongs to its object only while it lives.
      self._seen[key] = [_bind(eqn, values), values]
    return self._seen[key][0]


def _scale(run: _Run, eqn, inputs, once) -> Any:
  """A product with, or a quotient by, a constant."""
  pending, factor = inputs
  if eqn.primitive.name == 'mul' and isinstance(factor, _Pending):
    pending, factor = factor, pending
  if not isinstance(pending, _Pending) or not isinstance(factor, np.ndarray):
    return None
  if eqn.primitive.name == 'div':
    factor = (1 / factor.astype(np.float64)).astype(factor.dtype)
  if not pending.takes(factor):
    return None
  if not pending.by_channel:
    return pending.emit(factor, None)
  return dataclasses.replace(pending, factor=_product(pending.factor, factor))


def _add(run: _Run, eqn, inputs, once) -> Any:
  """A sum with zero is the other term; one with constants becomes a bias."""
  del run, once
  for constant, other in (inputs, inputs[::-1]):
    if not isinstance(constant, np.ndarray):
      continue
    if not constant.any():
      if constant.shape in ((), eqn.outvars[0].aval.shape):
        return other
    elif (
      isinstance(other, _Pending) and other.by_channel and other.takes(constant)
    ):
      return other.emit(other.factor, constant)
  return None


def _convolution(run: _Run, eqn, inputs, once) -> Any:
  """A convolution takes a factor for each channel into its kernel."""
  x, kernel = run.value(inputs[0]), inputs[1]
  numbers = eqn.params['dimension_numbers']
  out_axis = numbers.out_spec[1]
  shape = eqn.outvars[0].aval.shape
  if not (once and isinstance(kernel, np.ndarray)):
    return None

  def emit(factor, offset):
    scaled = kernel
    if factor is not None:
      per_channel = np.broadcast_to(factor, _only(shape, out_axis)).reshape(-1)
      axes = _only(kernel.shape, numbers.rhs_spec[0])
      scaled = kernel * per_channel.reshape(axes)
    y = _bind(eqn, [x, scaled])[0]
    return y if offset is None else y + offset.astype(y.dtype)

  def takes(factor):
    return _fits(factor.shape, _only(shape, out_axis))

  return _Pending(emit, takes, by_channel=True)


def _concatenate(run: _Run, eqn, inputs, once) -> Any:
  """Convolutions side by side take their parts of a factor and an offset."""
  del run
  shape, axis = eqn.outvars[0].aval.shape, eqn.params['dimension']
  if axis != len(shape) - 1 or not once:
    return None
  if not all(isinstance(v, _Pending) and v.by_channel for v in inputs):
    return None
  ends = np.cumsum([v.aval.shape[axis] for v in eqn.invars])[:-1]

  def split(value):
    if value is None:
      return [None] * len(inputs)
    return np.split(np.broadcast_to(value, _only(shape, axis)), ends, axis)

  def emit(factor, offset):
    parts = [
      part.emit(_product(part.factor, own), add)
      for part, own, add in zip(
        inputs, split(factor), split(offset), strict=True
      )
    ]
    return _bind(eqn, parts)[0]

  def takes(factor):
    return _fits(factor.shape, _only(shape, axis))

  return _Pending(emit, takes, by_channel=True)


def _window_sum(run: _Run, eqn, inputs, once) -> Any:
  """A sum of windows, divided by the pixels it has, is average pooling."""
  params = eqn.params
  window, strides = params['window_dimensions'], params['window_strides']
  padding = params['padding']
  if not (once and run.builtin_pools):
    return None
  x = run.value(inputs[0])
  counts = compute(eqn, [np.ones((1, *x.shape[1:3], 1), x.dtype)])[0]

  def emit(factor, offset):
    del offset
    if factor is None:
      return _bind(eqn, [x])[0]
    same = lax.padtype_to_pads(x.shape, window, strides, 'SAME')
    if tuple(padding) == tuple(same):
      ones = lax.full((1, *x.shape[1:3], 1), 1, x.dtype)
      return _bind(eqn, [x])[0] / _bind(eqn, [ones])[0]
    size = np.prod(window).astype(x.dtype)
    padded = lax.pad(x, np.zeros((), x.dtype), [(*p, 0) for p in padding])
    valid = functools.partial(
      lax.reduce_window_sum_p.bind,
      **{**params, 'padding': ((0, 0),) * len(window)},
    )
    return (valid(padded) / size) * (size / counts).astype(x.dtype)

  def takes(factor):
    return _fits(factor.shape, counts.shape) and np.allclose(factor * counts, 1)

  return _Pending(emit, takes)


def _dense(run: _Run, eqn, inputs, once) -> Any:
  """A dense layer on pixels is no builtin, but a 1x1 convolution is."""
  del once
  if isinstance(inputs[0], np.ndarray) or not isinstance(inputs[1], np.ndarray):
    return None
  x, kernel = run.value(inputs[0]), inputs[1]
  if eqn.params['dimension_numbers'] != (((3,), (0,)), ((), ())):
    return None
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x,
    jnp.asarray(kernel[None, None], x.dtype),
    (1, 1),
    'VALID',
    dimension_numbers=numbers,
  )


def _bind(eqn, values) -> list[Any]:
  """Evaluates a primitive as it stands, constants in the type of the rest."""
  traced = [v.dtype for v in values if not isinstance(v, np.ndarray)]
  if traced and jnp.issubdtype(traced[0], jnp.floating):
    values = [
      v.astype(traced[0])
      if isinstance(v, np.ndarray) and v.dtype.kind == 'f'
      else v
      for v in values
    ]
  result = eqn.primitive.bind(*values, **eqn.params)
  return list(result) if eqn.primitive.multiple_results else [result]


def compute(eqn, values) -> list[np.ndarray]:
  """The outputs of an equation whose inputs are all known."""
  try:
    cpu = jax.local_devices(backend='cpu')[0]
  except RuntimeError as e:
    raise UserError(
      'constants are folded on the CPU, which JAX does not have here: add cpu '
      'to the environment variable JAX_PLATFORMS, such as cuda,cpu.'
    ) from e
  with jax.ensure_compile_time_eval(), jax.default_device(cpu):
    return [np.asarray(v) for v in _bind(eqn, values)]


def count_uses(jaxpr) -> collections.Counter:
  """How often each variable of a jaxpr is read."""
  read = [a for eqn in jaxpr.eqns for a in eqn.invars] + list(jaxpr.outvars)
  return collections.Counter(a for a in read if not isinstance(a, jex.Literal))


def _identity(value: Any) -> Any:
  """Equal for inputs that are certainly the same."""
  if isinstance(value, np.ndarray) and value.size == 1:
    return value.shape, value.dtype.str, value.tobytes()
  return id(value)


def _product(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
  """Product of two factors, of which None is 1."""
  if a is None or b is None:
    return b if a is None else a
  return a * b


def _only(shape: Sequence[int], axis: int) -> tuple[int, ...]:
  """The shape that differs from 1 on one axis at most."""
  return tuple(n if i == axis else 1 for i, n in enumerate(shape))


def _fits(shape: Sequence[int], into: Sequence[int]) -> bool:
  """Whether an array of `shape` can be broadcast to `into`."""
  return not shape or (
    len(shape) == len(into)
    and all(n in (1, m) for n, m in zip(shape, into, strict=True))
  )


_RULES: dict[str, Callable[..., Any]] = {
  'add': _add,
  'add_any': _add,
  'concatenate': _concatenate,
  'conv_general_dilated': _convolution,
  'div': _scale,
  'dot_general': _dense,
  'mul': _scale,
  'reduce_window_sum': _window_sum,
}
