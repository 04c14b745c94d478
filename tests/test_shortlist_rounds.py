"""Rounds of a shortlist: what is trained teaches what to train next.

Nothing is trained: accuracies are made up, as functions of networks.
"""

import json
import re
import types

from etils import epath
import harness_fakes
import numpy as np
import pytest
import report_runs
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import shortlist_candidates as candidates_lib
from hwdarts_jax.jobs import shortlist_measure as measure_lib
from hwdarts_jax.jobs import shortlist_pool, shortlist_rounds
from hwdarts_jax.latency import budgets, projection, sameness
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize, nasbench201

CELLS = nasbench201.make(**harness_fakes.SETTINGS)
MACS = budgets.make('macs', CELLS)
MOST = float(MACS.costs(corners(CELLS)).max())


def _predicted(one_hot):
  """Ten milliseconds for the largest cell, two for an empty one."""
  return 2 + 8 * MACS.costs(one_hot) / MOST


LATENCY = budgets.Budget('latency_ms', 'ms', CELLS, MACS.predict, _predicted)


def _accuracy(key):
  """Two large convolutions, one small one, few poolings and many sums."""
  large, small, pools = (
    len(re.findall(name, key)) for name in ('conv_3x3', 'conv_1x1', 'pool')
  )
  found = 0.9 - 0.02 * abs(large - 2) - 0.015 * abs(small - 1)
  return found - 0.01 * pools + 0.004 * min(key.count('+'), 5)


def _shortlist(rounds=4, size=6, more=4, most=0, seed=0, targets_ms=(5.0, 7.0)):
  rng = np.random.default_rng(seed)
  probs = {'cell': rng.dirichlet(np.ones(5), 6)}
  settings = types.SimpleNamespace(
    size=size,
    rounds=rounds,
    more=more,
    max_measured=most,
    runner='fake',
    runner_dtype='float32',
    runner_batch=1,
  )
  return types.SimpleNamespace(
    specs=types.SimpleNamespace(deploy=CELLS),
    proxy=CELLS,
    pool=shortlist_pool.Pool({}, {}),
    latency=types.SimpleNamespace(device='paper'),
    config=types.SimpleNamespace(shortlist=settings, source='config.py'),
    targets=[
      candidates_lib.Target(
        (bounds_lib.Bound(LATENCY, ms, 0.0, 'target_ms'),), probs
      )
      for ms in targets_ms
    ],
  )


class _Trainer:
  """Trains by telling; counts, and stops before a number of trainings."""

  def __init__(self, accuracy=_accuracy, most=10**6):
    self.accuracy, self.most = accuracy, most
    self.lists, self.genotypes = [], {}

  def __call__(self, wanted):
    if len(self.genotypes) + len(wanted) > self.most:
      return None
    self.lists.append(list(wanted))
    self.genotypes |= wanted
    return {key: self.accuracy(key) for key in wanted}


def _play(shortlist, path, trainer=None):
  trainer = trainer or _Trainer()
  path.mkdir(exist_ok=True)
  return shortlist_rounds.play(shortlist, epath.Path(path), trainer), trainer


def _chosen(found, number=0):
  """The key that is chosen for a target."""
  smoothed = found.rounds.smoothed
  return max(found.candidates[number], key=lambda c: smoothed[c.key]).key


@pytest.fixture(scope='module', name='best')
def _best():
  """The best accuracy within milliseconds, of all networks."""
  every = corners(CELLS)
  ms = _predicted(every)
  connected = projection.violation(CELLS, every, []) == 0
  genotypes = [
    projection.to_genotype(CELLS, {g: p[i] for g, p in every.items()})
    for i in range(len(ms))
  ]
  values = np.array([_accuracy(k) for k in sameness.keys(CELLS, genotypes)])
  return lambda limit: values[connected & (ms <= limit)].max()


def test_rounds_find_what_a_larger_shortlist_does_not(best, tmp_path):
  """Where the search knows nothing, which is the worst case."""
  lost = {'rounds': [], 'one': []}
  for seed in range(3):
    shortlist = _shortlist(rounds=8, seed=seed)
    found, trainer = _play(shortlist, tmp_path / f'{seed}')
    one = [candidates_lib.best(CELLS, t, 60) for t in shortlist.targets]
    assert len(trainer.genotypes) < len(candidates_lib.union(one))
    for number, target in enumerate(shortlist.targets):
      top = best(target.bounds[0].target)
      lost['one'].append(top - max(_accuracy(c.key) for c in one[number]))
      lost['rounds'].append(top - _accuracy(_chosen(found, number)))
  assert np.sum(np.isclose(lost['rounds'], 0)) >= 5
  assert min(lost['one']) > 0
  assert np.mean(lost['rounds']) < np.mean(lost['one']) / 3


