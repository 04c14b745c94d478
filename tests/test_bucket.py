"""A workdir in a bucket: the jobs, through an object store on this machine.

Google's servers and client libraries are not part of it.
"""

import ast
import json
import re

import fake_bucket
import numpy as np
import pytest
import tiny_runs

from hwdarts_jax.jobs import describe, retrain, search
from hwdarts_jax.runtime import metrics

PACKAGE = tiny_runs.ROOT / 'hwdarts_jax'
_URL = 'gs://bucket/runs'
# Calls that reach files of this machine alone. What each may be used for:
_ALLOWED = {
  ('main.py', 'pathlib.Path'): 'the cache of compiled programs',
  ('runtime/programs.py', 'pathlib.Path'): 'the cache of traced programs',
  ('runtime/command.py', 'pathlib.Path'): 'the config file',
  ('runtime/distributed.py', 'open'): 'the null device',
  ('runtime/workdir.py', 'os.open'): 'fsync of a local folder',
  ('jobs/export_measure.py', 'pathlib.Path'): 'what a runner sends to a device',
  ('jobs/export_measure.py', 'tempfile.TemporaryDirectory'): 'likewise',
  ('jobs/shortlist_measure.py', 'pathlib.Path'): "a harness's table",
  ('jobs/shortlist_measure.py', 'tempfile.TemporaryDirectory'): 'likewise',
}
_LOCAL_MODULES = ('shutil', 'tempfile', 'glob')
_LOCAL_CALLS = ('open', 'io.open', 'pathlib.Path', 'pathlib.PosixPath')
_LOCAL_OS = re.compile(
  r'os\.(link|listdir|makedirs|mkdir|open|remove|rename|replace|rmdir|scandir|stat'
  r'|symlink|truncate|unlink|walk|path\.(exists|getmtime|getsize|isdir|isfile))'
)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """The folder that all of gs:// is."""
  root = tmp_path / 'objects'
  root.mkdir()
  fake_bucket.install(monkeypatch, root)
  # Nothing relative may be written either, such as a folder named 'gs:'.
  here = tmp_path / 'here'
  here.mkdir()
  monkeypatch.chdir(here)
  yield root / 'bucket' / 'runs'
  assert not list(here.iterdir())


@pytest.fixture
def run(table, monkeypatch):
  """Runs a tiny job in this process: (module, workdir, **overrides)."""
  monkeypatch.syspath_prepend(str(tiny_runs.ROOT))

  def start(job, workdir, **overrides):
    config = tiny_runs.tiny('get_config')()
    config.job = job.__name__.rpartition('.')[2]
    config.update_from_flattened_dict(
      {'num_devices': 1, 'latency.table': str(table), **overrides}
    )
    job.run(config, workdir)

  return start


def _state(folder):
  return tiny_runs.last_state(folder)


def test_a_search_lives_in_a_bucket_resumes_there_and_is_trained(
  bucket, run, finished, capsys
):
  """Bit for bit what it is on a disk, and what follows finds it there."""
  url = f'{_URL}/search'
  run(search, url)
  here, there = _state(finished[0]), _state(bucket / 'search')
  assert here.keys() == there.keys()
  for name, value in here.items():
    np.testing.assert_array_equal(there[name], value, name)
  record = (bucket / 'search' / 'genotype.json').read_text()
  assert json.loads(record) == json.loads(
    (finished[0] / 'genotype.json').read_text()
  )
  assert metrics.read(url) == metrics.read(finished[0])
  assert (bucket / 'search' / 'search.png').read_bytes()[:4] == b'\x89PNG'
  assert list((bucket / 'search' / 'tensorboard').iterdir())

  # As a machine leaves it that was taken away before the last checkpoint.
  (bucket / 'search' / 'genotype.json').unlink()
  checkpoints = bucket / 'search' / 'checkpoints'
  (checkpoints / '16' / 'commit_success.txt').unlink()
  run(search, url)
  assert (bucket / 'search' / 'genotype.json').read_text() == record
  for name, value in _state(bucket / 'search').items():
    np.testing.assert_array_equal(here[name], value, name)

  run(
    retrain,
    f'{_URL}/retrain',
    **{'retrain.search_workdir': url, 'retrain.num_epochs': 1},
  )
  run(describe, f'{_URL}/describe', **{'describe.search_workdir': url})
  trained = json.loads((bucket / 'retrain' / 'retrain.json').read_text())
  assert trained['genotype'] == json.loads(record)['genotype']
  described = json.loads((bucket / 'describe' / 'describe.json').read_text())
  assert trained['deploy']['macs'] == described['macs']
  assert f'Everything is in {_URL}/retrain' in capsys.readouterr().out


def test_a_bucket_with_files_of_somebody_is_refused(bucket, run):
  """As a folder would be, and nothing is written."""
  thesis = bucket / 'search' / 'thesis.tex'
  thesis.parent.mkdir(parents=True)
  thesis.write_text('mine')
  with pytest.raises(ValueError, match=r'gs://bucket/runs/search is not empty'):
    run(search, f'{_URL}/search')
  assert [p.name for p in thesis.parent.iterdir()] == ['thesis.tex']


def _local_calls(tree):
  """Names of calls that reach files of this machine alone, with their lines."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func)
    module = name.rpartition('.')[0]
    if (
      name in _LOCAL_CALLS
      or module in _LOCAL_MODULES
      or _LOCAL_OS.fullmatch(name)
    ):
      yield name, node.lineno


def test_no_code_opens_a_workdir_but_through_epath():
  """Of all that has one: main, the jobs and the runtime."""
  files = [PACKAGE / 'main.py']
  files += [*PACKAGE.glob('jobs/*.py'), *PACKAGE.glob('runtime/*.py')]
  used = {
    (str(path.relative_to(PACKAGE)), name): line
    for path in files
    for name, line in _local_calls(ast.parse(path.read_text()))
  }
  assert not {k: v for k, v in used.items() if k not in _ALLOWED}
  assert used.keys() == _ALLOWED.keys(), 'an exception that nothing needs'


@pytest.mark.parametrize(
  'text',
  [
    'open(path / "a")',
    'os.replace(a, b)',
    'os.path.exists(path)',
    'shutil.rmtree(path)',
    'pathlib.Path(workdir).read_text()',
  ],
)
def test_local_calls_are_seen(text):
  """The search for them finds what it should."""
  assert len(list(_local_calls(ast.parse(text)))) == 1
