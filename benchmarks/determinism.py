"""Whether a killed and resumed search ends in the same bits, and at what cost.

    python -m benchmarks.determinism --kills=3 --json=determinism.json

Runs one search to its end, runs the same search again while killing it with
SIGKILL at random moments, and compares the alphas of the last checkpoints bit
for bit; then times the step with and without `--config.deterministic=true`.
The network is the NAS-Bench-201 supernet with one cell a stage and 16 features
on 32x32 images (digits, enlarged), batch 64.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

from absl import app, flags
import jax
import numpy as np

from hwdarts_jax.runtime import metrics
from hwdarts_jax.runtime.checkpoints import Checkpoints

_KILLS = flags.DEFINE_integer('kills', 3, 'SIGKILLs on the way.')
_STEPS = flags.DEFINE_integer('steps', 2000, 'Steps of a search.')
_CALL = flags.DEFINE_integer('steps_per_call', 20, 'Steps of one call.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments of the kills.')
_RUNS = flags.DEFINE_string('runs', 'runs/determinism', 'Folder of workdirs.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
_EXTRA = flags.DEFINE_multi_string('set', [], 'More settings of the config.')


def start(workdir: pathlib.Path, deterministic: bool) -> subprocess.Popen:
  """Starts the search of this benchmark."""
  settings = {
    'deterministic': str(deterministic).lower(),
    'data.image_size': 32,
    'space.search.image_size': 32,
    'space.search.features': 16,
    'search.num_steps': _STEPS.value,
    'search.steps_per_call': _CALL.value,
    'search.log_every_steps': _CALL.value,
    'search.checkpoint_every_steps': 5 * _CALL.value,
    'search.eval_every_steps': 0,
  }
  command = [
    sys.executable, '-m', 'hwdarts_jax.main', '--config=configs/pixel4.py',
    f'--workdir={workdir}', '--verbosity=0',
    *(f'--config.{k}={v}' for k, v in settings.items()),
    *(f'--config.{s}' for s in _EXTRA.value),
  ]  # fmt: skip
  log = (workdir.parent / f'{workdir.name}.log').open('a')
  return subprocess.Popen(command, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """Waits for a search; raises RuntimeError if it failed."""
  if process.wait():
    log = (workdir.parent / f'{workdir.name}.log').read_text()
    raise RuntimeError(f'the search in {workdir} failed:\n{log[-2000:]}')


def kill_and_resume(workdir: pathlib.Path, seconds: float) -> list[int]:
  """Kills the search in mid-run; returns the steps it had saved.

  Args:
    workdir: of the search.
    seconds: that its steps last when nothing stops them.
  """
  rng = np.random.default_rng(_SEED.value)
  saved = [0]
  for _ in range(_KILLS.value):
    begun = time.time()
    process = start(workdir, True)
    while process.poll() is None and last_row(workdir, begun) <= saved[-1]:
      time.sleep(0.1)  # it compiles
    time.sleep(rng.uniform(0.0, 0.4) * seconds)
    process.kill()
    process.wait()
    folder = workdir / 'checkpoints'
    steps = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
    saved.append(max(steps, default=0))
  finish(start(workdir, True), workdir)
  return saved[1:]


def last_row(workdir: pathlib.Path, begun: float) -> int:
  """The last step in the metrics, 0 if nothing was written since `begun`."""
  path = workdir / 'metrics.jsonl'
  if not path.exists() or path.stat().st_mtime < begun:
    return 0
  return max((r['step'] for r in metrics.read(workdir)), default=0)


def alphas(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Alphas of the last checkpoint, as they lie on disk."""
  import orbax.checkpoint as ocp

  steps = Checkpoints(workdir / 'checkpoints', read_only=True).steps()
  path = (workdir / 'checkpoints' / str(steps[-1]) / 'state').resolve()
  state = ocp.PyTreeCheckpointer().restore(path)
  return {g: np.asarray(a) for g, a in state['alphas'].items()}


def step_ms(workdir: pathlib.Path) -> float:
  """Milliseconds a step of an uninterrupted search, checkpoints included."""
  log = (workdir.parent / f'{workdir.name}.log').read_text()
  steps, seconds = re.findall(r'search: (\d+) steps in ([\d.]+) s', log)[-1]
  return 1000 * float(seconds) / int(steps)


def main(argv: list[str]) -> None:
  """Runs the comparison, prints it, writes the JSON."""
  del argv
  root = pathlib.Path(_RUNS.value)
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir(parents=True)
  whole, cut, free = (root / n for n in ('whole', 'killed', 'free'))
  finish(start(whole, True), whole)
  saved = kill_and_resume(cut, step_ms(whole) * _STEPS.value / 1000)
  finish(start(free, False), free)
  a, b, c = alphas(whole), alphas(cut), alphas(free)
  result = {
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'kills': _KILLS.value,
    'steps_saved_at_kills': saved,
    'resumed_equals_whole': all(np.array_equal(a[g], b[g]) for g in a),
    'not_deterministic_equals_whole': all(
      np.array_equal(a[g], c[g]) for g in a
    ),
    'deterministic_ms_per_step': step_ms(whole),
    'not_deterministic_ms_per_step': step_ms(free),
  }
  print(json.dumps(result, indent=1))
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
