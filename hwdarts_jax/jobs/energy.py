"""The energy of the deploy spec on a device, where a table has it."""

from __future__ import annotations

from hwdarts_jax.jobs import common
from hwdarts_jax.spaces.spec import NetworkSpec


def make(
  latency: common.LatencyModel, deploy: NetworkSpec
) -> common.LatencyModel:
  """Fits the predictor to the column energy_mj of the table of a latency.

  Returns:
    A model of the same table whose numbers are millijoules.

  Raises:
    ValueError: nothing was measured, too little, or not of this spec.
  """
  if 'latency_table' not in latency.source:
    raise ValueError(
      'energy_mj cannot be bounded by latency.predictor, which knows '
      'milliseconds only: give a table with a column energy_mj by '
      '--config.latency.table.'
    )
  name = latency.source['latency_table']
  table = common.load_table(name, 'latency.table').energy()
  missing = table.missing_keys(deploy)
  if missing and not table.has_networks(deploy):
    raise ValueError(
      f'energy_mj cannot be bounded on {latency.device!r}: its latency table '
      f'has energy_mj of no whole network of space {deploy.space!r} with spec '
      f'hash {deploy.spec_hash()}, and lacks it for {len(missing)} entries, '
      f'{missing[0]!r} among them. Nothing here measures energy; enter what a '
      'power meter says.'
    )
  try:
    return common.make_latency_model(table, deploy, name)
  except ValueError as e:
    raise ValueError(f'energy_mj of {latency.device!r}: {e}') from e
