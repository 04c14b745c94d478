"""Spaces, gates and variables that predictors are tested with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost, predictor, sampling
from hwdarts_jax.spaces import discretize

every_space = pytest.mark.parametrize('name', spaces.names())


@functools.cache
def _spec(name='nasbench201'):
  return spaces.make(name)


def _gates(spec, seed=0):
  rng = np.random.default_rng(seed)
  gates = {}
  for name, group in spec.groups().items():
    e = np.exp(rng.normal(size=group.shape))
    gates[name] = (e / e.sum(1, keepdims=True)).astype(np.float32)
  return gates


def _random_one_hot(spec, count, seed=0):
  """Random genotypes as gates, for each group f[N, E, O]."""
  rng = np.random.default_rng(seed)
  alphas = [
    {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
    for _ in range(count)
  ]
  hots = [discretize.one_hot(spec, discretize.derive(spec, a)) for a in alphas]
  return {g: np.stack([h[g] for h in hots]) for g in spec.groups()}


def _random_variables(spec, seed=0):
  model = predictor.LatencyPredictor(spec)
  made = jax.eval_shape(model.init, jax.random.key(0), _gates(spec))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda v: jnp.asarray(rng.normal(size=v.shape), jnp.float32), made
  )


def _predict(spec, variables, gates):
  return np.asarray(_compiled(spec)(variables, gates))


@functools.cache
def _compiled(spec):
  return jax.jit(predictor.LatencyPredictor(spec).apply)


def _entries(spec, seed=0):
  """A table of op entries for all keys of a space."""
  rng = np.random.default_rng(seed)
  values = {
    s.key(op): rng.uniform(0.1, 1) for s in spec.sites() for op in s.ops
  }
  return cost.tabulate(spec, lambda site, op: values[site.key(op)], 'ms')


def _draw(spec, count, seed=0):
  """Random architectures of any spec, f[N, E, O] of each group."""
  uniform = {
    g: np.full(s.shape, 1 / s.shape[1]) for g, s in spec.groups().items()
  }
  return sampling.draw(spec, uniform, count, np.random.default_rng(seed))
