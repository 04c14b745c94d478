"""Reads the genotype that a job is given: of a search, or of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath
import ml_collections

from hwdarts_jax.jobs import common
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

GENOTYPE = 'genotype.json'


def deploy_record(
  settings: ml_collections.ConfigDict,
  deploy: NetworkSpec,
  latency: common.LatencyModel,
) -> dict[str, Any]:
  """What records of a job say of the deploy spec and its device.

  Args:
    settings: of the spec: the section `space.deploy`.
    deploy: the spec.
    latency: of the spec, on the device.
  """
  return {
    'spec': settings.to_dict(),
    'spec_hash': deploy.spec_hash(),
    'device': latency.device,
    **latency.source,
    'predictor': latency.card,
  }


def latency_section(deploy: Mapping[str, Any]) -> dict[str, Any]:
  """The section `latency` of the config by which an architecture was found.

  Args:
    deploy: of its record; see `deploy_record`.
  """
  return {
    'table': deploy.get('latency_table', ''),
    'predictor': deploy.get('latency_predictor', ''),
    'measure': '',
    'rows': 0,
  }


def read(
  section: str, settings: ml_collections.ConfigDict, space: NetworkSpec
) -> tuple[Genotype, NetworkSpec]:
  """Returns the genotype that a section of the config names, and its network.

  Args:
    section: name of the section, for messages.
    settings: its content, with `search_workdir` and `genotype`.
    space: that the genotype must be of.

  Raises:
    ValueError: none or both are given, or the file is none of a genotype.
  """
  path, record = load(section, settings)
  inner = record.get('genotype') if isinstance(record, dict) else None
  try:
    genotype = Genotype.from_dict(record if inner is None else inner)
    return genotype, discretize.discretize(space, genotype)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e


def load(
  section: str, settings: ml_collections.ConfigDict
) -> tuple[epath.Path, Any]:
  """The file of the genotype that `read` returns, and all that it says.

  Raises:
    ValueError: none or both are given, or the file is no JSON.
  """
  if bool(settings.search_workdir) == bool(settings.genotype):
    raise ValueError(
      f'give one of --config.{section}.search_workdir (of a finished search) '
      f'and --config.{section}.genotype (path of a genotype.json).'
    )
  path = (
    epath.Path(settings.search_workdir) / GENOTYPE
    if settings.search_workdir
    else epath.Path(settings.genotype)
  )
  if not path.exists():
    raise ValueError(
      f'{path} does not exist: run the search first '
      '(--config.job=search), or name another.'
    )
  try:
    return path, workdir_lib.read_json(path)
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}).') from e
