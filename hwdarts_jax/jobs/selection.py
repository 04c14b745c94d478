"""How an architecture is read from a finished search.

A selection is a function ``f(search, state, probs) -> scores``: from the
distribution that the alphas stand for, f32[E, O] of each group, to another by
which each edge takes its best op, and nodes their strongest edges. Add one by
writing the function and entering it in `SELECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import numpy as np

from hwdarts_jax.bilevel.problem import SearchState
from hwdarts_jax.jobs import feeding
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import sharding

Scores = Mapping[str, np.ndarray]
Accuracy = Callable[[Scores], float]
_SHARPNESS = 0.01  # accuracy by which odds change e-fold


def argmax(search: Any, state: SearchState, probs: Scores) -> Scores:
  """The most probable ops: DARTS, section 2.4."""
  del search, state
  return probs


def perturbation(search: Any, state: SearchState, probs: Scores) -> Scores:
  """The ops whose removal hurts the supernet most (Wang et al. 2021).

  See `by_removal`. The supernet mixes its ops by `probs`, also where it was
  trained by one op at a time; its accuracy is that on the validation half, with
  the statistics of its batches as in the paper's code.
  """
  return by_removal(search.specs.search, probs, _accuracy_of(search, state))


SELECTIONS: dict[str, Callable[..., Scores]] = {
  f.__name__: f for f in (argmax, perturbation)
}


def by_removal(spec: Any, gates: Scores, accuracy: Accuracy) -> Scores:
  """Scores ops, and edges where not all are kept, by what their removal costs.

  DARTS-PT (Wang et al. 2021, algorithm 1): an op is removed by setting its gate
  to zero, an edge by setting all its gates to zero; nothing is renormalized.
  There one edge after the other is decided and the supernet is trained on
  between; here all are judged in the supernet as it is, so that the order of
  the edges does not matter, and edges by the mixture of their ops. Of equal
  accuracies the one with the larger gate wins.

  Args:
    spec: of the supernet.
    gates: of the intact supernet, f32[E, O] of each group.
    accuracy: gates -> share of one.

  Returns:
    For each group f32[E, O], rows that sum to one: where all edges are kept,
    odds change e-fold with each point of accuracy lost; where some are dropped,
    masses follow the order of the ops, and the largest of a row that of the
    edges.
  """
  keep = {c.group: c.keep for c in spec.all_cells if c.group is not None}
  groups = spec.groups()
  total = sum(
    e * (o + (keep[g] is not None))
    for g, (e, o) in ((g, s.shape) for g, s in groups.items())
  )
  scores = {}
  with metrics_lib.Progress(total, desc='removing ops') as progress:

    def harm(group, row, column):
      removed = {g: np.array(p) for g, p in gates.items()}
      removed[group][row, column] = 0
      progress.update(1)
      return -accuracy(removed)

    for g, group in groups.items():
      rows, columns = group.shape
      harms = np.array(
        [[harm(g, e, o) for o in range(columns)] for e in range(rows)]
      )
      harms += 1e-6 * np.asarray(gates[g])
      harms[:, [op in spec.excluded for op in group.ops]] = -np.inf
      if keep[g] is None:
        odds = np.exp((harms - harms.max(-1, keepdims=True)) / _SHARPNESS)
      else:
        edges = np.array([harm(g, e, slice(None)) for e in range(rows)])
        edges += 1e-6 * np.asarray(gates[g]).max(-1)
        odds = _ranked(harms, edges)
      odds = np.maximum(odds, 1e-30)
      scores[g] = (odds / odds.sum(-1, keepdims=True)).astype(np.float32)
  return scores


def _ranked(harms: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Masses f[E, O] in the order of the ops, steeper in better edges."""
  place = edges.argsort().argsort() / max(len(edges) - 1, 1)  # 0 to 1
  ratio = 0.5 - 0.4 * place
  ranks = (-harms).argsort(-1, kind='stable').argsort(-1)
  return ratio[:, None] ** ranks


def _accuracy_of(search: Any, state: SearchState) -> Accuracy:
  """Compiles gates -> accuracy on the validation half of the supernet."""
  problem, config = search.problem, search.config
  parts = config.network.bn_groups
  # Whole batches only: what fills up the last would change its statistics.
  size = min(config.search.eval_batch_size, search.val.num_examples)
  size = max(size // parts, 1) * parts

  def count(state, gates, batch):
    logits, _ = problem.network.apply(
      {'params': state.params, 'batch_stats': state.batch_stats},
      search.normalize(batch['image']),
      gates,
      train=True,
      mutable=['batch_stats'],
    )
    return (logits.argmax(-1) == batch['label']).sum()

  batches = functools.partial(
    feeding.whole_batches, search.val, size, search.mesh
  )
  counted = jax.jit(count, out_shardings=sharding.replicated(search.mesh))
  (compiled,) = loop_lib.compile_together(
    'compiling the selection',
    [(counted, (state, state.alphas, next(batches())))],
    config.deterministic,
  )
  return functools.partial(_accuracy, compiled, state, batches, size)


def _accuracy(compiled, state, batches, size, gates) -> float:
  dtypes = {g: a.dtype for g, a in state.alphas.items()}
  given = {g: np.asarray(p, dtypes[g]) for g, p in gates.items()}
  counts = [np.asarray(compiled(state, given, batch)) for batch in batches()]
  return sum(map(int, counts)) / (size * len(counts))
