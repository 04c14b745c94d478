"""How long NAS-Bench-201 takes to load, in fresh processes.

python -m benchmarks.oracle_load
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from absl import app, flags

_PROCESSES = flags.DEFINE_integer('processes', 15, 'Fresh processes.')
_CODE = """
import resource, time
times = [time.perf_counter()]
from hwdarts_jax import oracle
times.append(time.perf_counter())
oracle.load()
times.append(time.perf_counter())
oracle.latencies('raspberry_pi4_cpu')
times.append(time.perf_counter())
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(*(1e3 * (b - a) for a, b in zip(times, times[1:])), memory)
"""
_ROWS = (
  'import of hwdarts_jax.oracle (ms)',
  'oracle.load() (ms)',
  'all latencies of a device (ms)',
  'memory of the process (MB)',
)


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  runs = [
    subprocess.check_output([sys.executable, '-c', _CODE], text=True)
    for _ in range(_PROCESSES.value)
  ]
  columns = zip(*([float(v) for v in run.split()] for run in runs), strict=True)
  print('| | median | least | most |')
  print('|---|---|---|---|')
  for name, values in zip(_ROWS, columns, strict=True):
    row = (statistics.median(values), min(values), max(values))
    print(f'| {name} | ' + ' | '.join(f'{v:.1f}' for v in row) + ' |')


if __name__ == '__main__':
  app.run(main)
