"""Whose rows the benchmark of latency models sees, and what it prints."""

import json

import numpy as np
import pytest

from benchmarks import latency_protocols as protocols
from benchmarks import latency_report as report
from hwdarts_jax import oracle


@pytest.mark.parametrize('device', ['raspberry_pi4_cpu', 'pixel3', 'titanx_1'])
def test_help_draws_from_the_first_archs_and_tests_on_the_next(device):
  """720 and 800 by the official order, without either end of the latencies."""
  split = protocols.help_split(device, 10, seed=0)
  pool = protocols.help_pool(device)
  official = oracle.load().official_index
  assert len(pool) == 720 and len(split.test) == 800
  assert len(split.train) == 10 and set(split.train) <= set(pool)
  assert official[pool].max() < 900 <= official[split.test].min()
  assert official[split.test].max() < 1900
  ms = oracle.latencies(device)
  everyone = ms[np.isin(official, range(900, 1900))]
  low, high = np.percentile(everyone, [10, 90])
  assert low * 0.99 <= ms[split.test].min() <= ms[split.test].max() <= high
  other = protocols.help_split(device, 10, seed=1)
  assert set(other.train) != set(split.train)
  np.testing.assert_array_equal(other.test, split.test)


def test_random_samples_are_tested_only_where_the_protocol_says_so():
  """All of them connected and measured; NASFLAT scores its samples as well."""
  apart = protocols.random_split('pixel4_cpu', 20, seed=3)
  assert len(apart.train) == 20 and len(apart.test) == 1979
  assert not set(apart.train) & set(apart.test)
  nasflat = protocols.random_split(
    'jetson_nano_gpu_fp16', 20, seed=3, samples_in_test=True
  )
  assert len(nasflat.test) == 15_284 and set(nasflat.train) <= set(nasflat.test)
  # The Pixel 3 has latencies of the 341 others as well.
  test = protocols.random_split('pixel3', 5, seed=0).test
  assert len(test) == 15_279 and oracle.connected(test).all()


def test_series_of_a_prior_can_be_cut_to_the_rows_that_others_had():
  """HELP trains on archs 0-899; cells without a path are never in a prior."""
  (rows,) = protocols.series(['pixel3'], range(900)).values()
  assert len(rows.latency_ms) == len(next(iter(rows.one_hot.values())))
  first = np.isin(oracle.load().official_index, range(900))
  assert len(rows.latency_ms) == (first & oracle.load().connected).sum()


def _row(device, method, seed, value):
  return {
    'table': 'fit',
    'device': device,
    'method': method,
    'rows': 900,
    'seed': seed,
    'within_10_percent': value,
    'within_5_percent': value / 2,
    'mape_percent': 1.0,
  }


def test_tables_have_mean_and_spread_over_seeds_and_the_mean_of_devices():
  rows = [
    _row(device, method, seed, base + 2 * seed)
    for device, base in (('a', 80.0), ('b', 90.0))
    for method in ('sum', 'ours')
    for seed in (0, 1)
  ]
  entries = report.summarize(rows)
  saved = json.loads(report.to_json({'cpu': 'x'}, entries))
  assert saved['entries'] == entries
  lines = report.to_markdown(saved['entries']).splitlines()
  assert '| device | sum | ours |' in lines
  cell = '81.0 ± 1.0 / 40.5 ± 0.5 / 1.0 ± 0.0'
  assert f'| a | {cell} | {cell} |' in lines
  cell = '86.0 ± 1.0 / 43.0 ± 0.5 / 1.0 ± 0.0'
  assert f'| mean of 2 | {cell} | {cell} |' in lines


def test_a_protocol_whose_seeds_differ_in_rows_is_one_entry():
  """A sample of HELP may be one of its references, and is measured once."""
  rows = [
    _row('a', 'ours', seed, 80.0 + seed)
    | {'table': 'help', 'rows': 20 - seed, 'spearman': 0.5 + seed}
    for seed in (0, 1)
  ]
  (entry,) = report.summarize(rows)
  assert entry['rows'] == 20 and entry['spearman'] == [0.5, 1.5]
