"""The accuracy of a supernet while it is searched."""

from __future__ import annotations

import functools
from typing import Any

import jax

from hwdarts_jax.jobs import feeding
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import sharding


class Evaluation:
  """Accuracy of the supernet on the validation half; compiled once.

  Attributes:
    compiled: (state, batch) -> i32[], None before `use`.
  """

  def __init__(self, search: Any):
    self._search = search
    self._size = search.config.search.eval_batch_size
    self.compiled: Any = None

  def job(self, state):
    """The function to compile, and its example arguments."""
    search = self._search
    example = next(feeding.eval_batches(search.val, self._size, search.mesh))
    count = jax.jit(
      functools.partial(_count_correct, search),
      out_shardings=sharding.replicated(search.mesh),
    )
    return count, (state, example)

  def use(self, compiled) -> None:
    """Takes the compiled function of `job`."""
    self.compiled = compiled

  def __call__(self, state) -> float:
    """The share of right answers at a state."""
    if self.compiled is None:  # a run that was only missing its summary
      (self.compiled,) = loop_lib.compile_together(
        'compiling the evaluation',
        [self.job(state)],
        self._search.config.deterministic,
      )
    search = self._search
    return loop_lib.count_correct(
      self.compiled, state, search.val, self._size, search.mesh
    )


def _count_correct(search: Any, state, batch) -> jax.Array:
  """Number of correct answers of the supernet without noise; i32[]."""
  problem = search.problem
  return network_lib.count_correct(
    problem.network,
    {'params': state.params, 'batch_stats': state.batch_stats},
    search.normalize(batch['image']),
    batch,
    problem.evaluation_gates(state),
  )
