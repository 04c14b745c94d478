"""The most probable architecture within budgets, against all of them."""

import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from hwdarts_jax.latency import liveness, predictor, projection, sampling
from hwdarts_jax.latency.projection import Limit
from hwdarts_jax.spaces import darts, discretize, nasbench201

DARTS = darts.make(features=4, num_cells=1, num_nodes=2, image_size=8)
CELL = nasbench201.make(features=4, num_cells=1, image_size=8)


def _probs(spec, rng, scale=1.0):
  found = {}
  for name, group in spec.groups().items():
    e = np.exp(scale * rng.normal(size=group.shape))
    found[name] = e / e.sum(1, keepdims=True)
  return found


def _costs(spec, rng):
  """Costs with pairs of ops in them: no sum over ops."""
  sizes = {g: np.prod(s.shape) for g, s in spec.groups().items()}
  count = sum(sizes.values())
  single = rng.uniform(0.5, 2, count)
  pair = np.triu(rng.uniform(0, 1, (count, count)) ** 4, 1)

  def costs(one_hot):
    x = np.concatenate(
      [np.reshape(one_hot[g], (len(one_hot[g]), -1)) for g in sizes], 1
    )
    return 1 + x @ single + np.einsum('ni,ij,nj->n', x, pair, x, optimize=True)

  return costs


def _everything(spec):
  """All architectures of a space, by the product of its choices."""
  blocks = sampling.blocks(spec)
  values = [sampling.choices(spec, b) for b in blocks]
  rows = np.array(list(itertools.product(*(range(len(v)) for v in values))))
  found = {
    g: np.zeros((len(rows), *s.shape), np.float32)
    for g, s in spec.groups().items()
  }
  for i, (block, value) in enumerate(zip(blocks, values, strict=True)):
    found[block.group][:, list(block.rows)] = value[rows[:, i]]
  return found


EVERY = {spec.space: _everything(spec) for spec in (DARTS, CELL)}


def _score(one_hot, probs):
  return sum(
    np.einsum('neo,eo->n', one_hot[g], np.log(p)) for g, p in probs.items()
  )


def _best(spec, probs, limits):
  """The largest log probability within the limits, by looking at all."""
  every = EVERY[spec.space]
  ok = liveness.is_connected(spec, every)
  for limit in limits:
    ok = ok & (limit.costs(every) <= limit.most)
  return np.where(ok, _score(every, probs), -np.inf).max()


def _hot(spec, genotype):
  return {g: p[None] for g, p in discretize.one_hot(spec, genotype).items()}


def _limits(spec, rng, shares):
  """Random costs, of which shares of all architectures are within."""
  found = []
  for i, share in enumerate(shares):
    costs = _costs(spec, rng)
    most = float(np.quantile(costs(EVERY[spec.space]), share))
    found.append(Limit(f'cost_{i}', costs, most))
  return found


@pytest.mark.parametrize('spec', [CELL, DARTS], ids=lambda s: s.space)
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_without_budgets_it_is_what_alphas_derive(spec, seed):
  """Wherever that connects input and output."""
  probs = _probs(spec, np.random.default_rng(seed))
  alphas = {g: np.log(p) for g, p in probs.items()}
  genotype = discretize.derive(spec, alphas)
  hypothesis.assume(liveness.is_connected(spec, _hot(spec, genotype))[0])
  found = projection.project(spec, probs, ())
  assert found.genotype == genotype
  assert found.is_feasible
  assert not found.has_moved


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  shares=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=2),
)
def test_in_an_enumerable_space_nothing_feasible_is_more_probable(seed, shares):
  rng = np.random.default_rng(seed)
  probs, limits = _probs(CELL, rng), _limits(CELL, rng, shares)
  want = _best(CELL, probs, limits)
  found = projection.project(CELL, probs, limits)
  assert found.is_exact
  hot = _hot(CELL, found.genotype)
  if found.is_feasible:
    assert all(limit.costs(hot)[0] <= limit.most for limit in limits)
    np.testing.assert_allclose(_score(hot, probs)[0], want, atol=1e-9)
  else:
    assert want == -np.inf


def test_the_search_of_other_spaces_is_feasible_and_nearly_always_best():
  """Of 30 draws, some with two tight budgets: none over, 27 the best."""
  best = 0
  for seed in range(30):
    rng = np.random.default_rng(seed)
    probs = _probs(DARTS, rng, scale=1 + seed % 3)
    shares = [(0.5,), (0.1,), (0.01,), (0.3, 0.3)][seed % 4]
    limits = _limits(DARTS, rng, shares)
    want = _best(DARTS, probs, limits)
    found = projection.project(DARTS, probs, limits)
    assert not found.is_exact
    assert found.is_feasible == np.isfinite(want), seed
    hot = _hot(DARTS, found.genotype)
    assert all(limit.costs(hot)[0] <= limit.most for limit in limits)
    best += abs(_score(hot, probs)[0] - want) < 1e-9
  assert best >= 27


@pytest.mark.parametrize('spec', [CELL, DARTS], ids=lambda s: s.space)
def test_an_impossible_budget_gives_the_nearest_and_says_so(spec):
  rng = np.random.default_rng(0)
  costs = _costs(spec, rng)
  found = projection.project(
    spec, _probs(spec, rng), [Limit('cost', costs, 0.5)]
  )
  assert not found.is_feasible
  every = EVERY[spec.space]
  least = costs(every)[liveness.is_connected(spec, every)].min()
  np.testing.assert_allclose(costs(_hot(spec, found.genotype))[0], least)


def test_what_connects_nothing_is_no_answer():
  """However probable and cheap it is."""
  none = nasbench201.OPS.index('none')
  probs = {nasbench201.GROUP: np.full((6, 5), 0.02)}
  probs[nasbench201.GROUP][:, none] = 0.92
  hot = _hot(CELL, projection.project(CELL, probs, ()).genotype)
  assert liveness.is_connected(CELL, hot)[0]
  np.testing.assert_allclose(
    _score(hot, probs)[0], 5 * np.log(0.92) + np.log(0.02)
  )


def test_a_space_of_many_architectures_is_searched_in_time():
  """DARTS's own cells, under a cost that only few of them meet."""
  spec = darts.make(features=4, num_cells=3, image_size=8)
  assert not predictor.is_enumerable(spec)
  rng = np.random.default_rng(1)
  probs, costs = _probs(spec, rng), _costs(spec, rng)
  drawn = sampling.draw(spec, probs, 500, rng)
  limit = Limit('cost', costs, float(costs(drawn).min()))
  found = projection.project(spec, probs, [limit])
  assert found.is_feasible
  hot = _hot(spec, found.genotype)
  assert costs(hot)[0] <= limit.most
  assert _score(hot, probs)[0] >= _score(drawn, probs)[costs(drawn).argmin()]
