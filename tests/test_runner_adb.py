"""Android devices, by Debian's adb and a device daemon on loopback."""

import contextlib
import subprocess

from adb_device import Device
import pytest
import remote_peers as peers

from hwdarts_jax.harness import runners
from hwdarts_jax.harness.runners import _remote, DeviceError, ModelError


@pytest.fixture
def adb(tmp_path, monkeypatch):
  peers.skip_without('adb')
  with peers.adb_server(tmp_path) as env:
    for name, value in env.items():
      monkeypatch.setenv(name, value)
    yield


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
  monkeypatch.setattr(_remote, '_KILL_AFTER_S', 0.5)


@pytest.fixture
def plug(adb, tmp_path):
  """Plugs devices in; they are unplugged at the end."""
  with contextlib.ExitStack() as stack:

    def _plug(**kw):
      programs = peers.programs(tmp_path / 'programs')
      device = stack.enter_context(Device(programs, **kw))
      subprocess.run(
        ['adb', 'connect', device.address], check=True, capture_output=True
      )
      return device

    yield _plug


@pytest.fixture
def tool(tmp_path):
  return peers.program(tmp_path, 'benchmark_model', peers.TOOL)


def _runner(tmp_path, tool, settings=''):
  (tmp_path / 'device').mkdir(exist_ok=True)
  upload = f'upload={tool},' if tool else ''
  return runners.make(
    f'adb:{upload}directory={tmp_path}/device,affinity=none,{settings}'
  )


def test_a_model_is_pushed_timed_and_removed(plug, tool, tmp_path):
  device = plug(model='Loopback 4')
  with _runner(tmp_path, tool, 'threads=3') as runner:
    about = runner.prepare()
    assert (about.soc, about.threads) == ('msmnile', 3)
    assert about.facts['product.model'] == 'Loopback 4'
    assert about.facts['celsius_before'] == {'CPU0': 46.5, 'skin': 31.25}
    assert 'SECRET' not in str(about)
    model = peers.model(
      tmp_path,
      'case "$*" in *num_threads=3*) ;; *) exit 9;; esac\n'
      + peers.takes(1234.5),
    )
    assert runner.measure(model, peers.QUICK).ms == pytest.approx(1.2345)
    assert runner.measure(model, peers.QUICK).runs == 60
    assert runner.finish() == ('warmest sensor at the end: CPU0, 46 C',)
    assert list((tmp_path / 'device').iterdir())
  assert not list((tmp_path / 'device').iterdir())
  assert device.commands


def test_the_process_is_pinned_to_the_mask(plug, tool, tmp_path):
  plug()
  pinned = peers.model(tmp_path, f'n=$(nproc)00\n{peers.takes("$n")}')
  with _runner(tmp_path, tool, 'affinity=1') as runner:
    assert runner.prepare().affinity == 'mask 0x1'
    assert runner.measure(pinned, peers.QUICK).ms == pytest.approx(0.1)


def test_no_device(adb, tool, tmp_path):
  with (
    _runner(tmp_path, tool) as runner,
    pytest.raises(DeviceError, match='adb sees no device. Connect one'),
  ):
    runner.prepare()


def test_another_device_than_the_named_one(plug, tool, tmp_path):
  device = plug()
  with (
    _runner(tmp_path, tool, 'serial=XYZ') as runner,
    pytest.raises(DeviceError, match=rf"no device XYZ; .*'{device.address}'"),
  ):
    runner.prepare()


def test_of_two_devices_one_must_be_named(plug, tool, tmp_path):
  first, second = plug(model='A'), plug(model='B')
  with (
    _runner(tmp_path, tool) as runner,
    pytest.raises(DeviceError, match='There are 2 devices') as error,
  ):
    runner.prepare()
  assert first.address in str(error.value)
  with _runner(tmp_path, tool, f'serial={second.address}') as runner:
    runner.prepare()
  assert second.commands
  assert not first.commands


