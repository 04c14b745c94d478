"""From a plan to a table, on a made-up device: protocol, faults, resuming."""

import collections

import harness_fakes as fakes
import numpy as np
import pytest

from hwdarts_jax.harness import (
  check,
  convert,
  journal,
  measure,
  plan,
  runners,
  session,
)
from hwdarts_jax.harness.measure import Rounds
from hwdarts_jax.harness.runners import DeviceError, Protocol
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime.workdir import UserError


@pytest.fixture
def device(monkeypatch):
  return fakes.use(monkeypatch, fakes.Device())


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'paper.nasbench201.json'


def _values(table):
  return (
    {key: e.value_ms for key, e in table.entries.items()},
    [r.value_ms for r in table.networks],
  )


def test_the_table_says_what_the_device_needs_and_how_that_was_found(
  device, out
):
  request = fakes.request(out)
  table = session.run(request)
  assert table == table_lib.load(out)
  table.check_covers(request.plan.spec)
  for key, entry in table.entries.items():
    if key.startswith(('none', 'skip')):  # of an empty graph
      assert (entry.value_ms, entry.repeats, entry.rounds) == (0, None, None)
    else:
      assert entry.value_ms == fakes.truth(key)
      assert (entry.repeats, entry.rounds) == (3 * 60, 3)
      assert (entry.spread_ms, entry.noisy) == (0, False)
  rows = [(r.genotype, r.value_ms) for r in table.networks]
  assert rows == [
    (g, fakes.truth(f'network/{i}'))
    for i, g in enumerate(request.plan.networks)
  ]
  header = table.device, table.kind, table.soc, table.runtime, table.threads
  assert header == ('paper', 'measured', 'paper', 'none', 1)
  assert table.source['deploy'] == fakes.SETTINGS
  assert table.source['protocol']['min_runs'] == 60
  assert 'made up' in table.source['statistic']
  assert not fakes.partial(out).exists()
  assert device.closed == 1


def test_a_table_does_not_say_where_the_device_is():
  """Tables are published; serials, hosts and paths are their owner's."""
  assert runners.published('adb:serial=XYZ,threads=4') == 'adb:threads=4'
  assert runners.published('ssh:host=me@home,identity=/k') == 'ssh'
  assert runners.published('host:threads=2,core=0') == 'host:threads=2,core=0'


