"""Bounds of a search: what they ask for, and what can be met."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import bounds, common
from hwdarts_jax.latency import judge, liveness, projection, sampling
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces.spec import Genotype

OBJECTIVE = {'target_ms': 0.0, 'constraints': {}, 'margin': '0'}


@pytest.fixture(scope='module')
def deploy():
  return spaces.make('darts', **tiny_runs.tiny('DEPLOY'))


@pytest.fixture(scope='module')
def latency(table, deploy):
  return common.make_latency_model(table_lib.load(str(table)), deploy)


@pytest.fixture(scope='module')
def every(deploy):
  """All architectures of the tiny space: two edges, seven ops each."""
  (block,) = sampling.blocks(deploy)
  return {block.group: sampling.choices(deploy, block)}


def _make(deploy, latency, **settings):
  return bounds.make(OBJECTIVE | settings, deploy, latency)


def test_without_a_target_nothing_is_bounded(deploy, latency):
  assert _make(deploy, latency) == ()


def test_a_target_below_all_architectures_is_refused_with_their_range(
  deploy, latency, every
):
  """And the least that is advised is accepted."""
  ms = judge.corner_ms(latency.predict, every)
  with pytest.raises(ValueError, match=r'objective\.target_ms is 0\.5') as e:
    _make(deploy, latency, target_ms=0.5)
  assert f'{ms.min():.4g} to {ms.max():.4g} ms on toy' in str(e.value)
  least = float(str(e.value).rpartition('at least ')[2].rstrip('.'))
  (bound,) = _make(deploy, latency, target_ms=least)
  assert ms.min() <= bound.aim <= ms.min() + 2e-3
  with pytest.raises(ValueError, match='with its margin'):
    _make(deploy, latency, target_ms=least, margin='0.05')


def test_budgets_that_exclude_each_other_are_refused_together(
  deploy, latency, every
):
  """On a device where what computes least takes longest."""
  (macs,) = _make(deploy, latency, constraints={'macs': 1e12})
  costs = macs.budget.costs(every)
  odd = dataclasses.replace(
    latency, predict=lambda gates: 10 - macs.budget(gates) / costs.max()
  )
  half = float(np.median(costs))
  both = {'latency_ms': 10 - 0.95 * half / float(costs.max()), 'macs': half}
  assert len(_make(deploy, odd, constraints=both)) == 2
  with pytest.raises(ValueError, match='one by one.*latency_ms.*macs'):
    _make(deploy, odd, constraints=both | {'macs': 0.9 * half})


def test_a_latency_is_bounded_once(deploy, latency):
  with pytest.raises(ValueError, match='target_ms.*latency_ms'):
    _make(deploy, latency, target_ms=9.0, constraints={'latency_ms': 8.0})


def test_what_was_never_measured_cannot_be_bounded(deploy, latency):
  with pytest.raises(ValueError, match='energy_mj.*measure'):
    _make(deploy, latency, constraints={'energy_mj': 8.0})


def test_a_held_out_margin_needs_held_out_errors(deploy, latency):
  """A table of op entries has none; the message says what to do."""
  with pytest.raises(ValueError, match='objective.margin.*margin=0.05'):
    _make(deploy, latency, target_ms=9.0, margin='held_out')


def test_a_held_out_margin_covers_99_of_100_new_networks():
  """On average over calibration sets, by the conformal guarantee."""
  rng = np.random.default_rng(0)
  covered = []
  for _ in range(200):
    error = rng.standard_t(4, size=(2, 250)) * 0.03
    predicted = rng.uniform(1, 20, size=(2, 250))
    measured = predicted * np.exp(error)
    report = judge.quality(predicted[0], measured[0])
    margin = report['slower_p99_percent'] / 100
    covered.append((measured[1] <= predicted[1] * (1 + margin)).mean())
  assert 0.988 <= np.mean(covered) <= 0.997


def test_a_margin_moves_the_aim_and_only_that_of_the_latency(deploy, latency):
  found = _make(
    deploy, latency, constraints={'latency_ms': 9.0, 'macs': 1e9}, margin='0.2'
  )
  assert [b.aim for b in found] == [9.0 / 1.2, 1e9]
  assert [b.target for b in found] == [9.0, 1e9]


@pytest.mark.parametrize('name', ['peak_memory_mb', 'macs', 'model_mb'])
def test_a_binding_budget_changes_the_architecture_and_is_met(
  deploy, latency, every, name
):
  """From gates that love what costs most."""
  (free,) = _make(deploy, latency, constraints={name: 1e12})
  costs = free.budget.costs(every)
  (group,) = every
  dearest = every[group][int(costs.argmax())]
  probs = {group: 0.02 + 0.8 * dearest}
  most = projection.project(deploy, probs, [free.limit]).genotype
  target = float((costs.min() + free.budget.of(most)) / 2)
  (bound,) = _make(deploy, latency, constraints={name: target})
  found = projection.project(deploy, probs, [bound.limit])
  assert found.is_feasible
  assert found.has_moved
  assert found.genotype != most
  assert bound.budget.of(found.genotype) <= target < free.budget.of(most)


@pytest.fixture(scope='module')
def ran(nursery, command, tmp_path_factory):
  """Record, rows and screen of a tiny search under two bounds."""
  workdir = tmp_path_factory.mktemp('bounded') / 'run'
  settings = {
    'objective.constraints': "{'latency_ms': 4.5, 'model_mb': 0.5}",
    'objective.margin': '0.1',
    'relaxation.name': 'softmax',
    'search.num_steps': 40,
    'search.log_every_steps': 10,
    'search.checkpoint_every_steps': 40,
  }
  result = nursery.run(*command(workdir, **settings))
  assert result.code == 0, result.err
  record = json.loads((workdir / 'genotype.json').read_text())
  return record, tiny_runs.rows(workdir), result.out


def test_a_bounded_search_says_what_it_aimed_at_and_meets_it(
  ran, latency, deploy
):
  """In its record, its rows of metrics and on the screen."""
  record, rows, out = ran
  entry = record['deploy']['bounds']['latency_ms']
  genotype = Genotype.from_dict(record['genotype'])
  assert entry['target'] == 4.5
  np.testing.assert_allclose(entry['aim'], 4.5 / 1.1)
  np.testing.assert_allclose(
    [entry['predicted'], record['deploy']['predicted_ms']],
    latency.of(deploy, genotype),
    rtol=1e-6,
  )
  assert record['deploy']['predicted_ms'] <= entry['aim']
  assert entry['is_feasible']
  assert set(record['deploy']['bounds']) == {'latency_ms', 'model_mb'}
  assert all(row['target_ms'] == entry['aim'] for row in rows)
  for name in ('latency_ms', 'model_mb'):
    last = record['deploy']['bounds'][name]['expected_at_end']
    assert last == rows[-1][f'expected/{name}']
  assert 'latency_ms of at most 4.5 ms, less a margin of 10.0 %: met' in out
  # The fixed multiplier is out of the game.
  assert record['search']['multiplier'] == 0


def test_only_a_binding_bound_pulls_down(ran):
  record, rows, _ = ran
  entry = record['deploy']['bounds']['latency_ms']
  assert rows[0]['expected/latency_ms'] > entry['aim']
  assert max(row['multiplier/latency_ms'] for row in rows) > 0
  assert all(row['multiplier/model_mb'] <= 0 for row in rows)
  assert rows[-1]['expected/latency_ms'] < rows[0]['expected/latency_ms']


def test_the_tiny_space_has_no_dead_architectures(deploy, every):
  """What the tests above take for granted."""
  assert liveness.is_connected(deploy, every).all()
