"""Runs that are killed, stopped or damaged end as if nothing had happened."""

import json
import math
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
import tiny_runs

_SEED = 20240607
_USUAL_SECONDS = 5.0


def _assert_same_run(workdir, reference, result='genotype.json'):
  """Last state to the bit, every row once and equal, the same result."""
  state, wanted = map(tiny_runs.last_state, (workdir, reference))
  assert state.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(state[name], value, name, strict=True)
  assert tiny_runs.rows(workdir) == tiny_runs.rows(reference)
  mine, theirs = (
    json.loads((w / result).read_text()) for w in (workdir, reference)
  )
  assert mine == theirs


def _kill_at_random(start, folder, reference, result, num_kills, seed):
  """Starts runs and kills them at random moments; each must end the same.

  Half of the kills come at any time of the usual length of a run, the others
  just when a checkpoint that was drawn begins to be written. A run that comes
  to its end is compared, and another begun in a new folder.

  Args:
    start: workdir -> a process.
    folder: where the workdirs are made.
    reference: a workdir of the same run, undisturbed.
    result: name of the file that a finished run has.
    num_kills: how many.
    seed: of the moments.
  """
  print(f'seed {seed}')
  rng = random.Random(seed)
  steps = [row['step'] for row in tiny_runs.rows(reference)]
  kills = ends = 0
  while kills < num_kills or not ends:
    workdir = folder / f'run_{ends}'
    process = start(workdir)
    if kills < num_kills and _kill(process, workdir, rng, steps):
      kills += 1
    end = process.wait()
    assert end.code in (0, -signal.SIGKILL), end.err
    if end.code == 0:
      _assert_same_run(workdir, reference, result)
      ends += 1


def _kill(process, workdir, rng, steps):
  """Kills at a moment that is drawn; returns whether it came in time."""
  folder = workdir / 'checkpoints'
  moment, step = rng.uniform(0, _USUAL_SECONDS), None
  left = [s for s in steps if not any(folder.glob(f'{s}*'))]
  if rng.random() < 0.5 and left:
    moment, step = math.inf, rng.choice(left)
  delay = rng.uniform(0, 0.1)
  begun = time.monotonic()
  while time.monotonic() - begun < moment and not process.is_over():
    if step is not None and any(folder.glob(f'{step}*')):
      time.sleep(delay)
      break
    time.sleep(0.002)
  if process.is_over():
    return False
  process.signal(signal.SIGKILL)
  seen = sorted(p.name for p in folder.glob('*'))
  print(f'killed after {time.monotonic() - begun:.2f} s; checkpoints {seen}')
  return True


def test_a_search_killed_at_random_moments_ends_the_same(
  nursery, command, finished, tmp_path
):
  """Alphas to the bit, every row of metrics once, the same genotype."""
  _kill_at_random(
    lambda workdir: nursery.start(*command(workdir)),
    tmp_path,
    finished[0],
    'genotype.json',
    3,
    _SEED,
  )


@pytest.mark.slow
def test_a_search_killed_very_often_ends_the_same(command, finished, tmp_path):
  """Also while Python starts, compiles, saves and shuts down."""
  _kill_at_random(
    lambda workdir: tiny_runs.Shell(*command(workdir)),
    tmp_path,
    finished[0],
    'genotype.json',
    12,
    _SEED + 1,
  )


def test_a_training_killed_at_random_moments_ends_the_same(
  nursery, command, finished, retrained, tmp_path
):
  """Params and averages to the bit, every epoch once, the same accuracy."""
  overrides = {'job': 'retrain', 'retrain.search_workdir': finished[0]}
  _kill_at_random(
    lambda workdir: nursery.start(*command(workdir, **overrides)),
    tmp_path,
    retrained[0],
    'retrain.json',
    2,
    _SEED,
  )


def test_a_run_asked_to_stop_saves_its_step_and_goes_on(
  nursery, command, finished, tmp_path
):
  """SIGTERM between two rows: exit code 0, no step lost, none done twice."""
  workdir = tmp_path / 'run'
  overrides = {'search.log_every_steps': 8, 'search.checkpoint_every_steps': 16}
  whole = tmp_path / 'whole'
  assert nursery.run(*command(whole, **overrides)).code == 0
  stopped = False
  for delay in (0.0, 0.3):
    process = nursery.start(*command(workdir, **overrides))
    tensorboard = workdir / 'tensorboard'
    count = len(list(tensorboard.glob('*')))
    while len(list(tensorboard.glob('*'))) == count and not process.is_over():
      time.sleep(0.005)
    time.sleep(delay)
    process.signal(signal.SIGTERM)
    result = process.wait()
    assert result.code == 0, result.err
    if (workdir / 'genotype.json').exists():
      break
    step = tiny_runs.last_state(workdir)['checkpoint']
    assert f'Stopped at step {step} of 16' in result.out
    assert 'the same command goes on from there' in result.out
    stopped = True
  assert stopped
  result = nursery.run(*command(workdir, **overrides))
  assert result.code == 0, result.err
  _assert_same_run(workdir, whole)
  # How often rows are written has no influence on the search.
  wanted, state = map(tiny_runs.last_state, (finished[0], workdir))
  for name, value in wanted.items():
    np.testing.assert_array_equal(state[name], value, name)


