"""Trains lists of networks for a shortlist, some at a time, and remembers them.

chunks/000/...    metrics of those that were trained together
pool.json         the accuracies of all that were trained so far
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

from etils import epath
import jax
import numpy as np

from hwdarts_jax.data import pipeline
from hwdarts_jax.jobs import feeding
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import shortlist_pool as pool_lib
from hwdarts_jax.jobs import shortlist_training as training_lib
from hwdarts_jax.spaces.spec import Genotype

_SHOWN = ('train_loss', 'train_accuracy')


class Chunks:
  """The trainings of a shortlist, one list of networks after the other.

  The same lists make the same chunks, whatever was trained before a stop.
  """

  def __init__(self, shortlist: Any, path: epath.Path):
    """Reads what was trained already.

    Args:
      shortlist: a `shortlist.Shortlist`.
      path: the workdir.
    """
    self._shortlist, self._path = shortlist, path
    self._own = pool_lib.Pool(shortlist.pool.settings, {})
    if (path / pool_lib.POOL).exists():
      pool = str(path / pool_lib.POOL)
      self._own = pool_lib.load(pool, self._own.settings)
    self._programs = _Programs(shortlist)
    self._number = 0

  def train(self, wanted: Mapping[str, Genotype]) -> dict[str, float] | None:
    """Accuracies of networks by their keys; None if it was stopped.

    Args:
      wanted: what no list before had, by `sameness.keys`.
    """
    settings, others = self._shortlist.config.shortlist, self._shortlist.pool
    size = settings.members_per_program
    todo = [k for k in wanted if k not in others.accuracies]
    print(
      f'{len(wanted)} networks, of which {len(todo)} are to be trained for '
      f'{settings.num_epochs} epochs, {size} at a time.'
    )
    for start in range(0, len(todo), size):
      keys = todo[start : start + size]
      path = self._path / 'chunks' / f'{self._number:03d}'
      self._number += 1
      if all(key in self._own.accuracies for key in keys):
        continue
      filled = keys + keys[:1] * (size - len(keys))  # one program for all
      found = self._train_chunk(path, [wanted[key] for key in filled])
      if found is None:
        return None
      known = dict(zip(keys, found[: len(keys)], strict=True))
      self._save(known, {key: wanted[key] for key in keys})
      # What is known need not be trained again.
      (path / 'checkpoints').rmtree()
    # Once more with all that came from elsewhere, for others to take.
    taken = {k: v for k, v in others.accuracies.items() if k in wanted}
    self._save(taken, {k: wanted[k] for k in taken})
    return {key: self._own.accuracies[key] for key in wanted}

  def _save(self, accuracies, genotypes) -> None:
    self._own = pool_lib.Pool(
      self._own.settings,
      self._own.accuracies | accuracies,
      self._own.genotypes | genotypes,
    )
    self._own.save(self._path)

  def _train_chunk(
    self, path: epath.Path, genotypes: list[Genotype]
  ) -> list[float] | None:
    """Accuracies of members that are trained together; None if stopped."""
    config, trainer = self._shortlist.config, self._shortlist.trainer
    path.mkdir(parents=True, exist_ok=True)
    gates = training_lib.stack_gates(
      self._shortlist.proxy, genotypes, trainer.mesh
    )
    feed = feeding.make_feed(
      self._shortlist.train,
      config.data,
      trainer.augment,
      config.shortlist.batch_size,
      config.seed,
      trainer.mesh,
      is_split=False,
    )
    loop = loop_lib.Loop(
      name=f'shortlist, chunk {int(path.name) + 1}',
      schedule=self._shortlist.schedule,
      compile=functools.partial(self._programs.step, gates),
      feeds=[feed],
      on_row=lambda state, step, row: {},
      shown=_SHOWN,
      advice='Try a lower shortlist.optimizer.learning_rate, with a new '
      '--workdir.',
    )
    state = trainer.init(config.seed, len(genotypes))
    state, done = loop.run(path, state)
    return self._programs.accuracies(state, gates) if done else None


class _Programs:
  """The compiled step and evaluation, the same for all chunks."""

  def __init__(self, shortlist: Any):
    self._shortlist = shortlist
    self._size = shortlist.config.shortlist.eval_batch_size
    self._step: Any = None
    self._count: Any = None

  def step(self, gates, state, chunks):
    """What `Loop.compile` is, for members with these gates."""
    trainer = self._shortlist.trainer
    if self._step is None:
      (self._step,) = loop_lib.compile_together(
        'compiling the training step',
        [(jax.jit(trainer.step, donate_argnums=0), (state, gates, *chunks))],
        self._shortlist.config.deterministic,
      )
    return lambda state, *chunks: self._step(state, gates, *chunks)

  def accuracies(self, state, gates) -> list[float]:
    """The shares of right answers of all members on the validation half."""
    val = self._shortlist.val
    batches = pipeline.eval_batches(val, self._size)
    if self._count is None:
      (self._count,) = loop_lib.compile_together(
        'compiling the evaluation',
        [
          (
            jax.jit(self._shortlist.trainer.count_correct),
            (state, gates, next(pipeline.eval_batches(val, self._size))),
          )
        ],
        self._shortlist.config.deterministic,
      )
    counts = [np.asarray(self._count(state, gates, b)) for b in batches]
    return (np.sum(counts, 0) / val.num_examples).tolist()
