"""Runs `hwdarts_jax.main` in processes of its own; fixtures for tiny runs.

To import jax takes longer than a tiny run. So a nursery process imports once
and forks a process for each run before any thread or backend exists: what runs
then is the module as `python -m` runs it, with streams and an exit code of its
own, and can be killed.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'tests/tiny_config.py'
_MAIN = 'hwdarts_jax.main'
_TIMEOUT = 300.0


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended: exit code (minus the signal, if one) and its streams."""

  code: int
  out: str
  err: str


def environment() -> dict[str, str]:
  """One device and no threads at import; every program is cached on disk."""
  own = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return own | {
    'JAX_PLATFORMS': 'cpu',
    'MPLBACKEND': 'agg',
    'OPENBLAS_NUM_THREADS': '1',
    'PYTHONPATH': str(ROOT),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


class Run:
  """A run in flight."""

  def __init__(self, nursery: Nursery, pid: int, streams: list[pathlib.Path]):
    self.pid = pid
    self._nursery = nursery
    self._streams = streams

  def signal(self, number: int) -> None:
    """Sends a signal; the process may have ended, but is not reaped yet."""
    os.kill(self.pid, number)

  def is_over(self) -> bool:
    """Whether the process ended, by whatever."""
    status = pathlib.Path(f'/proc/{self.pid}/stat').read_text()
    return status.rpartition(')')[2].split()[0] == 'Z'

  def wait(self) -> Result:
    """Waits for the end."""
    begun = time.monotonic()
    while not self.is_over():
      if time.monotonic() - begun > _TIMEOUT:
        self.signal(signal.SIGKILL)
      time.sleep(0.01)
    code = self._nursery.ask({'reap': self.pid})
    return Result(code, *(p.read_text() for p in self._streams))


class Nursery:
  """The process that forks the runs."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._count = 0
    self._process = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=environment(),
    )

  def ask(self, question: dict) -> int:
    self._process.stdin.write(json.dumps(question) + '\n')
    self._process.stdin.flush()
    return int(self._process.stdout.readline())

  def start(self, *args: str, module: str = _MAIN, cwd=ROOT, **env: str) -> Run:
    """Starts `python -m` of a module with `args`, in the repository."""
    self._count += 1
    streams = [self._folder / f'{self._count}.{n}' for n in ('out', 'err')]
    question = {
      'module': module,
      'args': args,
      'streams': [*map(str, streams)],
      'cwd': str(cwd),
      'env': env,
    }
    pid = self.ask(question)
    return Run(self, pid, streams)

  def run(self, *args: str, module: str = _MAIN, **env: str) -> Result:
    """`start` and `Run.wait`."""
    return self.start(*args, module=module, **env).wait()

  def finish(
    self, workdir: pathlib.Path, args: list[str]
  ) -> tuple[pathlib.Path, Result]:
    """A run that nothing disturbs: its workdir, and how it ended well."""
    result = self.run(*args)
    assert result.code == 0, result.err
    return workdir, result

  def close(self) -> None:
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


class Shell:
  """`python -m hwdarts_jax.main` as a shell would start it; like a `Run`."""

  def __init__(self, *args: str):
    self._process = subprocess.Popen(
      [sys.executable, '-m', _MAIN, *args],
      cwd=ROOT,
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def signal(self, number: int) -> None:
    """Sends a signal, unless the process ended."""
    self._process.send_signal(number)

  def is_over(self) -> bool:
    """Whether the process ended, by whatever."""
    return self._process.poll() is not None

  def wait(self) -> Result:
    """Waits for the end."""
    out, err = self._process.communicate(timeout=_TIMEOUT)
    return Result(self._process.returncode, out, err)


@pytest.fixture(scope='session')
def nursery(tmp_path_factory):
  """Where runs are started."""
  nursery = Nursery(tmp_path_factory.mktemp('streams'))
  yield nursery
  nursery.close()


@pytest.fixture(scope='session')
def table(tmp_path_factory) -> pathlib.Path:
  """A latency table with an entry for each op of the tiny deploy spec."""
  path = tmp_path_factory.mktemp('table') / 'toy.json'
  write_table(path)
  return path


def write_table(path: pathlib.Path, **settings: int) -> None:
  """Convolutions are slow, all else is quick; `settings` are of the spec."""
  from hwdarts_jax import spaces

  deploy = spaces.make('darts', **tiny('DEPLOY') | settings)
  write_entries(
    path, deploy, lambda i, op: 1.0 + 0.1 * i if 'conv' in op else 0.1
  )


def write_entries(
  path: pathlib.Path, spec, ms: Callable[[int, str], float]
) -> None:
  """Writes a table of `ms(place, op)` of each op among those of its site."""
  from hwdarts_jax.latency import table as table_lib

  entries = {
    site.key(op): table_lib.Entry(ms(i, op), None, None, None)
    for site in spec.sites()
    for i, op in enumerate(site.ops)
  }
  table_lib.save(
    table_lib.LatencyTable(
      device='toy', kind='estimated', source={'what': 'toy'}, entries=entries
    ),
    path,
  )


def tiny(name: str):
  """A constant of the tiny config."""
  sys.path.insert(0, str(ROOT))
  try:
    return runpy.run_path(str(ROOT / CONFIG))[name]
  finally:
    sys.path.remove(str(ROOT))


@pytest.fixture(scope='session')
def command(table):
  """Arguments of a tiny run: (workdir, **overrides) -> list of flags."""

  def make(workdir, config=CONFIG, **overrides):
    flags = {'latency.table': table} | overrides
    return [
      f'--config={config}',
      f'--workdir={workdir}',
      *(f'--config.{k}={v}' for k, v in flags.items()),
    ]

  return make


@pytest.fixture(scope='session')
def finished(nursery, command, tmp_path_factory):
  """Workdir and result of a tiny search that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('finished') / 'search'
  return nursery.finish(workdir, command(workdir))


@pytest.fixture(scope='session')
def retrained(nursery, command, finished, tmp_path_factory):
  """Workdir and result of the training of that search's genotype."""
  workdir = tmp_path_factory.mktemp('finished') / 'retrain'
  overrides = {'job': 'retrain', 'retrain.search_workdir': finished[0]}
  return nursery.finish(workdir, command(workdir, **overrides))


def rows(workdir) -> list[dict]:
  """The rows of metrics, as they stand in the file."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def last_state(workdir) -> dict:
  """Arrays of the newest checkpoint by path, without a template."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  folder = pathlib.Path(workdir) / 'checkpoints'
  step = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  path = folder / str(step) / 'state'
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  template = jax.tree.map(  # the devices that saved it need not be here
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
    ocp.StandardCheckpointer().metadata(path).item_metadata,
  )
  tree = ocp.StandardCheckpointer().restore(path, template)
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  is_key = jax.dtypes.prng_key
  return {'checkpoint': step} | {
    jax.tree_util.keystr(k): np.asarray(
      jax.random.key_data(v) if jax.dtypes.issubdtype(v.dtype, is_key) else v
    )
    for k, v in leaves
  }


def _serve() -> None:
  """The nursery: reads requests, answers with a number each."""
  # All that the runs import, except the module that becomes __main__.
  import matplotlib.pyplot  # noqa: F401
  from ml_collections import config_flags  # noqa: F401

  import hwdarts_jax.jobs.retrain
  import hwdarts_jax.jobs.search  # noqa: F401

  assert len(os.listdir('/proc/self/task')) == 1, 'threads do not survive fork'
  for line in sys.stdin:
    question = json.loads(line)
    if 'reap' in question:
      status = os.waitpid(question['reap'], 0)[1]
      print(os.waitstatus_to_exitcode(status), flush=True)
      continue
    pid = os.fork()
    if not pid:
      _become_main(question)
      return
    print(pid, flush=True)


def _become_main(question: dict) -> None:
  nothing = os.open(os.devnull, os.O_RDONLY)
  streams = [
    os.open(s, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for s in question['streams']
  ]
  for number, stream in enumerate([nothing, *streams]):
    os.dup2(stream, number)
  os.chdir(question['cwd'])
  os.environ.update(question['env'])
  if 'MOST_FILE_BYTES' in question['env']:  # more is an error, as on full disks
    most = int(question['env']['MOST_FILE_BYTES'])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  if question['env'].get('JAX_ENABLE_X64') == '1':  # was read at the import
    import jax

    jax.config.update('jax_enable_x64', True)
  sys.argv = [question['module'], *question['args']]
  sys.path[0] = str(ROOT)
  runpy.run_module(question['module'], run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  _serve()
