"""Boards by ssh, against a real sshd on loopback."""

import pathlib
import subprocess
import sys
import threading

import pytest
import remote_peers as peers

from hwdarts_jax.harness import runners
from hwdarts_jax.harness.runners import _remote, DeviceError, ModelError

_SETTINGS = 'affinity=none,tool=benchmark_model'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  peers.skip_without('sshd', 'ssh', 'ssh-keygen')
  with peers.ssh_server(tmp_path_factory.mktemp('sshd')) as config:
    yield config


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
  monkeypatch.setattr(_remote, '_KILL_AFTER_S', 0.5)


@pytest.fixture
def tool(tmp_path):
  return peers.program(tmp_path, 'tool', peers.TOOL)


def _make(config, tmp_path, settings):
  (tmp_path / 'board').mkdir(exist_ok=True)
  return runners.make(
    f'ssh:host=board,config={config},directory={tmp_path}/board,{settings}'
  )


def _runner(config, tmp_path, tool):
  return _make(config, tmp_path, f'{_SETTINGS},upload={tool}')


def test_a_model_is_pushed_timed_and_removed(config, tool, tmp_path):
  with _runner(config, tmp_path, tool) as runner:
    about = runner.prepare()
    assert about.runtime == 'TensorFlow Lite benchmark_model'
    assert about.facts['machine']
    model = peers.model(tmp_path, peers.takes(1234.5))
    assert runner.measure(model, peers.QUICK).ms == pytest.approx(1.2345)
    assert runner.measure(model, peers.QUICK).ms == pytest.approx(1.2345)
  assert not list((tmp_path / 'board').iterdir())


def test_files_arrive_to_the_byte(config, tool, tmp_path):
  data = bytes(range(256)) * 999
  local = tmp_path / 'random.bin'
  local.write_bytes(data)
  with _runner(config, tmp_path, tool) as runner:
    runner.open()
    placed = pathlib.Path(runner.place(local))
    assert placed.read_bytes() == data


def test_a_shell_that_greets_is_no_harm(tool, tmp_path):
  """A `.bashrc` may print; what is pushed, or found, is known by output."""
  peers.skip_without('sshd', 'ssh', 'ssh-keygen')
  with peers.ssh_server(tmp_path, greeting='Welcome to the board') as config:
    for program in (f'upload={tool}', f'binary={tool}'):
      with _make(config, tmp_path, f'{_SETTINGS},{program}') as runner:
        assert 'Welcome' not in str(runner.prepare())
        assert runner.link.run('printf "a\\nb"').output == 'a\nb'
        assert not runner.link.run('true').output
        model = peers.model(tmp_path, peers.takes(1234.5))
        ms = runner.measure(model, peers.QUICK).ms
        assert ms == pytest.approx(1.2345)


def test_a_host_that_is_not_there(config, tmp_path):
  with (
    runners.make('ssh:host=no.such.host.invalid') as runner,
    pytest.raises(DeviceError, match='There is no host no.such.host.invalid'),
  ):
    runner.prepare()
  port = peers.free_port()
  with (
    runners.make(f'ssh:host=board,config={config},port={port}') as runner,
    pytest.raises(DeviceError, match='board cannot be reached.*refused'),
  ):
    runner.prepare()


def test_a_key_that_does_not_let_in(config, tmp_path):
  strange = tmp_path / 'config'
  strange.write_text(config.read_text().replace('user_key', 'stranger_key'))
  with (
    _make(strange, tmp_path, _SETTINGS) as runner,
    pytest.raises(DeviceError, match='does not let us in.*ssh-copy-id board'),
  ):
    runner.prepare()


def test_a_host_key_that_is_not_known(config, tmp_path):
  strange = tmp_path / 'config'
  strange.write_text(config.read_text().replace('known_hosts', 'unknown_hosts'))
  with (
    _make(strange, tmp_path, _SETTINGS) as runner,
    pytest.raises(DeviceError, match='Connect once by hand with `ssh board`'),
  ):
    runner.prepare()


def test_a_board_that_vanishes(tool, tmp_path):
  peers.skip_without('sshd', 'ssh', 'ssh-keygen')
  note = tmp_path / 'child'
  # The board's own sshd goes first, then the process that serves us.
  dies = peers.model(
    tmp_path,
    f'echo $$ > {note}\nkill $(cat {tmp_path}/pid_of_sshd)\n'
    'p=$PPID\nwhile ! grep -q sshd /proc/$p/comm; do\n'
    r'  p=$(sed "s/.*) . \([0-9]*\) .*/\1/" /proc/$p/stat)'
    '\ndone\nkill -9 $p\nexec sleep 100',
  )
  with (
    peers.ssh_server(tmp_path) as config,
    _runner(config, tmp_path, tool) as runner,
  ):
    runner.prepare()
    (tmp_path / 'pid_of_sshd').write_text((tmp_path / 'pid').read_text())
    with pytest.raises(DeviceError, match='board vanished'):
      runner.measure(dies, runners.Protocol(timeout_s=1.5))
  assert peers.gone(int(note.read_text()))