def test_a_device_that_does_not_trust_this_computer(plug, tool, tmp_path):
  plug(trusts=False)
  with (
    _runner(tmp_path, tool) as runner,
    pytest.raises(DeviceError, match='does not trust this computer'),
  ):
    runner.prepare()


@pytest.mark.parametrize(
  ('state', 'message'),
  [
    ('no permissions (user in no group); see [http://a]', 'udev rules'),
    ('unauthorized', 'allow USB debugging'),
    ('offline', 'XYZ is offline. Connect it again'),
    ('recovery', 'XYZ is recovery. Connect it again'),
  ],
)
def test_a_device_that_is_seen_but_not_usable(tmp_path, state, message):
  script = f'#!/bin/sh\necho List of devices attached\necho "XYZ\t{state}"\n'
  fake = peers.program(tmp_path, 'adb', script)
  with (
    runners.make(f'adb:binary=/x,adb={fake}') as runner,
    pytest.raises(DeviceError, match=message),
  ):
    runner.prepare()


def test_adb_that_is_not_installed():
  with (
    runners.make('adb:binary=/x,adb=no-such-adb') as runner,
    pytest.raises(DeviceError, match="'no-such-adb' is not installed"),
  ):
    runner.prepare()


def test_a_device_that_vanishes_leaves_nothing_running_and_can_come_back(
  plug, tool, tmp_path
):
  device = plug()
  note = tmp_path / 'pid'
  model = peers.model(tmp_path, f'echo $$ > {note}\nexec sleep 100')
  short = runners.Protocol(timeout_s=2.0)
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    assert runner.measure(
      peers.model(tmp_path, peers.takes(500), 'first'), peers.QUICK
    ).ms == pytest.approx(0.5)
    device.vanish_after = 0.7
    with pytest.raises(DeviceError, match='vanished in the middle') as error:
      runner.measure(model, short)
  assert 'goes on where it was' in str(error.value)
  assert peers.gone(int(note.read_text()))
  plug()
  again = peers.model(tmp_path, peers.takes(700), 'again')
  # The one that is gone is still in the list of adb, as offline.
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    assert runner.measure(again, peers.QUICK).ms == pytest.approx(0.7)


def test_a_device_that_freezes(plug, tool, tmp_path):
  plug(freeze_on='freeze.tflite')
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    runner.link.grace_s = 0.5
    model = peers.model(tmp_path, peers.takes(5), 'freeze')
    with pytest.raises(DeviceError, match='has not answered for'):
      runner.measure(model, runners.Protocol(timeout_s=0.5))
    runner.link.grace_s = 5.0


def test_a_model_that_hangs_is_ended_on_the_device(plug, tool, tmp_path):
  plug()
  note = tmp_path / 'pid'
  # It ignores the polite signal, too.
  hangs = f'trap "" TERM\necho $$ > {note}\nexec sleep 100'
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    with pytest.raises(ModelError, match='op/key ran into the limit of 1 s'):
      runner.measure(
        peers.model(tmp_path, hangs), runners.Protocol(timeout_s=1.0)
      )
    assert peers.gone(int(note.read_text()), within_s=0.5)
    fine = peers.model(tmp_path, peers.takes(400), 'fine')
    assert runner.measure(fine, peers.QUICK).ms == pytest.approx(0.4)


def test_a_program_that_is_missing_here_or_there(plug, tmp_path):
  plug()
  with (
    _runner(tmp_path, '/no/benchmark_model') as runner,
    pytest.raises(DeviceError, match='no such file on this machine'),
  ):
    runner.prepare()
  with (
    _runner(tmp_path, '', 'binary=/data/benchmark_model') as runner,
    pytest.raises(DeviceError, match='There is no /data/benchmark_model'),
  ):
    runner.prepare()


