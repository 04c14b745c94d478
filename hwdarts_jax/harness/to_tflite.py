"""JAX to TFLite without TensorFlow: jax.export, then litert-converter.

The converter's Python entry points are private, hence its version is pinned in
setup.cfg. Should it ever be missing for a platform, the documented way round
is `jax.experimental.jax2tf.convert(function, native_serialization=True)` and
``tf.lite.TFLiteConverter.from_keras_model`` on the same simplified function.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any
import warnings

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.harness import inference
from hwdarts_jax.harness.convert import ConversionError, Converted, Target

INPUT, OUTPUT, SIGNATURE = 'x', 'y', 'serving_default'
# Of int8 files, that quantizers add around a float graph.
_CASTS = ('QUANTIZE', 'DEQUANTIZE')
# Operations of dialects that should be gone after the conversion.
_FOREIGN = re.compile(
  r'(?:^|=) *"?((?:stablehlo|vhlo|chlo|mhlo|tf)\.\w+)', re.M
)
_MAX_REASON = 100


def write(
  function: inference.Function,
  shape: tuple[int, ...],
  target: Target,
  samples: np.ndarray,
) -> Converted:
  """See `convert.convert`."""
  if target.dtype not in _QUANTIZED and target.dtype != 'float32':
    raise ConversionError(
      f'TFLite has no networks of {target.dtype}; choose float32 or one of '
      f'{sorted(_QUANTIZED)}.'
    )
  data = _float32(inference.simplify(function, shape), shape)
  names = op_names(data)
  foreign = sorted(n for n in set(names) if not _is_builtin(n))
  if foreign:
    raise ConversionError(
      f'{", ".join(foreign)} {"is" if len(foreign) == 1 else "are"} no builtin '
      'operation of TFLite. Write the op in a form that the converter knows.'
    )
  if names and target.dtype != 'float32':
    data = _quantize(data, target.dtype, _batches(samples, shape))
  return Converted(data, sum(n not in _CASTS for n in names))


def op_names(data: bytes) -> list[str]:
  """Names of the operations of a TFLite file, in the order of its graph."""
  model, codes = _read(data)
  return [
    codes[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators
  ]


def _read(data: bytes) -> tuple[Any, list[str]]:
  """A TFLite file as objects, and names of the operations that it uses."""
  from ai_edge_litert import schema_py_generated as schema

  names = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if isinstance(value, int)
  }
  model = schema.ModelT.InitFromPackedBuf(data, 0)
  codes = []
  for code in model.operatorCodes:
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    custom = (code.customCode or b'').decode()
    codes.append(f'CUSTOM {custom}' if custom else names[number])
  return model, codes


def _is_builtin(name: str) -> bool:
  return not name.startswith(('CUSTOM', 'STABLEHLO_', 'Flex'))


def _float32(function: inference.Function, shape: tuple[int, ...]) -> bytes:
  """Converts a simplified function."""
  # The converter's libraries are quiet only if told before they are loaded.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  from litert_converter import converter_api_ext as converter
  from litert_converter.mlir import ir, passmanager

  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  exported = export.export(jax.jit(function), platforms=['cpu'])(image)
  context = ir.Context()
  converter.prepare_mlir_context(context)
  with context:
    module = ir.Module.parse(str(exported.mlir_module()))
    try:
      converter.set_signature(module.operation, SIGNATURE, [INPUT], [OUTPUT])
      settings = converter.ConvertToTFLConfig()
      settings.model_origin_framework = 'JAX'
      manager = passmanager.PassManager()
      converter.run_convert_to_tfl_passes(module, manager, settings)
      return converter.export_flatbuffer_to_bytes(module.operation)
    except (ValueError, RuntimeError, ir.MLIRError) as e:
      raise ConversionError(_reason(str(e), str(module))) from e


def _reason(text: str, module: str) -> str:
  """What a converter's message says, and what it could not convert."""
  found = re.findall(r'error: (.*)', text) or text.strip().splitlines()[:1]
  left = sorted(set(_FOREIGN.findall(module)))
  return (
    f'the converter says {found[0].strip(" :")[:_MAX_REASON]!r} and leaves '
    f'{", ".join(left) or "no operation"}.'
  )


def _quantize(data: bytes, dtype: str, batches: list[Any]) -> bytes:
  """Quantizes a float32 file; `batches` are representative inputs."""
  from ai_edge_quantizer import quantizer

  with _quiet():
    try:
      tool = quantizer.Quantizer(data)
      return bytes(_QUANTIZED[dtype](tool, data, batches).quantized_model)
    except (ValueError, RuntimeError, NotImplementedError) as e:
      raise ConversionError(f'the quantizer says {str(e).strip()!r}.') from e


def _float16(tool: Any, data: bytes, batches: list[Any]) -> Any:
  """Weights are stored as float16; the runtime computes in what it likes."""
  from ai_edge_quantizer import qtyping, quantizer

  del data, batches
  tool.update_quantization_recipe(
    '.*',
    qtyping.TFLOperationName.ALL_SUPPORTED,
    qtyping.OpQuantizationConfig(
      weight_tensor_config=qtyping.TensorQuantizationConfig(
        16, dtype=qtyping.TensorDataType.FLOAT
      ),
      compute_precision=qtyping.ComputePrecision.FLOAT,
      explicit_dequantize=True,
    ),
    quantizer.algorithm_manager.AlgorithmName.FLOAT_CASTING,
  )
  return tool.quantize()


def _int8(tool: Any, data: bytes, batches: list[Any]) -> Any:
  """Weights, activations, input and output are int8, ranges from batches."""
  from ai_edge_quantizer import calibrator, recipe, recipe_manager
  from ai_edge_quantizer.utils import qsv_utils

  recipes = recipe_manager.RecipeManager()
  recipes.load_quantization_recipe(recipe.static_wi8_ai8())
  tool.load_quantization_recipe(recipe.static_wi8_ai8())
  # `Quantizer.calibrate` takes a moving average, which is little more than the
  # range of the first images: what the others have beyond it would be clipped.
  observer = calibrator.Calibrator(
    data,
    num_threads=1,
    # In Python, tensor by tensor, the default takes ten times as long.
    mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
    qsv_update_func=qsv_utils.min_max_update,
  )
  observer.calibrate({SIGNATURE: batches}, recipes)
  ranges = observer.get_model_qsvs()
  for source, padded in _pads(data):
    # Before a maximum the padding is the lowest number there is.
    ranges[padded] = ranges[source]
  return tool.quantize(ranges)


def _pads(data: bytes) -> list[tuple[str, str]]:
  """(input, output) of all operations that pad with another number than 0."""
  model, codes = _read(data)
  return [
    tuple(graph.tensors[i].name.decode() for i in (op.inputs[0], op.outputs[0]))
    for graph in model.subgraphs
    for op in graph.operators
    if codes[op.opcodeIndex] == 'PADV2'
  ]


_QUANTIZED = {'float16': _float16, 'int8': _int8}


def _batches(samples: np.ndarray, shape: tuple[int, ...]) -> list[Any]:
  """Inputs of the model's shape, together all samples, cycled to fill them."""
  count = -(-len(samples) // shape[0])
  whole = np.resize(samples, (count * shape[0], *shape[1:]))
  return [{INPUT: b} for b in whole.reshape(count, *shape)]


@contextlib.contextmanager
def _quiet():
  """Keeps progress bars and hints for debugging off the screen."""
  with (
    open(os.devnull, 'w') as nowhere,
    contextlib.redirect_stderr(nowhere),
    contextlib.redirect_stdout(nowhere),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter('ignore')
    yield
