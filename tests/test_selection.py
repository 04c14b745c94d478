"""How an architecture is read from a supernet."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.jobs import selection
from hwdarts_jax.spaces import discretize

NAS = spaces.make('nasbench201', features=2, num_cells=1)
DARTS = spaces.make('darts', features=2, num_cells=3, num_nodes=2)
either = pytest.mark.parametrize(
  'spec', [NAS, DARTS], ids=['nasbench201', 'darts']
)
seeds = st.integers(0, 2**31 - 1)


def _supernet(spec, seed):
  """Gates, and an accuracy to which every op of every edge adds a part.

  The parts have nothing to do with the gates; those of edges differ as well.
  """
  rng = np.random.default_rng(seed)
  shapes = {g: s.shape for g, s in spec.groups().items()}
  gates = {g: rng.dirichlet(np.ones(s[1]), s[0]) for g, s in shapes.items()}
  worth = {
    g: rng.uniform(0.5, 1, s) * rng.uniform(0.5, 1.5, (s[0], 1))
    for g, s in shapes.items()
  }

  def accuracy(removed):
    alive = {g: removed[g] > 0 for g in gates}
    return 0.01 * sum((worth[g] * alive[g]).sum() for g in gates)

  return gates, worth, accuracy


def _choices(genotype, spec):
  return {
    (g, (c.src, c.dst)): spec.groups()[g].ops.index(c.op)
    for g, chosen in genotype.cells.items()
    for c in chosen
  }


@either
@hypothesis.given(seed=seeds)
def test_each_edge_takes_the_op_whose_removal_hurts_most(spec, seed):
  """Whatever its gate; ops that may not win do not."""
  gates, worth, accuracy = _supernet(spec, seed)
  scores = selection.by_removal(spec, gates, accuracy)
  for g, group in spec.groups().items():
    np.testing.assert_allclose(scores[g].sum(-1), 1, rtol=1e-5)
    allowed = np.array([op not in spec.excluded for op in group.ops])
    want = np.where(allowed, worth[g], -1).argmax(-1)
    np.testing.assert_array_equal(scores[g].argmax(-1), want)


@hypothesis.given(seed=seeds)
def test_nodes_keep_the_edges_whose_removal_hurts_most(seed):
  gates, worth, accuracy = _supernet(DARTS, seed)
  scores = selection.by_removal(DARTS, gates, accuracy)
  logits = {g: np.log(s) for g, s in scores.items()}
  found = _choices(discretize.derive(DARTS, logits), DARTS)
  for g, group in DARTS.groups().items():
    edges = worth[g].sum(-1)
    for dst in {d for _, d in group.edges}:
      into = [r for r, e in enumerate(group.edges) if e[1] == dst]
      best = sorted(into, key=lambda r: -edges[r])[:2]
      kept = {edge for h, edge in found if h == g and edge[1] == dst}
      assert kept == {group.edges[r] for r in best}


def test_of_ops_that_nobody_misses_the_larger_gate_wins():
  gates, _, _ = _supernet(NAS, 0)
  scores = selection.by_removal(NAS, gates, lambda removed: 0.9)
  for g, gate in gates.items():
    np.testing.assert_array_equal(scores[g].argmax(-1), gate.argmax(-1))


def test_a_point_of_accuracy_is_a_factor_e_of_odds():
  gates, worth, accuracy = _supernet(NAS, 3)
  (g,) = gates
  scores = selection.by_removal(NAS, gates, accuracy)[g]
  odds = np.log(scores[:, 0] / scores[:, 1])
  np.testing.assert_allclose(odds, worth[g][:, 0] - worth[g][:, 1], atol=1e-3)


def test_argmax_takes_the_probabilities_as_they_are():
  gates, _, _ = _supernet(NAS, 1)
  assert selection.argmax(None, None, gates) is gates
