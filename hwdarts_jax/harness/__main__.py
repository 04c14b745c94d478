"""Entry point: measures a latency table, or checks one.

    python -m hwdarts_jax.harness --config=configs/host_cpu.py:space=darts \
      --runner=host --out=latency_tables/host_cpu.darts.json
    python -m hwdarts_jax.harness --check=latency_tables/host_cpu.darts.json

Interrupted and started again it goes on where it was. What a user can mend
ends in one message and exit code 2.
"""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from hwdarts_jax.harness import check, plan, runners, session
from hwdarts_jax.harness.measure import Rounds
from hwdarts_jax.harness.runners import DTYPES, Protocol
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime import command
from hwdarts_jax.runtime.workdir import UserError

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config of a search, such as configs/host_cpu.py:space=darts; the table is '
  'for the networks of its section space.deploy.',
  lock_config=True,
)
_RUNNER = flags.DEFINE_string(
  'runner', None, 'What measures, such as host or adb:serial=XYZ,threads=4.'
)
_OUT = flags.DEFINE_string(
  'out', None, 'The table to write: <device>.<space>.json or .json.gz.'
)
_CHECK = flags.DEFINE_string(
  'check', None, 'Check this table and report sums of ops against networks.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only say what would be done.')
_NETWORKS = flags.DEFINE_integer(
  'networks', 50, 'Random whole networks to measure.', lower_bound=0
)
_GENOTYPES = flags.DEFINE_string(
  'genotypes',
  None,
  'Measure the networks that this file lists, and nothing else: of the folder '
  'measure/ of a shortlist.',
)
_DTYPE = flags.DEFINE_enum('dtype', 'float32', DTYPES, 'Type of the numbers.')
_BATCH = flags.DEFINE_integer(
  'batch', 1, 'Images in one inference.', lower_bound=1
)
_RESOLUTIONS = flags.DEFINE_string(
  'resolutions', '', 'Further image sizes: 24,32 or first:last:step.'
)
_WIDTHS = flags.DEFINE_string(
  'widths', '', 'Further factors of the features: 0.5,2 or first:last:step.'
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Of the networks and the order.', lower_bound=0
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', Rounds.rounds, 'Readings of each model.', lower_bound=1
)
_MIN_MS = flags.DEFINE_float(
  'min_ms', Protocol.min_ms, 'Shortest time of a reading.', lower_bound=0.0
)
_MIN_RUNS = flags.DEFINE_integer(
  'min_runs', Protocol.min_runs, 'Fewest runs of a reading.', lower_bound=1
)
_TIMEOUT_S = flags.DEFINE_float(
  'timeout_s',
  Protocol.timeout_s,
  'A reading that takes longer has hung.',
  lower_bound=1.0,
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a finished table.')
_SKIP_FAILED = flags.DEFINE_bool(
  'skip_failed', False, 'Write the table without what cannot be measured.'
)


def main(argv: list[str]) -> None:
  """Measures or checks."""
  if len(argv) > 1:
    raise UserError(f'unknown arguments {argv[1:]}; flags begin with --.')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  if _CHECK.value is not None:
    space, deploy = ('', None) if _CONFIG.value is None else _deploy()
    print(check.report(_load(_CHECK.value), deploy, space))
    return
  for flag in (_CONFIG, _RUNNER, _OUT):
    if not flag.value:
      raise UserError(f'--{flag.name} is missing; --help tells what it means.')
  space, deploy = _deploy()
  planned = _plan(space, deploy)
  request = session.Request(
    plan=planned,
    out=pathlib.Path(str(_OUT.value)).expanduser(),
    runner=str(_RUNNER.value),
    dtype=_DTYPE.value,
    batch=_BATCH.value,
    protocol=Protocol(
      min_runs=_MIN_RUNS.value, min_ms=_MIN_MS.value, timeout_s=_TIMEOUT_S.value
    ),
    rounds=Rounds(rounds=_ROUNDS.value, seed=_SEED.value),
    overwrite=_OVERWRITE.value,
    skip_failed=_SKIP_FAILED.value,
  )
  print(_expectation(request))
  if _DRY_RUN.value:
    print(plan.describe(planned))
    return
  table = session.run(request)
  print(check.report(table, deploy, space))
  print(f'The table is {request.out}.')


def _plan(space: str, deploy: Mapping[str, Any]) -> plan.Plan:
  """What the flags ask for."""
  if _GENOTYPES.value is not None:
    return plan.read_networks(_GENOTYPES.value, space, deploy)
  return plan.make(
    space,
    deploy,
    _NETWORKS.value,
    plan.numbers(_RESOLUTIONS.value, '--resolutions', whole=True),
    plan.numbers(_WIDTHS.value, '--widths', whole=False),
    _SEED.value,
  )


def _deploy():
  config = _CONFIG.value
  if isinstance(config.space, str):  # of the job `predictor`
    return config.space, config.deploy[config.space].to_dict()
  return config.space.name, config.space.deploy.to_dict()


def _load(path: str) -> table_lib.LatencyTable:
  try:
    return table_lib.load(path)
  except OSError as e:
    raise UserError(f'--check is {path!r}, which cannot be read: {e}.') from e


def _expectation(request: session.Request) -> str:
  runner = runners.make(request.runner)
  seconds = session.expected_seconds(runner, request.protocol)
  low, high = (
    plan.expected_minutes(request.plan, seconds, rounds)
    for rounds in (
      request.rounds.rounds,
      request.rounds.rounds + request.rounds.extra_rounds,
    )
  )
  return (
    f'{len(request.plan.ops)} ops and {len(request.plan.networks)} whole '
    f'networks take about {low:.1f} minutes, or {high:.1f} on a busy device; '
    'longer where one inference takes more than a millisecond.'
  )


if __name__ == '__main__':
  command.run(main)
