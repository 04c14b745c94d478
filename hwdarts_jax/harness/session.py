"""One command from a plan to a table: convert, measure, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import datetime
import functools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tqdm

import hwdarts_jax
from hwdarts_jax.harness import convert, measure, runners
from hwdarts_jax.harness import journal as journal_lib
from hwdarts_jax.harness.convert import Target
from hwdarts_jax.harness.journal import Journal
from hwdarts_jax.harness.measure import Outcome, Result, Rounds
from hwdarts_jax.harness.plan import Plan
from hwdarts_jax.harness.runners import Description, Model, Protocol, Runner
from hwdarts_jax.latency import cost
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.latency.table import Entry, LatencyTable, NetworkRow
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Shape


class _Job(NamedTuple):
  """A model to be converted.

  Attributes:
    name: in messages and in the journal.
    stem: of its file.
    make: makes its function.
    in_shape: of an image.
  """

  name: str
  stem: str
  make: Callable[[], convert.Function]
  in_shape: Shape


_SUFFIXES = ('.json.gz', '.json')
_MAX_NAMED = 3  # models in a message


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for.

  Attributes:
    plan: what is measured.
    out: path of the table.
    runner: text that names the runner.
    dtype: of the models.
    batch: images in one inference.
    protocol: of a reading.
    rounds: how often each model is read.
    overwrite: whether a finished table may be replaced.
    skip_failed: whether to write a table without the models that fail.
  """

  plan: Plan
  out: pathlib.Path
  runner: str
  dtype: str = 'float32'
  batch: int = 1
  protocol: Protocol = dataclasses.field(default_factory=Protocol)
  rounds: Rounds = dataclasses.field(default_factory=Rounds)
  overwrite: bool = False
  skip_failed: bool = False

  def __post_init__(self):
    if not (self.out.name.endswith(_SUFFIXES) and self.device):
      raise UserError(
        f'--out is {str(self.out)!r}; its name must end in one of {_SUFFIXES}, '
        'such as latency_tables/host_cpu.nasbench201.json, and begin with a '
        'device.'
      )
    if self.out.exists() and not self.overwrite:
      raise UserError(
        f'{self.out} is finished already. Choose another --out, or replace it '
        'by --overwrite.'
      )

  @property
  def device(self) -> str:
    """Name of the device: that of the table, as far as its first dot."""
    return self.out.name.partition('.')[0]


def run(request: Request) -> LatencyTable:
  """Measures a table and writes it; goes on where an earlier run has stopped.

  Raises:
    DeviceError: the device cannot go on.
    ConversionError: an op has no form for this runner.
    UserError: something cannot be written, or some models cannot be measured.
  """
  # The folder first: a run that is going on must keep its device.
  with (
    journal_lib.reserved(request.out) as folder,
    runners.make(request.runner) as runner,
  ):
    if request.dtype not in runner.dtypes:
      raise UserError(
        f'--dtype is {request.dtype!r}; the runner {request.runner!r} measures '
        f'{list(runner.dtypes)}.'
      )
    target = Target(runner.model_format, request.dtype, request.batch)
    description = runner.prepare()
    journal = journal_lib.begin(folder, _settings(request, description))
    models = _convert(request.plan, target, journal)
    outcome = measure.run(
      runner,
      models,
      _sentinel(request.plan, models),
      journal,
      request.protocol,
      request.rounds,
    )
    if outcome.failed and not request.skip_failed:
      raise UserError(_failed(outcome.failed))
    remarks = (*description.remarks, *outcome.remarks, *runner.finish())
    table = _table(request, description, outcome, remarks)
    _save(table, request.out)
    journal.remove()
  return table


def expected_seconds(runner: Runner, protocol: Protocol) -> float:
  """A guess of the seconds of one reading."""
  return protocol.min_ms / 1e3 + runner.overhead_s


def _settings(request: Request, description: Description) -> dict[str, Any]:
  """All that readings depend on; a run with other settings is another one."""
  device = dataclasses.asdict(description)
  return {
    'space': request.plan.spec.space,
    'deploy': dict(request.plan.settings),
    'spec_hash': request.plan.spec.spec_hash(),
    'plan': request.plan.digest(),
    'networks': len(request.plan.networks),
    'runner': request.runner,
    'dtype': request.dtype,
    'batch': request.batch,
    'protocol': dataclasses.asdict(request.protocol),
    'rounds': dataclasses.asdict(request.rounds),
    'device': {
      k: v for k, v in device.items() if k not in ('facts', 'remarks')
    },
  }


def _convert(plan: Plan, target: Target, journal: Journal) -> list[Model]:
  """Converts what is not converted yet; returns all models that run."""
  models = []
  for name, stem, make, in_shape in tqdm.tqdm(
    _jobs(plan), desc='convert', unit='model', dynamic_ncols=True
  ):
    file = f'{stem}.{target.model_format}'
    num_ops = journal.num_ops(file)
    if num_ops is None:
      converted = convert.convert(make(), in_shape, target, name)
      journal.add_model(file, converted)
      num_ops = converted.num_ops
    if num_ops:
      shape = (target.batch, *in_shape)
      path = journal.model_path(file)
      models.append(Model(name, path, target.dtype, target.batch, shape))
  return models


