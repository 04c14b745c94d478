"""The job pareto: one run, a member for each target, and a front of them."""

import json
import signal

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import genotype_files, pareto_report
from hwdarts_jax.spaces.spec import Genotype

TARGETS = (3.5, 4.4, 5.4, 9.0)
_SETTINGS = {
  'job': 'pareto',
  'network.bn_groups': 1,
  'population.members_per_step': 2,
  'population.targets_ms': TARGETS,
}


@pytest.fixture(scope='module')
def pareto(command):
  """Arguments of a tiny run: (workdir, **overrides) -> list of flags."""
  return lambda workdir, **more: command(workdir, **(_SETTINGS | more))


@pytest.fixture(scope='module')
def finished(nursery, pareto, tmp_path_factory):
  """Workdir and result of a tiny run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('pareto') / 'run'
  return nursery.finish(workdir, pareto(workdir))


def _front(workdir):
  return json.loads((workdir / 'front.json').read_text())


def test_every_member_is_within_its_target(finished):
  members = _front(finished[0])['members']
  assert [m['target_ms'] for m in members] == list(TARGETS)
  for member in members:
    assert member['is_feasible']
    assert member['predicted_ms'] <= member['target_ms']
    assert 0 <= member['supernet_val_accuracy'] <= 1


def test_the_summary_marks_the_front_and_has_every_architecture(finished):
  members = _front(finished[0])['members']
  lines = finished[1].out.splitlines()
  for i, member in enumerate(members):
    (line,) = [t for t in lines if t[2:4] == f'{i:02d}' and t[4:5] == ' ']
    assert member['text'] in line
    assert f'{member["predicted_ms"]:.2f}' in line
    assert (line[0] == '*') == member['is_on_front']
    assert (line[1] == '>') == member['was_projected']
  assert (finished[0] / 'front.png').read_bytes().startswith(b'\x89PNG')


def test_files_of_members_are_genotypes_to_train(finished):
  class Settings:
    search_workdir = ''
    genotype = str(pareto_report.member_path(finished[0], 2))

  deploy = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  genotype, _ = genotype_files.read('retrain', Settings, deploy)
  want = _front(finished[0])['members'][2]['genotype']
  assert genotype == Genotype.from_dict(want)


def test_rows_have_the_gates_and_latencies_of_all_members(finished):
  rows = tiny_runs.rows(finished[0])
  gates = np.array(rows[-1]['gates/reduce'])
  assert len(gates) == len(TARGETS) == len(rows[-1]['member_ms'])
  np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-5)
  # They began alike, but for noise, and have gone ways of their own.
  assert np.abs(gates[0] - gates[-1]).max() > 0.01


def test_a_killed_run_ends_with_the_same_front(
  nursery, pareto, finished, tmp_path
):
  run = nursery.start(*pareto(tmp_path / 'run'))
  while not run.is_over():
    folder = tmp_path / 'run' / 'checkpoints'
    if folder.exists() and any(p.name.isdigit() for p in folder.iterdir()):
      run.signal(signal.SIGKILL)
      break
  assert run.wait().code == -signal.SIGKILL
  result = nursery.run(*pareto(tmp_path / 'run'))
  assert result.code == 0, result.err
  assert 'Resuming' in result.out
  assert _front(tmp_path / 'run') == _front(finished[0])


def test_a_finished_run_is_not_touched(nursery, pareto, finished):
  before = (finished[0] / 'front.json').stat().st_mtime_ns
  result = nursery.run(*pareto(finished[0]))
  assert result.code == 0
  assert 'finished already' in result.out
  assert 'members on one set of params' in result.out
  assert (finished[0] / 'front.json').stat().st_mtime_ns == before


def test_a_dearer_latency_makes_a_faster_member(nursery, pareto, tmp_path):
  """Members are judged in batches that their batch groups need not divide."""
  result = nursery.run(
    *pareto(
      tmp_path,
      **{
        'population.targets_ms': (),
        'population.multipliers': (0.0, 20.0),
        'network.bn_groups': 2,
        'search.eval_batch_size': 33,
        'relaxation.name': 'softmax',
        'search.num_steps': 40,
        'search.log_every_steps': 10,
        'search.checkpoint_every_steps': 40,
      },
    )
  )
  assert result.code == 0, result.err
  free, dear = _front(tmp_path)['members']
  assert dear['expected_ms_at_end'] < free['expected_ms_at_end'] - 0.5


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'objective.target_ms': 2.0}, 'objective.target_ms is 2.0; job pareto'),
    ({'search.memory_gb': 1.0}, 'search.memory_gb is 1.0; job pareto'),
    ({'population.multipliers': (1.0,)}, 'population.multipliers'),
    (
      {'population.targets_ms': (0.001, 2.0)},
      'population.targets_ms is 0.001, which no architecture meets',
    ),
    (
      {'population.members_per_step': 3},
      'population.members_per_step is 3; it must divide',
    ),
    ({'search.batch_size': 9}, 'search.batch_size is 9; it must be a multiple'),
    ({'hypergrad.name': 'unrolled'}, "hypergrad.name is 'unrolled'; a pop"),
    ({'population.seeds': 0}, 'population.seeds is 0; it must be a whole'),
    ({'population.targets_ms': (-1.0,)}, 'population.targets_ms is (-1.0,)'),
  ],
)
def test_bad_settings_are_named_with_the_way_out(
  nursery, pareto, tmp_path, settings, message
):
  result = nursery.run(*pareto(tmp_path / 'run', **settings))
  assert result.code == 2
  assert message in result.err
  assert 'Traceback' not in result.err
  assert not (tmp_path / 'run' / 'config.json').exists()


@hypothesis.given(
  st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12
  )
)
def test_the_front_is_what_no_other_member_beats(points):
  members = [
    {'predicted_ms': float(ms), 'supernet_val_accuracy': a / 6}
    for ms, a in points
  ]
  front = pareto_report.on_front(members)

  def beaten_by(i, j):
    (ms, a), (other, b) = points[i], points[j]
    return (other < ms and b >= a) or (other <= ms and b > a)

  for i in range(len(points)):
    is_beaten = any(beaten_by(i, j) for j in range(len(points)))
    same = [j for j in range(len(points)) if points[j] == points[i]]
    assert (i in front) == (not is_beaten and i == same[0])
