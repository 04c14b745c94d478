"""Job `evaluate`: what NAS-Bench-201 knows of a cell that was found.

True accuracy on its three data sets, measured latency on all devices, and on
one of them: rank, regret within its own latency and within a budget, and its
place beside the true Pareto front. Writes config.json, evaluate.json and
evaluate.png. Nothing is trained, and nothing here may steer a search.

A device may have measured only some cells. One that was found by a search and
not measured is judged by the measured cell that the search holds most probable,
and predicts within its bounds, and the record says so. Its target on the device
is the budget, unless another is given. The workdir of a job `pareto` is judged
as a whole; see `evaluate_front`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epath
import jax
import ml_collections
import numpy as np

from hwdarts_jax import front, oracle, spaces
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import (
  common,
  evaluate_front,
  evaluate_report,
  genotype_files,
)
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.latency import budgets, projection
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.runtime import front_plot
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import nasbench201
from hwdarts_jax.spaces.spec import Genotype

RESULT = evaluate_report.RESULT
_DRAWN = evaluate_report.DRAWN
# The cell of the paper's ResNet (Dong & Yang 2020, figure 3).
RESNET = (
  '|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|'
  '+|skip_connect~0|none~1|skip_connect~2|'
)


class _Bounds(NamedTuple):
  """What a search was bounded by.

  Attributes:
    target_ms: on the device that judges, None if there was none.
    aims: what its answer had to meet, by name of the cost.
    latency: section of the config that made the predictor.
  """

  target_ms: float | None
  aims: dict[str, float]
  latency: dict[str, Any]


class _Budget(NamedTuple):
  """What the cell may take.

  Attributes:
    ms: milliseconds on the device.
    source: who says so, for the record.
  """

  ms: float
  source: str


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Looks the cell up; prints what was found.

  Raises:
    ValueError: the config is of another space, or the benchmark or the device
      does not know the cell; the message says what does.
  """
  settings_lib.check(config.to_dict())
  if config.space.name != oracle.SPACE:
    raise ValueError(
      f'space.name is {config.space.name!r}; true accuracies are known of '
      f'{oracle.SPACE!r} only: train the network instead '
      '(--config.job=retrain).'
    )
  device = _device(config)
  if evaluate_front.is_front(config):
    evaluate_front.look_up(config, workdir, device)
    return
  genotype, _ = genotype_files.read(
    'evaluate', config.evaluate, nasbench201.make()
  )
  own = _bounds(config, device)
  judged = _judged(config, genotype, device, own)
  budget = _budget(config, device, own)
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(workdir, config.to_dict())
    if (path / RESULT).exists():
      print(f'{path} is finished already; another cell needs a new --workdir.')
    elif jax.process_index() == 0:
      record = _record(genotype, judged, device, own, budget)
      _draw(record, path)
      workdir_lib.write_json_atomic(path / RESULT, record)
    print(evaluate_report.of(path))


def _device(config: ml_collections.ConfigDict) -> str:
  """The device whose measurements judge the cell."""
  own = config.latency.table.removesuffix(f'.{oracle.SPACE}')
  field, name = (
    ('evaluate.device', config.evaluate.device)
    if config.evaluate.device
    else ('latency.predictor', config.latency.predictor)
    if config.latency.predictor
    else ('latency.table', own)
  )
  if name not in oracle.devices():
    raise ValueError(
      f'{field} is {name!r}, of which no series over all cells is shipped: '
      f'judge by another device with --config.evaluate.device, one of '
      f'{list(oracle.devices())}.'
    )
  return name


def _bounds(config: ml_collections.ConfigDict, device: str) -> _Bounds:
  """The bounds of the search that found the cell; it may have had none."""
  _, record = genotype_files.load('evaluate', config.evaluate)
  deploy = record.get('deploy') or {}  # none: the file has a genotype only
  found = deploy.get('bounds') or {}
  if not found or deploy['spec_hash'] != nasbench201.make().spec_hash():
    return _Bounds(None, {}, {})
  return _Bounds(
    found[bounds_lib.LATENCY]['target']
    if bounds_lib.LATENCY in found and deploy['device'] == device
    else None,
    {name: bound['aim'] for name, bound in found.items()},
    genotype_files.latency_section(deploy),
  )