def test_nothing_is_trained_twice_and_all_that_fits_is_a_candidate(tmp_path):
  shortlist = _shortlist()
  found, trainer = _play(shortlist, tmp_path)
  every = [key for keys in trainer.lists for key in keys]
  assert len(set(every)) == len(every)
  assert found.rounds.sizes == [len(keys) for keys in trainer.lists]
  for number, keys in enumerate(trainer.lists):
    assert {found.rounds.first[k] for k in keys} == {number + 1}
  for target, some in zip(shortlist.targets, found.candidates, strict=True):
    limit = target.bounds[0].target
    fits = {k for k, g in trainer.genotypes.items() if LATENCY.of(g) <= limit}
    assert fits <= {c.key for c in some}
    assert all(LATENCY.of(c.genotype) <= limit for c in some)
    scores = [c.score for c in some]
    assert scores == sorted(scores, reverse=True)


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path):
  """Wherever it was stopped, and with the networks it had written down."""
  whole, trainer = _play(_shortlist(), tmp_path / 'whole')
  for most in (0, 15, 25):
    path = tmp_path / f'{most}'
    stopped, _ = _play(_shortlist(), path, _Trainer(most=most))
    assert stopped is None
    found, again = _play(_shortlist(), path)
    assert found == whole
    assert again.lists == trainer.lists


def _noisy(key):
  rng = np.random.default_rng(list(key.encode()))
  return _accuracy(key) + 0.03 * rng.standard_normal()


def test_noise_is_smoothed_by_networks_alike(tmp_path):
  """What is chosen is better than what was luckiest."""
  lucky, chosen, errors = [], [], []
  for seed in range(3):
    shortlist = _shortlist(rounds=8, seed=seed)
    found, _ = _play(shortlist, tmp_path / f'{seed}', _Trainer(_noisy))
    for number, some in enumerate(found.candidates):
      luckiest = max(some, key=lambda c: found.accuracies[c.key]).key
      lucky.append(_accuracy(luckiest))
      chosen.append(_accuracy(_chosen(found, number)))
    for values in (found.accuracies, found.rounds.smoothed):
      errors.append(np.std([v - _accuracy(k) for k, v in values.items()]))
  raw, smoothed = np.reshape(errors, (-1, 2)).T
  assert (smoothed < 0.8 * raw).all()
  assert np.mean(chosen) > np.mean(lucky)


def test_what_another_shortlist_trained_teaches_and_can_be_chosen(tmp_path):
  """It is not trained again, and the first round after it is a later one."""
  other, before = _play(_shortlist(rounds=6), tmp_path / 'other')
  shortlist = _shortlist(rounds=2, seed=1)
  pool = {key: _accuracy(key) for key in before.genotypes}
  shortlist.pool = shortlist_pool.Pool({}, pool, before.genotypes)
  found, trainer = _play(shortlist, tmp_path / 'run')
  alone, _ = _play(_shortlist(rounds=2, seed=1), tmp_path / 'alone')
  assert not set(trainer.lists[1]) & set(pool)
  for number in range(2):
    with_it, without = (_accuracy(_chosen(f, number)) for f in (found, alone))
    assert with_it > without
    assert with_it >= _accuracy(_chosen(other, number))
  assert 0 in found.rounds.first.values()


def test_a_pool_whose_genotypes_are_of_other_networks_is_refused(tmp_path):
  genotypes = {c.key: c.genotype for c in _some(CELLS, 3)}
  pool = shortlist_pool.Pool({}, dict.fromkeys(genotypes, 0.5), genotypes)
  pool.save(epath.Path(tmp_path))
  path = str(tmp_path / 'pool.json')
  again = shortlist_pool.load(path, {})
  assert again == pool
  shortlist_pool.check_genotypes(path, CELLS, again)
  content = json.loads((tmp_path / 'pool.json').read_text())
  first, second, _ = content['genotypes']
  swapped = {**content['genotypes'], first: content['genotypes'][second]}
  for genotypes, told in (
    (swapped, 'genotypes of other networks'),
    ({first: {'space': 'nasbench201'}}, 'no pool of a shortlist'),
  ):
    text = json.dumps(content | {'genotypes': genotypes})
    (tmp_path / 'pool.json').write_text(text)
    with pytest.raises(UserError, match=told):
      shortlist_pool.check_genotypes(path, CELLS, shortlist_pool.load(path, {}))
  darts = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  with pytest.raises(UserError, match='does not belong to space'):
    shortlist_pool.check_genotypes(path, darts, again)


def _some(spec, count):
  probs = discretize.uniform(spec)
  return candidates_lib.best(spec, candidates_lib.Target((), probs), count)


