"""Job `predictor`: fits a latency predictor to measured networks.

Reads a CSV file of measurements, a latency table or both, and writes into the
workdir: config.json, predictor/ (for `latency.predictor` of a search),
predictions.csv, suggest.csv, predictor.png and metrics.json.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, predictor_files, predictor_report
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.jobs.predictor_report import Model
from hwdarts_jax.latency import cost, fewshot, judge, liveness, measurements
from hwdarts_jax.latency import predictor as predictor_lib
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.latency.measurements import Architectures, Measurements
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec

MIN_WITH_PRIOR = 5  # measured networks beside those of other devices


@dataclasses.dataclass(frozen=True)
class Task:
  """All that a fit reads.

  Attributes:
    config: the config.
    spec: of the measured networks.
    device: its name.
    measured: whole networks to fit, all with a path from input to output.
    spared: measured networks that `config.rows` leaves out of the fit.
    left_out: how many were measured that have no such path.
    entries: costs by the op entries of the table, if it has them.
    series: measured networks of other devices, by device.
    predict: what to predict, if anything.
    hashes: of all that was read.
  """

  config: ml_collections.ConfigDict
  spec: NetworkSpec
  device: str
  measured: Measurements
  spared: Measurements
  left_out: int
  entries: cost.CostTable | None
  series: dict[str, fewshot.Rows]
  predict: Architectures | None
  hashes: dict[str, str]

  @property
  def min_rows(self) -> int:
    """The fewest measured networks that can be fitted."""
    if self.series:
      return MIN_WITH_PRIOR
    return 0 if self.entries is not None else predictor_lib.MIN_NETWORKS

  @functools.cached_property
  def prior(self) -> fewshot.Prior:
    """What is known of latencies before anything is measured."""
    return fewshot.prepare(self.spec, self.series, self.config.seed)

  def fit(self, rows: Measurements) -> Model:
    """Fits the kind of model that there are data for."""
    if self.series:
      model = fewshot.fit(
        self.spec, rows.one_hot, rows.latency_ms, self.prior, self.config.seed
      )
      return Model(model.fit, model.predict)
    fit = common.fit_networks(
      self.spec, rows.one_hot, rows.latency_ms, self.entries, held_out=0
    )
    predict = common.predictor_of(self.spec, fit.variables)
    return Model(fit, lambda one_hot: (judge.corner_ms(predict, one_hot), None))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Fits, predicts and suggests; prints a summary at the end.

  Raises:
    ValueError: something in the config or in a file cannot be; the message
      names it.
  """
  task = make(config)
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(workdir, config.to_dict(), hashes=task.hashes)
    if (path / predictor_report.METRICS).exists():
      print(f'{path} is finished already; a new fit needs a new --workdir.')
    else:
      _run(task, path)
    print(predictor_report.of(path))


def make(config: ml_collections.ConfigDict) -> Task:
  """Reads all files that the config names; see `run` for errors."""
  if jax.process_count() > 1:
    raise ValueError('one process fits a predictor; leave out --multihost.')
  settings_lib.check_predictor(config.to_dict())
  spec = _make_spec(config)
  hashes = {'spec': spec.spec_hash()}
  measured, entries, table = _empty(spec), None, None
  if config.table:
    table = common.load_table(config.table, 'table')
    table.check_covers(spec)
    hashes['table'] = table.table_hash()
    entries = common.sum_of_entries(table, spec)
    if table.has_networks(spec):
      measured = Measurements(*table.networks_one_hot(spec))
  if config.measurements:
    read = measurements.read(config.measurements, spec)
    hashes['measurements'] = _file_hash(config.measurements)
    measured = _join(measured, read)
  predict = None
  if config.predict:
    predict = measurements.read_genotypes(config.predict, spec)
    hashes['predict'] = _file_hash(config.predict)
  prior = _load_prior(config, table)
  hashes |= {f'prior.{name}': t.table_hash() for name, t in prior.items()}
  connected = liveness.is_connected(spec, measured.one_hot)
  measured, spared = _draw(measured.take(connected), config.rows, config.seed)
  task = Task(
    config=config,
    spec=spec,
    device=config.device or _device(config, table),
    measured=measured,
    spared=spared,
    left_out=int((~connected).sum()),
    entries=entries,
    series={
      name: fewshot.Rows(*t.networks_one_hot(spec)) for name, t in prior.items()
    },
    predict=predict,
    hashes=hashes,
  )
  _check_enough(task)
  return task


