"""Runs converted models on this host: for checks of their output, not of time.

TFLite files run in LiteRT, ONNX files in onnxruntime, whatever their batch; a
quantized input or output is translated to and from float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hwdarts_jax.runtime.workdir import UserError

# f32[N, H, W, C] -> f32[N, ...]; N is a multiple of the model's batch.
Execute = Callable[[np.ndarray], np.ndarray]


def load(data: bytes, model_format: str) -> Execute:
  """Returns a converted model as a function of images.

  Args:
    data: content of the file.
    model_format: 'tflite' or 'onnx'.

  Raises:
    UserError: the runtime of the format is not installed.
  """
  try:
    return {'tflite': _tflite, 'onnx': _onnx}[model_format](data)
  except ImportError as e:
    raise UserError(
      f'running {model_format} files needs the package {e.name!r} ({e}): '
      "pip install 'hwdarts_jax[tflite]'."
    ) from e


def arena_bytes(data: bytes) -> int:
  """What LiteRT lays out for the images of a TFLite file.

  Read off the places of its tensors in memory. By its reference kernels, which
  keep nothing but the tensors of the graph: XNNPACK has an arena of its own
  that cannot be seen from outside, and others keep scratch memory beside.

  Raises:
    UserError: LiteRT is not installed.
  """
  try:
    from ai_edge_litert import interpreter, schema_py_generated
  except ImportError as e:
    raise UserError(
      f"LiteRT is not installed ({e}): pip install 'hwdarts_jax[tflite]'."
    ) from e
  model = schema_py_generated.ModelT.InitFromPackedBuf(data, 0)
  tensors = model.subgraphs[0].tensors
  runtime = interpreter.Interpreter(
    model_content=data,
    num_threads=1,
    experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF,
  )
  runtime.allocate_tensors()
  spans = []
  for detail in runtime.get_tensor_details():
    number = detail['index']
    if number < len(tensors):
      constant = model.buffers[tensors[number].buffer].data
      if constant is not None and len(constant):
        continue  # in the file itself
    try:
      array = runtime.tensor(number)()
    except ValueError:  # nothing was allocated for it
      continue
    start = array.__array_interface__['data'][0]
    spans.append((start, start + array.nbytes))
  return max(end for _, end in spans) - min(start for start, _ in spans)


def _tflite(data: bytes) -> Execute:
  from ai_edge_litert.interpreter import Interpreter

  interpreter = Interpreter(model_content=data, num_threads=1)
  interpreter.allocate_tensors()
  inputs, (output,) = (
    interpreter.get_input_details(),
    interpreter.get_output_details(),
  )

  def one(batch):
    for detail in inputs:  # none where the result is a constant
      interpreter.set_tensor(detail['index'], _quantized(batch, detail))
    interpreter.invoke()
    return _dequantized(interpreter.get_tensor(output['index']), output)

  return _batched(one, inputs[0]['shape'][0] if inputs else output['shape'][0])


def _onnx(data: bytes) -> Execute:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  # A constant result leaves weights unused, of which it warns.
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(
    data, options, providers=['CPUExecutionProvider']
  )
  (image,) = session.get_inputs()

  def one(batch):
    nchw = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    (y,) = session.run(None, {image.name: nchw})
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y

  return _batched(one, image.shape[0])


def _batched(one: Execute, size: int) -> Execute:
  def run(images):
    parts = images.astype(np.float32).reshape(-1, size, *images.shape[1:])
    return np.concatenate([one(part) for part in parts])

  return run


def _quantized(x: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
  """Translates float32 to the type of a tensor of LiteRT."""
  dtype = detail['dtype']
  if np.issubdtype(dtype, np.floating):
    return x.astype(dtype)
  scale, zero = detail['quantization']
  low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
  return np.clip(np.round(x / scale) + zero, low, high).astype(dtype)


def _dequantized(y: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
  if np.issubdtype(y.dtype, np.floating):
    return y.astype(np.float32)
  scale, zero = detail['quantization']
  return ((y.astype(np.float32) - zero) * scale).astype(np.float32)
