"""What brief trainings of some networks say of all networks of a space.

A training is noisy, and networks that are alike are about as accurate. So the
errors of networks are taken for a sum of random functions of what they consist
of (`latency.gaussian`), plus noise: which of these matter, and how noisy
trainings are, is found by maximum marginal likelihood. The mean of that process
tells which networks to train next, and smooths what was trained.

A pure function of a space, architectures and accuracies: nothing here knows
what trained them, or of latencies. Its figures were chosen by simulation on
NAS-Bench-201, see benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from hwdarts_jax.latency import cost, features, gaussian, liveness, sampling
from hwdarts_jax.latency.gaussian import Kernel, Kernels
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import CellSpec, NetworkSpec

OneHot = Mapping[str, np.ndarray]
Probs = Mapping[str, np.ndarray]

_CHOICES = 6  # of the space that the lengths below are for
_PLACES, _PATHS, _SHAPE, _SIZE = 1.2, 1.5, 2.0, 0.7
_DRAWN = 500  # architectures that scales are taken from
_LEAST = 1e-30  # probability
_LEAST_ERROR = 1e-3  # per cent: errors are relative to each other
_MOST_ERROR = 15.0  # per cent more: how bad worse networks are is no matter
_OWN = 0.3  # share of what sets a network apart from its likes that is no noise
_NORMAL = gaussian.Tails(freedom=1e6)


class Likeness:
  """How alike the networks of a space are, by what of them computes.

  By ops in their places, by the ops along each path, by what is to be said of
  all (counts of ops, the longest and shortest path in convolutions, MACs), and
  by how probable a search holds them.
  """

  def __init__(self, spec: NetworkSpec, probs: Sequence[Probs] = ()):
    """Takes the scales from random architectures.

    Args:
      spec: the space.
      probs: distributions over ops f[E, O] of each group, such as a search
        ends with; those that differ count as one each.
    """
    self._spec = spec
    self._cells = {c.group: c for c in spec.all_cells if c.group is not None}
    table = cost.tabulate(spec, cost.macs, 'macs')
    self._macs = table.per_op
    self._most = max(cost.extremes(spec, table)[1] - table.fixed, 1.0)
    choices = sum(block.keep for block in sampling.blocks(spec))
    self._longer = math.sqrt(choices / _CHOICES)
    self._choices = choices
    logs = [
      {g: np.log(np.maximum(p, _LEAST)) for g, p in some.items()}
      for some in probs
    ]
    self._logs = [
      some for i, some in enumerate(logs) if not _is_among(some, logs[:i])
    ]
    drawn = sampling.draw(
      spec, discretize.uniform(spec), _DRAWN, np.random.default_rng(0)
    )
    own = self._features(drawn)
    self._means = {k: v.mean(0) for k, v in own.items()}
    self._means['paths'] = np.zeros(own['paths'].shape[1])
    self._squares = {
      k: max(float(np.square(v - self._means[k]).sum(1).mean()), 1e-9)
      for k, v in own.items()
    }

  def kernels(self, one_hot: OneHot) -> dict[str, Kernel]:
    """Of architectures f[N, E, O] of each group."""
    own = self._features(one_hot)
    longer = self._longer
    found = {
      'places': Kernel(own['places'], _PLACES * longer),
      'paths': Kernel(own['paths'], _PATHS * longer),
      'shape': Kernel(own['shape'], _SHAPE * longer),
      'size': Kernel(own['size'], _SIZE),
    }
    for name in ('paths', 'shape', 'scores'):
      if name in own:
        values = own[name] - self._means[name]
        found[f'{name}_sums'] = Kernel(values, scale=self._squares[name])
    return found

  def _features(self, one_hot: OneHot) -> dict[str, np.ndarray]:
    """What kernels are made of, f[N, F] each."""
    spec = self._spec
    paid = liveness.paid_ops(spec, one_hot, 'compiled')
    places = np.concatenate([p.reshape(len(p), -1) for p in paid.values()], 1)
    macs = np.zeros(len(places))
    for group, costs in self._macs.items():
      macs += np.einsum('neo,eo->n', paid[group], costs)
    depths = [self._depths(cell, paid) for cell in self._cells.values()]
    running = places.sum(1) / self._choices
    found = {
      'places': places,
      'paths': features.sequences(spec, paid),
      'shape': np.concatenate([features.counts(spec, paid), *depths], 1),
      'size': np.stack([3 * macs / self._most, 2 * running], 1),
    }
    if self._logs:
      scores = np.zeros((len(places), len(self._logs)))
      for column, logs in enumerate(self._logs):
        for group, values in logs.items():
          hot = np.asarray(one_hot[group], np.float64)
          scores[:, column] += np.einsum('neo,eo->n', hot, values)
      found['scores'] = scores / math.sqrt(self._choices)
    return found

  def _depths(self, cell: CellSpec, paid: OneHot) -> np.ndarray:
    """The longest and the shortest live path through a cell, f[N, 2].

    In ops that multiply; 0 where nothing is alive.
    """
    name = str(cell.group)
    runs = np.asarray(paid[name].any(-1))
    steps = np.asarray((paid[name] * (self._macs[name] > 0)).any(-1))
    zero, never = np.zeros(len(runs)), np.full(len(runs), np.inf)
    longest = {node: zero for node, _ in cell.inputs}
    shortest = dict(longest)
    for edge in cell.edges:
      on: np.ndarray = np.ones(len(runs), bool)
      step: np.ndarray = zero
      if edge.row is not None:
        on, step = runs[:, edge.row], steps[:, edge.row]
      for ends, best, none in (
        (longest, np.maximum, -never),
        (shortest, np.minimum, never),
      ):
        reached = np.where(on, ends.get(edge.src, none) + step, none)
        ends[edge.dst] = best(ends.get(edge.dst, none), reached)
    depths = np.stack(
      [
        np.max([longest.get(n, -never) for n in cell.outputs], 0),
        np.min([shortest.get(n, never) for n in cell.outputs], 0),
      ],
      1,
    )
    return np.where(np.isfinite(depths), depths, 0)


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """What was learned from networks that were trained alike.

  Attributes:
    regression: of errors in per cent.
    smoothed: accuracies of the trained networks f[N]: each is believed as far
      as its likes agree, and a little further.
  """

  regression: gaussian.Regression
  smoothed: np.ndarray

  def predict(self, kernels: Kernels) -> np.ndarray:
    """Expected accuracies f[N], as shares, of networks with these kernels."""
    return 1 - self.regression.predict(kernels, None) / 100


def fit(kernels: Kernels, accuracies: np.ndarray) -> Surrogate:
  """Learns from trainings.

  Args:
    kernels: of the networks that were trained, one at least, by
      `Likeness.kernels`.
    accuracies: shares of right answers, f[N].
  """
  wrong = np.maximum(100 * (1 - np.asarray(accuracies)), _LEAST_ERROR)
  wrong = np.minimum(wrong, np.median(wrong) + _MOST_ERROR)
  found = gaussian.Regression(kernels, wrong, None, np.random.default_rng(0))
  found = found.refine(_NORMAL)
  likes = found.predict(kernels, None)
  return Surrogate(found, 1 - (likes + _OWN * (wrong - likes)) / 100)


def _is_among(one: Probs, others: Sequence[Probs]) -> bool:
  return any(
    all(np.allclose(one[g], other[g]) for g in one) for other in others
  )
