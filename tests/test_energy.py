"""Energy is a column of latency tables, and is refused where there is none."""

import dataclasses

import numpy as np
import pytest

from hwdarts_jax.jobs import common, energy
from hwdarts_jax.latency import budgets, table
from hwdarts_jax.spaces import darts, discretize

SPEC = darts.make(
  features=4, num_cells=1, num_nodes=1, image_size=8, pool_bn=False
)


def toy(mj):
  """A table whose ops all take 1 ms, and `mj(key)` millijoules."""
  keys = {s.key(op) for s in SPEC.sites() for op in s.ops}
  return table.LatencyTable(
    device='toy',
    kind='estimated',
    source={'what': 'toy'},
    entries={
      key: table.Entry(1.0, None, None, None, energy_mj=mj(key)) for key in keys
    },
  )


def test_energy_is_predicted_like_latency(tmp_path):
  """Convolutions take 5 mJ and all else 2: a sum over the sites."""
  path = tmp_path / 'toy.json'
  table.save(toy(lambda key: 5.0 if 'conv' in key else 2.0), path)
  latency = common.load_latency(
    {'table': str(path), 'predictor': '', 'rows': 0}
  )(SPEC)
  budget = budgets.make('energy_mj', SPEC, energy.make(latency, SPEC).predict)
  rng = np.random.default_rng(0)
  alphas = {g: rng.normal(size=s.shape) for g, s in SPEC.groups().items()}
  genotype = discretize.derive(SPEC, alphas)
  sites = discretize.discretize(SPEC, genotype).sites()
  want = sum(5.0 if 'conv' in s.key(s.ops[0]) else 2.0 for s in sites)
  assert budget.of(genotype) == pytest.approx(want)
  assert budget.unit == 'mJ'
  assert latency.of(SPEC, genotype) == pytest.approx(len(sites))


def test_a_table_without_the_column_is_what_it_was(tmp_path):
  """No field is written, so that hashes of shipped tables stay."""
  bare, full = toy(lambda key: None), toy(lambda key: 1.5)
  assert 'energy_mj' not in str(bare.to_dict())
  for made in (bare, full):
    table.save(made, tmp_path / 'made.json')
    assert table.load(tmp_path / 'made.json') == made
  assert bare.table_hash() != full.table_hash()
  network = dataclasses.replace(bare, entries=full.entries)
  assert network.table_hash() == full.table_hash()


def test_unmeasured_energy_is_refused_with_a_way_out(tmp_path):
  path = tmp_path / 'toy.json'
  table.save(toy(lambda key: None), path)
  latency = common.load_latency(
    {'table': str(path), 'predictor': '', 'rows': 0}
  )(SPEC)
  with pytest.raises(ValueError, match=r"'toy'.*no column energy_mj.*meter"):
    energy.make(latency, SPEC)
  saved = dataclasses.replace(latency, source={'latency_predictor': 'x'})
  with pytest.raises(ValueError, match=r'latency\.predictor.*latency\.table'):
    energy.make(saved, SPEC)


def test_a_series_has_the_column_for_each_cell():
  shipped = table.load('pixel4_cpu.nasbench201')
  values = tuple(
    None if ms is None else 3.0 * ms for ms in shipped.series.value_ms
  )
  series = dataclasses.replace(shipped.series, energy_mj=values)
  made = dataclasses.replace(shipped, series=series)
  assert table.LatencyTable.from_dict(made.to_dict()) == made
  np.testing.assert_allclose(made.energy().network_ms, 3.0 * shipped.network_ms)
  with pytest.raises(ValueError, match='length of series.energy_mj is 1'):
    dataclasses.replace(
      shipped, series=dataclasses.replace(series, energy_mj=(1.0,))
    )


@pytest.mark.parametrize('value', [-1.0, float('nan'), 'much'])
def test_energy_that_cannot_be_is_refused(value):
  with pytest.raises(ValueError, match='energy_mj.*millijoules'):
    toy(lambda key: value)