def _make_spec(config: ml_collections.ConfigDict) -> NetworkSpec:
  try:
    return spaces.make(config.space, **config.deploy[config.space])
  except ValueError as e:
    raise ValueError(f'deploy.{config.space}: {e}') from e


def _device(
  config: ml_collections.ConfigDict, table: table_lib.LatencyTable | None
) -> str:
  """A name for the device where the config gives none."""
  if table is not None:
    return table.device
  return pathlib.PurePath(config.measurements).stem


def _empty(spec: NetworkSpec) -> Measurements:
  one_hot = {
    name: np.zeros((0, *group.shape), np.float32)
    for name, group in spec.groups().items()
  }
  return Measurements(one_hot, np.zeros(0))


def _join(a: Measurements, b: Measurements) -> Measurements:
  return Measurements(
    {g: np.concatenate([a.one_hot[g], b.one_hot[g]]) for g in a.one_hot},
    np.concatenate([a.latency_ms, b.latency_ms]),
  )


def _draw(
  measured: Measurements, count: int, seed: int
) -> tuple[Measurements, Measurements]:
  """Splits off `count` random rows, or all of them where it is 0."""
  total = len(measured.latency_ms)
  if count > total:
    raise ValueError(
      f'rows is {count}; it must be at most {total}, the measured networks '
      'with a path from input to output, or 0 for all of them.'
    )
  order = np.random.default_rng(seed).permutation(total)
  drawn = np.sort(order[: count or total])
  return measured.take(drawn), measured.take(np.setdiff1d(order, drawn))


def _file_hash(path: str) -> str:
  data = epath.Path(path).expanduser().read_bytes()
  return hashlib.sha256(data).hexdigest()[:12]


def _load_prior(
  config: ml_collections.ConfigDict, table: table_lib.LatencyTable | None
) -> dict[str, table_lib.LatencyTable]:
  """The tables of other devices that the config asks for, by device."""
  # A sample of a space, beside op entries, says too little of other devices.
  tables = table_lib.with_series(config.space)
  known = list(tables)
  named = {f: _names(config[f]) for f in ('prior_devices', 'exclude_devices')}
  for field, names in named.items():
    for name in names:
      if name not in known:
        raise ValueError(
          f'{field} names {name!r}; the devices with shipped latencies of '
          f'space {config.space!r} are {known}.'
        )
  if config.prior == 'none':
    if config.prior_devices:
      raise ValueError(
        f"prior_devices is {config.prior_devices!r}, but prior is 'none'; set "
        '--config.prior=shipped.'
      )
    return {}
  if not known:
    raise ValueError(
      f"prior is 'shipped', but no latencies of space {config.space!r} are; "
      'set --config.prior=none.'
    )
  excluded = named['exclude_devices'] + ([table.device] if table else [])
  names = [n for n in named['prior_devices'] or known if n not in excluded]
  if not names:
    raise ValueError(
      f"prior is 'shipped', but no device is left of {known}: name others in "
      'prior_devices, or exclude fewer.'
    )
  return {name: tables[name] for name in names}


def _names(text: str) -> list[str]:
  """The names in a text, between commas."""
  return [n for n in map(str.strip, text.split(',')) if n]


def _check_enough(task: Task) -> None:
  """Raises ValueError if there is nothing to do, or too little to do it."""
  config, count = task.config, len(task.measured.latency_ms)
  if not (config.measurements or config.table):
    if config.predict or not config.suggest:
      raise ValueError(
        'measurements is empty; give a CSV file with the columns '
        f'{measurements.GENOTYPE} and {measurements.LATENCY}, or a table, or '
        '--config.suggest=10 alone to learn what to measure.'
      )
    return
  if count < task.min_rows:
    few = (
      f'; or set --config.prior=shipped, which needs at least {MIN_WITH_PRIOR}'
      if not task.series
      else ''
    )
    raise ValueError(
      f'{config.measurements or config.table} has {count} measured networks '
      f'with a path from input to output; a fit needs at least '
      f'{task.min_rows}{few}.'
    )
  if task.series and count > fewshot.MAX_ROWS:
    raise ValueError(
      f'{config.measurements or config.table} has {count} measured networks; '
      f"with prior 'shipped' there may be {fewshot.MAX_ROWS}: they suffice "
      'without it, so set --config.prior=none, or take a part by --config.rows.'
    )
  if task.series and task.entries is not None:
    raise ValueError(
      f"table {config.table!r} has op entries and prior is 'shipped'; only one "
      'of them can be the start of a fit: leave one out.'
    )