def test_a_model_that_hangs_is_ended_on_the_board(config, tool, tmp_path):
  note = tmp_path / 'child'
  hangs = f'trap "" TERM\necho $$ > {note}\nexec sleep 100'
  with _runner(config, tmp_path, tool) as runner:
    runner.prepare()
    with pytest.raises(ModelError, match='ran into the limit of 1 s'):
      runner.measure(
        peers.model(tmp_path, hangs), runners.Protocol(timeout_s=1.0)
      )
    assert peers.gone(int(note.read_text()), within_s=0.5)


def _interrupt(runner, model, note, monkeypatch):
  """The client dies, as by a signal, while the board measures."""

  def interrupted(self, timeout=None):
    del self, timeout
    while not note.exists() or not note.read_text():
      pass
    raise KeyboardInterrupt

  runner.place(model.path)
  runner._readings = 1  # no look at the temperature now
  with monkeypatch.context() as patch:
    patch.setattr(subprocess.Popen, 'communicate', interrupted)
    with pytest.raises(KeyboardInterrupt):
      runner.measure(model, runners.Protocol(timeout_s=500.0))
  assert not peers.gone(int(note.read_text()), within_s=0.2)


@pytest.mark.parametrize(
  ('script', 'message'),
  [
    ('exec sleep 100', 'limit of 1 s and was ended on the device'),
    ('kill -9 $$', 'was killed on the device'),
    ('echo "ERROR: cannot read $model"\nexit 1', 'cannot read op.tflite'),
  ],
)
def test_what_a_table_cites_does_not_say_where_the_device_is(
  config, tool, tmp_path, script, message
):
  """The session writes a ModelError word for word into the notes."""
  model = peers.model(tmp_path, script)
  with _runner(config, tmp_path, tool) as runner:
    runner.prepare()
    with pytest.raises(ModelError, match=message) as error:
      runner.measure(model, runners.Protocol(timeout_s=1.0))
    assert runner.link.name == 'board'
  assert 'board' not in str(error.value)


def test_an_interrupted_reading_leaves_nothing_running(
  config, tool, tmp_path, monkeypatch
):
  """As by Ctrl-C: the client dies, and `close` ends what it had started."""
  note = tmp_path / 'child'
  model = peers.model(tmp_path, f'echo $$ > {note}\nexec sleep 100')
  runner = _runner(config, tmp_path, tool)
  runner.prepare()
  _interrupt(runner, model, note, monkeypatch)
  runner.close()
  assert peers.gone(int(note.read_text()))


@pytest.mark.parametrize('trap', ['', 'trap "" TERM\n'])
def test_a_new_run_ends_what_a_killed_one_left_running(
  config, tool, tmp_path, monkeypatch, trap
):
  """As by kill -9, or by a lost link: there is no `close`."""
  note = tmp_path / 'child'
  model = peers.model(tmp_path, f'{trap}echo $$ > {note}\nexec sleep 100')
  killed = _runner(config, tmp_path, tool)
  killed.prepare()
  _interrupt(killed, model, note, monkeypatch)
  with _runner(config, tmp_path, tool) as runner:
    runner.prepare()
    assert peers.gone(int(note.read_text()), within_s=0.2)
  killed.close()


def test_a_run_that_is_taken_over_in_a_reading_says_so(config, tool, tmp_path):
  note = tmp_path / 'child'
  model = peers.model(tmp_path, f'echo $$ > {note}\nexec sleep 100')
  errors = []

  def measure(runner):
    try:
      runner.measure(model, runners.Protocol(timeout_s=50.0))
    except runners.UserError as e:
      errors.append(e)

  first, second = (_runner(config, tmp_path, tool) for _ in range(2))
  with first, second:
    first.prepare()
    thread = threading.Thread(target=measure, args=(first,))
    thread.start()
    while not note.exists() or not note.read_text():
      pass
    second.prepare()
    thread.join(20.0)
  (error,) = errors
  # Not a ModelError, after which the run would go on with the next model.
  assert isinstance(error, DeviceError)
  assert 'another run has taken it over' in str(error)


def test_a_number_that_is_another_process_s_by_now_is_not_killed(
  config, tool, tmp_path
):
  with subprocess.Popen(['sleep', '100'], cwd=tmp_path) as innocent:
    with _runner(config, tmp_path, tool) as before:
      for runner in (before, _runner(config, tmp_path, tool)):
        runner.prepare()
        pathlib.Path(runner.folder, 'pid').write_text(f'{innocent.pid}\n')
      runner.close()
    assert not peers.gone(innocent.pid, within_s=0.2)
    innocent.kill()


def test_a_full_disk(config, tool, tmp_path):
  with _runner(config, tmp_path, tool) as runner:
    runner.prepare()
    model = peers.model(tmp_path, peers.takes(5))
    # Every write to this device fails as on a full disk.
    pathlib.Path(runner.folder, model.path.name).symlink_to('/dev/full')
    with pytest.raises(DeviceError, match='board has no space left'):
      runner.measure(model, peers.QUICK)


