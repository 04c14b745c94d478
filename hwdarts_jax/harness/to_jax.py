"""JAX to a serialized program of jax.export, for any device that JAX knows."""

from __future__ import annotations

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.harness import inference
from hwdarts_jax.harness.convert import ConversionError, Converted, Target

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
  function: inference.Function,
  shape: tuple[int, ...],
  target: Target,
  samples: np.ndarray,
) -> Converted:
  """See `convert.convert`; `samples` are not needed."""
  del samples
  if target.dtype == 'int8':
    raise ConversionError(
      'JAX programs are not quantized here; choose float32, float16 or '
      'bfloat16.'
    )
  simple = inference.simplify(function, shape, builtin_pools=False)
  image = jax.ShapeDtypeStruct(shape, jnp.dtype(target.dtype))
  exported = export.export(jax.jit(simple), platforms=PLATFORMS)(image)
  num_ops = len(jax.make_jaxpr(simple)(image).eqns)
  return Converted(bytes(exported.serialize()), num_ops)
