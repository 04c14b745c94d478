"""What is known of a comparison so far: one folder of small JSON files.

    networks/NAME.json            a found network: genotype, target, prediction
    latency/DEVICE.json           what all networks need on a device
    trained/NAME.SEED.json        the test accuracy of one training

Published networks have no file: their names are those of `references.MODELS`.
Files are written whole, each by one machine, so that folders can be merged.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

from hwdarts_jax import api, spaces
from hwdarts_jax.runtime import workdir
from hwdarts_jax.spaces import discretize, mobile
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

NETWORKS, LATENCY, TRAINED = 'networks', 'latency', 'trained'
# Settings of a space that published networks share.
_IMAGES = ('num_classes', 'image_size', 'image_channels', 'stem_stride')


@dataclasses.dataclass(frozen=True)
class State:
  """A comparison.

  Attributes:
    folder: of the files.
    source: config of the space and its data, such as
      configs/host_cpu.py:space=mobile,dataset=cifar10,recipe=budget.
    overrides: of fields of the config, as text.
    references: names of published networks.
  """

  folder: pathlib.Path
  source: str
  overrides: dict[str, str]
  references: tuple[str, ...]

  def config(self):
    """The config."""
    config = api.load_config(self.source)
    for name, text in self.overrides.items():
      *sections, field = name.split('.')
      inner = functools.reduce(lambda c, s: c[s], sections, config)
      is_text = isinstance(inner[field], str)
      inner[field] = text if is_text else ast.literal_eval(text)
    return config

  def found(self) -> dict[str, dict[str, Any]]:
    """Records of the found networks, by name."""
    return self._read(NETWORKS)

  def names(self) -> tuple[str, ...]:
    """All networks, published ones first."""
    return (*self.references, *self.found())

  def spec(self, name: str) -> NetworkSpec:
    """A network as it is deployed."""
    deploy = self.config().space.deploy.to_dict()
    if name in self.references:
      return spaces.make('references', **self.reference_settings(name))
    genotype = Genotype.from_dict(self.found()[name]['genotype'])
    return discretize.discretize(spaces.make('mobile', **deploy), genotype)

  def reference_settings(self, name: str) -> dict[str, Any]:
    """Settings of a published network, of the width of the space."""
    deploy = self.config().space.deploy.to_dict()
    width = deploy['features'] / mobile.STEM_FEATURES
    shared = {k: deploy[k] for k in _IMAGES}
    return {'model': name, 'width': width, **shared}

  def latency(self, device: str) -> dict[str, Any]:
    """What was measured on a device."""
    path = self.folder / LATENCY / f'{device}.json'
    return json.loads(path.read_text()) if path.exists() else {}

  def devices(self) -> list[str]:
    """Devices on which something was measured."""
    return sorted(self._read(LATENCY))

  def milliseconds(self, device: str) -> dict[str, float]:
    """Latency by network."""
    return {
      name: row['ms']
      for name, row in self.latency(device).get('networks', {}).items()
    }

  def accuracies(self) -> dict[str, dict[int, float]]:
    """Test accuracy in per cent, by network and seed."""
    found: dict[str, dict[int, float]] = {}
    for key, record in self._read(TRAINED).items():
      name, _, seed = key.rpartition('.')
      accuracy = 100 * record['test_accuracy']
      found.setdefault(name, {})[int(seed)] = accuracy
    return found

  def is_trained(self, name: str, seed: int) -> bool:
    """Whether the accuracy of a training is known."""
    return (self.folder / TRAINED / f'{name}.{seed}.json').exists()

  def write(self, kind: str, name: str, record: dict[str, Any]) -> None:
    """Writes a file."""
    folder = self.folder / kind
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json_atomic(folder / f'{name}.json', record)

  def _read(self, kind: str) -> dict[str, dict[str, Any]]:
    paths = sorted((self.folder / kind).glob('*.json'))
    return {p.name.removesuffix('.json'): _json(p) for p in paths}


def _json(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text())


def choose(
  members: Sequence[dict[str, Any]], targets: Sequence[float]
) -> list[dict[str, Any]]:
  """Of each target the member that the shared weights hold most accurate.

  Args:
    members: of front.json.
    targets: those that are wanted, in ms.
  """
  chosen = []
  for target in targets:
    own = [m for m in members if abs(m['target_ms'] - target) < 1e-9]
    met = [m for m in own if m['is_feasible']] or own
    chosen.append(max(met, key=lambda m: m['supernet_val_accuracy']))
  return chosen
