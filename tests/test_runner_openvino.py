"""OpenVINO: the real benchmark_app on this CPU, and a script for sticks."""

import importlib.util
import json
import pathlib
import sys

import pytest
import remote_peers as peers

from hwdarts_jax.harness import runners
from hwdarts_jax.harness.runners import _remote, DeviceError, ModelError

_STICK = 'Intel Movidius Myriad X VPU'
_HELP = '-niter -ip {U8,FP16,FP32} -nstreams'


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
  monkeypatch.setattr(_remote, '_KILL_AFTER_S', 0.5)


def _app(folder, devices=('CPU', 'MYRIAD'), help_text=_HELP):
  """A benchmark_app of 2022 whose devices are `devices`."""
  about = json.dumps(['2022.3.1', dict.fromkeys(devices, _STICK)])
  # Asked for the devices it is Python, else the shell that runs the tool.
  python = peers.program(
    folder,
    'python',
    '#!/bin/sh\n'
    f'[ "$1" != -c ] || {{ echo \'hwdarts: {about}\'; exit; }}\n'
    'exec sh "$@"\n',
  )
  return peers.program(
    folder,
    'benchmark_app',
    f'#!{python}\n'
    f'[ "$1" != -h ] || {{ echo \'{help_text}\'; exit; }}\n'
    f'echo "$*" >> {folder}/calls\n. "$2"\n',
  )


def _runner(tmp_path, settings):
  (tmp_path / 'host').mkdir(exist_ok=True)
  return runners.make(f'openvino:directory={tmp_path}/host,{settings}')


def _stick(tmp_path, settings='', **kw):
  app = _app(tmp_path, **kw)
  return _runner(tmp_path, f'target=MYRIAD,binary={app},{settings}')


def _model(tmp_path, script, name='op', dtype='float16'):
  return peers.model(tmp_path, script, name, dtype, 'onnx')


def test_the_real_tool_times_a_real_model_on_this_cpu(tmp_path):
  app = pathlib.Path(sys.executable).with_name('benchmark_app')
  if importlib.util.find_spec('openvino') is None or not app.exists():
    pytest.skip('needs the extra [openvino]')
  small, large = (peers.convolution(tmp_path, n, 'onnx') for n in (8, 64))
  with _runner(tmp_path, f'target=CPU,binary={app}') as runner:
    about = runner.prepare()
    assert (about.runtime, about.threads) == ('OpenVINO', 1)
    assert about.runtime_version
    assert about.soc
    few = runner.measure(small, peers.QUICK)
    many = runner.measure(large, peers.QUICK)
    assert few.runs >= peers.QUICK.min_runs
    # 64 times the work.
    assert many.ms > 4 * few.ms > 0
    broken = _model(tmp_path, 'no protobuf', dtype='float32')
    with pytest.raises(ModelError, match='op/key: .*printed no latency'):
      runner.measure(broken, peers.QUICK)
  with (
    _runner(tmp_path, f'target=MYRIAD,binary={app}') as runner,
    pytest.raises(DeviceError, match='no device MYRIAD .*2022.3 or older'),
  ):
    runner.prepare()


def test_a_stick_is_measured_in_float16(tmp_path):
  log = peers.LOGS / 'benchmark_app_2021.log'
  with _stick(tmp_path) as runner:
    about = runner.prepare()
    assert (about.soc, about.runtime_version) == (_STICK, '2022.3.1')
    assert (about.delegate, about.threads) == ('MYRIAD', None)
    reading = runner.measure(_model(tmp_path, f'cat {log}'), peers.QUICK)
    assert (reading.ms, reading.runs) == (pytest.approx(2.41), 412)
    with pytest.raises(DeviceError, match='does not measure float32'):
      runner.measure(_model(tmp_path, '', dtype='float32'), peers.QUICK)
  call = (tmp_path / 'calls').read_text()
  assert '-d MYRIAD -api sync -nireq 1 -niter 2 -t 1 -ip FP32' in call
  # Flags of a newer tool, or of CPUs, would end it.
  assert not {'-infer_precision', '-hint', '-nthreads'} & set(call.split())
  assert not list((tmp_path / 'host').iterdir())


