"""The rules of the house, checked on the source."""

import ast
import configparser
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'hwdarts_jax'
SOURCES = sorted(PACKAGE.rglob('*.py'))
TEXT_SUFFIXES = ('.py', '.md', '.cfg', '.toml', '.yaml', '.sh', '.json')


def _tool(name):
  """Path of a command that is installed beside this interpreter."""
  path = shutil.which(name, path=sysconfig.get_path('scripts'))
  return path or shutil.which(name) or pytest.fail(f'{name} is not installed')


@pytest.mark.parametrize(
  'command',
  [
    ('lint-imports', '--no-cache'),
    ('mypy',),
    ('ruff', 'check', '--no-cache', '.'),
    ('ruff', 'format', '--no-cache', '--check', '.'),
  ],
  ids=' '.join,
)
def test_tool_has_no_complaint(command):
  ran = subprocess.run(
    [_tool(command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True
  )
  assert ran.returncode == 0, ran.stdout + ran.stderr


def test_spaces_and_tables_run_without_jax():
  modules = [
    '.'.join(p.relative_to(ROOT).with_suffix('').parts)
    for p in sorted(PACKAGE.glob('spaces/*.py'))
    + sorted(PACKAGE.glob('latency/table.py'))
    if p.stem != '__init__'
  ]
  code = (
    f'import importlib, sys\n'
    f'for name in {modules}: importlib.import_module(name)\n'
    f'print([m for m in ("jax", "flax", "optax") if m in sys.modules])'
  )
  found = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT)
  assert found.strip() == b'[]'


def _dotted(node):
  """The name `a.b.c` of an expression, or '' where it has none."""
  parts = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  return '.'.join(reversed([*parts, node.id])) if _is_name(node) else ''


def _is_name(node):
  return isinstance(node, ast.Name)


def _complaint(node):
  """What the house has against a node of the syntax tree, or None."""
  if isinstance(node, ast.ExceptHandler) and node.type is None:
    return 'a bare except'
  if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple):
    return 'an assert that always holds'
  name = _dotted(node)
  last = name.rpartition('.')[2]
  if name in ('jax.pmap', 'pmap'):
    return 'pmap: use jit with NamedSharding'
  if last == 'PRNGKey':
    return 'PRNGKey: use jax.random.key'
  if name in ('pickle.load', 'pickle.loads', 'eval', 'exec'):
    return f'{name}: it runs whatever a file says'
  return None


@pytest.mark.parametrize(
  'path', SOURCES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_source_keeps_house_rules(path):
  tree = ast.parse(path.read_text())
  found = [
    f'{path.relative_to(ROOT)}:{node.lineno}: {_complaint(node)}'
    for node in ast.walk(tree)
    if _complaint(node)
  ]
  assert not found, '\n'.join(found)


@pytest.mark.parametrize(
  'text',
  [
    'import jax\njax.pmap(f)',
    'from jax import pmap\ng = pmap(f)',
    'jax.random.PRNGKey(0)',
    'try:\n  f()\nexcept:\n  pass',
    'pickle.load(f)',
    'eval(x)',
  ],
)
def test_house_rules_see_what_they_forbid(text):
  assert any(map(_complaint, ast.walk(ast.parse(text))))


def test_only_jobs_that_measure_import_the_harness():
  found = {
    path.stem
    for path in PACKAGE.glob('jobs/*.py')
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Import | ast.ImportFrom)
    and 'hwdarts_jax.harness'
    in ' '.join([getattr(node, 'module', '') or ''])
    + ' '.join(alias.name for alias in node.names)
  }
  assert found <= {'export', 'export_measure', 'shortlist_measure'}


def test_text_files_end_well():
  listed = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True
  )
  if listed.returncode:
    pytest.skip('not a git checkout')
  paths = [ROOT / name for name in listed.stdout.split('\0') if name]
  bad = []
  for path in paths:
    if path.suffix not in TEXT_SUFFIXES or not path.is_file():
      continue
    text = path.read_bytes()
    if text and (b'\r' in text or text[-1:] != b'\n' or text[-2:] == b'\n\n'):
      bad.append(str(path.relative_to(ROOT)))
  assert not bad


def test_every_declared_package_data_pattern_is_a_path_of_ours():
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  patterns = config['options.package_data']['hwdarts_jax'].split()
  kept = {p for pattern in patterns for p in PACKAGE.glob(pattern)}
  data = {
    p
    for p in PACKAGE.rglob('*')
    if p.is_file()
    and p.suffix in ('.npz', '.json', '.md', '.j2', '.css', '.js')
  }
  assert data <= kept, 'files that a wheel would not hold'
