"""Ops applied to images, and batch normalization in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5


def _images(shape, dtype=jnp.float32, seed=0):
  """Random images whose values are far from each other and from zero."""
  size = int(np.prod(shape))
  values = np.random.default_rng(seed).permutation(size) - size / 2 + 0.25
  return jnp.asarray(values.reshape(shape) * 4 / size, dtype)


def _init(op, x, train=False):
  """Variables of `op`, none of them at its special initial value."""
  variables = op.init(jax.random.key(0), x, train=train)
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(1)
  moved = [v + jnp.asarray(rng.uniform(0.1, 0.5, v.shape)) for v in leaves]
  return jax.tree.unflatten(
    tree, [m.astype(v.dtype) for m, v in zip(moved, leaves, strict=True)]
  )


def _apply(op, variables, x, train=False):
  if not train:
    return op.apply(variables, x, train=False)
  return op.apply(variables, x, train=True, mutable=['batch_stats'])[0]


def _numpy_norm(x, variables=None):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  scale, bias = (
    np.asarray((variables or {'scale': 1.0, 'bias': 0.0})[key])
    for key in ('scale', 'bias')
  )
  return (x - mean) / np.sqrt(var + EPSILON) * scale + bias
