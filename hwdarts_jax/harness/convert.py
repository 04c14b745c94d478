"""From operations and networks of a space to files that a runtime runs.

    site, op | discrete spec ─▶ function ─simplify─▶ .tflite | .onnx | .jax

Functions are in inference mode with constant weights. Where no weights are
given they are random: latency does not depend on them, as long as no value is
zero, infinite or denormal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import importlib
import importlib.util
import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.harness import inference
from hwdarts_jax.harness.runners import DTYPES, FORMATS
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.models import ops
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces.spec import NetworkSpec, Site

Function = inference.Function
_PACKAGES = {
  'tflite': ('litert_converter', 'ai_edge_litert', 'ai_edge_quantizer'),
  'onnx': ('onnx', 'onnxruntime'),
  'jax': (),
}
NUM_SAMPLES = 8  # images that int8 ranges are taken from, if none are given


class ConversionError(UserError):
  """A model has no form that the runtime runs; the message names what."""


class Converted(NamedTuple):
  """A converted model.

  Attributes:
    data: content of the file.
    num_ops: operations of the graph; 0 where it only passes its input on or
      returns a constant, so that nothing runs.
  """

  data: bytes
  num_ops: int


@dataclasses.dataclass(frozen=True)
class Target:
  """What a model is converted to.

  Attributes:
    model_format: one of `FORMATS`.
    dtype: one of `DTYPES`.
    batch: images in one input.
  """

  model_format: str = 'tflite'
  dtype: str = 'float32'
  batch: int = 1

  def __post_init__(self):
    for name, value, allowed in (
      ('model_format', self.model_format, FORMATS),
      ('dtype', self.dtype, DTYPES),
    ):
      if value not in allowed:
        raise UserError(f'{name} is {value!r}; it must be one of {allowed}.')
    if self.batch < 1:
      raise UserError(f'batch is {self.batch!r}; it must be at least 1.')


def check_installed(model_format: str) -> None:
  """Raises UserError if the packages of a format are not installed."""
  for package in _PACKAGES[model_format]:
    if importlib.util.find_spec(package) is None:
      raise UserError(_not_installed(model_format, package))


def _not_installed(model_format: str, package: str | None) -> str:
  return (
    f'{model_format} files need the package {package!r}: '
    "pip install 'hwdarts_jax[tflite]'."
  )


def operation(site: Site, op: str) -> Function:
  """Returns an op at a site as a function of images f32[B, H, W, C]."""
  module = ops.get(op)(
    site.features, site.stride, ops.Context(pool_bn=site.pool_bn)
  )
  image = jax.ShapeDtypeStruct((1, *site.in_shape), jnp.float32)
  shapes = jax.eval_shape(
    functools.partial(module.init, train=False), jax.random.key(0), image
  )
  variables = random_variables(shapes)
  return lambda x: module.apply(variables, x, train=False)


def network(
  spec: NetworkSpec, variables: Mapping[str, Any] | None = None
) -> Function:
  """Returns a discrete network as a function of images f32[B, H, W, C].

  Args:
    spec: has no choices left.
    variables: 'params' and 'batch_stats'; random ones by default.
  """
  module = network_lib.Network(spec)
  if variables is None:
    init = functools.partial(network_lib.init, module)
    variables = random_variables(jax.eval_shape(init, jax.random.key(0)))
  return lambda x: module.apply(variables, x, None, train=False)


def random_variables(shapes: Any, seed: int = 0) -> Any:
  """Returns weights and statistics that keep activations near unit variance.

  Args:
    shapes: a tree of shapes, as Flax names them.
    seed: of the random numbers.
  """

  def leaf(path: Any, shape: Any) -> np.ndarray:
    name = path[-1].key
    text = jax.tree_util.keystr(path)
    rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
    if name == 'kernel':
      fan_in = math.prod(shape.shape[:-1])
      values = rng.normal(0, math.sqrt(2 / fan_in), shape.shape)
    elif name in ('scale', 'var'):
      values = rng.uniform(0.5, 1.5, shape.shape)
    else:
      values = rng.normal(0, 0.1, shape.shape)
    return values.astype(shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def convert(
  function: Function,
  in_shape: Sequence[int],
  target: Target,
  name: str = 'model',
  samples: np.ndarray | None = None,
) -> Converted:
  """Converts a function of images.

  Args:
    function: f32[B, H, W, C] -> array; see `operation` and `network`.
    in_shape: (height, width, channels) of an image.
    target: what it becomes.
    name: of the model, for messages.
    samples: f32[N, H, W, C], representative images for int8; normal random
      numbers by default.

  Raises:
    ConversionError: the target has no form of some operation of the model.
    UserError: a package that the conversion needs is not installed.
  """
  shape = (target.batch, *in_shape)
  if samples is None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(NUM_SAMPLES, *in_shape)).astype(np.float32)
  try:
    module = importlib.import_module(
      f'hwdarts_jax.harness.to_{target.model_format}'
    )
    write: Callable[..., Converted] = module.write
    return write(function, shape, target, samples)
  except ConversionError as e:
    raise ConversionError(f'{name} cannot be converted: {e}') from e
  except ImportError as e:
    raise UserError(_not_installed(target.model_format, e.name)) from e
