"""What the README's first command finds, over seeds and multipliers.

    python -m benchmarks.first_search --jobs=1 --json=first_search.json

Runs ``python -m hwdarts_jax.main --config=configs/pixel4.py`` with 10 seeds and
three multipliers, each in its own process, and asks the benchmark for the truth
about what it found: CIFAR-10 test accuracy after full training, and latency
measured on the Pixel 4. Only 1,999 of the 15,625 cells were measured there. A
found cell that was not is judged by the measured cell that its search holds
most probable; the table says how often. Each is compared with the mean accuracy
of all connected measured cells within 5 % of its latency: what a random choice
at equal latency gets. The found cell itself is compared with the mean of all
connected cells within 5 % of its *predicted* latency.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
import numpy as np

from hwdarts_jax import oracle
from hwdarts_jax.jobs import common
from hwdarts_jax.latency import predictor
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import nasbench201
from hwdarts_jax.spaces.spec import Genotype

_CONFIG = flags.DEFINE_string('config', 'configs/pixel4.py', 'Config to run.')
_DEVICE = flags.DEFINE_string('device', 'pixel4_cpu', 'Its latency table.')
_FACTORS = flags.DEFINE_list(
  'factors', ['1', '0', '10'], 'Multiples of the default multiplier.'
)
_SEEDS = flags.DEFINE_integer('seeds', 10, 'Number of seeds.')
_FIRST_SEED = flags.DEFINE_integer('first_seed', 0, 'The first of them.')
_JOBS = flags.DEFINE_integer('jobs', 1, 'Searches at a time.')
_CORES = flags.DEFINE_integer('cores', 2, 'CPU cores for each search.')
_MULTIPLIER = flags.DEFINE_float('multiplier', 0.003, 'The default multiplier.')
_RUNS = flags.DEFINE_string('runs', 'runs/first_search', 'Folder of workdirs.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
_EXTRA = flags.DEFINE_multi_string('set', [], 'More settings of the config.')


def search(seed: int, factor: str, slot: int) -> pathlib.Path:
  """Runs one search in its own process, on its own cores."""
  workdir = pathlib.Path(_RUNS.value) / f'factor_{factor}_seed_{seed}'
  if (workdir / 'seconds.txt').exists():
    return workdir  # of an earlier run of this script
  multiplier = float(factor) * _MULTIPLIER.value
  command = [
    sys.executable, '-m', 'hwdarts_jax.main', f'--config={_CONFIG.value}',
    f'--config.seed={seed}', f'--config.objective.multiplier={multiplier}',
    f'--workdir={workdir}', *(f'--config.{s}' for s in _EXTRA.value),
  ]  # fmt: skip
  cores = {
    (slot * _CORES.value + i) % (os.cpu_count() or 1)
    for i in range(_CORES.value)
  }
  started = time.monotonic()
  result = subprocess.run(
    command,
    capture_output=True,
    text=True,
    preexec_fn=lambda: os.sched_setaffinity(0, cores),
  )
  if result.returncode:
    raise RuntimeError(f'{" ".join(command)} failed:\n{result.stderr[-2000:]}')
  seconds = time.monotonic() - started
  (workdir / 'seconds.txt').write_text(f'{seconds:.1f}')
  print(f'factor {factor}, seed {seed}: {seconds:.0f} s', flush=True)
  return workdir


def judge(workdir: pathlib.Path) -> dict[str, Any]:
  """What the benchmark knows of a finished search."""
  record = json.loads((workdir / 'genotype.json').read_text())
  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  gates = np.array(json.loads(rows[-1])['gates/cell'])
  genotype = Genotype.from_dict(record['genotype'])
  found = oracle.index(genotype)
  ms = oracle.latencies(_DEVICE.value)
  accuracy = oracle.accuracies('cifar10')
  measured = np.flatnonzero(np.isfinite(ms) & oracle.load().connected)
  log_gates = np.log(np.maximum(gates, 1e-30))
  score = log_gates[np.arange(6), oracle.load().ops[measured]].sum(1)
  judged = found if found in measured else measured[score.argmax()]
  near = measured[np.abs(ms[measured] / ms[judged] - 1) <= 0.05]
  predicted = predicted_ms()
  alike = oracle.load().connected & (
    np.abs(predicted / predicted[found] - 1) <= 0.05
  )
  return {
    'found': record['text'],
    'found_accuracy': float(accuracy[found]),
    'predicted_ms': float(predicted[found]),
    'random_at_predicted': float(accuracy[alike].mean()),
    'was_measured': bool(found in measured),
    'judged': int(judged),
    'judged_accuracy': float(accuracy[judged]),
    'measured_ms': float(ms[judged]),
    'random_accuracy': float(accuracy[near].mean()),
    'random_std': float(accuracy[near].std()),
    'num_random': len(near),
    'supernet_val_accuracy': record['search']['supernet_val_accuracy'],
    'seconds': float((workdir / 'seconds.txt').read_text()),
  }


@functools.cache
def predicted_ms() -> np.ndarray:
  """Predicted latency of all cells, f64[15625] ms."""
  deploy = nasbench201.make()
  table = table_lib.load(_DEVICE.value)
  model = common.make_latency_model(table, deploy)
  return np.asarray(model.predict(predictor.corners(deploy)), np.float64)


def main(argv: list[str]) -> None:
  """Runs all searches, prints the table, writes the JSON."""
  del argv
  seeds = range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value)
  points = [(factor, seed) for factor in _FACTORS.value for seed in seeds]
  with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
    # Neighbours in the list run at the same time, so their slots differ.
    futures = {
      point: pool.submit(search, point[1], point[0], i % _JOBS.value)
      for i, point in enumerate(points)
    }
    results = {point: judge(f.result()) for point, f in futures.items()}
  print(
    'multiplier | measured ms | accuracy, judged cell | random at equal ms '
    '| gain | seeds that gain | judged as found '
    '| found cell | random at equal predicted ms | gain | seconds'
  )
  for factor in _FACTORS.value:
    rows = [results[factor, seed] for seed in seeds]
    plain = [r['found_accuracy'] - r['random_at_predicted'] for r in rows]
    gain = [r['judged_accuracy'] - r['random_accuracy'] for r in rows]
    print(
      f'{factor}x | {_spread(rows, "measured_ms")} | '
      f'{_spread(rows, "judged_accuracy")} | '
      f'{_spread(rows, "random_accuracy")} | '
      f'{np.mean(gain):+.2f} ± {np.std(gain):.2f} | '
      f'{sum(g > 0 for g in gain)}/{len(gain)} | '
      f'{sum(r["was_measured"] for r in rows)}/{len(rows)} | '
      f'{_spread(rows, "found_accuracy")} | '
      f'{_spread(rows, "random_at_predicted")} | '
      f'{np.mean(plain):+.2f} ± {np.std(plain):.2f} | '
      f'{_spread(rows, "seconds")}'
    )
  if _JSON.value:
    records = [
      {'factor': f, 'seed': s, **r} for (f, s), r in sorted(results.items())
    ]
    pathlib.Path(_JSON.value).write_text(json.dumps(records, indent=1) + '\n')


def _spread(rows: list[dict[str, Any]], key: str) -> str:
  values = [r[key] for r in rows]
  return f'{np.mean(values):.2f} ± {np.std(values):.2f}'


if __name__ == '__main__':
  app.run(main)
