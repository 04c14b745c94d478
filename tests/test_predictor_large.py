"""The predictor in spaces that are too large to enumerate."""

import functools

import jax
import numpy as np
from predictor_cases import (
  _compiled,
  _draw,
  _entries,
  _gates,
  _predict,
  _random_variables,
  _spec,
  every_space,
)
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost, judge, liveness, predictor, sampling
from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, IMAGE, NetworkSpec

_CHAIN_OPS = (
  'skip_connect',
  'max_pool_3x3',
  'avg_pool_3x3',
  'sep_conv_3x3',
  'sep_conv_5x5',
  'dil_conv_3x3',
  'dil_conv_5x5',
  'nor_conv_1x1',
  'nor_conv_3x3',
  'relu_conv_bn_1x1',
  'conv_bn_3x3',
  'residual_block_3x3',
)


def _chain(num_blocks=20, groups=False):
  """A mobile-like space: blocks in a row, all of the same ops.

  With alphas in one group, or in a group for each block.
  """
  cells, source = [], IMAGE
  for i in range(num_blocks):
    edge = EdgeSpec(i, i + 1, _CHAIN_OPS, 0 if groups else i)
    group = f'block_{i}' if groups else 'blocks'
    cells.append(
      CellSpec(f'b{i}', ((i, source),), (edge,), (i + 1,), 3, group=group)
    )
    source = f'b{i}'
  pool = EdgeSpec(0, 1, ('global_avg_pool',), None, 8)
  head = CellSpec('head', ((0, source),), (pool,), (1,), 3)
  return NetworkSpec('chain', (8, 8, 3), (), tuple(cells), (head,), 3)


def _large_dead_spec():
  """Five nodes in which ops may be dead, too many cells to enumerate."""
  pairs = [(src, dst) for dst in range(1, 5) for src in range(dst)]
  ops = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3')
  edges = tuple(EdgeSpec(*pair, ops, row) for row, pair in enumerate(pairs))
  cell = CellSpec('c', ((0, IMAGE),), edges, (4,), 3, group='cell')
  pool = EdgeSpec(0, 1, ('global_avg_pool',), None, 8)
  head = CellSpec('head', ((0, 'c'),), (pool,), (1,), 3)
  return NetworkSpec('dead', (8, 8, 3), (), (cell,), (head,), 3)


def _chain_device(spec, fused_ms=0.0):
  """ms of a chain whose ops cost something, and less after one of their kind.

  Returns f(one_hot) and the table of op entries alone.
  """
  rng = np.random.default_rng(3)
  kinds = rng.uniform(0.3, 1.5, len(_CHAIN_OPS))
  sizes = rng.uniform(0.5, 2, 20)
  saved = fused_ms * rng.uniform(0, 1, (len(_CHAIN_OPS), len(_CHAIN_OPS)))
  groups = spec.groups()
  costs = np.split(sizes[:, None] * kinds, len(groups)) if groups else []
  entries = cost.CostTable(dict(zip(groups, costs, strict=True)), 2.0, 'ms')

  def ms(one_hot):
    rows = np.concatenate(list(one_hot.values()), 1).astype(np.float64)
    pair = np.einsum('neo,nep,op->n', rows[:, :-1], rows[:, 1:], saved)
    return 2.0 + (rows * sizes[:, None] * kinds).sum((1, 2)) - pair

  return ms, entries


@pytest.mark.parametrize('groups', [False, True])
def test_neighbours_of_a_long_chain_are_learned_from_whole_networks(groups):
  """12^20 architectures; a sum of op costs, however good, cannot see fusion."""
  spec = _chain(groups=groups)
  assert not predictor.is_enumerable(spec)
  device, _ = _chain_device(spec, fused_ms=0.4)
  one_hot, unseen = _draw(spec, 500), _draw(spec, 200, seed=1)
  noise = np.random.default_rng(0).normal(1, 0.002, 500)
  fit = predictor.fit(spec, one_hot, device(one_hot) * noise)
  predict = functools.partial(_compiled(spec), fit.variables)
  got = judge.quality(judge.corner_ms(predict, unseen), device(unseen))
  best_sum = judge.additive(
    spec, _draw(spec, 4000, 2), device(_draw(spec, 4000, 2))
  )
  floor = judge.quality(best_sum(unseen), device(unseen))
  assert got['mape_percent'] < 0.5 * floor['mape_percent']
  assert got['spearman'] > floor['spearman']


