"""Candidates that are measured before they are trained."""

import dataclasses
import types

from etils import epath
import fake_bucket
import harness_fakes
import numpy as np
import pytest

from hwdarts_jax.harness import plan, session
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import shortlist_candidates as candidates_lib
from hwdarts_jax.jobs import shortlist_measure as measure_lib
from hwdarts_jax.latency import budgets
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import nasbench201

CELLS = nasbench201.make(**harness_fakes.SETTINGS)
MACS = budgets.make('macs', CELLS)
MOST = float(MACS.costs(corners(CELLS)).max())
SIZE = 6


def _predicted(one_hot):
  """Ten milliseconds for the largest cell, two for an empty one."""
  return 2 + 8 * MACS.costs(one_hot) / MOST


LATENCY = budgets.Budget('latency_ms', 'ms', CELLS, MACS.predict, _predicted)


def _true_ms(genotype, seed, factor=1.0, spread=0.1):
  """What the device takes: the prediction, times an error of its own."""
  words = [ord(c) for c in nasbench201.to_arch_string(genotype)]
  error = np.random.default_rng([seed, *words]).standard_normal()
  return LATENCY.of(genotype) * factor * float(np.exp(spread * error))


def _shortlist(most, targets_ms=(5.0, 7.0), runner='fake'):
  rng = np.random.default_rng(0)
  probs = {'cell': np.exp(rng.normal(size=(6, 5)))}
  probs['cell'] /= probs['cell'].sum(1, keepdims=True)
  settings = types.SimpleNamespace(
    size=SIZE,
    max_measured=most,
    runner=runner,
    runner_dtype='float32',
    runner_batch=1,
  )
  return types.SimpleNamespace(
    specs=types.SimpleNamespace(deploy=CELLS),
    latency=types.SimpleNamespace(device='paper'),
    config=types.SimpleNamespace(shortlist=settings, source='config.py'),
    targets=[
      candidates_lib.Target(
        (bounds_lib.Bound(LATENCY, ms, 0.0, 'target_ms'),), probs
      )
      for ms in targets_ms
    ],
  )


@pytest.fixture(name='measure')
def _measure(monkeypatch):
  """Makes a function of genotypes the device; returns what it was asked."""

  def use(true_ms):
    asked = []

    def measured(shortlist, path, genotypes):
      asked.extend(genotypes)
      return {g: ms for g in genotypes if (ms := true_ms(g)) is not None}

    monkeypatch.setattr(measure_lib, '_measured', measured)
    return asked

  return use


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('most', [9, 60])
def test_candidates_meet_their_targets_as_measured_within_the_allowance(
  measure, tmp_path, most, seed
):
  asked = measure(lambda g: _true_ms(g, seed, 1.1))
  shortlist = _shortlist(most)
  found = measure_lib.refine(shortlist, epath.Path(tmp_path))
  assert len(set(asked)) == len(asked) <= most
  for target, some in zip(shortlist.targets, found.candidates, strict=True):
    assert 1 <= len(some) <= SIZE
    assert len(some) == SIZE or len(asked) == most
    for candidate in some:
      ms = _true_ms(candidate.genotype, seed, 1.1)
      assert found.ms[candidate.genotype] == ms <= target.bounds[0].target
    scores = [c.score for c in some]
    assert scores == sorted(scores, reverse=True)


def test_an_exact_predictor_changes_nothing(measure, tmp_path):
  asked = measure(LATENCY.of)
  shortlist = _shortlist(100)
  found = measure_lib.refine(shortlist, epath.Path(tmp_path))
  plain = [
    candidates_lib.best(CELLS, target, SIZE) for target in shortlist.targets
  ]
  assert found.candidates == plain
  assert set(asked) == {c.genotype for some in plain for c in some}


def test_networks_that_are_faster_than_predicted_are_found(measure, tmp_path):
  """What was predicted to be too slow, by a device twice as fast."""
  measure(lambda g: _true_ms(g, 0, 0.5, 0.01))
  shortlist = _shortlist(200, (4.0,))
  (some,) = measure_lib.refine(shortlist, epath.Path(tmp_path)).candidates
  plain = candidates_lib.best(CELLS, shortlist.targets[0], SIZE)
  assert max(LATENCY.of(c.genotype) for c in some) > 4.0
  assert sum(c.score for c in some) > sum(c.score for c in plain)