def _run(task: Task, path: epath.Path) -> None:
  """Does the work; `metrics.json` is written last of all."""
  record: dict[str, Any] = {
    'space': task.spec.space,
    'spec_hash': task.spec.spec_hash(),
    'device': task.device,
    'rows': len(task.measured.latency_ms),
    'rows_left_out': task.left_out,
    'prior_devices': list(task.series),
  }
  if record['rows'] or task.entries is not None:
    record |= _fit(task, path)
  if task.config.suggest:
    _write_suggestions(task, path)
  workdir_lib.write_json_atomic(path / predictor_report.METRICS, record)


def _fit(task: Task, path: epath.Path) -> dict[str, Any]:
  """Judges, fits, predicts; returns what is to be reported."""
  held_out = _hold_out(task)
  model = task.fit(task.measured)
  figures = predictor_report.inside(task.spec, model.fit, task.measured)
  card = model.fit.card
  if isinstance(held_out, str):
    report = {'held_out_rows': 0, 'held_out_by': held_out}
    card = card | {'held_out': None}
  else:
    outside = predictor_report.figures(held_out)
    figures = {n: {**outside[n], **figures[n]} for n in figures}
    report = {
      'held_out_rows': len(held_out.measured_ms),
      'held_out_by': held_out.by,
    }
    card = card | {'held_out': outside['predictor']}
    predictor_report.plot(
      held_out,
      path / predictor_report.PICTURE,
      f'{task.device}: {len(held_out.measured_ms)} held-out networks',
    )
  predictor_files.save(
    predictor_files.Saved(
      task.config.space,
      task.config.deploy[task.config.space].to_dict(),
      task.device,
      dataclasses.replace(model.fit, card=card),
    ),
    path / predictor_report.PREDICTOR,
  )
  if task.predict is not None:
    _write_predictions(task.predict, model, path)
  return report | {'model': card, 'figures': figures}


def _hold_out(task: Task) -> predictor_report.HeldOut | str:
  """Predictions of networks that were not fitted, or why there are none."""
  if len(task.spared.latency_ms):
    found = predictor_report.compare(
      task.spec, task.measured, task.spared, task.fit
    )
    return found._replace(by='the rows that were not drawn')
  return predictor_report.hold_out(
    task.spec, task.measured, task.fit, task.min_rows, task.config.seed
  )


def _write_predictions(
  predict: Architectures, model: Model, path: epath.Path
) -> None:
  ms, std = model.predict(predict.one_hot)
  columns: dict[str, Any] = {
    measurements.GENOTYPE: predict.texts,
    measurements.PREDICTED: ms.tolist(),
  }
  if std is not None:
    columns[measurements.STD] = std.tolist()
  workdir_lib.write_text_atomic(
    path / predictor_report.PREDICTIONS, measurements.to_csv(columns)
  )


def _write_suggestions(task: Task, path: epath.Path) -> None:
  """Writes a file of measurements whose latencies are still to be filled in."""
  measured = task.measured.one_hot if len(task.measured.latency_ms) else None
  found = fewshot.suggest(
    task.spec,
    task.prior,
    task.config.suggest,
    measured=measured,
    seed=task.config.seed,
  )
  groups = task.spec.groups()
  texts = [
    spaces.to_text(
      discretize.derive(task.spec, {g: found.one_hot[g][i] for g in groups})
    )
    for i in range(task.config.suggest)
  ]
  columns = {
    measurements.GENOTYPE: texts,
    measurements.LATENCY: [''] * len(texts),
  }
  workdir_lib.write_text_atomic(
    path / predictor_report.SUGGESTIONS, measurements.to_csv(columns)
  )
