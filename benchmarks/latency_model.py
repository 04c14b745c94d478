"""How well latencies are predicted, by the protocols of the literature.

    python -m benchmarks.latency_model --jobs=2 --json=latency_model.json

Fits every shipped series over NAS-Bench-201 from many rows, from few, and from
few beside other devices, and prints the tables of `latency_tables/README.md`:
mean and standard deviation over seeds. What each protocol is, says
`latency_protocols`; the baselines are in `hwdarts_jax.latency.judge`.
"""

from __future__ import annotations

import os

# Several processes share the cores: one thread each, set before numpy loads.
for _name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
  os.environ.setdefault(_name, '1')

from collections.abc import Callable, Iterator  # noqa: E402
import concurrent.futures  # noqa: E402
import functools  # noqa: E402
import importlib.metadata  # noqa: E402
import multiprocessing  # noqa: E402
import pathlib  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from absl import app, flags  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import latency_protocols as protocols  # noqa: E402
from benchmarks import latency_report as report  # noqa: E402
from hwdarts_jax import oracle  # noqa: E402
from hwdarts_jax.jobs import common  # noqa: E402
from hwdarts_jax.latency import fewshot, judge, liveness, predictor  # noqa: E402

_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
_JOBS = flags.DEFINE_integer('jobs', 1, 'Processes, of one thread each.')
_TABLES = flags.DEFINE_list('tables', [], 'Only these; default: all.')

Row = dict[str, Any]

TARGETS = (
  'pixel4_cpu',
  'jetson_nano_gpu_fp16',
  'jetson_nano_gpu_fp32',
  'raspberry_pi4_cpu',
  'intel_ncs2',
  'snapdragon855_hexagon690_int8',
  'edge_tpu_int8',
)
_FIT_SEEDS = range(3)
_FEW_SEEDS = range(5)
_MAX_TEST = 3000  # cells scored where every device is a target
# The ten cells that HELP's code measures besides its samples.
_HELP_REFERENCES = (
  11982, 431, 55, 9, 14451, 8636, 9881, 13479, 6196, 1462,
)  # fmt: skip
_Z_90 = 1.645


def fit_rows(device: str) -> Iterator[Row]:
  """900 / 100 / rest, and 100 and 20 rows with the same rest."""
  for seed in _FIT_SEEDS:
    yield from _many_rows(device, seed)
  for count in (100, 20):
    for seed in _FEW_SEEDS if count == 20 else _FIT_SEEDS:
      train, test = _thousand(device, count, seed)
      for name, fit in _BASELINES.items():
        yield _score(device, name, seed, train, test, fit)
      yield _score(device, 'predictor', seed, train, test, _fit)
      if count == 20:
        yield _score(device, 'few-shot', seed, train, test, _few(()))


def _many_rows(device: str, seed: int) -> Iterator[Row]:
  """Models of 900 rows: on cells, and their expectation and gradient inside."""
  train, test = _thousand(device, 900, seed)
  one_hot, ms = protocols.rows(device, train)
  for name, semantics in _SEMANTICS.items():
    sums = judge.additive(protocols.spec(), one_hot, ms, semantics)
    yield _score(device, name, seed, train, test, _known(sums))
    yield _inside(device, name, seed, sums.at_gates, sums)
  for name, fit in (('predictor', _fitted), ('mlp', judge.mlp)):
    begun = time.monotonic()
    model = fit(one_hot, ms, seed)
    seconds = time.monotonic() - begun
    corner = functools.partial(judge.corner_ms, model)
    row = _score(device, name, seed, train, test, _known(corner))
    yield row | {'seconds': seconds}
    yield _inside(device, name, seed, model)


def help_rows(device: str) -> Iterator[Row]:
  """HELP's split, 10 samples; its devices, and all others, as the prior."""
  others = tuple(d for d in protocols.HELP_TRAIN if d != device)
  everyone = tuple(d for d in oracle.devices() if d != device)
  known = np.argsort(oracle.load().official_index)[list(_HELP_REFERENCES)]
  known = known[np.isfinite(oracle.latencies(device)[known])]
  for seed in _FEW_SEEDS:
    train, test = protocols.help_split(device, 10, seed)
    both = np.unique(np.concatenate([train, known]))
    for name, cells, prior, part in (
      ('HELP devices', train, others, range(900)),
      ('HELP devices, and its 10 references', both, others, range(900)),
      ('all devices', train, everyone, None),
    ):
      fit = _few(prior, part)
      yield _score(device, name, seed, cells, test, fit)
    chosen = _suggested(device, others, range(900), seed)
    fit = _few(others, range(900))
    yield _score(device, 'HELP devices, suggested', seed, chosen, test, fit)
    yield _score(device, 'additive', seed, train, test, _sum('eager'))
    pool = protocols.help_pool(device)
    yield _score(device, 'additive, pool', seed, pool, test, _sum('eager'))