@pytest.fixture(name='device')
def _device(monkeypatch):
  """A device that is up to a fifth slower or faster than predicted."""
  asked = []

  def true_ms(genotype):
    words = [ord(c) for c in nasbench201.to_arch_string(genotype)]
    return LATENCY.of(genotype) * np.random.default_rng(words).uniform(0.8, 1.2)

  def measured(shortlist, path, genotypes):
    table = path.with_name(f'table.{path.name}')
    if not table.exists():
      if not shortlist.config.shortlist.runner:
        return None
      asked.extend(genotypes)
      table.write_text('')
    return {g: true_ms(g) for g in genotypes}

  monkeypatch.setattr(measure_lib, '_measured', measured)
  return types.SimpleNamespace(true_ms=true_ms, asked=asked)


@pytest.mark.parametrize('most', [12, 60])
def test_no_network_is_trained_that_breaks_its_bound(device, tmp_path, most):
  """Of what is trained each was measured before, within one allowance."""
  shortlist = _shortlist(most=most)
  found, trainer = _play(shortlist, tmp_path)
  assert len(set(device.asked)) == len(device.asked) <= most
  limits = [t.bounds[0].target for t in shortlist.targets]
  for genotype in trainer.genotypes.values():
    assert genotype in device.asked
    assert device.true_ms(genotype) <= max(limits)
  for limit, some in zip(limits, found.candidates, strict=True):
    for candidate in some:
      ms = found.measured_ms[candidate.genotype]
      assert ms == device.true_ms(candidate.genotype) <= limit
  # Later rounds measure as well: the first one has its share only.
  assert all(trainer.lists) and len(trainer.lists) == 4
  slow = [g for g in device.asked if device.true_ms(g) > max(limits)]
  assert slow or most < 60


def test_rounds_wait_for_another_machine_and_end_as_with_a_runner(
  device, tmp_path
):
  whole, _ = _play(_shortlist(rounds=3, most=24), tmp_path / 'whole')
  here, path, waits = _shortlist(rounds=3, most=24), tmp_path / 'run', 0
  here.config.shortlist.runner = ''
  while (found := _play(here, path)[0]) is None:
    waits += 1
    asked = max((path / 'measure').glob('0*.json'))
    asked.with_name(f'table.{asked.name}').write_text('')
  assert waits >= 3
  assert found == whole
  (path / 'measure' / 'table.000.json').unlink()
  with pytest.raises(UserError, match='lacks a table that was there'):
    _play(here, path)


def test_a_target_that_no_measured_network_meets_is_said(device, tmp_path):
  with pytest.raises(UserError, match='none of the .* meets 2.01 ms'):
    _play(_shortlist(most=8, targets_ms=(2.01, 7.0)), tmp_path)


@pytest.mark.parametrize('name', ['darts', 'mobile'])
def test_in_a_large_space_rounds_leave_what_the_search_held_probable(
  name, tmp_path
):
  """They climb, one choice after the other, and stay within the budget."""
  shortlist, accuracy = _large(name)
  (target,) = shortlist.targets
  trainer = _Trainer(lambda key: accuracy(trainer.genotypes[key]))
  found, _ = _play(shortlist, tmp_path, trainer)
  limit = target.bounds[0].target
  assert all(
    target.bounds[0].budget.of(g) <= limit * (1 + 1e-5)
    for g in trainer.genotypes.values()
  )
  count = len(trainer.genotypes)
  plain = candidates_lib.best(shortlist.proxy, target, count)
  (some,) = found.candidates
  best = {c.key: c.genotype for c in some}[_chosen(found)]
  assert accuracy(best) > max(accuracy(c.genotype) for c in plain)


def _large(name):
  """A shortlist of a larger space, and accuracies by ops in their places."""
  spec = spaces.make(name, **LARGE[name])
  rng = np.random.default_rng(0)
  weights = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}

  def accuracy(genotype):
    one_hot = discretize.one_hot(spec, genotype)
    total = sum((one_hot[g] * weights[g]).sum() for g in weights)
    return float(0.6 + 0.3 * np.tanh(0.1 * total))

  shortlist = _shortlist(rounds=5, size=8, more=6)
  shortlist.specs.deploy = shortlist.proxy = spec
  macs = budgets.make('macs', spec)
  middle = (macs.range.low + macs.range.high) / 2
  probs = {
    g: rng.dirichlet(np.ones(s.shape[1]), s.shape[0])
    for g, s in spec.groups().items()
  }
  bound = bounds_lib.Bound(macs, middle, 0.0, 'macs')
  shortlist.targets = [candidates_lib.Target((bound,), probs)]
  return shortlist, accuracy


LARGE = {
  'darts': report_runs.DEPLOY['darts'] | {'num_nodes': 3},
  'mobile': report_runs.DEPLOY['mobile'],
}