def test_a_program_that_cannot_be_executed(plug, tool, tmp_path):
  plug()
  tool.chmod(0o644)
  with (
    _runner(tmp_path, '', f'binary={tool}') as runner,
    pytest.raises(DeviceError, match='is not executable. Run chmod'),
  ):
    runner.prepare()
  # Of another processor; the header is that of 32-bit ARM.
  tool.write_bytes(b'\x7fELF\x01\x01\x01' + bytes(9) + b'\x02\x00\x28\x00')
  with (
    _runner(tmp_path, tool) as runner,
    pytest.raises(DeviceError, match='cannot be executed|is not benchmark_mod'),
  ):
    runner.prepare()


def test_a_full_disk(plug, tool, tmp_path):
  device = plug(free_bytes=5000)
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    device.free_bytes = 10
    with pytest.raises(DeviceError, match='has no space left'):
      runner.measure(peers.model(tmp_path, peers.takes(5)), peers.QUICK)


def test_a_tool_that_fails_like_adb_does(plug, tool, tmp_path):
  """Both exit with 1; the message tells that the link is fine."""
  plug()
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    fails = 'echo "ERROR: Op code 999 is unknown"\nexit 1'
    with pytest.raises(ModelError, match='no inference timings.*Op code 999'):
      runner.measure(peers.model(tmp_path, fails), peers.QUICK)
    late = peers.model(tmp_path, f'{peers.takes(5)}exit 1', 'late')
    with pytest.raises(ModelError, match='then failed with status 1'):
      runner.measure(late, peers.QUICK)


def test_two_runs_do_not_measure_each_other(plug, tool, tmp_path):
  plug()
  model = peers.model(tmp_path, peers.takes(300))
  with _runner(tmp_path, tool) as first, _runner(tmp_path, tool) as second:
    first.prepare()
    second.prepare()
    with pytest.raises(DeviceError, match='another run has taken it over'):
      first.measure(model, peers.QUICK)
    first.close()  # removes nothing of the second
    assert second.measure(model, peers.QUICK).ms == pytest.approx(0.3)


def test_a_folder_of_somebody_else_is_left_alone(plug, tool, tmp_path):
  plug()
  theirs = tmp_path / 'device' / 'hwdarts_jax-harness' / 'thesis.txt'
  theirs.parent.mkdir(parents=True)
  theirs.write_text('years of work')
  with (
    _runner(tmp_path, tool) as runner,
    pytest.raises(DeviceError, match='is there, but not ours'),
  ):
    runner.prepare()
  assert theirs.read_text() == 'years of work'


def test_a_throttled_device_is_waited_for_or_the_reading_says_so(
  plug, tool, tmp_path
):
  plug()
  heat = tmp_path / 'programs' / 'heat.txt'
  cool = heat.read_text()
  heat.write_text(cool.replace('Status: 0', 'Status: 3'))
  model = peers.model(tmp_path, peers.takes(300))
  with _runner(tmp_path, tool, 'cooldown_s=0.1') as runner:
    runner.prepare()
    remarks = runner.measure(model, peers.QUICK).remarks
    assert 'some readings were taken while throttled (3)' in remarks
  heat.write_text(cool)
  with _runner(tmp_path, tool, 'cooldown_s=0.1') as runner:
    runner.prepare()
    remarks = runner.measure(model, peers.QUICK).remarks
    assert not [r for r in remarks if 'throttled' in r]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ('adb', 'upload is not given'),
    ('adb:upload=a,binary=b', 'give one of them'),
    ('adb:upload=a,affinity=0', "affinity is '0'"),
    ('adb:upload=a,affinity=xyz', "affinity is 'xyz'"),
    ('adb:upload=a,threads=0', 'threads is 0'),
    ('adb:upload=a,delegate=npu', "delegate is 'npu'"),
    ('adb:upload=a,accelerator=eden-drv', 'give delegate=nnapi'),
    ('adb:upload=a,colour=red', "no setting 'colour'"),
  ],
)
def test_a_wrong_setting_is_named(settings, message):
  with pytest.raises(runners.UserError, match=message):
    runners.make(settings)
