"""What a reader believes of a workdir."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from hwdarts_jax.runtime import workdir as workdir_lib

CONFIG = {'seed': 0, 'data': {'name': 'digits', 'sizes': (3, 4)}}


def _start(code, *args):
  """Starts Python on `code`, and returns when it has printed a line."""
  child = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
    stdout=subprocess.PIPE,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    text=True,
  )
  assert child.stdout.readline().strip() == 'ready'
  return child


def _kill(child):
  child.send_signal(signal.SIGKILL)
  child.wait()
  child.stdout.close()


def test_a_file_killed_while_written_is_old_or_new(tmp_path):
  code = """
      import sys
      from hwdarts_jax.runtime import workdir
      workdir.write_text_atomic(sys.argv[1], 'a' * 300_000)
      print('ready', flush=True)
      while True:
        for letter in 'ba':
          workdir.write_text_atomic(sys.argv[1], letter * 300_000)
      """
  path = tmp_path / 'file'
  child = _start(code, path)
  for _ in range(200):  # also while it is being written
    assert path.read_text() in ('a' * 300_000, 'b' * 300_000)
  _kill(child)
  assert path.read_text() in ('a' * 300_000, 'b' * 300_000)


@pytest.mark.parametrize('name', ['replace', 'fsync'])
def test_a_full_disk_leaves_the_old_file_and_no_litter(
  tmp_path, monkeypatch, name
):
  path = tmp_path / 'file.json'
  workdir_lib.write_json_atomic(path, {'a': 1})

  def fail(*unused):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, name, fail)
  with pytest.raises(OSError, match=r'Cannot write .*No space left') as e:
    workdir_lib.write_json_atomic(path, {'a': 2})
  assert e.value.errno == errno.ENOSPC
  assert json.loads(path.read_text()) == {'a': 1}
  assert os.listdir(tmp_path) == ['file.json']


def test_a_workdir_records_config_versions_and_hashes(tmp_path):
  path = workdir_lib.prepare(
    tmp_path / 'new' / 'run', CONFIG, hashes={'t': 'h'}
  )
  record = json.loads((path / 'config.json').read_text())
  assert record['config'] == json.loads(json.dumps(CONFIG))
  assert record['hashes'] == {'t': 'h'}
  assert set(record['versions']) == {
    'python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'hwdarts_jax'
  }  # fmt: skip


def test_the_same_settings_may_come_back(tmp_path):
  workdir_lib.prepare(tmp_path, CONFIG)
  before = (tmp_path / 'config.json').read_bytes()
  workdir_lib.prepare(tmp_path, CONFIG | {'log': 1}, ignore=['log'])
  assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
  ('change', 'hashes', 'words'),
  [
    ({'seed': 1}, {}, r'seed: 0 there, 1 now'),
    ({'data': {'name': 'x', 'sizes': [3, 4]}}, {}, r'data\.name: "digits"'),
    ({'more': {}}, {}, r'more: \(absent\) there, \{\} now'),
    ({}, {'table': 'b'}, r'hash of table: "a" there, "b" now'),
  ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, hashes, words):
  workdir_lib.prepare(tmp_path, CONFIG, hashes={'table': 'a'})
  with pytest.raises(workdir_lib.UserError, match=words) as e:
    workdir_lib.prepare(
      tmp_path, CONFIG | change, hashes={'table': 'a'} | hashes
    )
  assert str(tmp_path) in str(e.value)
  assert 'another --workdir' in str(e.value)


def test_ignoring_a_field_does_not_ignore_its_namesakes(tmp_path):
  workdir_lib.prepare(tmp_path, {'log': 1, 'logs': 1})
  with pytest.raises(workdir_lib.UserError, match='logs: 1 there, 2 now'):
    workdir_lib.prepare(tmp_path, {'log': 2, 'logs': 2}, ignore=['log'])


def test_other_versions_only_warn(tmp_path, caplog):
  workdir_lib.prepare(tmp_path, CONFIG)
  path = tmp_path / 'config.json'
  record = json.loads(path.read_text())
  record['versions']['jax'] = '0.0.1'
  path.write_text(json.dumps(record))
  workdir_lib.prepare(tmp_path, CONFIG)
  assert 'jax "0.0.1"' in caplog.text


@pytest.mark.parametrize('use', [workdir_lib.prepare, workdir_lib.lock])
def test_a_foreign_folder_is_not_touched(tmp_path, use):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(workdir_lib.UserError, match=r'not empty \(thesis.tex\)'):
    if use is workdir_lib.lock:
      with use(tmp_path):
        pass
    else:
      use(tmp_path, CONFIG)
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(workdir_lib.UserError, match='Cannot make the folder'):
    workdir_lib.prepare(tmp_path / 'file', CONFIG)


def test_what_a_killed_first_write_left_is_no_foreign_folder(tmp_path):
  (tmp_path / '.tmp-config.json-1-ab').write_text('{"conf')
  with workdir_lib.lock(tmp_path):
    workdir_lib.prepare(tmp_path, CONFIG)
  assert sorted(os.listdir(tmp_path)) == ['.lock', 'config.json']


@pytest.mark.parametrize(
  'text',
  ['', '{"config"', '[]', '{"config": {}}',
   '{"config": 1, "versions": {}, "hashes": {}}', '\xff'],
)  # fmt: skip
def test_a_damaged_config_is_a_clear_error(tmp_path, text):
  (tmp_path / 'config.json').write_bytes(text.encode('latin-1'))
  with pytest.raises(workdir_lib.UserError, match='is damaged'):
    workdir_lib.prepare(tmp_path, CONFIG)


def test_two_runs_cannot_share_a_workdir_until_the_first_is_killed(tmp_path):
  code = """
      import sys, time
      from hwdarts_jax.runtime import workdir
      with workdir.lock(sys.argv[1]):
        print('ready', flush=True)
        time.sleep(60)
      """
  child = _start(code, tmp_path)
  with (
    pytest.raises(workdir_lib.UserError, match=f'process {child.pid} on'),
    workdir_lib.lock(tmp_path),
  ):
    pass
  _kill(child)
  for _ in range(2):  # and a lock that is let go can be taken again
    with workdir_lib.lock(tmp_path):
      pass