def test_rounds_are_shuffled_and_the_sentinel_is_read_in_between(device, out):
  request = fakes.request(out, rounds=Rounds(sentinel_every=5))
  session.run(request)
  counts = collections.Counter(device.asked)
  (sentinel, most), *others = counts.most_common()
  # The op that computes most; three times as any other, and in between.
  assert sentinel.startswith(('residual_block_3x3', 'nor_conv_3x3'))
  assert {n for _, n in others} == {3}
  assert most == 3 + -(-3 * len(counts) // 5)
  sequence = [n for n in device.asked if n != sentinel]
  rounds = np.split(np.array(sequence), 3)
  assert len({tuple(r) for r in rounds}) == 3
  assert len({tuple(sorted(r)) for r in rounds}) == 1


def test_a_device_that_slows_down_is_told_and_does_not_favour_any_model(
  device, out
):
  count = iter(range(10**6))
  device.noise = lambda name, n: 1 + 0.002 * next(count)
  table = session.run(fakes.request(out, networks=20))
  assert table.source['sentinel_drift'] > 0.1
  assert any('was not steady' in note for note in table.notes)
  ratios = [
    e.value_ms / fakes.truth(k) for k, e in table.entries.items() if e.value_ms
  ]
  # In an unshuffled order the last ops would be slower than the first by 6 %.
  order = np.corrcoef(np.arange(len(ratios)), ratios)[0, 1]
  assert abs(order) < 0.6


def test_a_model_that_was_disturbed_once_is_read_again_until_rounds_agree(
  device, out
):
  key = 'nor_conv_3x3/8x8x4/4/s1'
  device.noise = lambda name, n: 1.5 if name == key and n == 2 else 1.0
  table = session.run(fakes.request(out))
  entry = table.entries[key]
  assert entry.value_ms == fakes.truth(key)
  assert (entry.rounds, entry.noisy, entry.spread_ms) == (4, False, 0)
  others = {e.rounds for k, e in table.entries.items() if k != key}
  assert others == {3, None}


def test_a_model_that_never_settles_is_flagged_not_hidden(device, out):
  key = 'nor_conv_3x3/8x8x4/4/s1'
  wild = {key, 'network/1'}
  device.noise = lambda name, n: 1 + 0.2 * n if name in wild else 1.0
  rounds = Rounds(extra_rounds=2)
  table = session.run(fakes.request(out, rounds=rounds))
  noisy = [k for k, e in table.entries.items() if e.noisy]
  assert noisy == [key]
  assert table.entries[key].rounds == 5
  assert any('networks 1 differ' in note for note in table.notes)
  assert '1 noisy (nor_conv_3x3/8x8x4/4/s1)' in check.report(table)


def test_summaries_follow_the_majority():
  rounds = Rounds(rounds=3, tolerance=0.05)
  found = measure.summarize([1.0, 1.01, 1.4, 1.02, 3.0], 300, rounds)
  assert found.ms == 1.02
  assert found.spread_ms == pytest.approx(0.02)
  assert not found.noisy
  # Two camps: no majority agrees.
  assert measure.summarize([1.0, 1.0, 2.0, 2.0], 240, rounds).noisy
  assert measure.summarize([1.0, 1.04], 120, rounds).noisy is False
  assert measure.summarize([1.0, 1.06], 120, rounds).noisy is True
  # A tenth of a microsecond is no disagreement, however short the op.
  assert measure.summarize([0.0001, 0.0002], 120, rounds).noisy is False


@pytest.mark.parametrize('after', [0, 1, 20, 50])
def test_a_device_that_vanishes_costs_no_reading(monkeypatch, out, after):
  """Resumed, each model is read as often as in a run that nothing disturbed."""
  whole = fakes.use(monkeypatch, fakes.Device())
  expected = session.run(fakes.request(out.with_name('whole.json')))
  device = fakes.use(monkeypatch, fakes.Device())
  device.breaks_after = after
  with pytest.raises(DeviceError, match='vanished'):
    session.run(fakes.request(out))
  assert not out.exists()
  assert device.closed == 1
  device.breaks_after = 10**9
  table = session.run(fakes.request(out))
  assert _values(table) == _values(expected)
  counts, others = (collections.Counter(d.asked) for d in (device, whole))
  # The sentinel is read once more at most.
  assert sum((counts - others).values()) <= 1
  assert not others - counts


def test_only_models_with_readings_to_come_are_made_ready(device, out):
  device.breaks_after = 60
  with pytest.raises(DeviceError, match='vanished'):
    session.run(fakes.request(out))
  everything = set(device.made_ready)
  counts = collections.Counter(device.asked)
  assert everything >= set(counts)
  device.breaks_after = 10**9
  session.run(fakes.request(out))
  left = {name for name in everything if counts[name] < 3}
  # The sentinel is read more often than in its rounds.
  assert left <= set(device.made_ready) < everything
  assert len(set(device.made_ready) - left) <= 1


def test_killed_while_it_writes_the_last_line_is_read_again(device, out):
  device.breaks_after = 30
  with pytest.raises(DeviceError):
    session.run(fakes.request(out))
  path = fakes.partial(out) / 'readings.jsonl'
  before = path.read_bytes()
  path.write_bytes(before[:-7])  # the line was cut off
  device.breaks_after = 10**9
  table = session.run(fakes.request(out))
  assert all(e.rounds in (3, None) for e in table.entries.values())
  assert all(
    e.value_ms in (0, fakes.truth(k)) for k, e in table.entries.items()
  )


def test_a_damaged_journal_names_the_line(device, out):
  device.breaks_after = 30
  with pytest.raises(DeviceError):
    session.run(fakes.request(out))
  path = fakes.partial(out) / 'readings.jsonl'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([*lines[:4], '{"model', *lines[5:]]) + '\n')
  with pytest.raises(UserError, match=r'line 5 of .*readings\.jsonl.*damaged'):
    session.run(fakes.request(out))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'dtype': 'float16'}, 'dtype: "float32" there, "float16" now'),
    ({'batch': 2}, 'batch: 1 there, 2 now'),
    ({'protocol': Protocol(min_ms=90.0)}, 'protocol.min_ms: 60.0 there'),
    ({'rounds': Rounds(rounds=5)}, 'rounds.rounds: 3 there, 5 now'),
    ({'networks': 5}, 'networks: 4 there, 5 now'),
  ],
)
def test_a_run_with_other_settings_does_not_go_on_with_these(
  device, out, change, words
):
  device.breaks_after = 5
  with pytest.raises(DeviceError):
    session.run(fakes.request(out))
  journaled = (fakes.partial(out) / 'readings.jsonl').read_bytes()
  with pytest.raises(UserError) as e:
    session.run(fakes.request(out, **change))
  assert words in str(e.value)
  for way_out in (f'Remove {fakes.partial(out)}', '--out', 'original settings'):
    assert way_out in str(e.value)
  assert '--workdir' not in str(e.value)
  assert (fakes.partial(out) / 'readings.jsonl').read_bytes() == journaled


