"""Converted models compute what JAX computes, in few builtin operations."""

import collections
import functools
import importlib
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import op_cover
import pytest
from quick_jit import quick_jit
import tflite_extra

from hwdarts_jax import spaces
from hwdarts_jax.harness import convert, execute, to_tflite
from hwdarts_jax.harness.convert import ConversionError, Target
from hwdarts_jax.models import ops
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Site

tflite_extra.skip_module_without()

PARITY = 1e-5  # of the largest value
# Weights of float16 have 11 bits.
FLOAT16 = 3e-3
# One result is right to half a step of 1/255 of its range, and so are inputs
# and weights; wrong scales, zeros or ranges are off by the range itself.
INT8 = 0.05

# Sites of ops that do not take every size and stride: (size, stride).
_SIZES = {
  'bn_relu': ((5, 1), (6, 1)),
  'dense': ((1, 1),),
  'dense_hswish': ((1, 1),),
  'dense_relu': ((1, 1),),
  'global_avg_pool': ((5, 5), (6, 6)),
}
_ALL_SIZES = ((5, 1), (6, 1), (5, 2), (6, 2))

every_op = pytest.mark.parametrize('name', op_cover.names())
every_space = pytest.mark.parametrize('space', spaces.names())


def _site(name, size, stride=1, features=4, pool_bn=False):
  shape = (size, size, 4)
  return Site(
    'cell/edge', (name,), shape, features, stride, None, None, pool_bn
  )


def _sites(name):
  """Every kind of site that an op can have."""
  sites = [
    _site(name, size, stride, pool_bn=pool_bn)
    for size, stride in _SIZES.get(name, _ALL_SIZES)
    for pool_bn in (False, True)
  ]
  # Only ops that pool differ.
  return {_text(site, name): site for site in sites}.values()


def _text(site, name):
  image = jax.ShapeDtypeStruct((1, *site.in_shape), jnp.float32)
  return str(jax.make_jaxpr(convert.operation(site, name))(image))


def _images(count, shape, seed=1):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, *shape)).astype(np.float32)


@functools.cache
def _references(name):
  """(site, function, images, what JAX makes of them) of all sites of an op."""
  sites = list(_sites(name))
  functions = [convert.operation(site, name) for site in sites]
  images = [_images(3, site.in_shape) for site in sites]
  # One program, since each has its price.
  results = quick_jit(
    lambda *xs: tuple(f(x) for f, x in zip(functions, xs, strict=True))
  )(*images)
  return list(
    zip(sites, functions, images, map(np.asarray, results), strict=True)
  )


def _convert(function, site, name, target, samples=None):
  return convert.convert(
    function, site.in_shape, target, site.key(name), samples
  )


def _error(got, want):
  """Largest error, relative to the largest value."""
  assert got.shape == want.shape
  return np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)


def _names(data, model_format):
  """How often each operation is in a file."""
  if model_format == 'tflite':
    names = to_tflite.op_names(data)
  else:
    import onnx

    names = [n.op_type for n in onnx.load_from_string(data).graph.node]
  return dict(collections.Counter(n for n in names if n != 'Identity'))


@every_op
@pytest.mark.parametrize('model_format', ['tflite', 'onnx'])
def test_an_op_computes_what_it_computes_in_jax(name, model_format):
  """At odd and even sizes, with stride 1 and 2, with and without BN."""
  for site, function, images, want in _references(name):
    converted = _convert(function, site, name, Target(model_format))
    run = execute.load(converted.data, model_format)
    for image, result in zip(images, want, strict=True):
      got = run(image[None])[0]
      assert _error(got, result) <= PARITY, site.key(name)


@every_op
def test_a_quantized_op_is_close(name):
  """Float16 by the bits of its weights, int8 by the steps of its range."""
  for site, function, images, want in _references(name):
    for dtype, bound in (('float16', FLOAT16), ('int8', INT8)):
      target = Target(dtype=dtype)
      data = _convert(function, site, name, target, images).data
      got = execute.load(data, 'tflite')(images)
      if not ops.is_zero(name):
        assert _error(got, want) <= bound, (site.key(name), dtype)


def test_int8_ranges_come_from_the_samples():
  """Of samples that are far too small, the file clips what it is given."""
  site, function, images, want = _references('nor_conv_3x3')[0]
  data = _convert(
    function, site, 'nor_conv_3x3', Target(dtype='int8'), images / 20
  ).data
  assert _error(execute.load(data, 'tflite')(images), want) > 0.5


