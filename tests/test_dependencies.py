"""What is installed without any extra is enough for a search."""

import importlib.metadata
import json
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import tiny_runs

# Runs main where modules of other distributions cannot be imported.
_RUN = """
import json, runpy, sys
hidden, args = json.loads(sys.argv[1]), sys.argv[2:]

class Hide:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in hidden:
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Hide())
sys.argv = ['hwdarts_jax', *args]
runpy.run_module('hwdarts_jax.main', run_name='__main__', alter_sys=True)
"""


def _needed(name, extras=(), found=None):
  """Names of distributions that come with one."""
  found = {} if found is None else found
  known = found.setdefault(canonicalize_name(name), set())
  new = {'', *extras} - known
  known |= new
  try:
    texts = importlib.metadata.requires(name) or []
  except importlib.metadata.PackageNotFoundError:
    return found
  for requirement in map(Requirement, texts if new else []):
    marker = requirement.marker
    if marker is None or any(marker.evaluate({'extra': e}) for e in new):
      _needed(requirement.name, requirement.extras, found)
  return found


def _hidden():
  """Modules that come with extras only, such as those of this test."""
  needed = set(_needed('hwdarts_jax'))
  return [
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if not needed & {canonicalize_name(owner) for owner in owners}
  ]


def test_a_search_needs_no_extra(tmp_path):
  """Also of what is imported late, as to keep a traced program."""
  tiny_runs.write_table(tmp_path / 'made_up.darts.json')
  hidden = _hidden()
  assert 'pytest' in hidden
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      _RUN,
      json.dumps(hidden),
      f'--config={tiny_runs.CONFIG}',
      f'--config.latency.table={tmp_path / "made_up.darts.json"}',
      f'--workdir={tmp_path / "run"}',
    ],
    env=tiny_runs.environment()
    | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache')},
    cwd=tiny_runs.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'Architecture found' in done.stdout
  assert list((tmp_path / 'cache' / 'traced').iterdir())
