"""TensorRT devices: a script in place of trtexec, here and behind an sshd."""

import pathlib

import pytest
import remote_peers as peers

from hwdarts_jax.harness import runners
from hwdarts_jax.harness.runners import _remote, DeviceError, ModelError

_LOG = peers.LOGS / 'trtexec_8.log'


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
  monkeypatch.setattr(_remote, '_KILL_AFTER_S', 0.5)


@pytest.fixture
def tool(tmp_path):
  # It builds an engine of an ONNX file, and then needs no ONNX file any more.
  return peers.program(
    tmp_path,
    'trtexec',
    '#!/bin/sh\n'
    f'echo "$*" >> {tmp_path}/calls\n'
    'for a; do case $a in\n'
    '--help) echo "[TensorRT v8201] --onnx --timingCacheFile"; exit;;\n'
    '--onnx=*) onnx=${a#*=};; --saveEngine=*) cp "$onnx" "${a#*=}";;\n'
    '--timingCacheFile=*) echo >> "${a#*=}";;\n'
    '--loadEngine=*) onnx=${a#*=};;\nesac; done\n. "$onnx"\n',
  )


def _runner(tmp_path, tool, settings=''):
  (tmp_path / 'board').mkdir(exist_ok=True)
  return runners.make(
    f'trtexec:binary={tool},directory={tmp_path}/board,{settings}'
  )


def _model(tmp_path, script, name='op', dtype='float16'):
  return peers.model(tmp_path, script, name, dtype, 'onnx')


def _calls(tmp_path):
  """The commands, without that for --help."""
  return (tmp_path / 'calls').read_text().splitlines()[1:]


def test_an_engine_is_built_once_and_timings_are_shared(tool, tmp_path):
  models = [_model(tmp_path, f'cat {_LOG}', name) for name in 'ab']
  with _runner(tmp_path, tool) as runner:
    about = runner.prepare()
    assert (about.runtime, about.runtime_version) == ('TensorRT', '8.2.1')
    for _ in range(2):
      for model in models:
        reading = runner.measure(model, peers.QUICK)
        assert (reading.ms, reading.runs) == (pytest.approx(0.588443), 1650)
  calls = _calls(tmp_path)
  assert ['--saveEngine' in c for c in calls] == [True, True, False, False]
  assert ['--loadEngine' in c for c in calls] == [False, False, True, True]
  caches = {w for c in calls for w in c.split() if 'timingCacheFile' in w}
  assert len(caches) == 1
  assert not list((tmp_path / 'board').iterdir())


@pytest.mark.parametrize(
  ('dtype', 'flags'),
  [('float32', set()), ('float16', {'--fp16'}), ('int8', {'--int8', '--fp16'})],
)
def test_the_precision_is_the_dtype(tool, tmp_path, dtype, flags):
  with _runner(tmp_path, tool) as runner:
    assert dtype in runner.dtypes
    runner.prepare()
    runner.measure(_model(tmp_path, f'cat {_LOG}', dtype=dtype), peers.QUICK)
  (call,) = _calls(tmp_path)
  assert {'--fp16', '--int8'} & set(call.split()) == flags


def test_a_dtype_without_a_flag_ends_the_run(tool, tmp_path):
  with _runner(tmp_path, tool) as runner:
    assert 'bfloat16' not in runner.dtypes  # as is known before it starts
    runner.prepare()
    with pytest.raises(DeviceError, match='does not measure bfloat16'):
      runner.measure(_model(tmp_path, '', dtype='bfloat16'), peers.QUICK)


def test_a_jetson_is_measured_by_ssh(tool, tmp_path):
  peers.skip_without('sshd', 'ssh', 'ssh-keygen')
  with (
    peers.ssh_server(tmp_path) as config,
    _runner(tmp_path, tool, f'host=board,config={config}') as runner,
  ):
    runner.prepare()
    model = _model(tmp_path, f'cat {_LOG}')
    for _ in range(2):
      assert runner.measure(model, peers.QUICK).ms == pytest.approx(0.588443)


def test_what_was_dropped_for_want_of_room_is_pushed_and_built_again(
  tool, tmp_path, monkeypatch
):
  monkeypatch.setattr(_remote, '_KEEP_BYTES', 2500)
  script = f'cat {_LOG}\n{"#" * 1000}'
  models = [_model(tmp_path, script, name) for name in 'abc']
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    for model in [*models, models[0], models[2]]:
      assert runner.measure(model, peers.QUICK).ms == pytest.approx(0.588443)
    kept = sorted(pathlib.Path(runner.folder).glob('*.onnx*'))
    assert [p.name[0] for p in kept] == ['a', 'a', 'c', 'c']
  built = ['--saveEngine' in c for c in _calls(tmp_path)]
  assert built == [True, True, True, True, False]


