"""Sweeps: which points there are, and a real one of which a point fails."""

import csv
import importlib.util
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

from etils import epath
import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import report_runs
import tiny_runs

from hwdarts_jax.jobs import (
  describe,
  evaluate,
  export,
  genotype_files,
  pareto_report,
  predictor_report,
  retrain,
  shortlist_report,
)
from hwdarts_jax.runtime import sweep_table
from hwdarts_jax.runtime.workdir import UserError

_DEVICES = (
  'pixel4',
  'jetson_nano',
  'raspberry_pi4',
  'ncs2',
  'exynos_npu',
  'host_cpu',
)


@pytest.fixture(scope='module')
def sweep():
  """The script as a module, without its flags, which would join pytest's."""
  from absl import flags

  before = set(flags.FLAGS)
  path = tiny_runs.ROOT / 'launch' / 'sweep.py'
  spec = importlib.util.spec_from_file_location('sweep_script', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules['sweep_script'] = module
  spec.loader.exec_module(module)
  yield module
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def _run(*args, **variables):
  return subprocess.run(
    [sys.executable, 'launch/sweep.py', *args],
    cwd=tiny_runs.ROOT,
    env=tiny_runs.environment() | variables,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope='module')
def arguments(table, tmp_path_factory):
  """Of a sweep of 2 x 2 points."""
  root = tmp_path_factory.mktemp('sweep') / 'root'
  return (
    f'--config={tiny_runs.CONFIG}',
    f'--config.latency.table={table}',
    '--config.search.num_steps=4',
    '--sweep=multiplier,seed=3:4',
    f'--root={root}',
  ), root


_FAILING = 'multiplier=5.0,seed=3'


@pytest.fixture(scope='module')
def killed(arguments):
  """Times of the results that a run had when it was killed, by their path."""
  args, root = arguments
  (root / _FAILING).mkdir(parents=True)
  (root / _FAILING / 'thesis.tex').write_text('mine')
  process = subprocess.Popen(
    [sys.executable, 'launch/sweep.py', *args, '--run', '--jobs=2'],
    cwd=tiny_runs.ROOT,
    env=tiny_runs.environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  while not any(root.glob('*/config.json')):
    assert process.poll() is None
    time.sleep(0.01)
  moment = random.uniform(0, 4)  # sooner than all points can end
  print(f'killed {moment} s after its first point began')
  time.sleep(moment)
  os.killpg(process.pid, signal.SIGKILL)  # with all points that are running
  assert process.wait() == -signal.SIGKILL
  return {p: p.stat().st_mtime_ns for p in root.glob('*/genotype.json')}


@pytest.fixture(scope='module')
def swept(arguments, killed):
  """What its second run said, and its folder; in one point's is a thesis."""
  del killed
  args, root = arguments
  return _run(*args, '--run', '--jobs=2'), root


def test_a_sweep_killed_at_a_random_moment_goes_on(killed, swept):
  """What was finished is not touched, and all other points come to an end."""
  finished = sorted(swept[1].glob('*/genotype.json'))
  assert len(finished) == 3
  assert killed == {p: p.stat().st_mtime_ns for p in finished if p in killed}
  steps = [[r['step'] for r in tiny_runs.rows(p.parent)] for p in finished]
  assert steps == [[2, 4]] * 3  # each row once


def _table(root):
  with (root / 'sweep.csv').open() as f:
    return list(csv.DictReader(f))


def test_a_point_that_fails_stops_no_other_one(swept):
  """It is named with its message, and the exit code tells scripts."""
  ran, root = swept
  assert ran.returncode == 2, ran.stderr
  assert '1 of 4 points are not finished' in ran.stderr
  assert 'thesis.tex' in ran.stderr.rpartition(_FAILING)[2]
  assert 'thesis.tex' in (root / 'logs' / f'{_FAILING}.log').read_text()
  rows = _table(root)
  assert len(rows) == 4
  failed = [r for r in rows if r['status'] != 'finished']
  assert [(r['objective.multiplier'], r['seed']) for r in failed] == [
    ('5.0', '3')
  ]
  assert 'thesis.tex' in failed[0]['status']


def test_the_table_has_what_each_point_found(swept):
  """In CSV and JSON, and the settings of each are those of its run."""
  root = swept[1]
  rows = json.loads((root / 'sweep.json').read_text())['rows']
  finished = [r for r in rows if r['status'] == 'finished']
  assert len(finished) == 3
  for r in finished:
    folder = epath.Path(r['workdir'])
    found = json.loads((folder / 'genotype.json').read_text())
    config = json.loads((folder / 'config.json').read_text())['config']
    assert r['predicted_ms'] == found['deploy']['predicted_ms']
    assert r['accuracy'] == found['search']['supernet_val_accuracy']
    assert r['text'] == found['text']
    assert config['objective']['multiplier'] == r['objective.multiplier']
    assert str(config['seed']) == r['seed']
  for r, other in zip(rows, _table(root), strict=True):
    assert {k: '' if v is None else str(v) for k, v in r.items()} == other


def test_the_front_is_drawn_and_marked(swept):
  """A picture that is not blank, and no marked point is beaten by another."""
  root = swept[1]
  pixels = np.asarray(Image.open(root / 'front.png').convert('L'))
  assert min(pixels.shape) > 300 and pixels.std() > 5
  rows = json.loads((root / 'sweep.json').read_text())['rows']
  judged = [r for r in rows if r['predicted_ms'] is not None]
  front = [r for r in rows if r['is_on_front']]
  assert front
  for r in judged:
    assert any(
      f['predicted_ms'] <= r['predicted_ms'] and f['accuracy'] >= r['accuracy']
      for f in front
    )


def test_the_same_command_goes_on(swept, arguments):
  """Finished points are not touched; what is lost or mended is run."""
  root = swept[1]
  args = arguments[0]
  points = sorted(p for p in root.iterdir() if (p / 'genotype.json').exists())
  lost, kept = points[0], points[1:]
  shutil.rmtree(lost)
  before = {p: (p / 'genotype.json').stat().st_mtime_ns for p in kept}
  printed = _run(*args)
  assert printed.returncode == 0 and '2 of 4 points' in printed.stderr
  workdirs = [shlex.split(x)[-1] for x in printed.stdout.splitlines()]
  assert {f'--workdir={lost}', f'--workdir={root / _FAILING}'} == {*workdirs}

  collected = _run(*args, '--collect')
  assert collected.returncode == 2 and lost.name in collected.stderr
  (root / _FAILING / 'thesis.tex').unlink()
  again = _run(*args, '--run', '--jobs=2')
  assert again.returncode == 0, again.stderr
  assert '4 of 4 points are finished' in again.stdout
  assert [r['status'] for r in _table(root)] == ['finished'] * 4
  assert before == {p: (p / 'genotype.json').stat().st_mtime_ns for p in kept}


def _fake_sbatch(folder):
  """An sbatch that runs every task of the array, and an srun that notes."""
  sbatch = folder / 'sbatch'
  sbatch.write_text(
    '#!/usr/bin/env bash\narray=${1#--array=1-}; shift\n'
    'for ((i = 1; i <= ${array%\\%*}; i++)); do\n'
    '  SLURM_ARRAY_TASK_ID=$i SLURM_NTASKS=1 bash "$@"\ndone\n'
  )
  srun = folder / 'srun'
  srun.write_text(
    f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" END >>{folder}/calls\n'
  )
  for path in (sbatch, srun):
    path.chmod(0o755)


def test_slurm_runs_each_point_as_a_task(arguments, tmp_path):
  """The arguments reach the program as they are, quotes and all."""
  args = [a for a in arguments[0] if not a.startswith('--root=')]
  args += [
    f'--root={tmp_path / "a root"}',
    "--config.hypergrad={'name': 'first_order'}",
    '--slurm',
    '--jobs=2',
  ]
  dry = _run(*args, DRY_RUN='1')
  assert dry.returncode == 0, dry.stderr
  assert dry.stdout.startswith(
    '+ sbatch --array=1-4%2 launch/slurm_array.sbatch'
  )
  assert not (tmp_path / 'a root').exists()
  _fake_sbatch(tmp_path)
  (tmp_path / 'bin').mkdir()
  (tmp_path / 'bin' / 'python').symlink_to(sys.executable)
  ran = _run(
    *args,
    PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}',
    VENV=str(tmp_path),
  )
  assert ran.returncode == 0, ran.stderr
  calls = (tmp_path / 'calls').read_text().split('END\n')[:-1]
  assert len(calls) == 4
  for call, seed in zip(calls, (3, 4, 3, 4), strict=True):
    words = call.splitlines()
    assert "--config.hypergrad={'name': 'first_order'}" in words
    assert f'--config.seed={seed}' in words
    assert words[-1].startswith(f'--workdir={tmp_path / "a root"}/multiplier=')


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ((), ['--config and --sweep']),
    (('--sweep=targt',), ['targt', 'target', 'seed', 'multiplier']),
    (('--sweep=search.num_step=3:4',), ['search.num_step']),
    (('--sweep=seed,seed=3:4',), ['seed', 'two sweeps']),
    (('--sweep=seed=3:3',), ['seed=3', 'twice']),
    (('--sweep=seed', '--run', '--slurm'), ['one of --run']),
    (('--sweep=seed', '--config.serch=1'), ['serch']),
  ],
)
def test_a_sweep_that_cannot_be_is_one_message(args, words):
  """It names what is wrong, before any point is run."""
  config = () if not args else ('--config=configs/pixel4.py',)
  ran = _run(*config, *args)
  assert ran.returncode == 2 and not ran.stdout, ran.stderr
  errors = [x for x in ran.stderr.splitlines() if 'Error' in x]
  assert len(errors) == 1 and 'Traceback' not in ran.stderr, ran.stderr
  assert all(w in ran.stderr for w in words), ran.stderr


