"""How good are the cells that searches find, alone and under latency budgets?

    python -m benchmarks.search_quality --json=search_quality.json \
      --runs='dirichlet=runs/dirichlet_*' --runs='softmax=runs/softmax_*'

A run is the workdir of a finished job `search` in NAS-Bench-201, or a member of
a job `pareto` (its last gates are read, nothing else). Nothing is searched
here.

Alone: true test accuracy of the most probable cell, and how many runs end in
one without a convolution.

Under budgets: for each device, budgets at quantiles of the latency of its
measured connected cells. A predictor is fitted to some of the measured rows,
drawn by seed, the same for every method; the answer is the most probable cell
of the run that is predicted within the budget. It is judged by its *measured*
latency: one that exceeds the budget is a failure and has no regret. Devices
that measured 1,999 cells are judged on these; the table says how often the
whole space would have given another answer. Accuracies are read after that, and
by the judge only.

Baselines, with the same predictors: `random` takes any cell predicted within
the budget (mean over draws), `most MACs` the one with most MACs. The rows `by
MACs` take the same runs, but a line through MACs in the place of the predictor:
what is lost by the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import glob
import json
import pathlib
from typing import Any

from absl import app, flags
import numpy as np

from hwdarts_jax import oracle
from hwdarts_jax.latency import budgets, predictor
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.runtime import metrics
from hwdarts_jax.spaces import nasbench201

_RUNS = flags.DEFINE_multi_string(
  'runs', [], 'METHOD=PATTERN of the workdirs of its runs.'
)
_DEVICES = flags.DEFINE_list(
  'devices',
  [
    'pixel4_cpu',
    'jetson_nano_gpu_fp16',
    'raspberry_pi4_cpu',
    'intel_ncs2',
    'snapdragon855_hexagon690_int8',
  ],
  'Whose budgets.',
)
_QUANTILES = flags.DEFINE_list(
  'quantiles', ['0.1', '0.3', '0.5', '0.7', '0.9'], 'Of measured latencies.'
)
_ROWS = flags.DEFINE_integer('rows', 900, 'That a predictor is fitted to.')
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Draws of the rows.')
_MARGIN = flags.DEFINE_float(
  'margin', 0.0, 'Share of a budget that is kept free for errors.'
)
_DATASET = flags.DEFINE_enum('dataset', 'cifar10', oracle.DATASETS, 'Judged.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
_DRAWS = 50  # of the random baseline


@dataclasses.dataclass(frozen=True)
class Answer:
  """What one method answers to one budget.

  Attributes:
    regret: per cent of accuracy below the best cell within the budget, None if
      the answer exceeds it.
    is_projected: whether the whole space would have given another answer.
  """

  regret: float | None
  is_projected: bool


def last_gates(workdir: pathlib.Path) -> list[np.ndarray]:
  """Distributions f[6, 5] that a run ends with: one, or one of each member."""
  gates = np.asarray(metrics.read(workdir)[-1][f'gates/{nasbench201.GROUP}'])
  return list(gates.reshape(-1, *gates.shape[-2:]))


def runs() -> dict[str, list[np.ndarray]]:
  """By method: log probabilities f[15625] of the cells, of each run.

  Raises:
    ValueError: a pattern finds nothing.
  """
  found = {}
  for text in _RUNS.value:
    name, _, pattern = text.partition('=')
    paths = sorted(glob.glob(pattern))
    if not paths:
      raise ValueError(f'--runs={text}: there is no folder {pattern!r}.')
    found[name] = [
      oracle.log_probabilities(gates)
      for path in paths
      for gates in last_gates(pathlib.Path(path))
    ]
  return found


@functools.cache
def macs() -> np.ndarray:
  """MACs of all cells, f64[15625]."""
  spec = nasbench201.make()
  return np.asarray(budgets.make('macs', spec).costs(corners(spec)), np.float64)


def drawn_rows(device: str, seed: int) -> np.ndarray:
  """Cells whose latency is known, i64[rows]."""
  rng = np.random.default_rng([seed, _DEVICES.value.index(device)])
  cells = np.flatnonzero(oracle.candidates(device))
  return np.sort(rng.choice(cells, _ROWS.value, replace=False))


def predicted_ms(
  device: str, seed: int, rows: np.ndarray | None = None
) -> np.ndarray:
  """Latency of all cells by a predictor fitted to some, f64[15625].

  Args:
    device: that measures.
    seed: of the rows.
    rows: cells that the predictor sees; None for all of `drawn_rows`.
  """
  spec = nasbench201.make()
  rows = drawn_rows(device, seed) if rows is None else rows
  every = corners(spec)
  fit = predictor.fit(
    spec,
    {g: c[rows] for g, c in every.items()},
    oracle.latencies(device)[rows],
    held_out=0.0,
  )
  return np.asarray(fit.variables['params']['corners_ms'], np.float64)


def by_macs(device: str, seed: int) -> np.ndarray:
  """Latency of all cells by a line through the MACs of the same rows."""
  rows = drawn_rows(device, seed)
  line = np.polyfit(macs()[rows], oracle.latencies(device)[rows], 1)
  return np.polyval(line, macs())


def answer(
  scores: np.ndarray, ms: np.ndarray, device: str, budget_ms: float
) -> Answer | None:
  """Judges the best-scored cell that is predicted within a budget.

  Args:
    scores: f[15625].
    ms: predicted, f[15625].
    device: that measures.
    budget_ms: the budget.

  Returns:
    The answer; None if nothing is predicted within the budget.
  """
  within = ms <= budget_ms / (1 + _MARGIN.value)
  measured = oracle.candidates(device)
  allowed = np.where(within & measured, scores, -np.inf)
  if np.isneginf(allowed).all():
    return None
  cell = int(allowed.argmax())
  free = np.where(within & oracle.load().connected, scores, -np.inf)
  verdict = oracle.judge(
    oracle.genotype(cell), _DATASET.value, device, budget_ms
  )
  return Answer(verdict.regret, int(free.argmax()) != cell)


def under_budgets(
  methods: Mapping[str, list[np.ndarray]],
) -> list[dict[str, Any]]:
  """One record for each device, budget, seed of the rows, method and run."""
  records = []
  rng = np.random.default_rng(0)
  draws = [rng.random(oracle.NUM_CELLS) for _ in range(_DRAWS)]
  for device in _DEVICES.value:
    known = oracle.latencies(device)[oracle.candidates(device)]
    for seed in range(_SEEDS.value):
      ms, proxy = predicted_ms(device, seed), by_macs(device, seed)
      everything = [
        ('random', draws, ms),
        ('most MACs', [macs()], ms),
        *((name, scores, ms) for name, scores in methods.items()),
        *((f'{n}, by MACs', scores, proxy) for n, scores in methods.items()),
      ]
      for quantile in map(float, _QUANTILES.value):
        budget = float(np.quantile(known, quantile))
        for name, scores, latency in everything:
          for run, each in enumerate(scores):
            found = answer(each, latency, device, budget)
            records.append(
              {
                'device': device,
                'seed': seed,
                'quantile': quantile,
                'method': name,
                'run': run,
                'regret': found.regret if found else None,
                'is_projected': bool(found and found.is_projected),
              }
            )
      print(f'{device}, rows of seed {seed}: done', flush=True)
  return records


def alone(scores: np.ndarray) -> dict[str, Any]:
  """True accuracies of the most probable connected cell."""
  connected = oracle.load().connected
  cell = int(np.where(connected, scores, -np.inf).argmax())
  genotype = oracle.genotype(cell)
  return {
    'text': nasbench201.to_arch_string(genotype),
    **{d: oracle.accuracy(genotype, d) for d in oracle.DATASETS},
    'has_no_convolution': bool(macs()[cell] == macs()[connected].min()),
  }


def describe_alone(found: Mapping[str, list[dict[str, Any]]]) -> str:
  """The table of cells that were found without a budget."""
  lines = [
    f'| method | runs | {" | ".join(oracle.DATASETS)} | no convolution |',
    '|---|---|' + '---|' * (len(oracle.DATASETS) + 1),
  ]
  for name, cells in found.items():
    values = [_spread([c[d] for c in cells]) for d in oracle.DATASETS]
    empty = sum(c['has_no_convolution'] for c in cells)
    lines.append(f'| {name} | {len(cells)} | {" | ".join(values)} | {empty} |')
  return '\n'.join(lines)


def describe_budgets(records: list[dict[str, Any]]) -> str:
  """The table of regrets: a method in each line, a device in each column."""
  methods = list(dict.fromkeys(r['method'] for r in records))
  lines = [
    f'| method | {" | ".join(_DEVICES.value)} | all | failures | projected |',
    '|---|' + '---|' * (len(_DEVICES.value) + 3),
  ]
  for method in methods:
    own = [r for r in records if r['method'] == method]
    met = [r for r in own if r['regret'] is not None]
    cells = [
      _mean([r['regret'] for r in met if r['device'] == device])
      for device in _DEVICES.value
    ]
    failures = 100 * (1 - len(met) / len(own))
    projected = 100 * np.mean([r['is_projected'] for r in own])
    lines.append(
      f'| {method} | {" | ".join(cells)} | '
      f'{_mean([r["regret"] for r in met])} | {failures:.0f} % | '
      f'{projected:.0f} % |'
    )
  return '\n'.join(lines)


def _mean(values: list[float]) -> str:
  return f'{np.mean(values):.2f}' if values else '-'


def _spread(values: list[float]) -> str:
  return f'{np.mean(values):.2f} ± {np.std(values):.2f}'


def main(argv: list[str]) -> None:
  """Judges all runs, prints both tables, writes the JSON."""
  del argv
  methods = runs()
  found = {name: [alone(s) for s in scores] for name, scores in methods.items()}
  print(describe_alone(found))
  records = under_budgets(methods)
  print(
    f'Mean regret on {_DATASET.value} in points, {_ROWS.value} rows, '
    f'{_SEEDS.value} draws of them, margin {_MARGIN.value:g}:'
  )
  print(describe_budgets(records))
  if _JSON.value:
    content = {'alone': found, 'under_budgets': records}
    pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