def test_a_batch_is_converted_as_such():
  """A model of batch 3 gives each image what it gets alone."""
  site, function, images, want = _references('nor_conv_3x3')[0]
  for target in (Target(batch=3), Target('onnx', batch=3)):
    data = _convert(function, site, 'nor_conv_3x3', target).data
    got = execute.load(data, target.model_format)(images)
    assert _error(got, want) <= PARITY


@pytest.mark.parametrize(
  'name, stride, tflite, onnx',
  [
    ('none', 1, {}, {}),
    ('skip_connect', 1, {}, {}),
    ('nor_conv_3x3', 1, {'RELU': 1, 'CONV_2D': 1}, {'Relu': 1, 'Conv': 1}),
    (
      'sep_conv_3x3',
      1,
      {'RELU': 1, 'DEPTHWISE_CONV_2D': 2, 'CONV_2D': 2},
      {'Relu': 2, 'Conv': 4},
    ),
    (
      'dil_conv_5x5',
      1,
      {'RELU': 1, 'DEPTHWISE_CONV_2D': 1, 'CONV_2D': 1},
      {'Relu': 1, 'Conv': 2},
    ),
    (
      'factorized_reduce',
      2,
      {'RELU': 1, 'PAD': 1, 'SLICE': 1, 'CONV_2D': 2, 'CONCATENATION': 1},
      {'Relu': 1, 'Pad': 1, 'Slice': 1, 'Conv': 2, 'Concat': 1},
    ),
    (
      'residual_block_3x3',
      2,
      {'RELU': 1, 'PAD': 1, 'CONV_2D': 3, 'AVERAGE_POOL_2D': 1, 'ADD': 1},
      {'Relu': 2, 'Conv': 3, 'AveragePool': 1, 'Add': 1},
    ),
    ('avg_pool_3x3', 1, {'AVERAGE_POOL_2D': 1}, {'AveragePool': 1}),
    (
      'avg_pool_3x3',
      2,
      {'PAD': 1, 'AVERAGE_POOL_2D': 1, 'MUL': 1},
      {'AveragePool': 1},
    ),
    ('max_pool_3x3', 1, {'MAX_POOL_2D': 1}, {'MaxPool': 1}),
    ('dense', 1, {'CONV_2D': 1}, {'Conv': 1}),
  ],
)
def test_nothing_runs_but_what_must(name, stride, tflite, onnx):
  """Batch norms are in the weights, and pooling is one builtin operation."""
  site = _site(name, 1 if name == 'dense' else 6, stride)
  function = convert.operation(site, name)
  for model_format, want in (('tflite', tflite), ('onnx', onnx)):
    converted = _convert(function, site, name, Target(model_format))
    assert _names(converted.data, model_format) == want
    assert converted.num_ops == sum(want.values())


def _spec(space, size, seed):
  """A small network of a space, at random."""
  make = importlib.import_module(f'hwdarts_jax.spaces.{space}').make
  known = inspect.signature(make).parameters
  wanted = {'features': 4, 'image_size': size, 'num_cells': 2, 'num_nodes': 2}
  wanted |= {'num_stages': 1, 'num_blocks': 2, 'num_classes': 10}
  # One cell a stage is enough where there are three stages.
  wanted |= {'num_cells': 1} if space == 'nasbench201' else {}
  spec = make(**{k: v for k, v in wanted.items() if k in known})
  rng = np.random.default_rng(seed)
  alphas = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
  return discretize.discretize(spec, discretize.derive(spec, alphas))


@every_space
@pytest.mark.parametrize('size', [8, 13])
def test_a_network_computes_what_it_computes_in_jax(space, size):
  """In every format; rounded weights and int8 stay close."""
  spec = _spec(space, size, seed=size)
  function = convert.network(spec)
  images = _images(4, spec.input_shape)
  want = np.asarray(quick_jit(function)(images))

  def converted(*target):
    target = Target(*target)
    shape = spec.input_shape
    return convert.convert(function, shape, target, space, images)

  types = {}
  for target, bound in (
    (('tflite', 'float32'), PARITY),
    (('onnx', 'float32'), PARITY),
    (('tflite', 'float16'), FLOAT16),
    (('tflite', 'int8'), 2 * INT8),
  ):
    data = converted(*target).data
    types[target[1]] = _types(data) if target[0] == 'tflite' else set()
    got = execute.load(data, target[0])(images)
    assert _error(got, want) <= bound, target
  assert np.float16 in types['float16']
  assert np.int8 in types['int8']
  assert not types['int8'] & {np.float16, np.float32}