def test_what_cannot_be_measured_is_no_candidate(measure, tmp_path):
  shortlist = _shortlist(100, (5.0,))
  first, second = candidates_lib.best(CELLS, shortlist.targets[0], 2)
  measure(lambda g: None if g == first.genotype else LATENCY.of(g))
  found = measure_lib.refine(shortlist, epath.Path(tmp_path))
  assert found.candidates[0][0] == second
  assert found.ms[first.genotype] is None


def test_a_target_that_nothing_measured_meets_is_said(measure, tmp_path):
  measure(lambda g: 9.5)
  with pytest.raises(UserError, match='none of the 5 networks .* meets 4 ms'):
    measure_lib.refine(_shortlist(5, (4.0,)), epath.Path(tmp_path))


def test_an_allowance_without_a_bound_on_the_latency_is_refused():
  shortlist = _shortlist(5, (4.0,))
  free = [candidates_lib.Target((), shortlist.targets[0].probs)]
  with pytest.raises(UserError, match='no target has a bound on the latency'):
    measure_lib.check(shortlist.config.shortlist, free)


def test_another_machine_measures_and_the_next_start_goes_on(
  tmp_path, monkeypatch, capsys
):
  """By the harness, and what a device of its own gives each model."""
  harness_fakes.use(monkeypatch, harness_fakes.Device())
  shortlist = _shortlist(8, (8.0,), runner='')
  rounds = []
  while True:
    found = measure_lib.refine(shortlist, epath.Path(tmp_path))
    if found is not None:
      break
    asked = tmp_path / 'measure' / f'{len(rounds):03d}.json'
    told = capsys.readouterr().out
    out = asked.with_name(f'paper.nasbench201.{asked.name}')
    assert f'--genotypes={asked} --out={out}' in told
    planned = plan.read_networks(
      str(asked), 'nasbench201', harness_fakes.SETTINGS
    )
    rounds.append(session.run(harness_fakes.request(out, plan=planned)))
  measured = {r.genotype: r.value_ms for t in rounds for r in t.networks}
  assert found.ms == measured
  assert len(measured) <= 8 and len(rounds) > 1
  assert all(measured[c.genotype] <= 8.0 for c in found.candidates[0])


@pytest.mark.parametrize('workdir', ['disk', 'gs://bucket/runs'])
def test_a_runner_measures_at_once_and_a_second_start_asks_nothing(
  tmp_path, monkeypatch, workdir
):
  """Wherever the workdir is; nothing is left in the folder of the command."""
  fake_bucket.install(monkeypatch, tmp_path / 'objects')
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  path = epath.Path(tmp_path / 'disk' if workdir == 'disk' else workdir)
  path.mkdir()
  device = harness_fakes.use(monkeypatch, harness_fakes.Device())
  shortlist = _shortlist(8, (11.0,))
  shortlist.config.space = types.SimpleNamespace(
    deploy=types.SimpleNamespace(to_dict=lambda: harness_fakes.SETTINGS)
  )
  found = measure_lib.refine(shortlist, path)
  asked = list(device.asked)
  assert asked
  assert measure_lib.refine(shortlist, path) == found
  assert device.asked == asked
  assert (path / 'measure' / 'paper.nasbench201.000.json').exists()
  assert not list((tmp_path / 'here').iterdir())


def test_a_table_of_other_networks_is_refused(tmp_path, monkeypatch):
  harness_fakes.use(monkeypatch, harness_fakes.Device())
  shortlist = _shortlist(8, (8.0,), runner='')
  assert measure_lib.refine(shortlist, epath.Path(tmp_path)) is None
  out = tmp_path / 'measure' / 'paper.nasbench201.000.json'
  settings = harness_fakes.SETTINGS | {'features': 8}
  other = plan.make('nasbench201', settings, 4)
  other = dataclasses.replace(other, ops={}, sums={})
  session.run(harness_fakes.request(out, plan=other))
  with pytest.raises(UserError, match='has none of the 6 networks'):
    measure_lib.refine(shortlist, epath.Path(tmp_path))


@pytest.mark.parametrize(
  ('settings', 'content', 'told'),
  [
    ({'features': 8}, None, 'is for networks with spec hash'),
    ({}, '{"genotypes": 3}', 'lists no networks of space'),
    ({}, '', 'lists no networks of space'),
  ],
)
def test_a_list_of_other_networks_is_not_measured(
  tmp_path, settings, content, told
):
  measure_lib.refine(_shortlist(8, (8.0,), runner=''), epath.Path(tmp_path))
  path = tmp_path / 'measure' / '000.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=told):
    plan.read_networks(
      str(path), 'nasbench201', harness_fakes.SETTINGS | settings
    )
