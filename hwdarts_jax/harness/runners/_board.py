"""Times a model by LiteRT in Python, on a board.

The runner `ssh` pushes this file to the board and runs it there, so it imports
nothing of ours and keeps to Python 3.7.

    python3 _board.py --about
    python3 _board.py MODEL THREADS WARMUP_RUNS MIN_RUNS MIN_MS
"""

import json
import statistics
import sys
import time

_MAX_RUNS = 100000


def find_runtime():
  """The runtime of this Python: its name, version and interpreter class."""
  tried = []
  for name in ('ai_edge_litert', 'tflite_runtime'):
    try:
      module = __import__(f'{name}.interpreter', fromlist=['Interpreter'])
      package = __import__(name)
      version = getattr(package, '__version__', None)
      return name, version or _metadata_version(name), module.Interpreter
    except ImportError as e:
      tried.append(f'{name}: {e}')
  raise SystemExit('hwdarts: no LiteRT here (' + '; '.join(tried) + ')')


def _metadata_version(name):
  try:
    from importlib import metadata
  except ImportError:  # Python 3.7
    return None
  try:
    return metadata.version(name.replace('_', '-'))
  except metadata.PackageNotFoundError:
    return None


def measure(path, threads, warmup_runs, min_runs, min_ms):
  """Milliseconds of one inference, and how many were timed.

  One thread: the median of its CPU time, which another process cannot lengthen
  by taking the core. Several: the minimum of wall time.
  """
  import numpy as np

  interpreter = find_runtime()[2](model_path=path, num_threads=threads)
  interpreter.allocate_tensors()
  for detail in interpreter.get_input_details():
    shape, dtype = detail['shape'], detail['dtype']
    # Boards may have NumPy 1.16, which has no other.
    rng = np.random.RandomState(0)
    if np.issubdtype(dtype, np.integer):
      x = rng.randint(-128 if np.iinfo(dtype).min < 0 else 0, 127, size=shape)
    else:
      x = rng.uniform(-1.0, 1.0, size=shape)
    interpreter.set_tensor(detail['index'], x.astype(dtype))
  clock = time.thread_time if threads == 1 else time.perf_counter
  for _ in range(warmup_runs):
    interpreter.invoke()
  samples: list = []
  total = 0.0
  while len(samples) < _MAX_RUNS and (
    len(samples) < min_runs or total * 1e3 < min_ms
  ):
    start = clock()
    interpreter.invoke()
    samples.append(clock() - start)
    total += samples[-1]
  value = statistics.median(samples) if threads == 1 else min(samples)
  return {'ms': value * 1e3, 'runs': len(samples)}


def main(arguments):
  """Prints one line of JSON."""
  if arguments == ['--about']:
    name, version, _ = find_runtime()
    print('hwdarts: ' + json.dumps({'runtime': name, 'version': version}))
    return
  path, threads, warmup_runs, min_runs, min_ms = arguments
  result = measure(
    path, int(threads), int(warmup_runs), int(min_runs), float(min_ms)
  )
  print('hwdarts: ' + json.dumps(result))


if __name__ == '__main__':
  main(sys.argv[1:])