def _budget(
  config: ml_collections.ConfigDict, device: str, own: _Bounds
) -> _Budget | None:
  """The budget of the config, or else the target of the search."""
  if config.evaluate.budget_ms:
    budget = _Budget(config.evaluate.budget_ms, 'evaluate.budget_ms')
  elif own.target_ms is not None:
    budget = _Budget(own.target_ms, 'the target of the search')
  else:
    return None
  try:
    oracle.candidates(device, budget.ms)
  except ValueError as e:
    raise ValueError(
      f'{e} That budget is {budget.source}; judge within another by '
      '--config.evaluate.budget_ms.'
    ) from e
  return budget


def _judged(
  config: ml_collections.ConfigDict,
  genotype: Genotype,
  device: str,
  own: _Bounds,
) -> Genotype:
  """The cell itself if it was measured, else what its search comes nearest."""
  if oracle.candidates(device)[oracle.index(genotype)]:
    return genotype
  if not config.evaluate.search_workdir:
    oracle.judge(genotype, _DRAWN)  # raises if it is no network
    raise ValueError(
      f'{nasbench201.to_arch_string(genotype)} was not measured on {device!r}, '
      f'which has {oracle.candidates(device).sum()} cells: judge by another '
      f'device (--config.evaluate.device, one of {list(oracle.devices())}), or '
      'by the measured cell that its search holds most probable '
      '(--config.evaluate.search_workdir).'
    )
  path = epath.Path(config.evaluate.search_workdir)
  rows = metrics_lib.read(path)
  key = f'gates/{nasbench201.GROUP}'
  if not rows or key not in rows[-1]:
    raise ValueError(
      f'{path} has no metrics with {key}, by which a measured cell would be '
      'chosen: search again; or, of a shortlist, judge by a device that has '
      'all cells (--config.evaluate.device).'
    )
  scores = oracle.log_probabilities(np.asarray(rows[-1][key]))
  within = _within(own)
  if not (within & oracle.candidates(device)).any():
    raise ValueError(
      f'{nasbench201.to_arch_string(genotype)} was not measured on {device!r}, '
      f'and no cell that was is predicted within the bounds of its search '
      f'({own.aims}): judge by another device (--config.evaluate.device).'
    )
  scores = np.where(within, scores, -np.inf)
  return oracle.project(scores, device)


def _within(own: _Bounds) -> np.ndarray:
  """Cells bool[15625] that a search might have returned.

  By its predictor: what was measured may judge, but not choose.
  """
  if not own.aims:
    return oracle.load().connected
  spec = nasbench201.make()
  objective = {'target_ms': 0.0, 'constraints': own.aims, 'margin': '0'}
  model = common.load_latency(own.latency)(spec)
  limits = [b.limit for b in bounds_lib.make(objective, spec, model)]
  return projection.violation(spec, corners(spec), limits) == 0


def _record(
  genotype: Genotype,
  judged: Genotype,
  device: str,
  own: _Bounds,
  budget: _Budget | None,
) -> dict[str, Any]:
  """The content of evaluate.json."""
  own_ms = oracle.latency(judged, device)
  return {
    'space': oracle.SPACE,
    'genotype': genotype.to_dict(),
    'text': spaces.to_text(genotype),
    'accuracy': {d: oracle.accuracy(genotype, d) for d in oracle.DATASETS},
    'rank': {d: oracle.judge(genotype, d).rank for d in oracle.DATASETS}
    if oracle.connected(oracle.index(genotype))
    else None,
    'latency_ms': _latencies(genotype),
    'judged': {
      'device': device,
      'text': spaces.to_text(judged),
      'genotype': judged.to_dict(),
      'is_what_was_found': judged == genotype,
      'bounds_of_search': own.aims,
      'accuracy': {d: oracle.accuracy(judged, d) for d in oracle.DATASETS},
      'latency_ms': own_ms,
      'within_own_latency': _verdicts(judged, device, own_ms),
      'within_budget': None
      if budget is None
      else {
        'budget_ms': budget.ms,
        'source': budget.source,
        **_verdicts(judged, device, budget.ms),
      },
      'front': {d: _place(judged, d, device) for d in oracle.DATASETS},
    },
    'references': {d: _references(judged, d, device) for d in oracle.DATASETS},
  }


