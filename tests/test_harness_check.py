"""What --check says of tables."""

import dataclasses
import json

import harness_fakes as fakes
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.harness import check, plan
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.latency.table import Entry, LatencyTable, NetworkRow
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize

_SPEC = spaces.make('nasbench201', **fakes.SETTINGS)


def _table(overhead=1.0, noise=0.0, networks=50, **changes):
  """Networks take `overhead` times what their ops sum up to."""
  made = plan.make('nasbench201', fakes.SETTINGS, networks)
  entries = {}
  for key in (*made.ops, *made.sums):
    ms = fakes.truth(key)
    if key.startswith(('none', 'skip')):
      ms = 0.0
    elif key in made.sums:  # as on real devices
      ms = 0.02
    entries[key] = Entry(ms, 180, 3, 0.001)
  table = LatencyTable(
    device='paper',
    kind='measured',
    source={'deploy': fakes.SETTINGS},
    space='nasbench201',
    spec_hash=_SPEC.spec_hash(),
    entries=entries,
  )
  if not networks:
    return dataclasses.replace(table, **changes)
  hots = [discretize.one_hot(_SPEC, g) for g in made.networks]
  one_hot = {'cell': np.stack([h['cell'] for h in hots])}
  ms = overhead * fakes.additive_table_ms(_SPEC, one_hot, table)
  ms *= np.exp(noise * np.random.default_rng(0).normal(size=len(ms)))
  rows = tuple(
    NetworkRow(g, float(v), 180, 0.0, _SPEC.spec_hash())
    for g, v in zip(made.networks, ms, strict=True)
  )
  return dataclasses.replace(table, networks=rows, **changes)


def test_exact_sums_are_found_exact():
  found = check.additivity(_table(), _SPEC)
  assert found.semantics == 'merged'
  assert found.networks == 50
  assert found.bias_percent == pytest.approx(0, abs=1e-9)
  assert found.plain['mape_percent'] == pytest.approx(0, abs=1e-9)
  assert found.calibrated['mape_percent'] == pytest.approx(0, abs=1e-9)
  assert found.corrected['mape_percent'] < 1.5
  assert found.corrected['kendall_tau'] > 0.97


def test_a_table_for_several_spaces_is_checked_for_the_one_that_is_named():
  table = _table(space='', spec_hash=None)
  assert 'no spec is known' in check.report(table)
  said = check.report(table, fakes.SETTINGS, 'nasbench201')
  assert 'serves space nasbench201' in said


def test_a_table_of_another_space_is_not_checked_with_its_settings():
  with pytest.raises(UserError, match="space 'darts', the table of 'nasb"):
    check.report(_table(), fakes.SETTINGS, 'darts')


def test_what_all_networks_cost_more_is_calibrated_away():
  found = check.additivity(_table(overhead=1.2, noise=0.01), _SPEC)
  assert found.bias_percent == pytest.approx(-100 / 6, abs=0.5)
  assert found.plain['mape_percent'] > 15
  assert found.calibrated['mape_percent'] < 2
  assert found.corrected['mape_percent'] < 4


def test_errors_are_those_of_networks_that_no_fit_has_seen():
  """Noise of 10 % stays noise of 10 %, however flexible the fit."""
  found = check.additivity(_table(noise=0.1), _SPEC)
  assert 6 < found.calibrated['mape_percent'] < 14
  assert 6 < found.corrected['mape_percent'] < 14


def test_the_report_has_what_a_user_asks():
  table = _table(soc='paper 2', date='2026-01-02')
  key = 'nor_conv_3x3/8x8x4/4/s1'
  noisy = dataclasses.replace(table.entries[key], noisy=True, spread_ms=3.0)
  table = dataclasses.replace(table, entries={**table.entries, key: noisy})
  text = check.report(table)
  for words in (
    'paper 2',
    '2026-01-02',
    f'{len(table.entries)} ops, 6 of them free, 1 noisy ({key})',
    _SPEC.spec_hash(),
    '50 whole networks',
    'factor of 10 networks',
    'corrected by 10 networks',
    'Kendall',
  ):
    assert words in text


def test_too_few_networks_are_not_held_against_sums():
  text = check.report(_table(networks=12))
  assert 'too few' in text
  assert 'MAPE' not in text


def test_a_table_without_the_keys_of_the_space_says_how_to_get_them():
  table = _table(networks=0)
  other = {**fakes.SETTINGS, 'features': 6}
  with pytest.raises(ValueError, match='does not cover') as e:
    check.report(table, other)
  assert 'python -m hwdarts_jax.harness' in str(e.value)
  assert 'nor_conv' in str(e.value) or 'avg_pool' in str(e.value)
  # Networks alone cover a spec as well; the report says what there is not.
  key = 'nor_conv_3x3/8x8x4/4/s1'
  full = _table()
  entries = {k: v for k, v in full.entries.items() if k != key}
  text = check.report(dataclasses.replace(full, entries=entries))
  assert f'1 ops have no entry ({key})' in text


def test_a_table_of_an_older_schema_is_one_sentence(tmp_path):
  path = tmp_path / 'old.json'
  data = _table(networks=0).to_dict() | {'schema': 0}
  del data['notes']
  path.write_text(json.dumps(data))
  with pytest.raises(ValueError, match='schema is 0; it must be 1'):
    table_lib.load(path)


def test_a_spec_that_nobody_names_is_not_guessed():
  table = dataclasses.replace(_table(), source={})
  text = check.report(table)
  assert 'no spec is known' in text
  assert 'MAPE' in check.report(table, fakes.SETTINGS)
  broken = dataclasses.replace(table, source={'deploy': [1]})
  with pytest.raises(UserError, match='source.deploy'):
    check.report(broken)


@pytest.mark.parametrize('name', table_lib.available())
def test_every_shipped_table_can_be_checked(name):
  table = table_lib.load(name)
  assert table.device in check.report(table)
