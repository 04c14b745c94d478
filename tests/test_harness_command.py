"""`python -m hwdarts_jax.harness`, as a user starts it."""

import json
import signal
import time

import pytest
import tiny_runs

from hwdarts_jax.latency import table as table_lib

_MODULE = 'hwdarts_jax.harness'
_QUICK = ('--min_ms=0', '--min_runs=2', '--networks=3')


@pytest.fixture
def harness(nursery):
  """Starts the command with a small DARTS space, on this CPU."""

  def start(out, *flags, config=tiny_runs.CONFIG):
    return nursery.start(
      f'--config={config}',
      '--runner=jax_device:device=cpu',
      f'--out={out}',
      *_QUICK,
      *flags,
      module=_MODULE,
    )

  return start


def _check_message(result, *words):
  assert result.code == 2, result.err
  assert 'Traceback' not in result.err + result.out, result.err
  errors = [x for x in result.err.splitlines() if 'Error' in x]
  assert len(errors) == 1 and errors[0].startswith('Error: '), result.err
  for word in words:
    assert word in result.err, (word, result.err)


def test_killed_by_force_it_goes_on_where_it_was(harness, tmp_path):
  """No reading that was taken is taken again; the table is complete."""
  out = tmp_path / 'cpu.darts.json'
  path = tmp_path / 'cpu.darts.json.partial' / 'readings.jsonl'
  flags = ('--networks=3', '--rounds=1')
  first = harness(out, *flags)
  while not (path.exists() and path.read_bytes().count(b'\n') >= 6):
    assert not first.is_over(), first.wait().err
    time.sleep(0.01)
  first.signal(signal.SIGKILL)
  assert first.wait().code == -signal.SIGKILL
  assert not out.exists()
  lines = [json.loads(x) for x in path.read_text().splitlines() if x[-1] == '}']
  before = {x['model']: x['ms'] for x in lines if x['model'] != 'sentinel'}
  result = harness(out, *flags).wait()
  assert result.code == 0, result.err
  table = table_lib.load(out)
  assert len(table.networks) == 3
  assert len(before) >= 5
  for model, ms in before.items():
    if model.startswith('network/'):
      row = table.networks[int(model.partition('/')[2])]
      assert row.value_ms == ms
    else:
      assert table.entries[model].value_ms == ms
  assert f'The table is {out}.' in result.out
  assert not path.parent.exists()


def test_a_plan_is_printed_and_nothing_is_done(harness, tmp_path):
  out = tmp_path / 'cpu.darts.json'
  result = harness(out, '--dry_run', '--networks=40').wait()
  assert result.code == 0, result.err
  assert 'minutes' in result.out
  assert '40 whole networks' in result.out
  assert 'dil_conv_3x3/8x8x8/8/s2' in result.out
  assert not list(tmp_path.iterdir())
  more = harness(out, '--dry_run', '--resolutions=16', '--widths=2').wait()
  for key in ('dil_conv_3x3/16x16x8/8/s2', 'dil_conv_3x3/16x16x16/16/s2'):
    assert key not in result.out
    assert key in more.out


def test_what_was_measured_can_be_searched_with(
  harness, nursery, command, tmp_path
):
  """A search takes the table as it is, and it passes --check."""
  out = tmp_path / 'cpu.darts.json'
  assert harness(out, '--networks=2', '--rounds=1').wait().code == 0
  checked = nursery.run(f'--check={out}', module=_MODULE)
  assert checked.code == 0, checked.err
  assert 'too few' in checked.out
  overrides = {'latency.table': out, 'search.num_steps': 2}
  flags = command(tmp_path / 'search', **overrides)
  assert nursery.run(*flags).code == 0
  again = harness(out, '--networks=2').wait()
  _check_message(again, 'finished already', '--overwrite')


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (('--runner=abacus',), ("'abacus'", 'known runners')),
    (('--runner=jax_device:device=abacus',), ('no device', 'abacus')),
    (('--runner=',), ('--runner is missing',)),
    (('--out=table.txt',), ('--out', '.json')),
    (('--dtype=float64',), ('dtype', 'float64', 'float32')),
    (('--dtype=int8',), ('--dtype', 'int8', 'float16')),
    (('--networks=-1',), ('networks', '-1')),
    (('--networks=50',), ('only 49 different networks',)),
    (('--batch=0',), ('batch',)),
    (('--rounds=0',), ('rounds',)),
    (('--resolutions=large',), ('--resolutions', 'large')),
    (('--check=/nowhere/table.json',), ('/nowhere/table.json',)),
    (('--check=pixel5',), ('pixel5', 'available are')),
    (('--config=configs/pixel5.py',), ('pixel5.py', 'not a file')),
    (('--cofnig=1',), ('cofnig',)),
    (('surplus',), ('surplus',)),
  ],
)
def test_mistakes_are_one_message(harness, tmp_path, flags, words):
  result = harness(tmp_path / 'cpu.darts.json', *flags).wait()
  _check_message(result, *words)
  assert not list(tmp_path.glob('*.json'))


def test_the_config_of_another_job_names_a_space_as_well(harness, tmp_path):
  out = tmp_path / 'cpu.json'
  result = harness(out, '--dry_run', config='configs/predictor.py').wait()
  assert result.code == 0, result.err
  assert 'Space nasbench201' in result.out


def test_a_table_without_the_keys_of_a_config_says_what_to_do(
  nursery, tmp_path
):
  path = tmp_path / 'toy.json'
  tiny_runs.write_table(path)
  data = json.loads(path.read_text()) | {'space': 'darts'}
  path.write_text(json.dumps(data))
  flags = (f'--check={path}', '--config=configs/host_cpu.py:space=darts')
  result = nursery.run(*flags, module=_MODULE)
  _check_message(result, 'does not cover', 'python -m hwdarts_jax.harness')
  data['schema'] = 0
  path.write_text(json.dumps(data))
  _check_message(nursery.run(*flags, module=_MODULE), 'schema is 0')