def nasflat_rows(device: str) -> Iterator[Row]:
  """NASFLAT's: 20 random samples, all cells scored."""
  everyone = tuple(d for d in oracle.devices() if d != device)
  priors = {'all devices': everyone}
  if device in protocols.EDGE_TARGETS:
    priors['3 server GPUs'] = protocols.NASFLAT_TASK_2
    priors['6 server GPUs'] = protocols.SERVER_GPUS
  else:
    priors['HELP devices'] = protocols.HELP_TRAIN
  for seed in _FEW_SEEDS:
    train, test = protocols.random_split(device, 20, seed, samples_in_test=True)
    for name, prior in priors.items():
      yield _score(device, name, seed, train, test, _few(prior))
    yield _score(device, 'predictor', seed, train, test, _fit)
    yield _score(device, 'additive', seed, train, test, _sum('eager'))


def others_rows(device: str) -> Iterator[Row]:
  """10 and 20 random rows of a device, all others as the prior."""
  everyone = tuple(d for d in oracle.devices() if d != device)
  for count in (10, 20):
    for seed in _FEW_SEEDS:
      train, test = protocols.random_split(device, count, seed)
      test = _thinned(test)
      yield _score(device, 'all devices', seed, train, test, _few(everyone))
      yield _score(device, 'no device', seed, train, test, _few(()))
      for name, fit in _BASELINES.items():
        yield _score(device, name, seed, train, test, fit)
  cells = protocols.measured(device)
  for seed in _FEW_SEEDS:
    found = fewshot.suggest(
      protocols.spec(),
      _prior(everyone),
      10,
      candidates=protocols.one_hot(cells),
      seed=seed,
    )
    train = cells[found.indices]
    test = _thinned(np.setdiff1d(cells, train))
    fit = _few(everyone)
    yield _score(device, 'all devices, suggested', seed, train, test, fit)


def ceiling_rows(device: str) -> Iterator[Row]:
  """What noise leaves: cells that the runtime cannot tell apart; many rows."""
  cells = protocols.measured(device)
  one_hot, ms = protocols.rows(device, cells)
  for semantics in liveness.SEMANTICS[1:]:
    twins = judge.twins_ms(protocols.spec(), one_hot, ms, semantics)
    known = np.isfinite(twins)
    row = {'device': device, 'method': f'twins, {semantics}', 'seed': 0}
    row |= {'rows': len(cells), 'tested': int(known.sum())}
    yield row | judge.quality(twins[known], ms[known])
  if len(cells) > 5000:
    for seed in _FIT_SEEDS:
      train, test = protocols.random_split(device, 2000, seed)
      yield _score(device, 'predictor', seed, train, test, _fit)


def _thousand(device: str, count: int, seed: int):
  """The first rows of a random order, and all after the first thousand."""
  train, test = protocols.random_split(device, 1000, seed)
  order = np.random.default_rng(seed).permutation(train)
  return order[:count], test


def _thinned(cells: np.ndarray) -> np.ndarray:
  order = np.random.default_rng(0).permutation(cells)
  return np.sort(order[:_MAX_TEST])


def _suggested(device: str, prior, official: range, seed: int) -> np.ndarray:
  """Ten cells of HELP's pool that a suggestion names."""
  pool = protocols.help_pool(device)
  pool = pool[oracle.connected(pool)]
  found = fewshot.suggest(
    protocols.spec(),
    _prior(prior, official),
    10,
    candidates=protocols.one_hot(pool),
    seed=seed,
  )
  return pool[found.indices]


@functools.cache
def _prior(devices: tuple[str, ...], official: range | None = None):
  return fewshot.prepare(protocols.spec(), protocols.series(devices, official))


def _fitted(one_hot, ms, seed) -> Callable:
  """The predictor: gates to ms."""
  del seed
  fitted = predictor.fit(protocols.spec(), one_hot, ms, held_out=0)
  return common.predictor_of(protocols.spec(), fitted.variables)


