"""The job shortlist: what is trained, what is chosen, and what is survived."""

import json
import shutil
import signal
import time

import markupsafe
import numpy as np
import pytest
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import genotype_files
from hwdarts_jax.spaces.spec import Genotype

TARGETS = (3.5, 4.6)
_SETTINGS = {
  'job': 'shortlist',
  'shortlist.size': 3,
  'shortlist.targets_ms': TARGETS,
  'shortlist.num_epochs': 1,
  'shortlist.batch_size': 128,
}


@pytest.fixture(scope='module')
def shortlist(command, finished):
  """Arguments of a tiny run: (workdir, **overrides) -> list of flags."""
  settings = _SETTINGS | {'shortlist.search_workdir': finished[0]}
  return lambda workdir, **more: command(workdir, **(settings | more))


@pytest.fixture(scope='module')
def trained(nursery, shortlist, tmp_path_factory):
  """Workdir and result of a tiny run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('shortlist') / 'run'
  return nursery.finish(workdir, shortlist(workdir))


def _record(workdir, name='shortlist.json'):
  return json.loads((workdir / name).read_text())


def test_each_target_gets_the_most_accurate_of_its_candidates(trained):
  targets = _record(trained[0])['targets']
  assert len(targets) == len(TARGETS)
  for number, (limit, target) in enumerate(zip(TARGETS, targets, strict=True)):
    candidates = target['candidates']
    scores = [c['score'] for c in candidates]
    assert scores == sorted(scores, reverse=True)
    assert len({c['network'] for c in candidates}) == 3
    assert all(c['predicted_ms'] <= limit for c in candidates)
    (chosen,) = [c for c in candidates if c['is_chosen']]
    best = max(c['val_accuracy'] for c in candidates)
    assert chosen['val_accuracy'] == best
    member = _record(trained[0], f'members/{number:02d}.json')
    assert member['genotype'] == chosen['genotype']


def test_what_was_chosen_can_be_trained_to_the_end(trained):
  class Settings:
    search_workdir = ''
    genotype = str(trained[0] / 'members' / '01.json')

  deploy = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  genotype, _ = genotype_files.read('retrain', Settings, deploy)
  wanted = _record(trained[0], 'members/01.json')['genotype']
  assert genotype == Genotype.from_dict(wanted)
  assert f'--config.retrain.genotype={trained[0]}/members/00' in trained[1].out


def test_networks_of_several_targets_are_trained_once(trained):
  """The pool has each of them; the accuracies are not those of chance."""
  targets = _record(trained[0])['targets']
  networks = {c['network'] for t in targets for c in t['candidates']}
  pool = _record(trained[0], 'pool.json')['accuracies']
  assert set(pool) == networks
  assert f'{len(networks)} networks, of which {len(networks)}' in trained[1].out
  epochs = [
    tiny_runs.rows(chunk)[-1]['train_loss']
    for chunk in sorted((trained[0] / 'chunks').iterdir())
  ]
  assert len(epochs) == -(-len(networks) // 2)
  assert np.isfinite(epochs).all()


def test_a_killed_run_goes_on_to_the_same_choice(
  nursery, shortlist, trained, tmp_path
):
  run = nursery.start(*shortlist(tmp_path / 'run'))
  begun = time.monotonic()
  while not (tmp_path / 'run' / 'pool.json').exists():  # the first chunk
    assert not run.is_over() and time.monotonic() - begun < 200
    time.sleep(0.01)
  run.signal(signal.SIGKILL)
  assert run.wait().code == -signal.SIGKILL
  result = nursery.run(*shortlist(tmp_path / 'run'))
  assert result.code == 0, result.err
  for name in ('shortlist.json', 'pool.json', 'members/00.json'):
    assert _record(tmp_path / 'run', name) == _record(trained[0], name)


def test_a_report_of_it_shows_what_was_to_choose_from(
  nursery, trained, tmp_path
):
  workdir = shutil.copytree(trained[0], tmp_path / 'run')
  result = nursery.run(
    f'--config={tiny_runs.CONFIG}',
    '--config.job=report',
    f'--workdir={workdir}',
  )
  assert result.code == 0, result.err
  text = (workdir / 'report.html').read_text()
  for limit, target in zip(TARGETS, _record(workdir)['targets'], strict=True):
    assert f'latency_ms of at most {limit:.4g} ms' in text
    for candidate in target['candidates']:
      assert str(markupsafe.escape(candidate['text'])) in text
  assert (workdir / 'figures' / 'front_brief.png').exists()


def test_what_another_shortlist_trained_is_taken(
  nursery, shortlist, trained, tmp_path
):
  """Of another target nothing has to be trained, and nothing changes."""
  result = nursery.run(
    *shortlist(
      tmp_path / 'run',
      **{
        'shortlist.targets_ms': TARGETS[1:],
        'shortlist.pool': trained[0] / 'pool.json',
      },
    )
  )
  assert result.code == 0, result.err
  assert '3 networks, of which 0 are to be trained' in result.out
  record = _record(tmp_path / 'run')
  assert record['targets'] == _record(trained[0])['targets'][1:]
  chosen = _record(tmp_path / 'run', 'genotype.json')
  assert (
    chosen['genotype'] == _record(trained[0], 'members/01.json')['genotype']
  )


def test_a_later_round_trains_what_the_trainings_before_it_say(
  nursery, shortlist, trained, tmp_path
):
  """Killed in its midst it goes on, and the page shows what each round had."""
  pool = trained[0] / 'pool.json'
  run = shortlist(
    tmp_path / 'run',
    **{
      'shortlist.targets_ms': TARGETS[1:],
      'shortlist.pool': pool,
      'shortlist.rounds': 2,
      'shortlist.more': 2,
    },
  )
  first = nursery.start(*run)
  begun = time.monotonic()
  while not (tmp_path / 'run' / 'chunks' / '000').exists():
    assert not first.is_over() and time.monotonic() - begun < 200
    time.sleep(0.01)
  first.signal(signal.SIGKILL)
  first.wait()
  new = _record(tmp_path / 'run', 'rounds/001.json')
  result = nursery.run(*run)
  assert result.code == 0, result.err
  assert 'Round 2 of 2: 2 networks, of which 2 are to be' in result.out
  assert _record(tmp_path / 'run', 'rounds/001.json') == new
  keys = {c['network'] for c in new['targets'][0]}
  known = {*_record(trained[0], 'pool.json')['accuracies']}
  assert len(keys) == 2 and not keys & known
  record = _record(tmp_path / 'run')
  assert record['rounds'] == [3, 2]
  candidates = record['targets'][0]['candidates']
  assert {c['network'] for c in candidates if c['round'] == 2} == keys
  # Of the pool also those of the other target, which need less than this one.
  assert {c['network'] for c in candidates} == keys | known
  (chosen,) = [c for c in candidates if c['is_chosen']]
  best = max(c['smoothed_accuracy'] for c in candidates)
  assert chosen['smoothed_accuracy'] == best
  assert all(c['predicted_ms'] <= TARGETS[1] for c in candidates)
  assert keys < {*_record(tmp_path / 'run', 'pool.json')['genotypes']}
  assert f'{100 * best:.2f} %' in result.out


@pytest.fixture
def measuring(shortlist, trained, tmp_path):
  """Arguments of a run whose candidates are measured, all trained before."""

  def make(count, **more):
    settings = {
      'shortlist.targets_ms': TARGETS[1:],
      'shortlist.size': count,
      'shortlist.pool': trained[0] / 'pool.json',
      'shortlist.max_measured': count,
    }
    return shortlist(tmp_path / 'run', **(settings | more))

  return make


def test_candidates_are_measured_on_the_device_before_they_are_trained(
  nursery, measuring, trained, tmp_path
):
  """This host is far faster than the table says, so that all of them fit."""
  run = measuring(1, **{'shortlist.runner': 'host'})
  result = nursery.run(*run)
  assert result.code == 0, result.err
  record = _record(tmp_path / 'run')
  assert record['measured'] == {'networks': 1, 'failed': 0, 'allowed': 1}
  (candidate,) = record['targets'][0]['candidates']
  (first, *_) = _record(trained[0])['targets'][1]['candidates']
  assert candidate['genotype'] == first['genotype']
  assert 0 < candidate['measured_ms'] < candidate['predicted_ms']
  assert candidate['bounds']['latency_ms']['is_feasible']
  assert f'{candidate["measured_ms"]:.2f}' in result.out


def test_another_machine_measures_what_is_asked_by_the_command_that_is_told(
  nursery, measuring, tmp_path
):
  run = measuring(2)
  first = nursery.run(*run)
  assert first.code == 0, first.err
  assert not (tmp_path / 'run' / 'shortlist.json').exists()
  (line,) = [x for x in first.out.splitlines() if '--genotypes=' in x]
  words = line.replace('--runner=...', '--runner=host').split()
  told = [w for w in words if w.startswith('--')]
  config = next(w for w in run if w.startswith('--config='))
  deploy = [w for w in run if w.startswith('--config.space.deploy')]
  there = nursery.run(
    *told[1:], config, *deploy, module='hwdarts_jax.harness.__main__'
  )
  assert there.code == 0, there.err
  again = nursery.run(*run)
  assert again.code == 0, again.err
  (target,) = _record(tmp_path / 'run')['targets']
  assert all(c['measured_ms'] > 0 for c in target['candidates'])
  assert len(target['candidates']) == 2


@pytest.mark.parametrize(
  ('overrides', 'told'),
  [
    (
      {'shortlist.targets_ms': (0.5,)},
      'shortlist.targets_ms is 0.5, which no architecture meets',
    ),
    (
      {'shortlist.num_epochs': 2},
      "whose networks were trained with training = {'num_epochs': 1",
    ),
    ({'shortlist.search_workdir': ''}, 'name the workdir of a finished search'),
    (
      {'shortlist.members_per_program': 0},
      'members_per_program is 0; it must be a whole number, at least 1',
    ),
    (
      {'shortlist.evaluation': 'pmap'},
      "shortlist.evaluation is 'pmap'; it must be one of",
    ),
    ({'shortlist.optimizer.name': 'sdg'}, "shortlist.optimizer.name is 'sdg'"),
    (
      {'shortlist.max_measured': 2, 'shortlist.runner': 'hots'},
      "shortlist.runner is 'hots'",
    ),
    (
      {
        'shortlist.max_measured': 2,
        'shortlist.runner': 'host',
        'shortlist.runner_dtype': 'int7',
      },
      "shortlist.runner_dtype is 'int7'",
    ),
  ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
  nursery, shortlist, trained, tmp_path, overrides, told
):
  pool = {'shortlist.pool': trained[0] / 'pool.json'}
  result = nursery.run(*shortlist(tmp_path / 'run', **(pool | overrides)))
  assert result.code == 2
  assert told in ' '.join(result.err.split())
  assert not (tmp_path / 'run' / 'chunks').exists()


def test_a_search_that_is_not_finished_has_no_shortlist(
  nursery, shortlist, finished, tmp_path
):
  half = shutil.copytree(finished[0], tmp_path / 'half')
  (half / 'genotype.json').unlink()
  result = nursery.run(
    *shortlist(tmp_path / 'run', **{'shortlist.search_workdir': half})
  )
  assert result.code == 2
  assert 'which is not finished' in ' '.join(result.err.split())


def test_a_search_for_other_networks_is_refused(
  nursery, shortlist, finished, tmp_path
):
  other = shutil.copytree(finished[0], tmp_path / 'other')
  record = _record(other, 'genotype.json')
  record['deploy']['spec_hash'] = '0123456789ab'
  (other / 'genotype.json').write_text(json.dumps(record))
  result = nursery.run(
    *shortlist(tmp_path / 'run', **{'shortlist.search_workdir': other})
  )
  assert result.code == 2
  assert 'give the config of that search' in ' '.join(result.err.split())