@pytest.mark.parametrize('name', _DEVICES)
def test_every_device_has_the_sweeps(sweep, name, monkeypatch):
  """Each yields points that its config takes, with values that differ."""
  monkeypatch.chdir(tiny_runs.ROOT)
  functions = sweep._functions(f'configs/{name}.py:runlocal')
  module = importlib.import_module(f'configs.{name}')
  for key in ('target', 'seed', 'multiplier'):
    grid = sweep.make_grid(module.get_config(), [key], functions)
    assert len({json.dumps(p) for p in grid}) == len(grid) >= 3
    for point in grid:
      module.get_config().update_from_flattened_dict(point)


@hypothesis.given(
  st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    min_size=1,
    max_size=4,
  )
)
def test_sweeps_make_a_grid(sweep, axes):
  """Every combination is one point, with a workdir and arguments of its own."""
  config = {f'field_{i}': 0 for i in range(len(axes))}

  class Config:
    def to_dict(self):
      return config

  texts = [
    f'field_{i}={":".join(map(str, axis))}' for i, axis in enumerate(axes)
  ]
  grid = sweep.make_grid(Config(), texts, {})
  assert len(grid) == np.prod([len(a) for a in axes])
  for i, axis in enumerate(axes):
    assert {p[f'field_{i}'] for p in grid} == set(map(str, axis))
  points = sweep.make_points(epath.Path('root'), ['--config=c'], grid)
  assert len({p.workdir for p in points}) == len({p.args for p in points})
  assert len({p.workdir for p in points}) == len(grid)