# Each fit takes (one_hot, ms, seed) and returns a function from one_hot to
# (ms, standard deviation or None).
def _fit(one_hot, ms, seed):
  model = _fitted(one_hot, ms, seed)
  return lambda cells: (judge.corner_ms(model, cells), None)


def _sum(semantics: str) -> Callable:
  def fit(one_hot, ms, seed):
    del seed
    sums = judge.additive(protocols.spec(), one_hot, ms, semantics)
    return lambda cells: (sums(cells), None)

  return fit


def _known(model: Callable) -> Callable:
  return lambda one_hot, ms, seed: lambda cells: (model(cells), None)


def _few(devices: tuple[str, ...], official: range | None = None) -> Callable:
  def fit(one_hot, ms, seed):
    prior = _prior(devices, official)
    return fewshot.fit(protocols.spec(), one_hot, ms, prior, seed).predict

  return fit


_SEMANTICS = {'additive': 'eager', 'pruned': 'compiled', 'forward': 'pruned'}
_BASELINES = {name: _sum(s) for name, s in _SEMANTICS.items()}


def _score(device, method, seed, train, test, fit) -> Row:
  """Fits to cells of a device and scores others."""
  begun = time.monotonic()
  model = fit(*protocols.rows(device, train), seed)
  seconds = time.monotonic() - begun
  predicted, std = model(protocols.one_hot(test))
  measured = oracle.latencies(device)[test]
  row = {
    'device': device,
    'method': method,
    'seed': seed,
    'rows': len(train),
    'tested': len(test),
    'seconds': seconds,
  }
  row |= judge.quality(predicted, measured)
  if std is not None:
    inside = np.abs(predicted - measured) <= _Z_90 * std
    row['in_90_interval_percent'] = 100 * float(inside.mean())
  return row


def _inside(device, method, seed, model, corner=None) -> Row:
  figures = judge.interior(protocols.spec(), model, seed=seed, corner=corner)
  row = {'device': device, 'method': method, 'seed': seed, 'rows': 900}
  row['table'] = 'inside'
  return row | {k: v for k, v in figures.items() if k != 'interior_is_exact'}


_EVERY = tuple(oracle.devices())
TABLES: dict[str, tuple[Callable[[str], Iterator[Row]], tuple[str, ...]]] = {
  'fit': (fit_rows, TARGETS),
  'nasflat': (nasflat_rows, ('raspberry_pi4_cpu', *protocols.EDGE_TARGETS)),
  'help': (
    help_rows,
    tuple(d for d in _EVERY if d not in protocols.SMALL_SERIES),
  ),
  'others': (others_rows, _EVERY),
  'ceiling': (ceiling_rows, TARGETS),
}


def run(task: tuple[str, str]) -> list[Row]:
  """All rows of one table and device."""
  table, device = task
  return [{'table': table, **row} for row in TABLES[table][0](device)]


def _facts() -> Row:
  """What the figures depend on besides the code."""
  packages = ('jax', 'numpy', 'scipy')
  words = ['python', '-m', 'benchmarks.latency_model', *sys.argv[1:]]
  return {
    'command': ' '.join(words),
    'date': time.strftime('%Y-%m-%d'),
    'cpu': report.cpu_name(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    **{p: importlib.metadata.version(p) for p in packages},
  }


def main(argv: list[str]) -> None:
  """Runs all tables, prints them, writes the JSON."""
  del argv
  tasks = [
    (name, device)
    for name in _TABLES.value or TABLES
    for device in TABLES[name][1]
  ]
  begun, rows = time.monotonic(), []
  target = pathlib.Path(_JSON.value)
  with concurrent.futures.ProcessPoolExecutor(
    _JOBS.value, multiprocessing.get_context('spawn')
  ) as pool:
    for task, found in zip(tasks, pool.map(run, tasks), strict=True):
      rows += found
      passed = time.monotonic() - begun
      print(f'{" ".join(task)}: {passed:.0f} s', file=sys.stderr, flush=True)
      facts = _facts() | {'seconds': round(passed)}
      if _JSON.value:  # what there is, after every task
        target.write_text(report.to_json(facts, report.summarize(rows)))
  print(report.to_markdown(report.summarize(rows)))


if __name__ == '__main__':
  app.run(main)
