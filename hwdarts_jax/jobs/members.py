"""The accuracy of architectures by params that they share."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.jobs import feeding
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.models import evaluations
from hwdarts_jax.runtime import sharding
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype

_IMAGES = 2048  # of the validation half, at most
_AT_ONCE = 8  # architectures in a pass


def accuracies(
  search: Any, state: Any, genotypes: Sequence[Genotype]
) -> list[float]:
  """Shares of right answers of architectures on the validation half.

  With the params of the supernet and the statistics of each batch: running
  statistics are those of mixtures.

  Args:
    search: a `search.Search`.
    state: a `SearchState`, of a search or of a population.
    genotypes: of the search spec.
  """
  network = search.problem.network
  # One group, whatever the batch size of evaluations is.
  context = dataclasses.replace(network.context, bn_groups=1)
  network = dataclasses.replace(network, context=context)

  def count(variables, batch, gates):
    image = search.normalize(batch['image'])
    members = next(iter(gates.values())).shape[0]
    images = jnp.broadcast_to(image, (members, *image.shape))
    logits, _ = evaluations.apply_members(network, variables, images, gates)
    return (logits.argmax(-1) == batch['label'][None]).sum(1)

  size = min(search.config.search.eval_batch_size, search.val.num_examples)
  shown = list(  # whole ones: what fills one up would change its statistics
    itertools.islice(
      feeding.whole_batches(search.val, size, search.mesh),
      max(_IMAGES // size, 1),
    )
  )
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  everywhere = sharding.replicated(search.mesh)
  compiled, found = jax.jit(count, out_shardings=everywhere), []
  for start in range(0, len(genotypes), _AT_ONCE):
    some = list(genotypes[start : start + _AT_ONCE])
    filled = some + some[:1] * (_AT_ONCE - len(some))  # one program for all
    one_hot = [discretize.one_hot(search.specs.search, g) for g in filled]
    gates = jax.tree.map(lambda *g: np.stack(g), *one_hot)
    right = loop_lib.sum_one_by_one(
      compiled(variables, batch, gates) for batch in shown
    )
    found += right[: len(some)].tolist()
  return [count / (len(shown) * size) for count in found]
