"""The config of a tiny export, as a fixture."""

import functools

import ml_collections
import pytest
import tiny_runs


@pytest.fixture
def configure_export(table, retrained, monkeypatch):
  """Makes the config of a tiny export, by dotted names."""
  monkeypatch.chdir(tiny_runs.ROOT)

  def make(overrides=()):
    config = tiny_runs.tiny('get_config')()
    config.update({'job': 'export', 'num_devices': 1})
    config.latency.table = str(table)
    config.export.retrain_workdir = str(retrained[0])
    plain = config.to_dict()
    for name, value in dict(overrides).items():
      *sections, field = name.split('.')
      functools.reduce(dict.__getitem__, sections, plain)[field] = value
    return ml_collections.ConfigDict(plain).lock()

  return make
