"""What the harness does when the disk is full."""

import collections
import errno
import json
import os
import resource
import signal

import harness_fakes as fakes
import pytest

from hwdarts_jax.harness import journal, session
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime.workdir import UserError


@pytest.fixture
def device(monkeypatch):
  return fakes.use(monkeypatch, fakes.Device())


class _FullDisk:
  """From the nth call on there is no space."""

  def __init__(self, after):
    self.left = after
    self.fsync = os.fsync

  def __call__(self, fd):
    self.left -= 1
    if self.left < 0:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    self.fsync(fd)


@pytest.mark.parametrize('after', [1, 30, 100])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
  device, tmp_path, monkeypatch, after
):
  out = tmp_path / 'a.json'
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', _FullDisk(after))
    with pytest.raises(UserError, match='No space left') as e:
      session.run(fakes.request(out))
  assert 'Traceback' not in str(e.value)
  assert not out.exists()
  taken = collections.Counter(device.asked)
  table = session.run(fakes.request(out))
  assert all(e.rounds in (3, None) for e in table.entries.values())
  # Only the reading that could not be written is taken again.
  again = collections.Counter(device.asked)
  assert sum(again.values()) <= sum(taken.values()) + 4 * 19 + 20
  assert not fakes.partial(out).exists()


def test_a_disk_that_fills_within_a_line_keeps_the_lines_before(tmp_path):
  """The real thing: the system writes a part of a line and refuses the rest."""
  out = tmp_path / 'a.json'
  kept = []
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  with journal.reserved(out) as folder:
    log = journal.begin(folder, {'a': 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
      with pytest.raises(UserError, match='Cannot write to'):
        for i in range(100):
          log.add_reading({'model': 'm', 'round': i, 'ms': 1.0})
          kept.append(i)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, old)
      signal.signal(signal.SIGXFSZ, handler)
  assert 5 < len(kept) < 100
  with journal.reserved(out) as folder:
    log = journal.begin(folder, {'a': 1})
    assert [r['round'] for r in log.readings] == kept
    log.add_reading({'model': 'm', 'round': len(kept), 'ms': 1.0})
  lines = (fakes.partial(out) / 'readings.jsonl').read_text().splitlines()
  assert [json.loads(line)['round'] for line in lines] == [*kept, len(kept)]


def test_a_table_that_cannot_be_written_keeps_the_readings(
  device, tmp_path, monkeypatch
):
  out = tmp_path / 'a.json'

  def full(table, path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(table_lib, 'save', full)
    with pytest.raises(UserError, match='Cannot write .* No space left'):
      session.run(fakes.request(out))
  taken = len(device.asked)
  session.run(fakes.request(out))
  assert len(device.asked) == taken  # nothing is measured twice