def _types(data):
  """Types of all tensors of a TFLite file."""
  from ai_edge_litert import interpreter

  resolver = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
  found = interpreter.Interpreter(
    model_content=data, experimental_op_resolver_type=resolver
  )
  found.allocate_tensors()
  return {t['dtype'] for t in found.get_tensor_details()}


@every_space
def test_a_jax_program_computes_what_it_was_made_from(space):
  """Exported and read back; in bfloat16 to its 8 bits."""
  spec = _spec(space, 8, seed=8)
  function = convert.network(spec)
  images = _images(2, spec.input_shape)
  want = np.asarray(quick_jit(function)(images))
  for dtype, bound in (('float32', PARITY), ('bfloat16', 0.05)):
    target = Target('jax', dtype, batch=2)
    data = convert.convert(function, spec.input_shape, target, space).data
    program = jax.export.deserialize(bytearray(data))
    got = np.asarray(program.call(images.astype(dtype)), np.float32)
    assert _error(got, want) <= bound, dtype


@every_space
def test_an_onnx_file_is_old_enough_for_its_runtimes(space):
  """NCS2 and TensorRT read opset 12 and images in NCHW."""
  import onnx

  spec = _spec(space, 8, seed=0)
  data = convert.convert(
    convert.network(spec), spec.input_shape, Target('onnx'), space
  ).data
  model = onnx.load_from_string(data)
  assert [(o.domain, o.version) for o in model.opset_import] == [('', 12)]
  (image,) = model.graph.input
  dims = [d.dim_value for d in image.type.tensor_type.shape.dim]
  assert dims == [1, spec.input_shape[2], *spec.input_shape[:2]]


@pytest.mark.parametrize('model_format, name', [
  ('tflite', 'STABLEHLO_SORT'),
  ('tflite', 'fft_v1'),
  ('onnx', "'sort'"),
  ('onnx', "'cumsum'"),
])  # fmt: skip
def test_an_op_that_is_no_builtin_is_named(model_format, name):
  """And the model that has it, in one sentence that says what to do."""
  functions = {
    'sort': lambda x: jnp.sort(x, axis=1),
    'fft': lambda x: jnp.fft.fft(x).real,
    'cumsum': lambda x: jnp.cumsum(x, axis=1),
  }
  (function,) = (f for n, f in functions.items() if n in name.lower())
  with pytest.raises(ConversionError, match='my_op.*cannot be converted') as e:
    convert.convert(function, (4, 4, 4), Target(model_format), 'my_op')
  assert name in str(e.value)


@pytest.mark.parametrize('model_format, package', [
  ('tflite', 'litert_converter'),
  ('tflite', 'ai_edge_quantizer'),
  ('onnx', 'onnx'),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
  monkeypatch, model_format, package
):
  """Nobody has to know which of our extras brings it."""
  monkeypatch.setitem(sys.modules, package, None)
  site = _site('dense', 1)
  with pytest.raises(UserError, match=rf'{package}.*hwdarts_jax\[tflite\]'):
    _convert(
      convert.operation(site, 'dense'),
      site,
      'dense',
      Target(model_format, 'int8'),
    )


@pytest.mark.parametrize('target, message', [
  ({'model_format': 'caffe'}, r"model_format is 'caffe'.*tflite"),
  ({'dtype': 'int4'}, r"dtype is 'int4'.*int8"),
  ({'batch': 0}, 'batch is 0.*at least 1'),
])  # fmt: skip
def test_a_target_that_cannot_be_says_what_can(target, message):
  """The field, the value, and what is allowed."""
  with pytest.raises(UserError, match=message):
    Target(**target)


@pytest.mark.parametrize('target', [
  Target('tflite', 'bfloat16'),
  Target('onnx', 'bfloat16'),
  Target('jax', 'int8'),
])  # fmt: skip
def test_a_type_that_a_format_lacks_is_refused(target):
  """Never is a file of another type written in its place."""
  site = _site('dense', 1)
  with pytest.raises(ConversionError, match='dense/1x1x4/4/s1 cannot be'):
    _convert(convert.operation(site, 'dense'), site, 'dense', target)