def test_a_finished_run_is_shown_again_and_not_touched(
  nursery, command, finished
):
  """The same command prints the same summary and writes nothing."""
  workdir, first = finished
  before = {
    p: (p.stat().st_mtime_ns, p.read_bytes())
    for p in workdir.rglob('*')
    if p.is_file() and p.name != '.lock'
  }
  result = nursery.run(*command(workdir))
  assert result.code == 0, result.err
  assert 'is finished already' in result.out and '--workdir' in result.out
  cost, summary = first.out.split('\n', 1)
  assert cost == 'Search, 16 bilevel steps: 256 images.'  # 16 x 2 x 8
  assert result.out.endswith(summary) and cost not in result.out
  after = {
    p: (p.stat().st_mtime_ns, p.read_bytes())
    for p in workdir.rglob('*')
    if p.is_file() and p.name != '.lock'
  }
  assert after == before


def _damage(checkpoint):
  """Flips a byte in the middle of the largest file."""
  largest = max(
    (p for p in checkpoint.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 255
  largest.write_bytes(data)


def _interrupted(finished, workdir):
  """A copy of the finished run as it was just before its summary."""
  shutil.copytree(finished[0], workdir)
  (workdir / 'genotype.json').unlink()
  return workdir / 'checkpoints'


def test_a_damaged_checkpoint_costs_only_its_steps(
  nursery, command, finished, tmp_path
):
  """The one before it is taken, which is said, and the end is the same."""
  workdir = tmp_path / 'run'
  _damage(_interrupted(finished, workdir) / '16')
  result = nursery.run(*command(workdir))
  assert result.code == 0, result.err
  assert 'Checkpoint 16' in result.err and 'damaged' in result.err
  assert 'falling back to checkpoint 14' in result.err
  assert f'Resuming {workdir} at step 14 of 16' in result.out
  assert (workdir / 'checkpoints' / '16.corrupt').is_dir()
  _assert_same_run(workdir, finished[0])


def test_when_all_checkpoints_are_damaged_the_way_out_is_said(
  nursery, command, finished, tmp_path
):
  """No traceback, and nothing is thrown away."""
  workdir = tmp_path / 'run'
  checkpoints = _interrupted(finished, workdir)
  names = sorted(p.name for p in checkpoints.iterdir())
  for checkpoint in checkpoints.iterdir():
    _damage(checkpoint)
  rows = tiny_runs.rows(workdir)
  result = nursery.run(*command(workdir))
  assert result.code == 2
  assert 'Traceback' not in result.err
  assert 'No checkpoint in' in result.err
  assert 'delete it to start again' in result.err
  assert sorted(p.name for p in checkpoints.iterdir()) == names
  assert tiny_runs.rows(workdir) == rows
  assert not (workdir / 'genotype.json').exists()
  # The way out works.
  shutil.rmtree(checkpoints)
  assert nursery.run(*command(workdir)).code == 0
  _assert_same_run(workdir, finished[0])


def test_a_run_killed_before_its_summary_only_writes_that(
  nursery, command, finished, tmp_path
):
  """No step is made again."""
  workdir = tmp_path / 'run'
  _interrupted(finished, workdir)
  result = nursery.run(*command(workdir))
  assert result.code == 0, result.err
  assert 'at step 16 of 16' in result.out
  _assert_same_run(workdir, finished[0])


def test_a_loss_that_is_no_number_stops_the_search(nursery, command, tmp_path):
  """It names the step and what to change; good checkpoints are kept."""
  workdir = tmp_path / 'run'
  result = nursery.run(
    *command(
      workdir,
      **{
        # Decay alone then multiplies params by -3e4 a step.
        'params_optimizer.learning_rate': 1e8,
        'params_optimizer.clip_norm': 0.0,
        'search.log_every_steps': 1,
        'search.checkpoint_every_steps': 1,
      },
    )
  )
  assert result.code == 2, result.err
  assert 'Traceback' not in result.err
  error = result.err[result.err.index('Error: ') :]
  step = int(re.search(r'is not finite at step (\d+)', error)[1])
  kept = int(re.search(r'last good checkpoint, of step (\d+)', error)[1])
  assert 'params_optimizer.learning_rate' in error and '--workdir' in error
  assert 0 < kept < step
  assert tiny_runs.last_state(workdir)['checkpoint'] == kept
  for name, value in tiny_runs.last_state(workdir).items():
    assert np.isfinite(value).all(), name
  assert [row['step'] for row in tiny_runs.rows(workdir)] == list(
    range(1, step + 1)
  )
  assert not (workdir / 'genotype.json').exists()


def test_two_runs_cannot_share_a_workdir(nursery, command, tmp_path):
  """The second is told who is there; the first is not disturbed."""
  workdir = tmp_path / 'run'
  first = nursery.start(*command(workdir))
  while not (workdir / 'config.json').exists() and not first.is_over():
    time.sleep(0.01)
  first.signal(signal.SIGSTOP)
  second = nursery.run(*command(workdir))
  first.signal(signal.SIGCONT)
  assert second.code == 2
  assert 'in use by process' in second.err and str(first.pid) in second.err
  assert first.wait().code == 0