@pytest.mark.parametrize('target', ['MYRIAD', 'MYRIAD.1.2-ma2480', 'CPU'])
def test_the_dtypes_are_those_that_readings_are_taken_of(tmp_path, target):
  log = peers.LOGS / 'benchmark_app_2021.log'
  app = _app(tmp_path, devices=(target,))
  with _runner(tmp_path, f'target={target},binary={app}') as runner:
    known = runner.dtypes
    runner.prepare()
    for dtype in runners.DTYPES:
      model = _model(tmp_path, f'cat {log}', dtype=dtype)
      if dtype in known:
        assert runner.measure(model, peers.QUICK).ms > 0
      else:
        with pytest.raises(DeviceError, match=f'does not measure {dtype}'):
          runner.measure(model, peers.QUICK)


def test_a_stick_is_measured_by_ssh(tmp_path):
  peers.skip_without('sshd', 'ssh', 'ssh-keygen')
  log = peers.LOGS / 'benchmark_app_2021.log'
  with (
    peers.ssh_server(tmp_path) as config,
    _stick(tmp_path, f'host=board,config={config}') as runner,
  ):
    runner.prepare()
    reading = runner.measure(_model(tmp_path, f'cat {log}'), peers.QUICK)
  assert reading.ms == pytest.approx(2.41)


def test_no_stick(tmp_path):
  with (
    _stick(tmp_path, devices=('CPU', 'GPU')) as runner,
    pytest.raises(DeviceError, match=r"no device MYRIAD .*\['CPU', 'GPU'\]"),
  ):
    runner.prepare()


def test_of_two_sticks_one_must_be_named(tmp_path):
  sticks = ('CPU', 'MYRIAD.1.1-ma2480', 'MYRIAD.1.2-ma2480')
  with (
    _stick(tmp_path, devices=sticks) as runner,
    pytest.raises(DeviceError, match='are 2 devices .*target=MYRIAD.1.1-ma24'),
  ):
    runner.prepare()
  with _stick(tmp_path, f'target={sticks[2]}', devices=sticks) as runner:
    assert runner.prepare().delegate == sticks[2]
  with _stick(tmp_path, devices=sticks[:2]) as runner:
    assert runner.prepare().soc == _STICK


def test_a_stick_that_is_pulled_out_ends_the_run(tmp_path):
  log = peers.LOGS / 'benchmark_app_no_stick.log'
  with _stick(tmp_path) as runner:
    runner.prepare()
    with pytest.raises(DeviceError, match='no device MYRIAD on this machine:'):
      runner.measure(_model(tmp_path, f'cat {log}\nexit 1'), peers.QUICK)


def test_a_model_that_ran_elsewhere_is_not_measured(tmp_path):
  log = peers.LOGS / 'benchmark_app_2022.log'
  script = f'echo "[ INFO ]   EXECUTION_DEVICES: [\'CPU\']"\ncat {log}\n'
  with _stick(tmp_path) as runner:
    runner.prepare()
    with pytest.raises(ModelError, match='ran on CPU in place of MYRIAD'):
      runner.measure(_model(tmp_path, script), peers.QUICK)


def test_a_model_that_hangs_is_ended(tmp_path):
  note = tmp_path / 'pid'
  hangs = _model(tmp_path, f'echo $$ > {note}\nexec sleep 100')
  with _stick(tmp_path) as runner:
    runner.prepare()
    with pytest.raises(ModelError, match='ran into the limit of 0.5 s'):
      runner.measure(hangs, runners.Protocol(timeout_s=0.5))
  assert peers.gone(int(note.read_text()))


def test_a_program_that_is_missing_or_something_else(tmp_path):
  with (
    _runner(tmp_path, 'binary=no-such-app') as runner,
    pytest.raises(DeviceError, match='There is no no-such-app on this machine'),
  ):
    runner.prepare()
  with (
    _stick(tmp_path, help_text='usage: app') as runner,
    pytest.raises(DeviceError, match='is not benchmark_app'),
  ):
    runner.prepare()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ('target=stick', "target is 'stick'"),
    ('threads=0', 'threads is 0'),
    ('host=-x', 'no leading dash'),
    ('directory=here', "directory is 'here'"),
  ],
)
def test_a_wrong_setting_is_named(settings, message):
  with pytest.raises(runners.UserError, match=message):
    runners.make(f'openvino:{settings}')
