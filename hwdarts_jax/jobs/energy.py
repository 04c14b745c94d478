"""The energy of the deploy spec on a device, where a table has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from hwdarts_jax.jobs import common
from hwdarts_jax.spaces.spec import NetworkSpec


def make(
  latency: common.LatencyModel, deploy: NetworkSpec
) -> Callable[[Mapping[str, Any]], jax.Array]:
  """Fits the predictor to the column energy_mj of the table of a latency.

  Returns:
    gates f32[..., E, O] of each group -> expected mJ f32[...].

  Raises:
    ValueError: nothing was measured, or not of this spec.
  """
  if 'latency_table' not in latency.source:
    raise ValueError(
      'energy_mj cannot be bounded by latency.predictor, which knows '
      'milliseconds only: give a table with a column energy_mj by '
      '--config.latency.table.'
    )
  table = common.load_table(latency.source['latency_table'], 'latency.table')
  return common.make_latency_model(table.energy(), deploy).predict
