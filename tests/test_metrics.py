"""What a reader believes of metrics, and of what is shown meanwhile."""

import errno
import json
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from hwdarts_jax.runtime import metrics


def _write(path, steps, resume_step=None):
  with metrics.MetricsWriter(path, resume_step) as writer:
    for step in steps:
      writer.write(step, {'loss': step / 2})


def test_an_interrupted_run_has_every_step_once(tmp_path):
  _write(tmp_path, range(1, 8))
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 8, "lo')  # killed here; the last checkpoint was of 5
  _write(tmp_path, range(6, 11), resume_step=5)
  rows = metrics.read(tmp_path)
  assert [r['step'] for r in rows] == list(range(1, 11))
  assert [r['loss'] for r in rows] == [s / 2 for s in range(1, 11)]


def test_a_run_from_the_start_forgets_rows_without_a_checkpoint(tmp_path):
  _write(tmp_path, range(5))
  _write(tmp_path, range(2))
  assert [r['step'] for r in metrics.read(tmp_path)] == [0, 1]


def test_a_row_is_on_disk_when_write_returns(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'loss': 2.0})
    assert metrics.read(tmp_path) == [{'step': 1, 'loss': 2.0}]


def test_a_step_cannot_have_two_rows(tmp_path):
  _write(tmp_path, [3])
  with (
    metrics.MetricsWriter(tmp_path, 3) as writer,
    pytest.raises(ValueError, match=r'step is 3; it must be later than 3'),
  ):
    writer.write(3, {'loss': 0.0})


def test_rows_are_json_also_when_the_loss_is_not_a_number(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {
      'a': jnp.float32(0.5), 'b': np.nan, 'c': -np.inf, 'd': np.int64(3),
      'e': jnp.asarray([1.0, jnp.nan]), 'f': 'word', 'g': True,
    })  # fmt: skip

  def no_constants(name):
    raise AssertionError(f'{name} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(text, parse_constant=no_constants) == {
    'step': 1, 'a': 0.5, 'b': None, 'c': None, 'd': 3, 'e': [1.0, None],
    'f': 'word', 'g': True,
  }  # fmt: skip
  assert np.isnan(metrics.read(tmp_path)[0]['b'])


def test_what_is_no_metric_is_refused_by_name(tmp_path):
  with (
    metrics.MetricsWriter(tmp_path) as writer,
    pytest.raises(ValueError, match=r"metric 'loss' is <object"),
  ):
    writer.write(1, {'loss': object()})


def test_a_row_that_a_bad_disk_tore_costs_only_itself(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n\xff\xfe{]\n[]\n{"step": 2}\n')
  assert metrics.read(tmp_path) == [{'step': 1}, {'step': 2}]
  assert 'line 2 is no row' in caplog.text


def test_a_full_disk_is_a_clear_error(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    real, writer._file = writer._file, open('/dev/full', 'wb', buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match='Cannot write a row') as e:
      writer.write(1, {'loss': 1.0})
    assert e.value.errno == errno.ENOSPC
    writer._file.close()
    writer._file = real


def test_no_rows_where_no_run_was(tmp_path):
  assert metrics.read(tmp_path) == []


def test_tensorboard_gets_the_numbers_and_where_a_run_resumed(tmp_path):
  _write(tmp_path, [1, 2])
  _write(tmp_path, [2], resume_step=1)
  data = b''.join(
    p.read_bytes() for p in sorted((tmp_path / 'tensorboard').iterdir())
  )
  events = list(_events(data))
  losses = [
    (e.step, v.simple_value)
    for e in events
    for v in e.summary.value
    if v.tag == 'loss'
  ]
  assert sorted(losses) == [(1, 0.5), (2, 1.0), (2, 1.0)]
  starts = [
    e.step for e in events if e.session_log.status == event_pb2.SessionLog.START
  ]
  assert 2 in starts  # TensorBoard drops what older files say from here on


def _events(data):
  """Parses TFRecords: length, its checksum, bytes, their checksum."""
  while data:
    size = int.from_bytes(data[:8], 'little')
    yield event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


class _Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: self.now)


def test_without_a_terminal_progress_is_a_line_in_ten_seconds(
  capsys, monkeypatch
):
  clock = _Clock(monkeypatch)
  with metrics.Progress(100, initial=10, desc='search') as progress:
    clock.now += 60  # the first update compiles, which says nothing of the rate
    for _ in range(30):
      progress.update(values={'loss': 1.23456, 'ms': 7.5})
      clock.now += 1
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3
  assert lines[1] == (
    'search 21/100 (21 %), 1 steps/s, 0:01:19 left, loss 1.235, ms 7.5'
  )


def test_the_last_step_is_always_shown(capsys):
  progress = metrics.Progress(2, desc='search')
  progress.update()
  progress.update(values={'loss': 1.0})
  progress.close()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert re.match(r'search 2/2 \(100 %\).*, loss 1$', lines[0])


def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
  monkeypatch.setattr('sys.stderr.isatty', lambda: True)
  with metrics.Progress(4, desc='search') as progress:
    progress.update(4, {'loss': 0.25})
  err = capsys.readouterr().err
  assert '4/4' in err
  assert 'loss=0.25' in err


@pytest.mark.parametrize('terminal', [True, False])
def test_a_heartbeat_counts_the_seconds(capsys, monkeypatch, terminal):
  monkeypatch.setattr('sys.stderr.isatty', lambda: terminal)
  monkeypatch.setattr(metrics, '_PLAIN_SECONDS', 1.0)
  with metrics.heartbeat('compiling'):
    time.sleep(1.2)
  err = capsys.readouterr().err
  assert 'compiling... 1 s' in err
  assert err.endswith('compiling: done in 1 s\n')


def test_a_heartbeat_of_a_moment_is_silent_and_lets_errors_pass(capsys):
  with pytest.raises(KeyError), metrics.heartbeat('compiling'):
    raise KeyError
  with metrics.heartbeat('compiling'):
    pass
  assert capsys.readouterr().err == ''
