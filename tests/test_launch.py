"""The launch scripts: what they would do, and what they do with fake tools.

No cluster is here: `gcloud`, `srun` and `kubectl` are scripts that note what
they are asked.
"""

import copy
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sysconfig

import jsonschema
import pytest
import tiny_runs
import yaml

LAUNCH = tiny_runs.ROOT / 'launch'
GOLDEN = tiny_runs.ROOT / 'tests' / 'golden'
SCRIPTS = sorted(
  p
  for p in LAUNCH.iterdir()
  if p.suffix in ('.sh', '.sbatch') and p.stem[0] != '_'
)
ARGS = (
  '--config=configs/pixel4.py:runlocal',
  "--config.hypergrad={'name': 'unrolled'}",
)
# Of every script, all that it needs.
VARIABLES = {
  'run.sh': {'EXTRA': 'cuda', 'VENV': '/absent'},
  'slurm.sbatch': {'SLURM_NTASKS': '16'},
  'slurm_array.sbatch': {'SLURM_ARRAY_TASK_ID': '2', 'SLURM_NTASKS': '1'},
  'tpu_pod.sh': {
    'NAME': 'search',
    'ZONE': 'us-east5-b',
    'ACCELERATOR_TYPE': 'v6e-16',
    'RUNTIME_VERSION': 'v2-alpha-tpuv6e',
    'WORKDIR': 'gs://bucket/search',
    'SPOT': '1',
  },
  'gke.sh': {
    'NAME': 'search',
    'IMAGE': 'registry/hwdarts_jax',
    'HOSTS': '4',
    'CHIPS_PER_HOST': '4',
    'ACCELERATOR': 'tpu-v6e-slice',
    'TOPOLOGY': '4x4',
    'WORKDIR': 'gs://bucket/search',
  },
}
SLURM = {'SLURM_NTASKS', 'SLURM_ARRAY_TASK_ID'}  # set by SLURM itself
OPTIONAL = {'SPOT', 'EXTRA', 'VENV'} | SLURM


def _run(script, *args, path='', **variables):
  """Runs a script with these variables alone; returns what ended."""
  own = {
    k: os.environ[k] for k in ('PATH', 'HOME', 'TMPDIR') if k in os.environ
  }
  if path:
    own['PATH'] = f'{path}:{own["PATH"]}'
  return subprocess.run(
    ['bash', str(LAUNCH / script), *args],
    cwd=tiny_runs.ROOT,
    env=own | variables,
    capture_output=True,
    text=True,
    timeout=60,
  )


def _fake(folder, name, body):
  """A command that notes its arguments, one line a call, and does `body`."""
  path = folder / name
  log = folder / f'{name}.log'
  path.write_text(
    f'#!/usr/bin/env bash\nprintf "%q " "$@" >>{log}\necho >>{log}\n{body}\n'
  )
  path.chmod(0o755)
  return log


def _calls(log):
  return [shlex.split(line) for line in log.read_text().splitlines()]


