"""Measures whole networks side by side by a runner of the harness."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import datetime
import pathlib
import tempfile
from typing import Any

import jax

from hwdarts_jax.harness import convert, measure, runners
from hwdarts_jax.harness.journal import Journal
from hwdarts_jax.spaces.spec import NetworkSpec


def run(
  networks: Mapping[str, NetworkSpec],
  runner_text: str,
  dtype: str,
  batch: int,
  rounds: measure.Rounds,
) -> dict[str, Any]:
  """Measures all networks, in shuffled rounds.

  Their weights are random: what a network needs does not depend on them.

  Args:
    networks: by name.
    runner_text: such as 'host' or 'jax_device'.
    dtype: of the numbers.
    batch: images in one inference.
    rounds: of readings.

  Returns:
    What latency/DEVICE.json holds.
  """
  with (
    tempfile.TemporaryDirectory(prefix='frontier-') as folder,
    runners.make(runner_text) as runner,
  ):
    description = runner.prepare()
    models = _convert(networks, runner.model_format, dtype, batch, folder)
    outcome = measure.run(
      runner,
      models,
      models[0],
      Journal(pathlib.Path(folder)),
      runners.Protocol(),
      rounds,
    )
    remarks = [*description.remarks, *outcome.remarks, *runner.finish()]
  return {
    'runner': runner_text,
    'dtype': dtype,
    'batch': batch,
    'date': datetime.date.today().isoformat(),
    'description': {
      k: v for k, v in vars(description).items() if k != 'remarks'
    },
    'drift': outcome.drift,
    'remarks': list(dict.fromkeys(remarks)),
    'networks': {
      name: dataclasses.asdict(result)
      for name, result in outcome.results.items()
    },
    'failed': dict(outcome.failed),
  }


def _convert(
  networks: Mapping[str, NetworkSpec],
  model_format: str,
  dtype: str,
  batch: int,
  folder: str,
) -> list[runners.Model]:
  """Writes the files of all networks."""
  target = convert.Target(model_format, dtype, batch)
  models = []
  for name, spec in networks.items():
    path = pathlib.Path(folder) / f'{name}.{model_format}'
    function = convert.network(spec)
    made = convert.convert(function, spec.input_shape, target, name)
    path.write_bytes(made.data)
    jax.clear_caches()
    shape = (batch, *spec.input_shape)
    models.append(runners.Model(name, path, dtype, batch, shape))
  return models
