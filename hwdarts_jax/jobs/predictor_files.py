"""A fitted latency predictor on disk: a JSON card, and its variables by Orbax.

card.json    which space and device, what the fit knows of itself
variables/   a checkpoint with the variables of `LatencyPredictor`
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.latency import predictor as predictor_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.checkpoints import Checkpoints
from hwdarts_jax.spaces.spec import NetworkSpec

_CARD = 'card.json'
_VARIABLES = 'variables'
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Saved:
  """A fitted predictor, and what it is the predictor of.

  Attributes:
    space: name of the space.
    deploy: settings of the space, of the networks that were measured.
    device: name of the device.
    fit: variables, and the card of the fit.
  """

  space: str
  deploy: Mapping[str, Any]
  device: str
  fit: predictor_lib.Fit

  @functools.cached_property
  def spec(self) -> NetworkSpec:
    """The spec whose networks were measured."""
    return spaces.make(self.space, **self.deploy)

  def digest(self) -> str:
    """First 12 hex digits of the SHA-256 of card and variables."""
    text = json.dumps(_record(self), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save(saved: Saved, folder: epath.PathLike) -> None:
  """Writes a predictor; what was in the folder is replaced.

  Raises:
    OSError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  if folder.exists():
    folder.rmtree()
  folder.mkdir(parents=True)
  with Checkpoints(folder / _VARIABLES) as checkpoints:
    checkpoints.save(0, saved.fit.variables, force=True)
  workdir_lib.write_json_atomic(folder / _CARD, _record(saved))


def load(folder: epath.PathLike, field: str = 'latency.predictor') -> Saved:
  """Reads a predictor.

  Args:
    folder: that `save` wrote.
    field: of the config that named it, for messages.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  path = epath.Path(folder).expanduser()
  try:
    record = workdir_lib.read_json(path / _CARD)
    if record['format'] != _FORMAT:
      raise ValueError(f'its format is {record["format"]!r}, not {_FORMAT}')
    fit = predictor_lib.Fit({}, record['fit'])
    saved = Saved(record['space'], record['deploy'], record['device'], fit)
    known = record['variables_sha256']
    hash_then = record['spec_hash']
  except OSError as e:
    raise ValueError(
      f'{field} is {str(folder)!r}, where no {_CARD} can be read '
      f'({e.strerror}); give the folder "predictor" in the workdir of a '
      'finished fit with configs/predictor.py.'
    ) from e
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'{path / _CARD} is not the card of a predictor ({e!r}); fit it again.'
    ) from e
  if saved.spec.spec_hash() != hash_then:
    raise ValueError(
      f'{path} was fitted to spec {hash_then} of space {saved.space!r}, which '
      f'is now {saved.spec.spec_hash()}: the space has changed; fit it again.'
    )
  with Checkpoints(path / _VARIABLES, read_only=True) as checkpoints:
    restored = checkpoints.restore_latest(_template(saved.spec))
  if restored is None or _sha256(restored.state) != known:
    raise ValueError(
      f'{path / _VARIABLES} does not hold the variables that {_CARD} belongs '
      'to; fit the predictor again.'
    )
  return dataclasses.replace(
    saved, fit=predictor_lib.Fit(restored.state, saved.fit.card)
  )


def _record(saved: Saved) -> dict[str, Any]:
  return {
    'format': _FORMAT,
    'space': saved.space,
    'deploy': dict(saved.deploy),
    'spec_hash': saved.spec.spec_hash(),
    'device': saved.device,
    'fit': saved.fit.card,
    'variables_sha256': _sha256(saved.fit.variables),
  }


def _template(spec: NetworkSpec) -> Any:
  """Shapes of the variables of a predictor of `spec`."""
  gates = {
    name: jax.ShapeDtypeStruct(group.shape, np.float32)
    for name, group in spec.groups().items()
  }
  model = predictor_lib.LatencyPredictor(spec)
  return jax.eval_shape(model.init, jax.random.key(0), gates)


def _sha256(variables: Any) -> str:
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