def test_shellcheck_has_no_complaint():
  """Of any script, also where they call each other."""
  tool = shutil.which('shellcheck', path=sysconfig.get_path('scripts'))
  ran = subprocess.run(
    [
      tool or 'shellcheck',
      '-x',
      *map(str, SCRIPTS),
      str(LAUNCH / '_common.sh'),
    ],
    cwd=tiny_runs.ROOT,
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_a_script_says_how_it_is_used(script):
  """Its help names the script and every variable that it reads."""
  ran = _run(script.name, '--help')
  assert ran.returncode == 0, ran.stderr
  assert f'launch/{script.name}' in ran.stdout and 'DRY_RUN=1' in ran.stdout
  for name in set(VARIABLES[script.name]) - SLURM:
    assert name in ran.stdout, name


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_a_dry_run_is_the_golden_one(script, tmp_path):
  """What would be done, word for word, quotes included; and nothing is done."""
  args = ARGS
  if script.name == 'slurm_array.sbatch':  # reads them from a file
    points = [[*ARGS, '--config.seed=0'], [*ARGS, '--config.seed=1']]
    (tmp_path / 'points').write_text('\n'.join(map(shlex.join, points)) + '\n')
    args = (str(tmp_path / 'points'),)
  ran = _run(script.name, *args, DRY_RUN='1', **VARIABLES[script.name])
  assert ran.returncode == 0, ran.stderr
  golden = GOLDEN / f'launch_{script.stem}.txt'
  if os.environ.get('UPDATE_GOLDEN'):
    golden.write_text(ran.stdout)
  assert ran.stdout == golden.read_text()


@pytest.mark.parametrize(
  ('script', 'variable'),
  [(s, v) for s, all_ in VARIABLES.items() for v in all_ if v not in OPTIONAL],
)
def test_a_variable_that_is_missing_is_named(script, variable):
  """Before anything is done."""
  given = {k: v for k, v in VARIABLES[script].items() if k != variable}
  ran = _run(script, *ARGS, DRY_RUN='1', **given)
  assert ran.returncode == 2 and not ran.stdout
  assert f'set {variable} in the environment' in ran.stderr


@pytest.mark.parametrize(
  ('script', 'args', 'variables', 'words'),
  [
    ('run.sh', (), {}, ['--config=']),
    ('slurm.sbatch', ('--workdir=w',), {}, ['--config=']),
    ('slurm_array.sbatch', ('/absent',), {}, ['launch/sweep.py --slurm']),
    ('run.sh', ARGS, {'RESTARTS': 'many'}, ['RESTARTS', 'many']),
    ('run.sh', ARGS, {'PYTHON': 'snake'}, ['snake', 'not installed']),
    ('tpu_pod.sh', ARGS, {'WORKDIR': '/tmp/w'}, ['WORKDIR', '/tmp/w', 'gs://']),
    ('gke.sh', ARGS, {'WORKDIR': '/tmp/w'}, ['WORKDIR', '/tmp/w', 'gs://']),
    ('gke.sh', ARGS, {'HOSTS': 'four'}, ['HOSTS', 'four', 'whole number']),
  ],
)
def test_what_cannot_be_is_one_message(
  script, args, variables, words, tmp_path
):
  """It names the variable and its value, and nothing is run."""
  for name in ('gcloud', 'kubectl', 'srun'):
    _fake(tmp_path, name, 'exit 0')
  ran = _run(script, *args, path=str(tmp_path), **VARIABLES[script] | variables)
  assert ran.returncode == 2 and not ran.stdout, ran.stderr
  assert ran.stderr.startswith('Error: ') and len(ran.stderr.splitlines()) == 1
  assert all(w in ran.stderr for w in words), ran.stderr
  assert not list(tmp_path.glob('*.log'))


def _python(folder, codes):
  """An environment whose Python ends with these codes, one a call."""
  (folder / 'bin').mkdir()
  (folder / 'codes').write_text(''.join(f'{c}\n' for c in codes))
  take = f'{folder / "codes"}'
  return _fake(
    folder / 'bin',
    'python',
    f'c=$(head -1 {take}); sed -i 1d {take}; '
    '((c <= 128)) || kill -$((c - 128)) $$; exit "$c"',
  )


@pytest.mark.parametrize(
  ('codes', 'variables', 'code'),
  [
    ([0], {}, 0),
    ([2], {}, 2),  # a user must mend it
    ([137, 139, 0], {}, 0),  # killed twice, goes on
    ([130], {}, 130),  # Control-C
    ([137, 137], {'RESTARTS': '1'}, 137),
  ],
)
def test_a_run_that_is_killed_goes_on(tmp_path, codes, variables, code):
  """And none that ended by itself, or by its user, or too often."""
  log = _python(tmp_path, codes)
  ran = _run('run.sh', *ARGS, VENV=str(tmp_path), **variables)
  assert ran.returncode == code, ran.stderr
  assert _calls(log) == [['-m', 'hwdarts_jax.main', *ARGS]] * len(codes)


@pytest.mark.parametrize('tasks', [1, 16])
def test_slurm_connects_processes_where_there_are_several(tmp_path, tasks):
  """One process alone needs no coordinator."""
  log = _fake(tmp_path, 'srun', 'exit 0')
  _python(tmp_path, [])
  ran = _run(
    'slurm.sbatch',
    *ARGS,
    path=str(tmp_path),
    VENV=str(tmp_path),
    SLURM_NTASKS=str(tasks),
  )
  assert ran.returncode == 0, ran.stderr
  (call,) = _calls(log)
  assert call[-1] == ('--multihost' if tasks > 1 else ARGS[-1])
  assert '--kill-on-bad-exit=1' in call


class Cloud:
  """A `gcloud` whose slice is in the states that are listed."""

  def __init__(self, folder):
    self._folder = folder
    (folder / 'nodes').write_text('READY\n' * 9)
    self.log = _fake(folder, 'gcloud', self._body())

  def _body(self):
    here = self._folder
    return f"""
take() {{ head -1 "$1"; [[ $(wc -l <"$1") -le 1 ]] || sed -i 1d "$1"; }}
case "$*" in
  *queued-resources\\ create*) echo yes >{here}/there ;;
  *queued-resources\\ delete*) rm -f {here}/there ;;
  *queued-resources\\ describe*) [[ -e {here}/there ]] && take {here}/states ;;
  *tpu-vm\\ describe*) take {here}/nodes ;;
  *hwdarts_jax.main*) exit "$(take {here}/codes)" ;;
esac
"""

  def run(self, states, codes, nodes=(), **variables):
    for name, lines in (('states', states), ('codes', codes), ('nodes', nodes)):
      if lines:
        (self._folder / name).write_text(''.join(f'{x}\n' for x in lines))
    settings = VARIABLES['tpu_pod.sh'] | {'POLL_SECONDS': '0'} | variables
    settings.setdefault('COLLECT', str(self._folder / 'runs'))
    return _run('tpu_pod.sh', *ARGS, path=str(self._folder), **settings)

  def verbs(self):
    """What was done, without the questions."""
    words = ('create', 'delete', 'scp', 'ssh', 'cp')
    done = [
      next((w for w in words if w in call), '') for call in _calls(self.log)
    ]
    return [w for w in done if w]


@pytest.fixture
def cloud(tmp_path):
  """Where slices are had."""
  return Cloud(tmp_path)


_TRIP = ['create', 'scp', 'ssh', 'ssh']


def test_a_slice_is_had_used_and_given_back(cloud):
  """It waits in the queue, runs on all hosts, and its results are here."""
  ran = cloud.run(['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'], [0])
  assert ran.returncode == 0, ran.stderr
  assert cloud.verbs() == [*_TRIP, 'cp', 'delete']
  run = next(c for c in _calls(cloud.log) if 'hwdarts_jax.main' in ' '.join(c))
  assert '--worker=all' in run
  command = next(w for w in run if w.startswith('--command='))
  words = shlex.split(command.removeprefix('--command='))
  assert words[-4:] == [*ARGS, '--workdir=gs://bucket/search', '--multihost']


@pytest.mark.parametrize(
  ('states', 'nodes'),
  [
    (['ACTIVE', 'SUSPENDED', 'SUSPENDED', 'ACTIVE'], ()),
    (['ACTIVE'], ['PREEMPTED', 'READY']),
  ],
)
def test_a_slice_that_is_preempted_is_had_again(cloud, states, nodes):
  """By what the request says, or the node: a new one resumes the workdir."""
  ran = cloud.run(states, [255, 0], nodes)
  assert ran.returncode == 0, ran.stderr
  assert cloud.verbs() == [*_TRIP, 'delete', *_TRIP, 'cp', 'delete']
  assert 'search was taken away' in ran.stderr


def test_a_run_that_fails_on_a_slice_that_is_well_is_not_repeated(cloud):
  """The error is in the program; the slice is given back all the same."""
  ran = cloud.run(['ACTIVE'], [2])
  assert ran.returncode == 2
  assert cloud.verbs() == [*_TRIP, 'delete']
  assert 'slice that is well' in ran.stderr


def test_preemptions_have_an_end(cloud):
  """After so many it gives up, and says how often it tried."""
  nodes = ['PREEMPTED'] * 5
  ran = cloud.run(['ACTIVE'], [255], nodes, RESTARTS='1')
  assert ran.returncode == 2 and 'taken away 2 times' in ran.stderr
  assert cloud.verbs() == [*_TRIP, 'delete', *_TRIP, 'delete']


def test_a_slice_that_is_kept_is_used_again(cloud, tmp_path):
  """KEEP=1 leaves it, and the next run requests none."""
  for _ in range(2):
    assert cloud.run(['ACTIVE'], [0], KEEP='1').returncode == 0
  assert cloud.verbs() == [*_TRIP, 'cp', *_TRIP[1:], 'cp']


def _jobset(**variables):
  ran = _run('gke.sh', *ARGS, DRY_RUN='1', **VARIABLES['gke.sh'] | variables)
  assert ran.returncode == 0, ran.stderr
  return yaml.safe_load(ran.stdout)


@pytest.fixture(scope='module')
def schema():
  """The fields of a JobSet that are used."""
  path = tiny_runs.ROOT / 'tests' / 'jobset.schema.json'
  schema = json.loads(path.read_text())
  jsonschema.Draft202012Validator.check_schema(schema)
  return schema


def test_the_jobset_is_valid_and_says_what_was_asked(schema):
  """All hosts run the same command, and a user's error is not repeated."""
  found = _jobset(SERVICE_ACCOUNT='writer')
  jsonschema.validate(found, schema)
  job = found['spec']['replicatedJobs'][0]['template']['spec']
  assert (job['parallelism'], job['completions']) == (4, 4)
  pod = job['template']['spec']
  assert pod['containers'][0]['args'] == [
    *ARGS,
    '--workdir=gs://bucket/search',
    '--multihost',
  ]
  assert pod['serviceAccountName'] == 'writer'
  rule = job['podFailurePolicy']['rules'][0]
  assert (rule['action'], rule['onExitCodes']['values']) == ('FailJob', [2])


@pytest.mark.parametrize(
  'path',
  [
    ('spec', 'failurePolicy', 'maxRestart'),
    (
      'spec',
      'replicatedJobs',
      0,
      'template',
      'spec',
      'template',
      'spec',
      'image',
    ),
    ('metadata', 'nam'),
  ],
)
def test_the_schema_finds_a_field_that_jobsets_do_not_have(schema, path):
  """Kubernetes would drop it silently, or refuse it hours later."""
  found = copy.deepcopy(_jobset())
  inner = found
  for name in path[:-1]:
    inner = inner[name]
  inner[path[-1]] = 1
  with pytest.raises(jsonschema.ValidationError, match=str(path[-1])):
    jsonschema.validate(found, schema)


def test_the_image_has_the_program_of_the_jobset():
  """The JobSet gives arguments only: the image names the program."""
  text = (LAUNCH / 'Dockerfile').read_text()
  line = next(x for x in text.splitlines() if x.startswith('ENTRYPOINT'))
  assert json.loads(line.removeprefix('ENTRYPOINT '))[1:] == [
    '-m',
    'hwdarts_jax.main',
  ]


def test_kubectl_gets_the_jobset(tmp_path):
  """By its standard input."""
  _fake(tmp_path, 'kubectl', f'cat >{tmp_path / "got"}')
  ran = _run('gke.sh', *ARGS, path=str(tmp_path), **VARIABLES['gke.sh'])
  assert ran.returncode == 0, ran.stderr
  got = yaml.safe_load(pathlib.Path(tmp_path / 'got').read_text())
  assert got == _jobset()
