"""A supernet of part of a cell, its batches and its compiled updates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import three_nodes

from hwdarts_jax.bilevel import update
from hwdarts_jax.models import evaluations, ops
from hwdarts_jax.runtime import optimizers, sharding
from hwdarts_jax.spaces import nasbench201

LR, STEPS, BATCH, GROUPS = 0.05, 20, 16, 8
SPLIT = 4  # batches of each half
COST_MS = (0.0, 0.1, 0.5, 2.0, 0.3)  # of each op, on each edge


class Chunk(NamedTuple):
  """Batches for K steps: a half of the data, and indices i32[K, B]."""

  images: jax.Array
  labels: jax.Array
  indices: jax.Array


def _spec():
  """Three nodes of a cell of NAS-Bench-201, between its stem and its head."""
  spec = nasbench201.make(2, 1, num_classes=4, image_size=8, image_channels=1)
  return three_nodes.cut(spec)


def _latency(gates):
  return (gates['cell'] * jnp.asarray(COST_MS).reshape(1, -1)).sum()


def _problem(
  hypergrad='lookahead', dtype=jnp.float32, evaluation='plain', **settings
):
  context = ops.Context(affine=False, bn_groups=GROUPS, dtype=dtype)
  constant = {'schedule': 'constant', 'weight_decay': 1e-3}
  settings = {'num_steps': STEPS, 'reference_ms': 3.0, **settings}
  return update.Problem(
    network=evaluations.make(_spec(), context, evaluation),
    latency=_latency,
    params_optimizer=optimizers.make('sgd', LR, STEPS, **constant),
    alphas_optimizer=optimizers.make('adam', 0.02, STEPS, **constant),
    learning_rate=optimizers.make_schedule(LR, STEPS, schedule='constant'),
    hypergrad=hypergrad,
    **settings,
  )


def _state(problem, multiplier=0.5):
  """The first state, all in the precision of the network."""
  targets = {c.name: 1.0 for c in problem.constraints}
  state = update.init_state(problem, 0, multiplier, targets=targets)
  dtype = problem.network.context.dtype

  def cast(x):
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating else x

  return jax.tree.map(cast, state)


def _chunks(dtype, first, num_steps):
  """Of the train and of the validation half: patterns in noise."""
  rng = np.random.default_rng(0)
  patterns = rng.normal(size=(4, 8, 8, 1))
  chunks = []
  for _ in range(2):
    labels = rng.integers(0, 4, SPLIT * BATCH)
    images = patterns[labels] + rng.normal(size=(labels.size, 8, 8, 1))
    order = rng.permuted(np.tile(np.arange(labels.size), (STEPS, 1)), axis=1)
    chunks.append(
      Chunk(
        jnp.asarray(images, dtype),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(order[first : first + num_steps, :BATCH], jnp.int32),
      )
    )
  return chunks


def _fetch(chunk, indices, rng):
  del rng
  return {'image': chunk.images[indices], 'label': chunk.labels[indices]}


class Program:
  """A compiled `make_step` of K steps, on one device or on a mesh of all."""

  def __init__(self, problem, num_steps=1, mesh=None):
    self.problem = problem
    self.num_steps = num_steps
    self.dtype = problem.network.context.dtype
    self.everywhere = None if mesh is None else sharding.replicated(mesh)
    constrain = (lambda batch: batch) if mesh is None else (
      lambda batch: jax.lax.with_sharding_constraint(
        batch, sharding.batched(mesh)
      )
    )  # fmt: skip
    step = update.make_step(problem, _fetch, constrain)
    args = self._place((_state(problem), *_chunks(self.dtype, 0, num_steps)))
    self.lowered = jax.jit(step, donate_argnums=0).lower(*args)
    self.compiled = self.lowered.compile()

  @property
  def flops(self):
    return self.compiled.cost_analysis()['flops']

  def __call__(self, state, first=0):
    """Returns the state after one call that starts with batch `first`."""
    # The call deletes what it is given.
    state = jax.tree.map(jnp.copy, state)
    chunks = _chunks(self.dtype, first, self.num_steps)
    return self.compiled(*self._place((state, *chunks)))

  def search(self, state, num_steps=STEPS):
    for first in range(0, num_steps, self.num_steps):
      state, metrics = self(state, first)
    return state, metrics

  def _place(self, tree):
    return tree if self.everywhere is None else jax.device_put(
      tree, self.everywhere
    )  # fmt: skip


def _numbers(tree):
  """The leaves as numpy; keys as their data."""

  def number(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)

  return [number(x) for x in jax.tree.leaves(tree)]


def _same(a, b):
  pairs = zip(_numbers(a), _numbers(b), strict=True)
  return all((x == y).all() and x.dtype == y.dtype for x, y in pairs)


def _close(a, b, tolerance):
  for x, y in zip(_numbers(a), _numbers(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def _norm(tree):
  return np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in _numbers(tree)))
