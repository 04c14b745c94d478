"""Peak memory and model size as computed, beside LiteRT's arena and its files.

    python -m benchmarks.budgets --space=nasbench201 --networks=20
    python -m benchmarks.budgets --space=darts --networks=5

Converts random connected networks of the deploy spec of `configs/` to float32
.tflite files, and compares the size of the file and the arena that LiteRT lays
out for it with `latency.budgets`, which has seen no file.
"""

from __future__ import annotations

import json
import pathlib
import time

from absl import app, flags
import numpy as np

from configs import common
from hwdarts_jax import spaces
from hwdarts_jax.harness import convert, execute, plan
from hwdarts_jax.latency import activations, budgets
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

_SPACE = flags.DEFINE_string('space', 'nasbench201', 'The space.')
_NETWORKS = flags.DEFINE_integer('networks', 20, 'Random networks.')
_SEED = flags.DEFINE_integer('seed', 0, 'What they are drawn by.')
_CELLS = flags.DEFINE_integer('cells', 0, 'Cells; 0: as deployed.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the rows.')
_NAMES = {'peak_memory_mb': 'arena_mb', 'model_mb': 'file_mb'}


def compare(spec: NetworkSpec, genotype: Genotype, limits) -> dict[str, float]:
  """What was computed and what LiteRT does, of one network."""
  network = discretize.discretize(spec, genotype)
  data = convert.convert(
    convert.network(network), network.input_shape, convert.Target()
  ).data
  one_hot = discretize.one_hot(spec, genotype)
  return {
    'arena_mb': execute.arena_bytes(data) / 1e6,
    'file_mb': len(data) / 1e6,
    'alive_mb': float(activations.of_architectures(spec, one_hot)) / 1e6,
    **{name: limits[name].of(genotype) for name in _NAMES},
  }


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  settings = dict(common.DEPLOY_SPECS[_SPACE.value])
  if _CELLS.value:
    settings['num_cells'] = _CELLS.value
  spec = spaces.make(_SPACE.value, **settings)
  started = time.monotonic()
  limits = {name: budgets.make(name, spec) for name in _NAMES}
  print(f'made in {time.monotonic() - started:.1f} s')
  rows = []
  for genotype in plan.random_networks(spec, _NETWORKS.value, _SEED.value):
    row = compare(spec, genotype, limits)
    rows.append({'genotype': genotype.to_dict(), **row})
    print(
      ', '.join(f'{k} {v:.4f}' for k, v in row.items()),
      spaces.to_text(genotype) if _SPACE.value == 'nasbench201' else '',
      flush=True,
    )
  for name, real in (*_NAMES.items(), ('alive_mb', 'arena_mb')):
    errors = np.array([100 * (r[name] / r[real] - 1) for r in rows])
    print(
      f'{name} against {real}: mean error {np.abs(errors).mean():.2f} %, '
      f'from {errors.min():+.1f} to {errors.max():+.1f} %, '
      f'{(np.abs(errors) <= 10).sum()} of {len(rows)} within 10 %'
    )
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
