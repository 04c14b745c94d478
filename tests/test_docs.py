"""The pages of docs/: they build, their code runs, their commands exist."""

import doctest
import importlib
import importlib.util
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys

import pytest
import tiny_runs

import hwdarts_jax
from hwdarts_jax import api

DOCS = tiny_runs.ROOT / 'docs'
_PYTHON = re.compile(r'```python\n(.*?)```', re.S)
_SHELL = re.compile(r'```bash\n(.*?)```', re.S)


def test_the_site_builds_without_a_warning(tmp_path):
  """Links, images and the pages of modules included."""
  names = ('mkdocs', 'material', 'mkdocstrings')
  if not all(map(importlib.util.find_spec, names)) and not os.environ.get('CI'):
    pytest.skip("not installed: pip install '.[docs]'")
  ran = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', str(tmp_path)],
    cwd=tiny_runs.ROOT,
    env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr
  page = (tmp_path / 'api' / 'index.html').read_text()
  for name in hwdarts_jax.__all__:
    assert f'hwdarts_jax.api.{name}' in page, name


def test_the_new_op_and_space_work_as_they_are_told(tmp_path):
  """In a process of its own: what it registers would stay."""
  blocks = _PYTHON.findall((DOCS / 'extending.md').read_text())
  assert len(blocks) == 3
  program = tmp_path / 'program.py'
  program.write_text('\n'.join(blocks))
  ran = subprocess.run(
    [sys.executable, str(program)],
    cwd=tmp_path,
    env=tiny_runs.environment(),
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr


def _commands(path: pathlib.Path):
  """Words of the commands of a page that run a program of ours."""
  for block in _SHELL.findall(path.read_text()):
    for line in block.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      if words and words[0] in ('$M', 'python'):
        yield words


@pytest.mark.parametrize(
  'words', list(_commands(DOCS / 'tutorial.md')), ids=lambda w: w[-1]
)
def test_the_commands_of_the_tutorial_name_what_there_is(monkeypatch, words):
  """Configs, their arguments and every field that is set."""
  monkeypatch.chdir(tiny_runs.ROOT)
  flags = dict(w.lstrip('-').partition('=')[::2] for w in words if w[0] == '-')
  config = api.load_config(flags.pop('config'))
  known = {'workdir', 'sweep', 'run', 'root'}
  for name in set(flags) - known:
    section = config
    for part in name.removeprefix('config.').split('.'):
      assert part in section, name
      section = section[part]


def test_doctests_hold():
  """Of every module of the package."""
  found = 0
  for module in pkgutil.walk_packages(hwdarts_jax.__path__, 'hwdarts_jax.'):
    path = tiny_runs.ROOT / (module.name.replace('.', '/') + '.py')
    if path.is_file() and '>>> ' in path.read_text():
      result = doctest.testmod(importlib.import_module(module.name))
      assert not result.failed, module.name
      found += result.attempted
  assert found
