"""Files are data: nothing in them is run, and damage is one message.

Files of genotypes, tables, specs and records of workdirs may come from anybody,
or from a bad disk. `benchmarks/faults.py` mutates many more of them.
"""

import ast
import json
import pathlib
import random

import fuzzed_files
import pytest

import hwdarts_jax
from hwdarts_jax.jobs import summary
from hwdarts_jax.runtime import command

_PACKAGE = pathlib.Path(hwdarts_jax.__file__).parent
_FORBIDDEN = {'pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib'}


@pytest.fixture(scope='module')
def trees():
  """The syntax of every module, by its path in the package."""
  return {
    str(p.relative_to(_PACKAGE)): ast.parse(p.read_text())
    for p in _PACKAGE.rglob('*.py')
  }


def _calls(trees):
  for path, tree in trees.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.Call):
        yield path, ast.unparse(node.func), node


def test_no_module_unpickles_or_evaluates(trees):
  """By whatever name; NumPy's files are read without objects."""
  for path, tree in trees.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.Import | ast.ImportFrom):
        named = {a.name.split('.')[0] for a in node.names}
        assert not _FORBIDDEN & named, path
        assert getattr(node, 'module', '') not in _FORBIDDEN, path
  for path, name, call in _calls(trees):
    assert name not in ('eval', 'exec', 'compile'), path
    assert not name.endswith(('os.system', 'yaml.load')), path
    if name in ('np.load', 'numpy.load'):
      given = {k.arg: ast.unparse(k.value) for k in call.keywords}
      assert given.get('allow_pickle') == 'False', path


def test_two_places_run_a_config(trees):
  """What its user names, and what a record names; that asks whether it may."""
  where = {path for path, name, _ in _calls(trees) if name == 'runpy.run_path'}
  assert where == {'api.py', 'jobs/summary.py'}


def test_a_workdir_cannot_have_a_program_run(tmp_path, monkeypatch):
  """Its record names a config that would leave a trace."""
  program = tmp_path / 'evil.py'
  program.write_text(
    'import pathlib\n'
    f'pathlib.Path({str(tmp_path / "trace")!r}).touch()\n'
    'def get_config(arg): raise KeyError\n'
  )
  monkeypatch.chdir(tmp_path)
  for name in ('evil.py', str(program), 'configs/../evil.py', './evil.py'):
    (tmp_path / 'configs').mkdir(exist_ok=True)
    assert summary.overrides({'source': name, 'seed': 1}) == {}
    record = {'config': {'source': f'{name}:arg', 'seed': 1}}
    (tmp_path / 'config.json').write_text(json.dumps(record))
    words = summary.retrain_command(tmp_path)
    assert f'--config={name}:arg' in words
  assert not (tmp_path / 'trace').exists()


def test_a_message_is_short_whatever_it_quotes(capsys):
  """A file may have a key of a megabyte."""
  command.report(ValueError(f'first {"[" * 10**6} last'))
  printed = capsys.readouterr().err
  assert len(printed) < 10_000
  assert printed.startswith('\nError: first [[') and '[[ last' in printed


@pytest.mark.parametrize('kind', fuzzed_files.READERS)
def test_mutated_files_are_read_or_are_one_message(kind, tmp_path):
  """Any change: a value, a type, a key, a nesting, bytes, the length."""
  seed = 20240607
  counts = fuzzed_files.fuzz(kind, 60, random.Random(seed), tmp_path)
  assert counts['refused'] > 20  # most changes are no file of ours any more


def test_no_module_reads_records_without_a_bound(trees):
  """A file of a workdir may be of any size: `workdir.read_json` refuses it."""
  readers = ('.read_text', '.read_bytes', '.read')
  for path, name, call in _calls(trees):
    if path.split('/')[0] in ('jobs', 'runtime', 'api.py', 'main.py'):
      inner = [n for a in call.args for n in ast.walk(a)]
      reads = any(
        isinstance(n, ast.Call) and ast.unparse(n.func).endswith(readers)
        for n in inner
      )
      assert name != 'json.load' and not (name == 'json.loads' and reads), path
