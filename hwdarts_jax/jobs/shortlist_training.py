"""Trains many architectures of one space at once, each from scratch.

One compiled program trains any of them: they are one supernet with one-hot
gates (`models.members`), with params, statistics and an optimizer of its own
for each member. All members begin with the same params and see the same
batches, so that they differ by their architecture alone, and a member is worth
the same whatever others it is trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.models import members as members_lib
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import sharding
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

Tree = Any


class State(struct.PyTreeNode):
  """The state of M members that are trained together.

  Attributes:
    step: i32[], steps done.
    params: of each member, with a leading axis M.
    batch_stats: likewise.
    opt: optimizer states, likewise.
    rng: typed key; folded with the step, never changed.
  """

  step: jax.Array
  params: Tree
  batch_stats: Tree
  opt: Tree
  rng: jax.Array


@dataclasses.dataclass(frozen=True)
class Trainer:
  """How members are trained.

  Attributes:
    network: of `members.make`.
    optimizer: of the params of one member.
    augment: of train images.
    mean: of the images, by channel.
    std: likewise.
    evaluation: of `members.EVALUATIONS`.
    mesh: devices, over which members are spread.
  """

  network: Any
  optimizer: optax.GradientTransformation
  augment: Augment
  mean: tuple[float, ...]
  std: tuple[float, ...]
  evaluation: str
  mesh: jax.sharding.Mesh

  def init(self, seed: int, count: int) -> State:
    """The state before the first step: equal params for all members.

    Args:
      seed: of params and of steps.
      count: M, a multiple of the devices.
    """
    init_rng, step_rng = jax.random.split(jax.random.key(seed))
    variables = network_lib.init(self.network, init_rng)
    opt = self.optimizer.init(variables['params'])

    def spread(leaf):
      leaf = np.asarray(leaf)
      every = np.broadcast_to(leaf, (count, *leaf.shape))
      return jax.device_put(every, sharding.batched(self.mesh))

    params, stats, opt = jax.tree.map(
      spread, (variables['params'], variables['batch_stats'], opt)
    )
    step, rng = sharding.replicate(
      (jnp.zeros((), jnp.int32), step_rng), self.mesh
    )
    return State(step, params, stats, opt, rng)

  def step(
    self, state: State, gates: Mapping[str, jax.Array], chunk: pipeline.Chunk
  ) -> tuple[State, dict[str, jax.Array]]:
    """K optimizer steps of every member, on the same batches.

    Args:
      state: before the first.
      gates: one-hot, f32[M, E, O] of each group.
      chunk: the data of all steps.

    Returns:
      The state after the last, and metrics f32[], means over steps and members.
    """
    one = functools.partial(self._one_step, gates, chunk)
    if chunk.indices.shape[0] == 1:
      return one(state, chunk.indices[0])
    state, metrics = jax.lax.scan(one, state, chunk.indices)
    return state, jax.tree.map(lambda m: m.mean(0), metrics)

  def count_correct(
    self,
    state: State,
    gates: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
  ) -> jax.Array:
    """How many answers of each member are right, i32[M].

    Args:
      state: whose running statistics are used.
      gates: as in `step`.
      batch: 'image' u8[B, H, W, C], 'label' i32[B] and 'mask' bool[B].
    """

    def one(batch, params, stats, gates):
      dtype = self.network.context.dtype
      image = pipeline.normalize(batch['image'], self.mean, self.std, dtype)
      return network_lib.count_correct(
        self.network,
        {'params': params, 'batch_stats': stats},
        image,
        batch,
        gates,
      )

    return self._over(one, batch, state.params, state.batch_stats, gates)

  def _one_step(self, gates, chunk, state: State, indices):
    batch = pipeline.make_batch(
      chunk.images,
      chunk.labels,
      indices,
      jax.random.fold_in(state.rng, state.step),
      self.augment,
      self.mean,
      self.std,
      self.network.context.dtype,
    )
    (params, stats, opt), metrics = self._over(
      self._advance, batch, state.params, state.batch_stats, state.opt, gates
    )
    new = State(state.step + 1, params, stats, opt, state.rng)
    return new, jax.tree.map(lambda m: m.mean(0), metrics)

  def _advance(self, batch, params, stats, opt, gates):
    """One optimizer step of one member."""

    def loss(params):
      logits, updated = self.network.apply(
        {'params': params, 'batch_stats': stats},
        batch['image'],
        gates,
        train=True,
        mutable=['batch_stats'],
      )
      value = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['label']
      ).mean()
      accuracy = (logits.argmax(-1) == batch['label']).mean()
      return value, (updated['batch_stats'], accuracy)

    (value, (stats, accuracy)), grads = jax.value_and_grad(loss, has_aux=True)(
      params
    )
    updates, opt = self.optimizer.update(grads, opt, params)
    metrics = {'train_loss': value, 'train_accuracy': accuracy}
    return (optax.apply_updates(params, updates), stats, opt), metrics

  def _over(self, function, batch, *trees):
    """A function of a batch and one member, of all: M is split over devices.

    No member needs another's numbers, so devices never talk.
    """

    def of_own(batch, *trees):
      own = functools.partial(function, batch)
      return members_lib.over(own, self.evaluation)(*trees)

    split = jax.sharding.PartitionSpec(sharding.AXIS)
    return jax.shard_map(
      of_own,
      mesh=self.mesh,
      in_specs=(jax.sharding.PartitionSpec(), *[split] * len(trees)),
      out_specs=split,
      # Else every constant of a layer would have to be marked as varying.
      check_vma=False,
    )(batch, *trees)


def stack_gates(
  spec: NetworkSpec, genotypes: Sequence[Genotype], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """One-hot gates f32[M, E, O] of each group, split over the devices."""
  one_hot = [discretize.one_hot(spec, g) for g in genotypes]
  return {
    name: jax.device_put(
      np.stack([gates[name] for gates in one_hot]), sharding.batched(mesh)
    )
    for name in spec.groups()
  }