@pytest.mark.parametrize('groups', [False, True])
def test_entries_and_a_few_networks_beat_either_alone(groups):
  """Entries miss what lies between ops; thirty networks miss the ops."""
  spec = _chain(groups=groups)
  device, entries = _chain_device(spec, fused_ms=0.4)
  few, unseen = _draw(spec, 30), _draw(spec, 300, seed=1)
  fits = {
    'entries': predictor.from_table(spec, entries),
    'scaled': predictor.from_table(
      spec, predictor.calibrate(spec, entries, few, device(few))
    ),
    'networks': predictor.fit(spec, few, device(few)),
    'both': predictor.fit(spec, few, device(few), entries),
  }
  error = {
    name: judge.quality(
      judge.corner_ms(functools.partial(_compiled(spec), f.variables), unseen),
      device(unseen),
    )['mape_percent']
    for name, f in fits.items()
  }
  assert error['scaled'] < 0.5 * error['entries']
  assert error['both'] < 0.9 * error['scaled']
  assert error['both'] < 0.7 * error['networks']


def test_darts_networks_alone_tell_their_ops_and_pairs():
  """The truth is a sum over kept edges; 400 networks recover it."""
  spec = _spec('darts')
  entries = _entries(spec)
  one_hot, unseen = _draw(spec, 400), _draw(spec, 100, seed=1)

  def device(hot):
    return entries.fixed + sum(
      np.einsum('neo,eo->n', hot[g], c) for g, c in entries.per_op.items()
    )

  fit = predictor.fit(spec, one_hot, device(one_hot))
  predict = functools.partial(_compiled(spec), fit.variables)
  got = judge.quality(judge.corner_ms(predict, unseen), device(unseen))
  assert got['within_5_percent'] == 100
  assert got['spearman'] > 0.98


@pytest.mark.parametrize('semantics', liveness.SEMANTICS)
def test_dead_ops_are_seen_where_enumeration_is_impossible(semantics):
  """Found, predicted, and exact at soft gates through the closed form."""
  spec = _large_dead_spec()
  assert not predictor.is_enumerable(spec)
  costs = np.random.default_rng(0).uniform(0.5, 1.5, (10, 4))
  costs[:, 0] = 0

  def device(hot):
    return 1 + (liveness.paid_ops(spec, hot, semantics)['cell'] * costs).sum(
      (1, 2)
    )

  one_hot, unseen = _draw(spec, 400), _draw(spec, 200, seed=1)
  fit = predictor.fit(spec, one_hot, device(one_hot))
  assert fit.card['semantics'] == semantics
  predict = functools.partial(_compiled(spec), fit.variables)
  corner = judge.corner_ms(predict, unseen)
  assert judge.quality(corner, device(unseen))['mape_percent'] < 1
  gates = _gates(spec)
  drawn = sampling.draw(spec, gates, 20_000, np.random.default_rng(0))
  np.testing.assert_allclose(
    _predict(spec, fit.variables, gates), device(drawn).mean(), rtol=0.02
  )


@pytest.mark.parametrize('seed', range(2))
def test_soft_darts_latency_is_the_mean_over_all_its_architectures(seed):
  """7,203 of them, every kept pair of edges, with pairs of ops counted.

  Its slope is that of the same mean at gates nearby.
  """
  spec = spaces.make('darts', num_cells=1, num_nodes=2)
  ((name, _),) = spec.groups().items()
  variables = _random_variables(spec)
  gates = _gates(spec, seed)

  def architectures(probs):
    hots, chance = np.zeros((1, 5, 8)), np.ones(1)
    for block in sampling.blocks(spec):
      values = sampling.choices(spec, block)
      rows = list(block.rows)
      weight = sampling.chances(values, probs[rows])
      hots = np.repeat(hots, len(values), 0)
      hots[:, rows] = np.tile(values, (len(chance), 1, 1))
      chance = (chance[:, None] * weight).ravel()
    return hots, chance

  probs = gates[name].astype(np.float64)
  hots, chance = architectures(probs)
  assert len(chance) == 7203
  predict = functools.partial(_compiled(spec), variables)
  ms = judge.corner_ms(predict, {name: hots})
  got, slope = jax.value_and_grad(predict)(gates)
  np.testing.assert_allclose(got, chance @ ms, rtol=1e-4, atol=1e-4)
  step = 1e-5 * np.random.default_rng(9).normal(size=probs.shape)
  ahead, behind = (architectures(probs + s * step)[1] @ ms for s in (1, -1))
  along = (np.asarray(slope[name], np.float64) * step).sum()
  np.testing.assert_allclose(along, (ahead - behind) / 2, rtol=1e-3)


@every_space
def test_soft_latency_is_that_of_drawn_architectures(name):
  """Interior error of random variables, up to the error of drawing."""
  spec = _spec(name)
  predict = functools.partial(_compiled(spec), _random_variables(spec))

  def positive(gates):
    return 100 + predict(gates)

  report = judge.interior(spec, positive, count=5, num_samples=4000)
  assert report['interior_error_percent'] < 1
  assert report['gradient_cosine'] > 0.96