def test_another_device_does_not_go_on_either(device, out):
  device.breaks_after = 5
  with pytest.raises(DeviceError):
    session.run(fakes.request(out))
  device.threads = 2
  with pytest.raises(UserError, match=r'device\.threads: 1 there, 2 now'):
    session.run(fakes.request(out))


def test_two_runs_cannot_share_a_table(device, out):
  """The second does not even look at the device, which the first is using."""

  def touched():
    raise AssertionError('the device was touched')

  device.prepare = touched
  with journal.reserved(out), pytest.raises(UserError, match='is in use by'):
    session.run(fakes.request(out))


def test_a_type_that_a_runner_does_not_measure_is_refused_at_once(device, out):
  with pytest.raises(UserError, match="--dtype is 'bfloat16'.*'float32'"):
    session.run(fakes.request(out, dtype='bfloat16'))
  assert not device.asked


def test_a_table_is_named_after_a_device(tmp_path):
  with pytest.raises(UserError, match='begin with a device'):
    fakes.request(tmp_path / '.nasbench201.json')


def test_a_finished_table_is_replaced_only_if_told_to(device, out):
  session.run(fakes.request(out))
  before = out.read_bytes()
  with pytest.raises(UserError, match='finished already.*--overwrite'):
    fakes.request(out)
  assert out.read_bytes() == before
  session.run(fakes.request(out, networks=5, overwrite=True))
  assert len(table_lib.load(out).networks) == 5


def test_a_name_that_is_no_table_is_refused_before_anything_is_done(tmp_path):
  for name in ('table.csv', '.json', 'table'):
    with pytest.raises(UserError, match=r'--out is .* must end in'):
      fakes.request(tmp_path / name)


def test_models_that_fail_are_named_and_the_others_kept(device, out):
  refused = {'nor_conv_3x3/8x8x4/4/s1', 'network/2'}
  device.refuses = refused
  with pytest.raises(UserError) as e:
    session.run(fakes.request(out))
  for words in (*refused, 'was refused', 'kept', '--skip_failed'):
    assert words in str(e.value)
  assert not out.exists()
  taken = len(device.asked)
  # Mended, only these are read.
  device.refuses = set()
  table = session.run(fakes.request(out))
  sentinel = collections.Counter(device.asked).most_common(1)[0][0]
  assert {n for n in device.asked[taken:] if n != sentinel} == refused
  table.check_covers(plan.make('nasbench201', fakes.SETTINGS, 0).spec)
  assert len(table.networks) == 4


def test_a_table_without_what_failed_says_so(device, out):
  device.refuses = {'nor_conv_3x3/8x8x4/4/s1', 'network/2'}
  request = fakes.request(out, skip_failed=True)
  table = session.run(request)
  missing = table.missing_keys(request.plan.spec)
  assert missing == ('nor_conv_3x3/8x8x4/4/s1',)
  kept = [g for i, g in enumerate(request.plan.networks) if i != 2]
  assert [r.genotype for r in table.networks] == kept
  notes = [n for n in table.notes if 'could not be measured' in n]
  assert len(notes) == 2


def test_a_device_that_runs_nothing_at_all_ends_the_run_at_once(device, out):
  device.refuses = {
    *plan.make('nasbench201', fakes.SETTINGS, 0).ops,
    *(f'network/{i}' for i in range(4)),
  }
  with pytest.raises(UserError, match='was refused'):
    session.run(fakes.request(out))
  assert not device.asked


def test_a_device_that_refuses_the_sentinel_measures_all_others(device, out):
  session.run(fakes.request(out))
  sentinel = collections.Counter(device.asked).most_common(1)[0][0]
  device.refuses = {sentinel}
  request = fakes.request(out, skip_failed=True, overwrite=True)
  table = session.run(request)
  assert table.missing_keys(request.plan.spec) == (sentinel,)
  assert table.source['sentinel_drift'] is None


def test_an_op_without_a_form_is_named_and_the_rest_stays_converted(
  device, out, monkeypatch
):
  working = convert.convert
  converted = []

  def fail(function, shape, target, name):
    if name.startswith('dense'):
      raise convert.ConversionError(f'{name} cannot be converted: no form.')
    converted.append(name)
    return working(function, shape, target, name)

  monkeypatch.setattr(convert, 'convert', fail)
  with pytest.raises(UserError, match='dense/1x1x16/10/s1 cannot be converted'):
    session.run(fakes.request(out))
  before = len(converted)
  assert before > 5
  monkeypatch.setattr(convert, 'convert', working)
  session.run(fakes.request(out))
  assert len(converted) == before  # none of them twice