def test_building_may_take_longer_than_a_reading(tool, tmp_path):
  note = tmp_path / 'pid'
  slow = _model(
    tmp_path, f'[ -e {note} ] || sleep 0.8\necho $$ > {note}\ncat {_LOG}'
  )
  with _runner(tmp_path, tool, 'build_s=100') as runner:
    runner.prepare()
    limit = runners.Protocol(timeout_s=0.4)
    assert runner.measure(slow, limit).ms == pytest.approx(0.588443)
  with _runner(tmp_path, tool, 'build_s=0.1') as runner:
    runner.prepare()
    hangs = _model(tmp_path, f'echo $$ > {note}\nexec sleep 100', 'hangs')
    with pytest.raises(ModelError, match='ran into the limit of 0.5 s'):
      runner.measure(hangs, limit)
  assert peers.gone(int(note.read_text()))


def test_an_op_that_tensorrt_lacks_costs_one_model_only(tool, tmp_path):
  log = peers.LOGS / 'trtexec_failed.log'
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    with pytest.raises(ModelError, match='op/key: trtexec did not pass'):
      runner.measure(_model(tmp_path, f'cat {log}\nexit 1'), peers.QUICK)
    fine = _model(tmp_path, f'cat {_LOG}', 'fine')
    assert runner.measure(fine, peers.QUICK).ms == pytest.approx(0.588443)


def test_what_a_table_cites_does_not_say_where_the_device_is(tool, tmp_path):
  with _runner(tmp_path, tool, 'flags=--old') as runner:
    runner.prepare()
    model = _model(tmp_path, 'echo "[E] Unknown option: --old"\nexit 1')
    with pytest.raises(ModelError, match='does not know --old') as error:
      runner.measure(model, peers.QUICK)
    assert runner.link.name not in str(error.value)
  text = f'trtexec:binary={tool},build_s=3'
  assert runners.published(text) == 'trtexec:build_s=3'


@pytest.mark.parametrize(
  ('said', 'message'),
  [
    ('[E] CUDA failure: no CUDA-capable device', 'CUDA fails on this machine'),
    ('write: No space left on device', 'this machine has no space left'),
  ],
)
def test_what_fails_for_all_models_ends_the_run(tool, tmp_path, said, message):
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    with pytest.raises(DeviceError, match=message):
      runner.measure(_model(tmp_path, f'echo "{said}"\nexit 1'), peers.QUICK)


def test_a_full_disk(tool, tmp_path):
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    model = _model(tmp_path, f'cat {_LOG}')
    # Every write to this device fails as on a full disk.
    pathlib.Path(runner.folder, model.path.name).symlink_to('/dev/full')
    with pytest.raises(DeviceError, match='this machine has no space left'):
      runner.measure(model, peers.QUICK)


def test_a_program_that_is_missing_or_something_else(tmp_path, monkeypatch):
  monkeypatch.setattr('hwdarts_jax.harness.runners.trtexec._ELSEWHERE', ())
  with (
    _runner(tmp_path, 'no-such-trtexec') as runner,
    pytest.raises(DeviceError, match='There is no no-such-trtexec on this'),
  ):
    runner.prepare()
  with (
    _runner(tmp_path, 'ls') as runner,
    pytest.raises(DeviceError, match='is not trtexec'),
  ):
    runner.prepare()


def test_a_path_of_a_program_may_be_relative(tool, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'bin').mkdir()
  (tmp_path / 'bin' / 'trtexec').symlink_to(tool)
  with _runner(tmp_path, 'bin/trtexec') as runner:
    runner.prepare()
    model = _model(tmp_path, f'cat {_LOG}')
    assert runner.measure(model, peers.QUICK).ms == pytest.approx(0.588443)


def test_a_folder_may_be_below_the_home(tool, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'of mine').mkdir()
  with runners.make(f'trtexec:binary={tool},directory=~/of mine') as runner:
    runner.prepare()
    model = _model(tmp_path, f'cat {_LOG}')
    assert runner.measure(model, peers.QUICK).ms == pytest.approx(0.588443)
    assert list((tmp_path / 'of mine').iterdir())
  assert not list((tmp_path / 'of mine').iterdir())


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ('host=-x', 'no leading dash'),
    ('threads=2', "no setting 'threads'"),
    ('build_s=-1', 'build_s is -1'),
    ('port=ssh', "port is 'ssh'; it must be a whole number"),
  ],
)
def test_a_wrong_setting_is_named(settings, message):
  with pytest.raises(runners.UserError, match=message):
    runners.make(f'trtexec:{settings}')