def _jobs(plan: Plan) -> list[_Job]:
  jobs = []
  for i, (key, (site, op)) in enumerate(plan.ops.items()):
    make = functools.partial(convert.operation, site, op)
    jobs.append(_Job(key, f'op_{i:04d}', make, site.in_shape))
  for i, (key, shape) in enumerate(plan.sums.items()):
    make = functools.partial(_addition, shape)
    jobs.append(_Job(key, f'sum_{i:04d}', make, shape))
  for i, genotype in enumerate(plan.networks):
    spec = discretize.discretize(plan.spec, genotype)
    make = functools.partial(convert.network, spec)
    name = network_name(i)
    jobs.append(_Job(name, f'network_{i:04d}', make, spec.input_shape))
  return jobs


def _addition(shape: Shape) -> convert.Function:
  """What a node adds; its other term is an image that is always the same."""
  other = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
  return lambda x: x + other


def network_name(index: int) -> str:
  """Name of a whole network in messages and in the journal."""
  return f'network/{index}'


def _sentinel(plan: Plan, models: Sequence[Model]) -> Model | None:
  """The op that computes most: its latency shows the clock of the device."""
  ops = [m for m in models if m.name in plan.ops]
  return max(ops, key=lambda m: cost.macs(*plan.ops[m.name]), default=None)


def _failed(failed: Mapping[str, str]) -> str:
  reasons = list(failed.values())[:_MAX_NAMED]
  more = len(failed) - len(reasons)
  return (
    f'{len(failed)} models could not be measured: {" ".join(reasons)}'
    f'{f" And {more} more." if more else ""} All other readings are kept: '
    'start the same command again to try these once more, or add '
    '--skip_failed to write the table without them.'
  )


def _table(
  request: Request,
  description: Description,
  outcome: Outcome,
  remarks: Sequence[str],
) -> LatencyTable:
  """The table of what was found."""
  plan = request.plan
  spec_hash = plan.spec.spec_hash()
  networks = []
  for i, genotype in enumerate(plan.networks):
    found = outcome.results.get(network_name(i))
    if found is not None:
      row = NetworkRow(
        genotype, found.ms, found.runs, found.spread_ms, spec_hash
      )
      networks.append(row)
  return LatencyTable(
    device=request.device,
    kind='measured',
    source=_source(request, description, outcome),
    soc=description.soc,
    runtime=description.runtime,
    runtime_version=description.runtime_version,
    delegate=description.delegate,
    threads=description.threads,
    affinity=description.affinity,
    dtype=request.dtype,
    date=datetime.date.today().isoformat(),
    space=plan.spec.space,
    spec_hash=spec_hash,
    notes=_notes(request, outcome, remarks),
    entries={
      key: _entry(outcome.results.get(key))
      for key in (*plan.ops, *plan.sums)
      if key not in outcome.failed
    },
    networks=tuple(networks),
  )


def _entry(found: Result | None) -> Entry:
  """The entry of an op; one of an empty graph was not measured, and is 0."""
  if found is None:
    return Entry(0.0, None, None, None)
  return Entry(found.ms, found.runs, found.rounds, found.spread_ms, found.noisy)


def _source(
  request: Request, description: Description, outcome: Outcome
) -> dict[str, Any]:
  return {
    'what': f'latency of one inference of {request.batch} image(s), measured '
    f'by hwdarts_jax {hwdarts_jax.__version__}',
    'deploy': dict(request.plan.settings),
    'batch': request.batch,
    'runner': runners.published(request.runner),
    'statistic': f'median over rounds of: {description.statistic}',
    'protocol': {
      **dataclasses.asdict(request.protocol),
      **dataclasses.asdict(request.rounds),
    },
    'sentinel_drift': outcome.drift,
    'facts': description.facts,
  }


def _notes(
  request: Request, outcome: Outcome, remarks: Sequence[str]
) -> tuple[str, ...]:
  """What a reader of the numbers has to know."""
  names = [network_name(i) for i in range(len(request.plan.networks))]
  noisy = [
    str(i)
    for i, name in enumerate(names)
    if name in outcome.results and outcome.results[name].noisy
  ]
  notes = [
    'Ops that convert to an empty graph cost nothing: their entries are 0, '
    'with no repeats.',
    'Weights are random; latency does not depend on them.',
  ]
  if noisy:
    notes.append(
      f'The rounds of the networks {", ".join(noisy)} differ by over '
      f'{100 * request.rounds.tolerance:g} %.'
    )
  if outcome.drift is not None and outcome.drift > request.rounds.tolerance:
    notes.append(
      'The device was not steady: the same model, read again and again, '
      f'varied by {100 * outcome.drift:.1f} %.'
    )
  for name, why in outcome.failed.items():
    notes.append(f'{name} could not be measured: {why}')
  return tuple(dict.fromkeys([*notes, *remarks]))


def _save(table: LatencyTable, out: pathlib.Path) -> None:
  try:
    table_lib.save(table, out)
  except OSError as e:
    raise UserError(
      f'Cannot write {out}: {os.strerror(e.errno or 0)}. All readings are '
      'kept; make room and start the same command again.'
    ) from e