def test_a_path_as_a_value_stays_inside_the_folder(sweep):
  """A swept value cannot name a workdir elsewhere."""
  grid = [{'latency.table': '../../elsewhere'}, {'latency.table': 'x'}]
  for point in sweep.make_points(epath.Path('root'), [], grid):
    assert point.workdir.parent == epath.Path('root')
  with pytest.raises(UserError, match='twice'):
    sweep.make_points(
      epath.Path('root'), [], [{'table': 'a/b'}, {'table': 'a_b'}]
    )


def test_a_finished_run_is_known_by_what_its_job_writes_last():
  """The names are those of the jobs."""
  assert sweep_table.RESULTS == {
    'search': genotype_files.GENOTYPE,
    'pareto': pareto_report.FRONT,
    'shortlist': shortlist_report.RESULT,
    'retrain': retrain.RESULT,
    'evaluate': evaluate.RESULT,
    'describe': describe.RESULT,
    'predictor': predictor_report.METRICS,
    'export': export.RESULT,
  }


def test_a_shortlist_of_one_target_is_a_row_with_what_was_chosen(tmp_path):
  """Of several targets there is a file each, which no row can tell."""
  found = report_runs.write_search(tmp_path / 'search', 'nasbench201')
  ms = found['deploy']['predicted_ms']
  rows, records = [], []
  for targets in ([ms], [0.9 * ms, 1.1 * ms]):
    workdir = tmp_path / f'{len(targets)}'
    records.append(
      report_runs.write_shortlist(workdir, tmp_path / 'search', targets)
    )
    rows.append(sweep_table.row({'target': targets}, workdir))
  one, two = rows
  (target,) = records[0]['targets']
  (chosen,) = [c for c in target['candidates'] if c['is_chosen']]
  assert one['accuracy'] == chosen['val_accuracy']
  assert one['predicted_ms'] == chosen['predicted_ms']
  assert (one['text'], one['macs']) == (chosen['text'], chosen['macs'])
  assert two['accuracy'] is two['predicted_ms'] is None
  assert one['status'] == two['status'] == sweep_table.FINISHED
