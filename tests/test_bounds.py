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
# Of the whole searches.
LONGER = {
  'relaxation.name': 'softmax',
  'search.num_steps': 40,
  'search.log_every_steps': 10,
  'search.checkpoint_every_steps': 40,
}
FREE = {'model_mb': 1e3, 'peak_memory_mb': 1e3}


@pytest.fixture(scope='module')
def deploy():
  return spaces.make('darts', **tiny_runs.tiny('DEPLOY'))


@pytest.fixture(scope='module')
def latency(table, deploy):
  name = str(table)
  return common.make_latency_model(table_lib.load(name), deploy, name)


@pytest.fixture(scope='module')
def metered(table, tmp_path_factory):
  """Makes the tiny table with a column of energy: op -> mJ, or None."""
  folder = tmp_path_factory.mktemp('metered')

  def make(millijoules):
    plain = table_lib.load(str(table))
    entries = {
      key: dataclasses.replace(e, energy_mj=millijoules(key.partition('/')[0]))
      for key, e in plain.entries.items()
    }
    path = folder / f'{len(list(folder.iterdir()))}.json'
    table_lib.save(dataclasses.replace(plain, entries=entries), path)
    return path

  return make


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
  with pytest.raises(ValueError, match=r"'toy'.*no column energy_mj.*meter"):
    _make(deploy, latency, constraints={'energy_mj': 8.0})


def _measured_by(path, deploy):
  return common.load_latency({'table': str(path), 'predictor': '', 'rows': 0})(
    deploy
  )


def test_energy_is_bounded_by_the_column_of_the_table(deploy, metered, every):
  """Not by its milliseconds; a margin is kept of what is predicted."""
  model = _measured_by(metered(lambda op: 2.0 + ('conv' not in op)), deploy)
  (bound,) = _make(
    deploy, model, constraints={'energy_mj': 22.5}, margin='0.25'
  )
  (group,) = every
  searched = deploy.groups()[group].ops
  fixed = [s.ops[0] for s in deploy.sites() if len(s.ops) == 1]
  want = [
    sum(2.0 + ('conv' not in op) for op in fixed + [searched[i] for i in ops])
    for ops in every[group].argmax(-1)
  ]
  np.testing.assert_allclose(bound.budget.costs(every), want, rtol=1e-6)
  assert bound.aim == 18.0
  assert bound.budget.unit == 'mJ'
  with pytest.raises(ValueError, match=f'{min(want):.4g} to .* mJ on toy'):
    _make(deploy, model, constraints={'energy_mj': 0.9 * min(want)})
  with pytest.raises(ValueError, match='predictor of energy_mj.*margin=0.05'):
    _make(
      deploy, model, constraints={'energy_mj': 20.0}, margin=bounds.HELD_OUT
    )


def test_half_a_column_of_energy_is_refused_with_what_it_lacks(deploy, metered):
  """Whoever bounds energy is not told to measure latencies instead."""
  model = _measured_by(metered(lambda op: None if 'dil' in op else 1.0), deploy)
  with pytest.raises(ValueError, match=r'energy_mj.*2 entries.*dil_conv') as e:
    _make(deploy, model, constraints={'energy_mj': 8.0})
  assert 'power meter' in str(e.value)
  assert table_lib.MEASURE_COMMAND not in str(e.value)


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
  settings = LONGER | {
    'objective.constraints': "{'latency_ms': 4.5, 'model_mb': 0.5}",
    'objective.margin': '0.1',
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


@pytest.fixture(scope='module')
def search(nursery, command, tmp_path_factory):
  """Runs a tiny search: (constraints, **flags) -> bounds, genotype, rows."""

  def run(constraints, **flags):
    workdir = tmp_path_factory.mktemp('constrained') / 'run'
    settings = LONGER | {'objective.constraints': constraints} | flags
    result = nursery.run(*command(workdir, **settings))
    assert result.code == 0, result.err
    record = json.loads((workdir / 'genotype.json').read_text())
    genotype = Genotype.from_dict(record['genotype'])
    return record['deploy']['bounds'], genotype, tiny_runs.rows(workdir)

  return run


@pytest.fixture(scope='module')
def free(search):
  return search(FREE)


def _binding(bounds_of_free, name):
  """What the unbounded search exceeds and others meet."""
  entry = bounds_of_free[name]
  low = entry['feasible_range'][0]
  assert low < entry['predicted'], 'it cannot bind'
  return 0.8 * low + 0.2 * entry['predicted']


@pytest.mark.parametrize('name', sorted(FREE))
def test_a_search_meets_a_binding_budget_by_another_architecture(
  search, free, deploy, latency, name
):
  target = _binding(free[0], name)
  found, genotype, rows = search(FREE | {name: target})
  (bound,) = _make(deploy, latency, constraints={name: target})
  assert genotype != free[1]
  assert bound.budget.of(genotype) <= target < bound.budget.of(free[1])
  assert found[name]['is_feasible']
  # Only what binds pulls, and what pulls is felt.
  (slack,) = set(FREE) - {name}
  assert all(r[f'multiplier/{slack}'] <= 0 for r in rows)
  assert max(r[f'multiplier/{name}'] for r in rows) > 0
  assert found[name]['expected_at_end'] < free[0][name]['expected_at_end']


def test_a_search_meets_two_binding_budgets_at_once(
  search, free, deploy, metered
):
  """Of energy, which the op that was chosen first needs most, and of size."""
  (edges,) = free[1].cells.values()
  (disliked, *_), *_ = edges
  path = metered(lambda op: 5.0 if op == disliked else 1.0)
  model = _measured_by(path, deploy)
  (energy,) = _make(deploy, model, constraints={'energy_mj': 1e3})
  of_free = energy.budget.of(free[1])
  targets = {
    'energy_mj': of_free - 1,
    'model_mb': _binding(free[0], 'model_mb'),
  }
  found, genotype, rows = search(targets, **{'latency.table': path})
  assert set(found) == set(targets)
  for bound in _make(deploy, model, constraints=targets):
    most = bound.budget.of(free[1])
    assert bound.budget.of(genotype) <= bound.target < most
    assert found[bound.name]['is_feasible']
    assert max(row[f'multiplier/{bound.name}'] for row in rows) > 0


def test_the_tiny_space_has_no_dead_architectures(deploy, every):
  """What the tests above take for granted."""
  assert liveness.is_connected(deploy, every).all()
