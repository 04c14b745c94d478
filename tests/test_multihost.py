"""Several processes are one run: same results, one writer, one end.

Real processes with two virtual CPU devices each, joined by gloo.
"""

import functools
import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from tfds_files import pngs, write_tfds
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.spaces import discretize

_PEER_TIMEOUT = 10
_EXIT_LOST = 75
_STEPS = 16  # of a tiny search
# Batch groups are those of all devices; float64, so that sums in another order
# are the same to 1e-8.
_COMMON = {
  'network.bn_groups': 4,
  'network.dtype': 'float64',
  'search.log_every_steps': 4,
  'search.checkpoint_every_steps': 4,
  'search.eval_batch_size': 33,  # divided by no number of devices
  'retrain.eval_batch_size': 33,
}
_STREAMED = {'data.resident': 'false'}


def _environment(num_devices):
  return {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices} '
    '--xla_backend_optimization_level=0',  # compiles sooner
    'JAX_ENABLE_X64': '1',
  }


def _free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@pytest.fixture(scope='module')
def start(nursery, command):
  """(num_processes, num_devices, workdir, **overrides) -> processes.

  `each` has overrides of single processes, by their number.
  """

  def start(num_processes, num_devices, workdir, each=None, **overrides):
    begin = functools.partial(nursery.start, **_environment(num_devices))
    if num_processes == 1:
      return [begin(*command(workdir, **_COMMON | overrides))]
    joined = [
      '--multihost',
      f'--coordinator_address=127.0.0.1:{_free_port()}',
      f'--num_processes={num_processes}',
      f'--peer_timeout_s={_PEER_TIMEOUT}',
    ]
    return [
      begin(
        *command(workdir, **_COMMON | overrides | (each or {}).get(i, {})),
        *joined,
        f'--process_id={i}',
      )
      for i in range(num_processes)
    ]

  return start


@pytest.fixture(scope='module')
def run(start):
  """`start`, and the results when all have come to their end."""

  def run(*args, **overrides):
    results = [p.wait() for p in start(*args, **overrides)]
    assert [r.code for r in results] == [0] * len(results), results[-1].err
    return results

  return run


@pytest.fixture(scope='module')
def alone(run, tmp_path_factory):
  """Workdir of a search by one process with four devices."""
  workdir = tmp_path_factory.mktemp('alone') / 'search'
  run(1, 4, workdir)
  return workdir


def _assert_same_run(workdir, reference, result='genotype.json'):
  """Last states within 1e-8, the same rows, the same architectures."""
  state, wanted = map(tiny_runs.last_state, (workdir, reference))
  assert state.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(state[name], value, 0, 1e-8, err_msg=name)
  for mine, theirs in zip(
    tiny_runs.rows(workdir), tiny_runs.rows(reference), strict=True
  ):
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
      np.testing.assert_allclose(mine[name], value, 1e-6, 1e-6, err_msg=name)
  found, wanted = (
    list(_counted(json.loads((w / result).read_text())))
    for w in (workdir, reference)
  )
  assert len(found) >= 2 and found == wanted


def _counted(record):
  """Yields genotypes, and accuracies, which must agree to the image."""
  items = record.items() if isinstance(record, dict) else enumerate(record)
  for name, value in items:
    if name == 'genotype' or 'accuracy' in str(name):
      yield name, value
    elif isinstance(value, dict | list):
      yield from _counted(value)


def _wait_for(path, processes):
  while not path.exists():
    assert not any(p.is_over() for p in processes), processes[0].wait().err
    time.sleep(0.01)


def _stop_one(start, workdir):
  """SIGTERM at one host of two: all save the same step and end with 0."""
  processes = start(2, 2, workdir, **_STREAMED)
  _wait_for(workdir / 'metrics.jsonl', processes)
  processes[1].signal(signal.SIGTERM)
  first, second = (p.wait() for p in processes)
  assert (first.code, second.code) == (0, 0), first.err
  step = tiny_runs.last_state(workdir)['checkpoint']
  assert step < _STEPS
  assert f'Stopped at step {step} of {_STEPS}' in first.out
  assert not _ours(second.out) and 'steps/s' not in second.err
  return step


def _kill_one(start, workdir, number, step, **overrides):
  """SIGKILL after a checkpoint: the other one says so soon, and ends."""
  processes = start(2, 2, workdir, **overrides)
  _wait_for(workdir / 'checkpoints' / str(step), processes)
  processes[number].signal(signal.SIGKILL)
  begun = time.monotonic()
  other = processes[1 - number].wait()
  assert time.monotonic() - begun < _PEER_TIMEOUT + 20
  assert processes[number].wait().code == -signal.SIGKILL
  assert other.code == _EXIT_LOST
  assert 'another process of this run was lost' in other.err
  assert 'goes on from the last checkpoint' in other.err
  assert not (workdir / 'genotype.json').exists()


def _ours(text):
  """Lines that are not of Gloo, whose threads cut into each other's."""
  theirs = re.compile('Gloo|[Rr]ank|connected|peer|^[^a-z]*$')
  return [line for line in text.splitlines() if not theirs.search(line)]


