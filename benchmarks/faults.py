"""Kills runs at random moments, and reads files that were damaged at random.

    PYTHONPATH=. python -m benchmarks.faults --kills=24 --files=12000

Searches, trainings, measurements by the harness and sweeps are killed by
SIGKILL, a quarter each, and started again until they end; each must end like
one that nothing disturbed, the first two to the bit. Mutated files of
genotypes, latency tables, specs, settings and workdirs must be read, or refused
by a `ValueError`, within ten seconds. Prints a table; ends with an error at the
first fault that is not survived. The tests do the same with fewer.
"""

from __future__ import annotations

import collections
import pathlib
import random
import signal
import sys
import tempfile
import time

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tests'))

import fuzzed_files  # noqa: E402
import test_faults  # noqa: E402
import tiny_runs  # noqa: E402

from hwdarts_jax.latency import table as table_lib  # noqa: E402

_KILLS = flags.DEFINE_integer('kills', 24, 'How many processes are killed.')
_FILES = flags.DEFINE_integer('files', 12000, 'How many files are mutated.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of moments and of mutations.')
_POINTS = 3  # of the sweep


def _command(table: pathlib.Path, workdir: pathlib.Path, **fields) -> list[str]:
  fields = {'latency.table': table} | fields
  return [
    f'--config={tiny_runs.CONFIG}',
    f'--workdir={workdir}',
    *(f'--config.{k}={v}' for k, v in fields.items()),
  ]


def kill_runs(nursery, folder: pathlib.Path, kills: int, seed: int) -> None:
  """Kills searches, then trainings of what was found."""
  table = folder / 'toy.json'
  tiny_runs.write_table(table)
  whole = folder / 'search'
  assert nursery.run(*_command(table, whole)).code == 0
  training = {'job': 'retrain', 'retrain.search_workdir': whole}
  trained = folder / 'retrain'
  assert nursery.run(*_command(table, trained, **training)).code == 0
  for reference, result, fields in (
    (whole, 'genotype.json', {}),
    (trained, 'retrain.json', training),
  ):
    place = folder / f'killed_{reference.name}'
    place.mkdir()
    test_faults._kill_at_random(
      lambda workdir, fields=fields: nursery.start(
        *_command(table, workdir, **fields)
      ),
      place,
      reference,
      result,
      kills,
      seed,
    )
    _tell(reference.name, kills, 'killed, all ended to the bit')


def kill_harness(nursery, folder: pathlib.Path, kills: int, rng) -> None:
  """Kills measurements; a table is never there in part."""
  args = ['--runner=jax_device:device=cpu', '--min_ms=0', '--min_runs=2']
  args += ['--networks=3', f'--config={tiny_runs.CONFIG}']

  def start(out):
    return nursery.start(*args, f'--out={out}', module='hwdarts_jax.harness')

  killed = _kill_until_done(start, folder, 'harness.darts.json', kills, rng)
  for out in folder.glob('*_harness.darts.json'):
    table = table_lib.load(out)
    assert len(table.networks) == 3 and table.entries
  _tell('harness', killed, 'killed, all tables whole')


def kill_sweeps(nursery, folder: pathlib.Path, kills: int, rng) -> None:
  """Kills sweeps; each ends with all of its points."""
  table = folder / 'toy.json'
  script = ROOT / 'launch' / 'sweep.py'

  def start(root):
    seeds = ':'.join(map(str, range(_POINTS)))
    return Shell(
      str(script),
      f'--config={tiny_runs.CONFIG}',
      f'--config.latency.table={table}',
      f'--sweep=seed={seeds}',
      f'--root={root}',
      '--run',
    )

  del nursery
  killed = _kill_until_done(start, folder, 'sweep', kills, rng)
  for root in folder.glob('*_sweep'):
    rows = (root / 'sweep.csv').read_text().splitlines()
    assert len(rows) == 1 + _POINTS, rows
  _tell('sweep', killed, 'killed, all with every point')


class Shell(tiny_runs.Shell):
  """A script as a shell would start it, with all that it starts."""

  def __init__(self, *args: str):
    self._process = tiny_runs.subprocess.Popen(
      [sys.executable, *args],
      cwd=ROOT,
      env=tiny_runs.environment(),
      stdout=tiny_runs.subprocess.PIPE,
      stderr=tiny_runs.subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def signal(self, number: int) -> None:
    """Sends a signal to all of them."""
    tiny_runs.os.killpg(self._process.pid, number)


def _kill_until_done(start, folder, name, kills, rng) -> int:
  """Kills at random moments of the usual length, until there were enough."""
  killed = ends = 0
  usual = 5.0
  while killed < kills or not ends:
    begun = time.monotonic()
    process = start(folder / f'{ends}_{name}')
    moment = rng.uniform(0, usual) if killed < kills else float('inf')
    while not process.is_over() and time.monotonic() - begun < moment:
      time.sleep(0.002)
    if not process.is_over():
      process.signal(signal.SIGKILL)
      killed += 1
    end = process.wait()
    assert end.code in (0, -signal.SIGKILL), end.err
    if end.code == 0:
      ends += 1
      usual = max(usual, time.monotonic() - begun)
  return killed


def mutate_files(folder: pathlib.Path, count: int, seed: int) -> None:
  """Reads as many files of each kind."""
  logging.set_verbosity(logging.ERROR)  # records of other versions warn
  kinds = list(fuzzed_files.READERS)
  for kind in kinds:
    counts: dict[str, int] = collections.Counter(
      fuzzed_files.fuzz(kind, count // len(kinds), random.Random(seed), folder)
    )
    _tell(kind, counts['refused'], f'refused, {counts["read"]} read')


def _tell(what: str, count: int, words: str) -> None:
  print(f'{what:10} {count:6} {words}', flush=True)


def main(argv: list[str]) -> None:
  """Does all of it."""
  del argv
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    mutate_files(folder, _FILES.value, _SEED.value)
    (folder / 'config.json').unlink(missing_ok=True)
    nursery = tiny_runs.Nursery(folder)
    rng, quarter = random.Random(_SEED.value), _KILLS.value // 4
    kill_runs(nursery, folder, quarter, _SEED.value)
    kill_harness(nursery, folder, quarter, rng)
    kill_sweeps(nursery, folder, quarter, rng)
    nursery.close()


if __name__ == '__main__':
  app.run(main)