def test_a_program_that_is_missing_or_not_executable(config, tool, tmp_path):
  with (
    _make(config, tmp_path, f'{_SETTINGS},binary=/no/such') as runner,
    pytest.raises(DeviceError, match='There is no /no/such on board'),
  ):
    runner.prepare()
  tool.chmod(0o644)
  with (
    _make(config, tmp_path, f'{_SETTINGS},binary={tool}') as runner,
    pytest.raises(DeviceError, match='on board is not executable'),
  ):
    runner.prepare()


def test_a_program_that_is_something_else(config, tmp_path):
  with (
    _make(config, tmp_path, f'{_SETTINGS},binary=ls') as runner,
    pytest.raises(DeviceError, match='is not benchmark_model'),
  ):
    runner.prepare()


def test_litert_in_python_on_the_board_times_a_real_model(config, tmp_path):
  pytest.importorskip('ai_edge_litert', reason='needs the extra [tflite]')
  small, large = (peers.convolution(tmp_path, n, 'tflite') for n in (8, 64))
  settings = f'affinity=none,python={sys.executable}'
  with _make(config, tmp_path, settings) as runner:
    about = runner.prepare()
    assert about.runtime == 'ai_edge_litert'
    assert about.runtime_version
    assert about.statistic == 'median of CPU time, less that of an empty model'
    assert 0 < about.facts['empty_model_ms'] < 1
    few = runner.measure(small, peers.QUICK)
    many = runner.measure(large, peers.QUICK)
  # 64 times the work.
  assert many.ms > 4 * few.ms > 0
  assert few.runs >= 2


def test_the_call_of_litert_on_the_board_is_no_part_of_a_reading(
  config, tmp_path
):
  """Python there says how long models take; the empty one is real."""
  pytest.importorskip('litert_converter', reason='needs the extra [tflite]')
  about = '{"runtime": "tflite_runtime", "version": "2.14.0"}'
  python = peers.program(
    tmp_path,
    'python',
    '#!/bin/sh\ncase $2 in\n'
    f"--about) echo 'hwdarts: {about}';;\n"
    '*empty*) [ -s "$2" ] && echo \'hwdarts: {"ms": 0.25, "runs": 9}\';;\n'
    '*) . "$2";;\nesac\n',
  )
  models = [
    peers.model(tmp_path, f'echo \'hwdarts: {{"ms": {ms}, "runs": 7}}\'', name)
    for name, ms in (('op', 1.0), ('tiny', 0.2))
  ]
  with _make(config, tmp_path, f'affinity=none,python={python}') as runner:
    assert runner.prepare().facts['empty_model_ms'] == 0.25
    op, tiny = (runner.measure(m, peers.QUICK) for m in models)
  assert (op.ms, op.runs) == (pytest.approx(0.75), 7)
  assert tiny.ms == 0


def test_a_board_where_no_model_runs_ends_the_run(config, tmp_path):
  pytest.importorskip('litert_converter', reason='needs the extra [tflite]')
  python = peers.program(
    tmp_path,
    'python',
    '#!/bin/sh\n[ "$2" = --about ] || exec echo Illegal instruction\n'
    'echo \'hwdarts: {"runtime": "tflite_runtime", "version": "2.14.0"}\'\n',
  )
  with (
    _make(config, tmp_path, f'affinity=none,python={python}') as runner,
    pytest.raises(DeviceError, match='board measures nothing: .*Illegal'),
  ):
    runner.prepare()


def test_a_board_without_litert(config, tmp_path):
  python = peers.program(
    tmp_path, 'python', '#!/bin/sh\necho no module\nexit 1'
  )
  with (
    _make(config, tmp_path, f'affinity=none,python={python}') as runner,
    pytest.raises(DeviceError, match='on board has no LiteRT.*pip install'),
  ):
    runner.prepare()


def test_a_python_that_is_missing_is_given_by_its_own_setting(config, tmp_path):
  with (
    _make(config, tmp_path, 'affinity=none,python=no-such-python') as runner,
    pytest.raises(
      DeviceError, match='no no-such-python .* by python='
    ) as error,
  ):
    runner.prepare()
  assert 'binary' not in str(error.value)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ('ssh', 'host is not given'),
    ('ssh:host=-oProxyCommand=x', 'no leading dash'),
    ('ssh:host=pi,tool=other', "tool is 'other'"),
    ('ssh:host=pi,upload=x', 'upload is a setting of tool=benchmark_model'),
    ('ssh:host=pi,directory=here', "directory is 'here'"),
    ('ssh:host=pi,cooldown_s=-1', 'cooldown_s is -1'),
  ],
)
def test_a_wrong_setting_is_named(settings, message):
  with pytest.raises(runners.UserError, match=message):
    runners.make(settings)
