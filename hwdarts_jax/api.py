"""The jobs as functions: what a notebook or another program calls.

    import hwdarts_jax as hw
    config = hw.load_config('configs/pixel4.py')
    found = hw.search(config, 'runs/search')
    trained = hw.retrain(config, found, 'runs/trained')
    exported = hw.export(config, trained, 'runs/exported')

Each call writes a workdir as the command line does: the same call resumes, and
one that is finished only reads what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
import copy
import dataclasses
import importlib
import pathlib
import runpy
import sys
from typing import Any

from etils import epath
import ml_collections

from hwdarts_jax.runtime import command
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces.spec import Genotype


@dataclasses.dataclass(frozen=True)
class Result:
  """What a job found.

  Attributes:
    workdir: where everything is.
    record: the content of the file that the job writes last.
  """

  workdir: epath.Path
  record: Mapping[str, Any]


class Found(Result):
  """What a search found."""

  @property
  def genotype(self) -> Genotype:
    """The architecture."""
    return Genotype.from_dict(self.record['genotype'])

  @property
  def predicted_ms(self) -> float:
    """Latency of the deployed network on the device."""
    return self.record['deploy']['predicted_ms']


class Trained(Found):
  """What a training made of an architecture."""

  @property
  def test_accuracy(self) -> float:
    """Of the averaged params, from 0 to 1."""
    return self.record['trained']['test_accuracy_of_average']


class Exported(Result):
  """The files of a trained network."""

  @property
  def files(self) -> dict[str, epath.Path]:
    """Paths by name, such as network_int8.tflite."""
    return {name: self.workdir / name for name in self.record['files']}


def load_config(
  source: str, overrides: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """Loads a config as --config does.

  Args:
    source: path of a config file, with its argument after a colon:
      'configs/pixel4.py:dataset=cifar10'.
    overrides: values of fields by dotted name, as --config.name=value.

  Returns:
    The config, locked: a misspelt field is an error.

  Raises:
    UserError: there is no such file or field, or a value is of another type.
  """
  name, _, arg = source.partition(':')
  path = pathlib.Path(name)
  if not path.is_file():
    raise UserError(f'source is {source!r}; {name} is not a file.')
  # Config files import configs.common, which lies beside them.
  sys.path.insert(0, str(path.resolve().parents[1]))
  try:
    config = runpy.run_path(name)['get_config'](arg or None)
    command.trust(name)
  finally:
    sys.path.pop(0)
  config.lock()
  try:
    config.update_from_flattened_dict(dict(overrides or {}))
  except (KeyError, AttributeError, TypeError) as e:
    raise UserError(f'overrides: {e.args[0] if e.args else e}') from e
  return config


def search(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Found:
  """Searches, or goes on, or reads what was found; see `jobs.search`."""
  return Found(*_run('search', config, workdir, 'genotype.json', {}))


def retrain(
  config: ml_collections.ConfigDict, found: Found, workdir: epath.PathLike
) -> Trained:
  """Trains the architecture of a search; see `jobs.retrain`."""
  where = {'retrain.search_workdir': str(found.workdir)}
  return Trained(*_run('retrain', config, workdir, 'retrain.json', where))


def export(
  config: ml_collections.ConfigDict, trained: Trained, workdir: epath.PathLike
) -> Exported:
  """Writes .tflite and .onnx files of a training; see `jobs.export`."""
  where = {'export.retrain_workdir': str(trained.workdir)}
  return Exported(*_run('export', config, workdir, 'export.json', where))


def _run(
  job: str,
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  result: str,
  where: Mapping[str, str],
) -> tuple[epath.Path, dict[str, Any]]:
  """Runs a job on a copy of the config; returns its workdir and result."""
  own = copy.deepcopy(config)
  own.update_from_flattened_dict({'job': job, **where})
  path = epath.Path(workdir).expanduser()
  importlib.import_module(f'hwdarts_jax.jobs.{job}').run(own, str(path))
  if not (path / result).exists():
    raise UserError(f'{path} was stopped before its end; call it again.')
  return path, workdir_lib.read_json(path / result)