def test_two_processes_find_the_alphas_of_one_whatever_happens(
  start, run, alone, tmp_path
):
  """Stopped, killed and resumed; and finished by another number of them.

  They hand their devices the rows of their part of each batch; the images of
  the one lie on its devices.
  """
  workdir, by_one = tmp_path / 'run', tmp_path / 'by_one'
  stopped = _stop_one(start, workdir)
  _kill_one(start, workdir, 1, stopped + 4, **_STREAMED)
  shutil.copytree(workdir, by_one)
  first, second = run(2, 2, workdir, **_STREAMED)
  assert f'Resuming {workdir} at step ' in first.out
  assert 'Architecture found' in first.out and not _ours(second.out)
  _assert_same_run(workdir, alone)
  (result,) = run(1, 4, by_one, **_STREAMED)
  assert f'Resuming {by_one} at step ' in result.out
  _assert_same_run(by_one, alone)


@pytest.mark.slow
def test_the_loss_of_the_first_process_is_survived_too(
  start, run, alone, tmp_path
):
  """Where the others meet, and who writes; finished on a single device."""
  _kill_one(start, tmp_path / 'run', 0, 4)
  run(1, 1, tmp_path / 'run')
  _assert_same_run(tmp_path / 'run', alone)


def test_two_processes_train_the_params_of_one(run, alone, tmp_path):
  """Also the averages, and the accuracies on the test split."""
  overrides = {
    'job': 'retrain',
    'retrain.search_workdir': alone,
    'retrain.num_epochs': 1,
  }
  run(1, 4, tmp_path / 'alone', **overrides)
  run(2, 2, tmp_path / 'together', **overrides)
  _assert_same_run(tmp_path / 'together', tmp_path / 'alone', 'retrain.json')


@pytest.mark.slow
def test_two_processes_find_the_front_of_one(run, tmp_path):
  """Members take turns on parts of batches that lie on several hosts."""
  overrides = {
    'job': 'pareto',
    'network.bn_groups': 2,
    'population.targets_ms': (3.5, 4.4, 9.0),
    'population.members_per_step': 1,
    'search.num_steps': 4,
    'search.eval_batch_size': 36,
  }
  run(1, 4, tmp_path / 'alone', **overrides)
  first, second = run(2, 2, tmp_path / 'together', **overrides)
  _assert_same_run(tmp_path / 'together', tmp_path / 'alone', 'front.json')
  assert '3 members on one set of params' in first.out
  assert not _ours(second.out)
  for name in ('front.png', 'members/02.json'):
    assert (tmp_path / 'together' / name).exists()


@pytest.mark.slow
def test_two_processes_find_the_genotype_of_one_in_float32(run, tmp_path):
  """Where sums in another order differ in the last bits."""
  overrides = {'network.dtype': 'float32'}
  run(1, 4, tmp_path / 'alone', **overrides)
  run(2, 2, tmp_path / 'together', **overrides)
  found = [
    json.loads((tmp_path / w / 'genotype.json').read_text())['genotype']
    for w in ('alone', 'together')
  ]
  assert found[0] == found[1]


def test_processes_with_different_settings_are_no_run(start, tmp_path):
  """All end by the same message; nothing is made."""
  processes = start(2, 1, tmp_path / 'run', {1: {'seed': 1}})
  results = [p.wait() for p in processes]
  for result in results:
    assert result.code == 2
    assert 'the processes [1] have other settings' in result.err
    assert 'Traceback' not in result.err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--num_processes=2'], 'only with --multihost'),
    (
      ['--multihost', '--num_processes=2', '--process_id=0'],
      '--coordinator_address is missing',
    ),
    (
      [
        '--multihost',
        '--coordinator_address=10.0.0.1:1234',
        '--num_processes=2',
        '--process_id=2',
      ],
      '--process_id is 2; it must be from 0 to 1',
    ),
    (
      [
        '--multihost',
        '--coordinator_address=here',
        '--num_processes=2',
        '--process_id=0',
      ],
      "--coordinator_address is 'here'; it must be host:port",
    ),
    (['--multihost', '--peer_timeout_s=0'], '--peer_timeout_s is 0'),
    *(
      (['--multihost', f'--config.job={job}'], f'{job} runs in one process')
      for job in ('describe', 'evaluate', 'export', 'predictor', 'report')
    ),
  ],
)
def test_flags_that_go_not_together_are_one_message(
  nursery, command, tmp_path, flags, words
):
  """Before anything waits for anybody."""
  result = nursery.run(*command(tmp_path / 'run'), *flags)
  assert result.code == 2
  assert words in result.err and 'Traceback' not in result.err
  assert not (tmp_path / 'run').exists()


def test_processes_that_decode_their_own_images_train_as_one(
  run, tmp_path_factory, tmp_path
):
  """Each reads only the rows of its devices from disk, with random crops."""
  folder = tmp_path_factory.mktemp('tfds')
  write_tfds(folder, pngs(50, 12, 10)[1], [i % 3 for i in range(50)])
  genotype = tmp_path / 'genotype.json'
  spec = spaces.make('darts', **tiny_runs.tiny('SPEC'))
  ones = {g: np.ones(s.shape) for g, s in spec.groups().items()}
  found = discretize.derive(spec, ones)
  genotype.write_text(json.dumps(found.to_dict()))
  settings = {
    'job': 'retrain',
    'data.name': 'tiny',
    'data.data_dir': folder,
    'data.image_size': 8,
    'retrain.genotype': genotype,
    'retrain.num_epochs': 1,
    'retrain.batch_size': 8,
    'retrain.augment.crop_area': 0.3,
    'retrain.drop_path': 0.0,
    'retrain.mixup': 0.2,
  }
  run(1, 4, tmp_path / 'one', **settings)
  run(2, 2, tmp_path / 'two', **settings)
  _assert_same_run(tmp_path / 'two', tmp_path / 'one', 'retrain.json')
