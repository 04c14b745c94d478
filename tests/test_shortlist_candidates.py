"""Candidates are the best networks within their bounds, each once."""

import collections
import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tiny_runs

from hwdarts_jax import oracle, spaces
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import shortlist_candidates as candidates_lib
from hwdarts_jax.latency import budgets, sameness
from hwdarts_jax.spaces import discretize, nasbench201
from hwdarts_jax.spaces.spec import Choice, Genotype

CELLS = nasbench201.make()
MACS = budgets.make('macs', CELLS)


def _key(text):
  return sameness.keys(CELLS, [nasbench201.from_arch_string(text)])[0]


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    # An op that leads nowhere.
    (
      '|nor_conv_3x3~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|',
      '|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|',
    ),
    # An op that nothing feeds.
    (
      '|none~0|+|none~0|nor_conv_3x3~1|+|nor_conv_1x1~0|none~1|none~2|',
      '|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|',
    ),
    # By another node, which passes on what it reads.
    (
      '|skip_connect~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|',
      '|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|',
    ),
  ],
)
def test_what_is_one_network_has_one_key(one, other):
  assert _key(one) == _key(other)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    # Two convolutions of one input have weights of their own.
    (
      '|none~0|+|skip_connect~0|none~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|',
      '|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|',
    ),
    # An identity that is added counts.
    (
      '|skip_connect~0|+|none~0|none~1|+|nor_conv_3x3~0|skip_connect~1|none~2|',
      '|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|',
    ),
  ],
)
def test_other_networks_have_other_keys(one, other):
  assert _key(one) != _key(other)


def test_cells_of_one_key_are_as_accurate_as_trainings_of_one_network():
  """By what NAS-Bench-201 measured of each of them."""
  cells = np.flatnonzero(oracle.load().connected)[::2]
  keys = sameness.keys(CELLS, [oracle.genotype(int(c)) for c in cells])
  truth, groups = oracle.accuracies('cifar10'), collections.defaultdict(list)
  for cell, key in zip(cells, keys, strict=True):
    groups[key].append(truth[cell])
  spreads = [np.std(v) for v in groups.values() if len(v) > 1]
  assert len(spreads) > 500
  assert np.median(spreads) < 0.2
  assert np.std(truth[cells]) > 4


@hypothesis.given(
  st.integers(0, 2**16), st.floats(0.2, 0.9), st.integers(1, 12)
)
@hypothesis.settings(max_examples=10)
def test_of_a_space_that_can_be_enumerated_they_are_exactly_the_best(
  seed, place, size
):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.ones(5), 6)
  low, high = MACS.range.low, MACS.range.high
  bound = bounds_lib.Bound(MACS, low + place * (high - low), 0.0, 'macs')
  target = candidates_lib.Target((bound,), {'cell': probs})
  found = candidates_lib.best(CELLS, target, size)
  assert len({c.key for c in found}) == len(found) == size
  # Whatever is more probable and within is one of these networks.
  scores = oracle.log_probabilities(probs)
  costs = _macs()
  allowed = oracle.load().connected & (costs <= bound.aim)
  # What meets a bound exactly is left out, since others may round.
  inside = allowed & (costs < bound.aim * (1 - 1e-5))
  better = np.flatnonzero(inside & (scores > found[-1].score + 1e-6))
  keys = sameness.keys(CELLS, [oracle.genotype(int(c)) for c in better])
  assert set(keys) <= {c.key for c in found}
  for c in found:
    cell = oracle.index(c.genotype)
    assert allowed[cell]
    assert c.score == pytest.approx(scores[cell], abs=1e-5)


def _macs():
  every = np.eye(5, dtype=np.float32)[oracle.load().ops]
  return MACS.costs({'cell': every})


@pytest.mark.parametrize('seed', range(3))
def test_of_other_spaces_they_are_the_best_of_all_as_well(seed):
  """Where edges are dropped, held against all architectures of a small one."""
  spec = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  ((name, group),) = spec.groups().items()
  allowed = [op for op in group.ops if op not in spec.excluded]
  every = [
    Genotype(
      spec.space,
      {
        name: tuple(
          Choice(op, *edge) for op, edge in zip(pair, group.edges, strict=True)
        )
      },
    )
    for pair in itertools.product(allowed, repeat=2)
  ]
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.ones(group.shape[1]), group.shape[0])
  logs = [
    float((discretize.one_hot(spec, g)[name] * np.log(probs)).sum())
    for g in every
  ]
  keys = sameness.keys(spec, every)
  order = np.argsort(-np.array(logs), kind='stable')
  wanted = list(dict.fromkeys(keys[i] for i in order))[:6]
  target = candidates_lib.Target((), {name: probs})
  found = candidates_lib.best(spec, target, 6)
  assert [c.key for c in found] == wanted


def test_the_first_of_all_targets_are_trained_before_the_second():
  def some(*keys):
    genotype = oracle.genotype(0)
    return [candidates_lib.Candidate(genotype, key, 0.0) for key in keys]

  order = candidates_lib.union([some('a', 'b', 'c'), some('d', 'a')])
  assert list(order) == ['a', 'd', 'b', 'c']
