"""Accuracies of networks after a brief training, shared by shortlists.

A network is worth the same for every device and target, so one training of it
serves all; and it may be trained with any others, so their order is free.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any

from etils import epath
import ml_collections

from hwdarts_jax.jobs import common
from hwdarts_jax.latency import sameness
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

POOL = 'pool.json'
_OF_DATA = ('name', 'image_size', 'split_seed', 'augment')
_OF_NETWORK = ('bn_groups', 'bn_momentum', 'dtype')
_OF_TRAINING = ('num_epochs', 'batch_size', 'warmup_epochs', 'optimizer')


@dataclasses.dataclass(frozen=True)
class Pool:
  """Networks that were trained alike.

  Attributes:
    settings: all that their accuracies depend on.
    accuracies: shares of right answers on the validation half, by
      `sameness.keys`.
    genotypes: one of each network, by the same keys; pools of before may lack
      them.
  """

  settings: Mapping[str, Any]
  accuracies: dict[str, float]
  genotypes: dict[str, Genotype] = dataclasses.field(default_factory=dict)

  def digest(self) -> str:
    """A hash of the content."""
    text = json.dumps(dict(self.accuracies), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def save(self, workdir: epath.Path) -> None:
    """Writes pool.json."""
    content = {
      'settings': dict(self.settings),
      'accuracies': dict(self.accuracies),
      'genotypes': {k: g.to_dict() for k, g in self.genotypes.items()},
    }
    workdir_lib.write_json_atomic(workdir / POOL, content)


def of_config(
  config: ml_collections.ConfigDict, proxy: NetworkSpec
) -> dict[str, Any]:
  """What the accuracies of a shortlist depend on, as JSON has it.

  Args:
    config: resolved.
    proxy: the space of the networks that are trained.
  """
  data, network, training = (
    common.section(config, name) for name in ('data', 'network', 'shortlist')
  )
  found = {
    'seed': config.seed,
    'spec_hash': proxy.spec_hash(),
    'data': {k: data[k] for k in _OF_DATA},
    'network': {k: network[k] for k in _OF_NETWORK},
    'training': {k: training[k] for k in _OF_TRAINING},
  }
  return json.loads(json.dumps(found))


def load(path: str, settings: Mapping[str, Any]) -> Pool:
  """Reads the pool of another shortlist; empty if none is named.

  Args:
    path: of a pool.json, or ''.
    settings: that its networks must have been trained with.

  Raises:
    UserError: the file is none of a pool, or its settings differ.
  """
  if not path:
    return Pool(settings, {})
  try:
    content = workdir_lib.read_json(path)
    found, accuracies = content['settings'], content['accuracies']
    known = {str(k): float(v) for k, v in accuracies.items()}
    genotypes = {
      str(k): Genotype.from_dict(v)
      for k, v in content.get('genotypes', {}).items()
    }
  except (OSError, ValueError, TypeError, LookupError, AttributeError) as e:
    raise workdir_lib.UserError(
      f'shortlist.pool is {path!r}, which is no pool of a shortlist '
      f'({type(e).__name__}: {e}): name the {POOL} of its workdir.'
    ) from e
  if not all(0 <= value <= 1 for value in known.values()):
    raise workdir_lib.UserError(
      f'{path} has accuracies that are no shares from 0 to 1: it is damaged.'
    )
  for name, value in settings.items():
    other = found.get(name) if isinstance(found, dict) else None
    if other != value:
      raise workdir_lib.UserError(
        f'shortlist.pool is {path!r}, whose networks were trained with {name} '
        f'= {other}, not {value}: make the settings equal, or leave it out.'
      )
  return Pool(settings, known, genotypes)


def check_genotypes(path: str, spec: NetworkSpec, pool: Pool) -> None:
  """Checks that the genotypes of a pool are of a space, and of its networks.

  Raises:
    UserError: they are not.
  """
  try:
    for genotype in pool.genotypes.values():
      discretize.one_hot(spec, genotype)
    found = sameness.keys(spec, list(pool.genotypes.values()))
  except (ValueError, LookupError) as e:
    raise workdir_lib.UserError(f'shortlist.pool is {path!r}: {e}') from e
  if found != list(pool.genotypes):
    raise workdir_lib.UserError(
      f'{path} has genotypes of other networks than it says: it is damaged.'
    )