def _latencies(genotype: Genotype) -> dict[str, float | None]:
  """Measured milliseconds on all devices; None where it was not measured."""
  cell = oracle.index(genotype)
  found = {d: float(oracle.latencies(d)[cell]) for d in oracle.devices()}
  return {d: None if np.isnan(ms) else ms for d, ms in found.items()}


def _verdicts(
  genotype: Genotype, device: str, budget_ms: float
) -> dict[str, Any]:
  """By data set: how the cell compares with all within a budget."""
  found = {}
  for dataset in oracle.DATASETS:
    verdict = oracle.judge(genotype, dataset, device, budget_ms)
    found[dataset] = {
      'meets_budget': verdict.meets_budget,
      'regret': verdict.regret,
      'rank': verdict.rank,
      'num_ranked': verdict.num_ranked,
      'best': spaces.to_text(verdict.best.genotype),
      'best_accuracy': verdict.best.accuracy,
      'best_latency_ms': verdict.best.latency_ms,
    }
  return found


def _place(genotype: Genotype, dataset: str, device: str) -> dict[str, Any]:
  """Where a cell lies beside the true front."""
  cells = front.of(dataset, device)
  own, ms = oracle.accuracy(genotype, dataset), oracle.latencies(device)
  as_good = cells[oracle.accuracies(dataset)[cells] >= own]
  fastest = float(ms[as_good[0]])
  return {
    'is_on_front': bool(oracle.index(genotype) in cells),
    'num_on_front': len(cells),
    # How much sooner a cell of the front is as accurate.
    'fastest_as_accurate_ms': fastest,
    'excess_latency_percent': 100
    * (oracle.latency(genotype, device) / fastest - 1),
  }


def _references(
  judged: Genotype, dataset: str, device: str
) -> dict[str, dict[str, Any]]:
  """Cells that one would take without measuring.

  The ResNet-like cell, and the most accurate of the cells that were measured
  and have at most as many MACs as the judged one.
  """
  values, ms = oracle.accuracies(dataset), oracle.latencies(device)
  spec = nasbench201.make()
  macs = budgets.make('macs', spec).costs(corners(spec))
  own = oracle.index(judged)
  allowed = oracle.candidates(device) & (macs <= macs[own])
  proxy = int(np.where(allowed, values, -np.inf).argmax())
  resnet = oracle.index(nasbench201.from_arch_string(RESNET))
  named = {'ResNet-like': resnet, 'best by MACs': proxy}
  return {
    name: {
      'text': spaces.to_text(oracle.genotype(cell)),
      'accuracy': float(values[cell]),
      'latency_ms': None if np.isnan(ms[cell]) else float(ms[cell]),
      'macs': float(macs[cell]),
    }
    for name, cell in named.items()
  }


def _draw(record: dict[str, Any], path: epath.Path) -> None:
  """Draws evaluate.png."""
  judged = record['judged']
  label = 'found' if judged['is_what_was_found'] else 'found (most probable)'
  named = [
    front_plot.Points(
      label, [judged['latency_ms']], [judged['accuracy'][_DRAWN]]
    )
  ] + [
    front_plot.Points(name, [r['latency_ms']], [r['accuracy']])
    for name, r in record['references'][_DRAWN].items()
    if r['latency_ms'] is not None
  ]
  budget = judged['within_budget']
  evaluate_report.draw(
    path,
    judged['device'],
    named,
    '',
    None if budget is None else budget['budget_ms'],
  )
