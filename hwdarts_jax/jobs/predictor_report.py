"""How good a fitted latency predictor is: figures, picture and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import csv
import io
import math
from typing import Any, NamedTuple
import warnings

from etils import epath
import numpy as np

from hwdarts_jax.jobs import common
from hwdarts_jax.latency import judge, measurements
from hwdarts_jax.latency import predictor as predictor_lib
from hwdarts_jax.latency.measurements import Measurements
from hwdarts_jax.runtime import scatter
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import NetworkSpec

METRICS = 'metrics.json'  # written last: its presence says that all is done
PREDICTOR = 'predictor'
PREDICTIONS = 'predictions.csv'
SUGGESTIONS = 'suggest.csv'
PICTURE = 'predictor.png'
_FILES = (PREDICTIONS, SUGGESTIONS, METRICS, PICTURE, PREDICTOR, 'config.json')

# Baselines, by the semantics of the ops that they sum up.
_BASELINES = {'additive': 'eager', 'pruned': 'compiled'}
_TITLES = {
  'predictor': 'predictor',
  'additive': 'sum of ops',
  'pruned': 'dead removed',
}
_FIGURES = (
  ('mape_percent', 'mean error, %', '.2f'),
  ('within_5_percent', 'within 5 %, %', '.1f'),
  ('within_10_percent', 'within 10 %, %', '.1f'),
  ('spearman', 'Spearman', '.3f'),
  ('kendall_tau', 'Kendall tau', '.3f'),
  ('within_90_interval_percent', 'in 90 % interval, %', '.1f'),
  ('interior_error_percent', 'error inside, %', '.2g'),
  ('gradient_cosine', 'gradient cosine', '.3f'),
)
_NUM_FOLDS = 5
_MAX_SPARED = 20  # of so few rows, fewer are spared at a time
_MIN_HELD_OUT = 10  # fewer rows make no figure
_MAX_FOLDED = 300  # more rows are split once, which is telling and cheaper
_Z_90 = 1.645  # 90 % of a normal distribution are within so many deviations
_NUM_GATES = 20  # at which the inside is judged
_SHOWN = 20  # predictions on the screen

OneHot = Mapping[str, np.ndarray]


class Model(NamedTuple):
  """A fitted predictor.

  Attributes:
    fit: variables and card.
    predict: for each group f[N, E, O] -> ms f[N], and their standard
      deviations f[N] where the model knows them.
  """

  fit: predictor_lib.Fit
  predict: Callable[[OneHot], tuple[np.ndarray, np.ndarray | None]]


class HeldOut(NamedTuple):
  """Predictions of networks by models that have not seen them.

  Attributes:
    by: how the networks were held out, in words.
    measured_ms: f[N].
    predicted_ms: of the predictor and the baselines, f[N] each.
    std_ms: of the predictor, f[N]; None where it knows none.
  """

  by: str
  measured_ms: np.ndarray
  predicted_ms: dict[str, np.ndarray]
  std_ms: np.ndarray | None


def hold_out(
  spec: NetworkSpec,
  measured: Measurements,
  fit: Callable[[Measurements], Model],
  min_rows: int,
  seed: int,
) -> HeldOut | str:
  """Fits to some of the rows and predicts the others.

  Args:
    spec: the space.
    measured: all rows.
    fit: makes a model from rows.
    min_rows: the fewest that `fit` takes.
    seed: of the split.

  Returns:
    The predictions; or in words why there are too few rows.
  """
  count = len(measured.latency_ms)
  order = np.random.default_rng(seed).permutation(count)
  if count > _MAX_FOLDED:
    folds = [order[: count // _NUM_FOLDS]]
    by = 'one random split'
  else:
    num_folds = _NUM_FOLDS if count > _MAX_SPARED else 2 * _NUM_FOLDS
    folds = np.array_split(order, num_folds)
    by = f'{num_folds} folds'
  needed = max(_MIN_HELD_OUT, math.ceil(min_rows * 1.25))
  if count < needed or count - len(folds[0]) < min_rows:
    return f'{count} networks are too few to hold some out; {needed} would do'
  parts = [
    compare(spec, measured.take(np.setdiff1d(order, f)), measured.take(f), fit)
    for f in folds
  ]
  return _join(by, parts)


def compare(
  spec: NetworkSpec,
  train: Measurements,
  test: Measurements,
  fit: Callable[[Measurements], Model],
) -> HeldOut:
  """Fits predictor and baselines to `train` and predicts `test`."""
  predicted, std = fit(train).predict(test.one_hot)
  found = {'predictor': predicted}
  for name, semantics in _BASELINES.items():
    baseline = judge.additive(spec, train.one_hot, train.latency_ms, semantics)
    found[name] = baseline(test.one_hot)
  return HeldOut('', test.latency_ms, found, std)


def _join(by: str, parts: list[HeldOut]) -> HeldOut:
  stds = [p.std_ms for p in parts if p.std_ms is not None]
  return HeldOut(
    by,
    np.concatenate([p.measured_ms for p in parts]),
    {
      name: np.concatenate([p.predicted_ms[name] for p in parts])
      for name in parts[0].predicted_ms
    },
    np.concatenate(stds) if stds else None,
  )


def figures(held_out: HeldOut) -> dict[str, dict[str, Any]]:
  """Errors and rank correlations of the predictor and of each baseline."""
  result = {}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # a constant has no rank correlation
    for name, ms in held_out.predicted_ms.items():
      quality = judge.quality(ms, held_out.measured_ms)
      result[name] = {
        k: v if math.isfinite(v) else None for k, v in quality.items()
      }
  if held_out.std_ms is not None:
    error = np.abs(held_out.predicted_ms['predictor'] - held_out.measured_ms)
    inside = error <= _Z_90 * held_out.std_ms
    result['predictor']['within_90_interval_percent'] = float(
      100 * inside.mean()
    )
  return result


def inside(
  spec: NetworkSpec, fit: predictor_lib.Fit, measured: Measurements
) -> dict[str, dict[str, Any]]:
  """Interior figures of the predictor and of each baseline.

  Each is held against the expectation of what it says of architectures. A sum
  of op costs is evaluated as a search would: weighted by the gates.
  """
  predict = common.predictor_of(spec, fit.variables)
  found = {'predictor': judge.interior(spec, predict, count=_NUM_GATES)}
  baselines = _BASELINES if len(measured.latency_ms) else {}
  for name, semantics in baselines.items():
    sums = judge.additive(
      spec, measured.one_hot, measured.latency_ms, semantics
    )
    found[name] = judge.interior(
      spec, sums.at_gates, count=_NUM_GATES, corner=sums
    )
  return found


def plot(held_out: HeldOut, path: epath.PathLike, title: str) -> None:
  """Draws the held-out predictions of all models."""
  stds = None
  if held_out.std_ms is not None:
    stds = {_TITLES['predictor']: held_out.std_ms}
  scatter.plot_predictions(
    held_out.measured_ms,
    {_TITLES[name]: ms for name, ms in held_out.predicted_ms.items()},
    path,
    title,
    stds,
  )


def of(path: epath.Path) -> str:
  """The summary of a finished fit, read from its workdir."""
  record = workdir_lib.read_json(path / METRICS)
  lines = ['']
  if 'figures' in record:
    lines += _of_fit(record)
  if (path / PREDICTIONS).exists():
    lines += _of_predictions(path / PREDICTIONS)
  if (path / SUGGESTIONS).exists():
    lines += [f'Measure these first; they are in {path / SUGGESTIONS}:']
    lines += [f'  {row[0]}' for row in _read(path / SUGGESTIONS)[1:]]
  names = [f for f in _FILES if (path / f).exists()]
  lines += [f'Everything is in {path}: {", ".join(names)}']
  if 'figures' in record:
    lines += [
      'A search uses the predictor by',
      f'  --config.latency.predictor={path / PREDICTOR}',
    ]
  return '\n'.join(lines)


def _of_fit(record: Mapping[str, Any]) -> list[str]:
  """What was fitted, and the table of figures."""
  card = record['model']
  lines = [
    f'Latency of {record["space"]} on {record["device"]}, fitted to '
    f'{record["rows"]} networks:',
    f'  model: {card["model"]}',
  ]
  if record['rows_left_out']:
    lines.append(
      f'  {record["rows_left_out"]} networks without a path from input to '
      'output were left out'
    )
  others = record['prior_devices']
  if others:
    more = f' and {len(others) - 4} more' if len(others) > 5 else ''
    names = others[:4] if more else others
    lines.append(f'  prior: {", ".join(names)}{more}')
  if record['held_out_rows']:
    lines.append(
      f'  held out: {record["held_out_rows"]} networks, {record["held_out_by"]}'
    )
  else:
    lines.append(f'  no held-out errors: {record["held_out_by"]}')
  models = record['figures']
  titles = [f'{_TITLES[m]:>14}' for m in models]
  lines.append(f'  {"":20}{"".join(titles)}')
  for key, title, form in _FIGURES:
    cells = [models[m].get(key) for m in models]
    if any(c is not None for c in cells):
      texts = ['-' if c is None else format(c, form) for c in cells]
      lines.append(f'  {title:20}' + ''.join(f'{t:>14}' for t in texts))
  return lines


def _of_predictions(path: epath.Path) -> list[str]:
  """The first predictions, with their uncertainty where it is known."""
  header, *rows = _read(path)
  lines = [f'{len(rows)} predictions in {path}:']
  for row in rows[:_SHOWN]:
    cells = dict(zip(header, row, strict=True))
    ms = f'{float(cells[measurements.PREDICTED]):9.3f}'
    if measurements.STD in cells:
      ms += f' ± {float(cells[measurements.STD]):.3f}'
    lines.append(f'  {ms} ms  {cells[measurements.GENOTYPE]}')
  if len(rows) > _SHOWN:
    lines.append(f'  and {len(rows) - _SHOWN} more')
  if measurements.STD in header:
    lines.append('  (± is a standard deviation)')
  return lines


def _read(path: epath.Path) -> list[list[str]]:
  return list(csv.reader(io.StringIO(path.read_text(), newline='')))
