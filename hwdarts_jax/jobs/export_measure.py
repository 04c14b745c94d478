"""Times the files of an export by a runner of the harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import datetime
import hashlib
import pathlib
import statistics
import tempfile
from typing import Any, TYPE_CHECKING

from etils import epath
import tqdm

from hwdarts_jax.jobs.export_report import FILES, RESULT
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.workdir import UserError

if TYPE_CHECKING:
  from hwdarts_jax.harness.runners import Runner
  from hwdarts_jax.jobs.export import Task

# What a runner is given, by its format; runtimes of ONNX convert by themselves.
_TIMED = {
  'tflite': ('float32', 'float16', 'int8'),
  'onnx': ('float32', 'float16'),
  'jax': ('float32', 'bfloat16'),
}


def measure(task: Task, path: epath.Path, record: dict[str, Any]) -> None:
  """Times the networks by `export.runner` and adds that to export.json.

  Raises:
    UserError: the device failed, or a model, in which case the others are
      kept.
  """
  from hwdarts_jax.harness import runners

  text = task.config.export.runner
  rounds = task.config.export.rounds
  protocol = runners.Protocol()
  readings: dict[tuple[str, str], list[runners.Reading]] = {}
  failed: dict[tuple[str, str], str] = {}
  try:
    with (
      runners.make(text) as runner,
      tempfile.TemporaryDirectory(prefix='hwdarts_jax-') as folder,
    ):
      device = runner.prepare()
      models = dict(_models(task, path, record, runner, pathlib.Path(folder)))
      for key in tqdm.tqdm(
        [*models] * rounds, desc='measure', unit='reading', dynamic_ncols=True
      ):
        if key in failed:
          continue
        try:
          reading = runner.measure(models[key], protocol)
          readings.setdefault(key, []).append(reading)
        except runners.ModelError as e:
          failed[key] = str(e)
          readings.pop(key, None)
      remarks = [*device.remarks, *runner.finish()]
  except runners.DeviceError as e:
    raise UserError(
      f'{e} All files are kept in {path}; the same command measures them, '
      '--config.export.runner= leaves that out.'
    ) from e
  remarks += [
    r for found in readings.values() for x in found for r in x.remarks
  ]
  networks = _networks(readings, failed)
  if readings:
    record['measured'][text] = {
      'device': {k: v for k, v in vars(device).items() if k != 'remarks'},
      'protocol': dataclasses.asdict(protocol) | {'rounds': rounds},
      'date': datetime.date.today().isoformat(),
      'networks': networks,
      'remarks': list(dict.fromkeys(remarks)),
    }
    workdir_lib.write_json_atomic(path / RESULT, record)
  if failed:
    raise UserError(
      ' '.join(dict.fromkeys(failed.values()))
      + f' All else is in {path / RESULT}.'
    )


def _networks(
  readings: Mapping[tuple[str, str], list[Any]],
  failed: Mapping[tuple[str, str], str],
) -> dict[str, dict[str, Any]]:
  """What was found, by network and dtype."""
  networks: dict[str, dict[str, Any]] = {}
  for (network, dtype), found in readings.items():
    networks.setdefault(network, {})[dtype] = _summary(found)
  for (network, dtype), why in failed.items():
    networks.setdefault(network, {})[dtype] = {'ms': None, 'failed': why}
  return networks


def is_done(record: Mapping[str, Any], runner: str) -> bool:
  """Whether a runner has measured all networks."""
  networks = record['measured'].get(runner, {}).get('networks', {})
  found = [
    entry for by_dtype in networks.values() for entry in by_dtype.values()
  ]
  return bool(found) and all(entry['ms'] is not None for entry in found)


def _models(
  task: Task,
  path: epath.Path,
  record: dict[str, Any],
  runner: Runner,
  folder: pathlib.Path,
) -> Iterator[tuple[tuple[str, str], Any]]:
  """Yields ((network, dtype), model) of all that is timed, in local files.

  A network that is deployed in another spec than it was trained in has random
  weights: it is there for its latency alone.
  """
  from hwdarts_jax.harness import convert, runners

  model_format = runner.model_format
  for network, spec in task.specs().items():
    variables = task.variables if network == 'trained' else None
    for dtype in [d for d in _TIMED[model_format] if d in runner.dtypes]:
      in_file = 'float32' if model_format == 'onnx' else dtype
      name = FILES.get((model_format, in_file))
      if network == 'trained' and name:
        data = _kept(path, name, record)
      else:
        data = convert.convert(
          convert.network(spec, variables),
          spec.input_shape,
          convert.Target(model_format, in_file),
          f'the network as {network}',
        ).data
      local = folder / f'{network}_{dtype}.{model_format}'
      local.write_bytes(data)
      yield (
        (network, dtype),
        runners.Model(
          f'{network}/{dtype}', local, dtype, 1, (1, *spec.input_shape)
        ),
      )


def _kept(path: epath.Path, name: str, record: dict[str, Any]) -> bytes:
  """A file of this workdir; raises UserError if it is not what was written."""
  wanted = record['files'][name]['sha256']
  data = (path / name).read_bytes() if (path / name).exists() else b''
  if hashlib.sha256(data).hexdigest() != wanted:
    raise UserError(
      f'{path / name} was changed since it was written; export again into a '
      'new --workdir.'
    )
  return data


def _summary(readings: list[Any]) -> dict[str, Any]:
  ms = [r.ms for r in readings]
  return {
    'ms': statistics.median(ms),
    'spread_ms': max(ms) - min(ms),
    'rounds': len(ms),
    'runs': sum(r.runs for r in readings),
  }
