"""JAX to ONNX of opset 12, for OpenVINO (NCS2) and TensorRT (Jetson Nano).

A small exporter of our own: the runtimes of these devices read opset 12 or 13
and want images in NCHW, where the maintained exporter of JAX (jax2onnx 0.17)
writes a transposition around every convolution, a newer file format, and fails
on average pooling that does not count padding. It knows the few primitives
that `inference.simplify` leaves; any other is an error that names it.

Arrays of rank 4 are NHWC in JAX and NCHW in the file. The file is float32;
runtimes convert it to what they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.harness import inference
from hwdarts_jax.harness.convert import ConversionError, Converted, Target

OPSET = 12
IR_VERSION = 7  # of the release that brought opset 12
INPUT, OUTPUT = 'x', 'y'
_NHWC = (0, 3, 1, 2)  # position of N, C, H and W in an array of JAX


class _Tensor(NamedTuple):
  """A tensor of the graph, times a constant that is applied only if need be.

  Attributes:
    name: in the graph.
    factor: f32, in the layout of the graph; None is 1.
  """

  name: str
  factor: np.ndarray | None = None


def write(
  function: inference.Function,
  shape: tuple[int, ...],
  target: Target,
  samples: np.ndarray,
) -> Converted:
  """See `convert.convert`; `samples` are not needed."""
  import onnx

  del samples
  if target.dtype == 'bfloat16':
    raise ConversionError('ONNX runtimes of devices have no bfloat16.')
  simple = inference.simplify(function, shape, builtin_pools=False)
  closed = jax.make_jaxpr(simple)(jax.ShapeDtypeStruct(shape, jnp.float32))
  graph = _Graph(onnx)
  (result,) = graph.add_jaxpr(closed, _Tensor(INPUT))
  num_ops = len(graph.nodes)
  graph.node('Identity', [graph.use(result)], output=OUTPUT)
  info = functools.partial(
    onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT
  )
  proto = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes,
      'network',
      [info(INPUT, shape=_nchw(shape))],
      [info(OUTPUT, shape=_nchw(closed.out_avals[0].shape))],
      graph.constants,
    ),
    opset_imports=[onnx.helper.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
    producer_name='hwdarts_jax',
  )
  onnx.checker.check_model(proto, full_check=True)
  return Converted(proto.SerializeToString(), num_ops)


class _Graph:
  """Nodes and constants of the file, while they are written."""

  def __init__(self, onnx: Any):
    self.nodes: list[Any] = []
    self.constants: list[Any] = []
    self._onnx = onnx
    self._uses: Mapping[Any, int] = {}

  def add_jaxpr(self, closed: Any, image: _Tensor) -> list[Any]:
    """Writes a jaxpr of one input; returns its outputs."""
    env: dict[Any, Any] = {
      var: np.asarray(value)
      for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    env[closed.jaxpr.invars[0]] = image
    self._uses = inference.count_uses(closed.jaxpr)

    def read(atom):
      return (
        np.asarray(atom.val) if isinstance(atom, jex.Literal) else env[atom]
      )

    for eqn in closed.jaxpr.eqns:
      name = eqn.primitive.name
      if name not in _RULES:
        raise ConversionError(f'{name!r} has no form in ONNX here.')
      env[eqn.outvars[0]] = _RULES[name](
        self, eqn, [read(a) for a in eqn.invars]
      )
    return [read(a) for a in closed.jaxpr.outvars]

  def node(
    self, kind: str, inputs: list[str], output: str | None = None, **attributes
  ) -> _Tensor:
    """Adds a node and returns its output."""
    name = output or f't{len(self.nodes)}'
    make = self._onnx.helper.make_node
    self.nodes.append(make(kind, inputs, [name], **attributes))
    return _Tensor(name)

  def add_bias(self, eqn: Any, value: Any, bias: Any) -> _Tensor | None:
    """Gives a convolution that is read once a bias; None where there is none.

    Args:
      eqn: the sum of the two.
      value: what may be the output of the last node, a convolution.
      bias: what may be a constant of one value a channel.
    """
    if not isinstance(bias, np.ndarray) or isinstance(value, np.ndarray):
      return None
    last = self.nodes[-1] if self.nodes else None
    traced = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
    shape = eqn.outvars[0].aval.shape
    if (
      last is None
      or (last.op_type, len(last.input)) != ('Conv', 2)
      or value != _Tensor(last.output[0])
      or any(self._uses[v] != 1 for v in traced)
      or bias.shape not in ((), (1, 1, 1, 1), (1, 1, 1, shape[-1]))
    ):
      return None
    whole = np.broadcast_to(bias, (1, 1, 1, shape[-1])).reshape(-1)
    last.input.append(self.constant(whole))
    return value

  def use(self, value: Any) -> str:
    """Name of a tensor or constant that a node reads as it is."""
    if isinstance(value, np.ndarray):
      return self.constant(_constant_nchw(value))
    if value.factor is None:
      return value.name
    return self.node('Mul', [value.name, self.constant(value.factor)]).name

  def constant(self, value: np.ndarray) -> str:
    """Name of a constant in the layout of the graph."""
    name = f'c{len(self.constants)}'
    make = self._onnx.numpy_helper.from_array
    self.constants.append(make(np.ascontiguousarray(value), name))
    return name


def _nchw(shape: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(shape[i] for i in _NHWC) if len(shape) == 4 else tuple(shape)


def _constant_nchw(value: np.ndarray) -> np.ndarray:
  return value.transpose(_NHWC) if value.ndim == 4 else value


def _pads(padding: Any) -> list[int]:
  """Padding of (H, W) as ONNX writes it: starts, then ends."""
  return [p[0] for p in padding] + [p[1] for p in padding]


def _binary(kind: str, graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  del eqn
  return graph.node(kind, [graph.use(v) for v in inputs])


def _add(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  for value, bias in (inputs, inputs[::-1]):
    if (found := graph.add_bias(eqn, value, bias)) is not None:
      return found
  return _binary('Add', graph, eqn, inputs)


def _unary(kind: str, graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  del eqn
  return graph.node(kind, [graph.use(inputs[0])])


def _maximum(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  x, low = inputs
  if isinstance(low, np.ndarray) and not low.any():
    return graph.node('Relu', [graph.use(x)])
  return _binary('Max', graph, eqn, inputs)


def _scale(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  """A product or quotient; one that undoes the factor of a tensor is none."""
  divides = eqn.primitive.name == 'div'
  x, other = inputs
  if not divides and isinstance(x, np.ndarray):
    x, other = other, x
  if isinstance(other, np.ndarray) and x.factor is not None:
    constant = _constant_nchw(other)
    factor = x.factor / constant if divides else x.factor * constant
    if np.allclose(factor, 1, rtol=1e-6, atol=0):
      return _Tensor(x.name)
  return _binary('Div' if divides else 'Mul', graph, eqn, inputs)


def _convolution(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  params = eqn.params
  numbers = params['dimension_numbers']
  x, kernel = inputs
  if (
    (numbers.lhs_spec, numbers.out_spec) != ((0, 3, 1, 2),) * 2
    or any(n != 1 for n in params['lhs_dilation'])
    or params['batch_group_count'] != 1
    or not isinstance(kernel, np.ndarray)
  ):
    raise ConversionError(f'this form of {eqn.primitive.name!r} is not known.')
  kernel = kernel.transpose(numbers.rhs_spec)
  return graph.node(
    'Conv',
    [graph.use(x), graph.constant(kernel)],
    kernel_shape=kernel.shape[2:],
    strides=params['window_strides'],
    pads=_pads(params['padding']),
    dilations=params['rhs_dilation'],
    group=params['feature_group_count'],
  )


def _pool(kind: str, graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  params = eqn.params
  window, padding = params['window_dimensions'], params['padding']
  dilations = (*params['base_dilation'], *params['window_dilation'])
  if (
    len(window) != 4 or window[::3] != (1, 1) or any(n != 1 for n in dilations)
  ):
    raise ConversionError(f'this form of {eqn.primitive.name!r} is not known.')
  result = graph.node(
    kind,
    [graph.use(inputs[0])],
    kernel_shape=window[1:3],
    strides=params['window_strides'][1:3],
    pads=_pads(padding[1:3]),
  )
  if kind == 'MaxPool':
    return result
  # Average pooling divides by the pixels that a window has; a sum does not.
  image = np.ones((1, *eqn.invars[0].aval.shape[1:3], 1), np.float32)
  counts = inference.compute(eqn, [image])[0]
  return _Tensor(result.name, _constant_nchw(counts))


def _reduce_sum(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  """A sum over all pixels is their mean times their number."""
  shape, axes = eqn.invars[0].aval.shape, eqn.params['axes']
  if len(shape) != 4 or tuple(axes) != (1, 2):
    raise ConversionError(
      f'{eqn.primitive.name!r} over axes {axes} is not known.'
    )
  mean = graph.node('GlobalAveragePool', [graph.use(inputs[0])])
  flat = _reshaped(graph, mean.name, eqn.outvars[0].aval.shape)
  return _Tensor(flat.name, np.array([shape[1] * shape[2]], np.float32))


def _reshape(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  """Another shape of the same numbers, where NCHW does not reorder them."""
  before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  pixels = [math.prod(s[1:3]) for s in (before, after) if len(s) == 4]
  if before == after:
    return inputs[0]
  if math.prod(before) != math.prod(after):
    new = graph.constant(np.array(_nchw(after), np.int64))
    return graph.node('Expand', [graph.use(inputs[0]), new])
  if any(n != 1 for n in pixels):
    raise ConversionError(f'{eqn.primitive.name!r} to {after} is not known.')
  x = inputs[0]
  if x.factor is not None and x.factor.size > 1:
    x = _Tensor(graph.use(x))
  factor = None if x.factor is None else x.factor.reshape(-1)
  return _Tensor(_reshaped(graph, x.name, after).name, factor)


def _reshaped(graph: _Graph, name: str, shape: tuple[int, ...]) -> _Tensor:
  new = graph.constant(np.array(_nchw(shape), np.int64))
  return graph.node('Reshape', [name, new])


def _pad(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  low_high = [p[:2] for p in eqn.params['padding_config']]
  if any(p[2] for p in eqn.params['padding_config']):
    raise ConversionError('padding between pixels is not known.')
  ordered = [low_high[i] for i in _NHWC]
  pads = graph.constant(np.array(_pads(ordered), np.int64))
  return graph.node('Pad', [graph.use(inputs[0]), pads, graph.use(inputs[1])])


def _slice(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  params = eqn.params
  steps = params['strides'] or (1,) * len(params['start_indices'])
  # Without axes the bounds of all axes are meant, in their order.
  starts, ends, strides = (
    graph.constant(np.array(_nchw(tuple(bound)), np.int64))
    for bound in (params['start_indices'], params['limit_indices'], steps)
  )
  inputs = [graph.use(inputs[0]), starts, ends, '', strides]
  return graph.node('Slice', inputs)


def _concatenate(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  axis = eqn.params['dimension']
  if len(eqn.outvars[0].aval.shape) == 4:
    axis = _NHWC.index(axis)
  return graph.node('Concat', [graph.use(v) for v in inputs], axis=axis)


def _dot(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  if eqn.params['dimension_numbers'] != (((1,), (0,)), ((), ())):
    raise ConversionError('this form of a matrix product is not known.')
  return _binary('MatMul', graph, eqn, inputs)


def _same(graph: _Graph, eqn: Any, inputs: list[Any]) -> _Tensor:
  if eqn.outvars[0].aval.dtype != eqn.invars[0].aval.dtype:
    raise ConversionError(
      f'a change to {eqn.outvars[0].aval.dtype} is not known.'
    )
  return inputs[0]


_RULES: dict[str, Callable[[_Graph, Any, list[Any]], _Tensor]] = {
  'add': _add,
  'add_any': _add,
  'broadcast_in_dim': _reshape,
  'concatenate': _concatenate,
  'conv_general_dilated': _convolution,
  'convert_element_type': _same,
  'div': _scale,
  'dot_general': _dot,
  'exp': functools.partial(_unary, 'Exp'),
  'logistic': functools.partial(_unary, 'Sigmoid'),
  'max': _maximum,
  'min': functools.partial(_binary, 'Min'),
  'mul': _scale,
  'neg': functools.partial(_unary, 'Neg'),
  'pad': _pad,
  'reduce_sum': _reduce_sum,
  'reduce_window_max': functools.partial(_pool, 'MaxPool'),
  'reduce_window_sum': functools.partial(_pool, 'AveragePool'),
  'reshape': _reshape,
  'slice': _slice,
  'squeeze': _reshape,
  'sub': functools.partial(_binary, 'Sub'),
  'tanh': functools.partial(_unary, 'Tanh'),
}
