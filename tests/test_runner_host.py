"""LiteRT in this process."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tflite_extra

from hwdarts_jax.harness import convert, runners
from hwdarts_jax.harness.convert import Target
from hwdarts_jax.harness.runners import host, Model, ModelError, Protocol

tflite_extra.skip_module_without()

_PROTOCOL = Protocol(warmup_runs=2, min_runs=20, min_ms=5.0)


def _model(folder, convolutions, dtype='float32'):
  """As many convolutions, one after the other."""
  kernel = np.random.default_rng(0).normal(0, 0.1, (3, 3, 32, 32))
  kernel = kernel.astype(np.float32)

  def function(x):
    for _ in range(convolutions):
      x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      x = jnp.maximum(x, 0)
    return x

  made = convert.convert(function, (16, 16, 32), Target('tflite', dtype))
  path = folder / f'{convolutions}_{dtype}.tflite'
  path.write_bytes(made.data)
  return Model(f'{convolutions} conv', path, dtype, 1, (1, 16, 16, 32))


@pytest.fixture
def runner():
  with runners.make('host') as runner:
    runner.prepare()
    yield runner


def test_the_host_is_described(runner):
  about = runner.prepare()
  assert about.runtime == 'LiteRT'
  assert about.runtime_version[0].isdigit()
  assert about.threads == 1
  assert about.affinity == f'core {max(os.sched_getaffinity(0))}'
  assert about.statistic == 'median of CPU time, less that of an empty model'
  assert 0 < about.facts['empty_model_ms'] < 0.1
  assert about.soc


def test_twice_the_work_takes_about_twice_as_long(tmp_path, runner):
  models = [_model(tmp_path, n) for n in (4, 8)]
  four, eight = (
    min(runner.measure(m, _PROTOCOL).ms for _ in range(3)) for m in models
  )
  assert 1.5 < eight / four < 2.5


def test_small_models_are_not_charged_for_reading_the_clock(tmp_path, runner):
  """A clock that takes long is read once for many runs."""
  model = _model(tmp_path, 1)
  reading = runner.measure(model, _PROTOCOL)
  assert reading.runs >= 20
  assert reading.runs * reading.ms >= 0.5 * _PROTOCOL.min_ms


def test_a_reading_is_the_median_of_batches(monkeypatch, runner, tmp_path):
  """With a made-up clock; a run takes 1 ms, but a third of them 9 ms."""
  now, runs = [0.0], [0]

  class Interpreter:
    def __init__(self, model_path, num_threads):
      del model_path, num_threads

    def allocate_tensors(self):
      pass

    def get_input_details(self):
      return []

    def invoke(self):
      runs[0] += 1
      now[0] += 9e-3 if runs[0] % 3 == 0 else 1e-3

  monkeypatch.setattr(runner, '_interpreter', Interpreter)
  monkeypatch.setattr(runner, '_call_ms', 0.25)
  monkeypatch.setattr(host.time, 'thread_time', lambda: now[0])
  model = Model('made up', tmp_path / 'none', 'float32', 1, (1,))
  reading = runner.measure(model, Protocol(5, min_runs=60, min_ms=60.0))
  assert reading.ms == pytest.approx(1.0 - 0.25)
  assert reading.runs == 60
  assert runs[0] == 65  # the first ones warm up
  longer = runner.measure(model, Protocol(5, min_runs=60, min_ms=1000.0))
  assert longer.runs == pytest.approx(1000 / (11 / 3), abs=3)


@pytest.mark.parametrize('dtype', ['float16', 'int8'])
def test_other_number_formats_run(tmp_path, runner, dtype):
  assert runner.measure(_model(tmp_path, 2, dtype), _PROTOCOL).ms > 0


def test_the_process_goes_back_to_its_cores(tmp_path, runner):
  before = os.sched_getaffinity(0)
  runner.measure(_model(tmp_path, 1), _PROTOCOL)
  assert os.sched_getaffinity(0) == before


def test_several_threads_are_timed_by_the_wall(tmp_path):
  if len(os.sched_getaffinity(0)) < 2:
    pytest.skip('this machine has one core')
  with runners.make('host:threads=2') as runner:
    about = runner.prepare()
    assert about.threads == 2
    assert about.statistic.startswith('minimum of wall time')
    assert runner.measure(_model(tmp_path, 2), _PROTOCOL).ms > 0


def test_a_file_that_is_no_model_is_named(tmp_path, runner):
  path = tmp_path / 'op.tflite'
  path.write_bytes(b'nothing')
  model = Model('conv/1', path, 'float32', 1, (1, 1, 1, 1))
  with pytest.raises(ModelError, match='LiteRT does not run conv/1'):
    runner.measure(model, _PROTOCOL)


def test_a_model_that_takes_too_long_is_named(tmp_path, runner):
  with pytest.raises(ModelError, match='4 conv took longer than 0 s'):
    runner.measure(_model(tmp_path, 4), Protocol(timeout_s=0.0))


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('host:threads=0', 'threads is 0; it must be from 1'),
    ('host:threads=9999', 'the cores of this machine'),
    ('host:core=9999', 'core is 9999'),
    ('host:cores=1', "has no setting 'cores'"),
    ('host:threads=two', 'must be a whole number'),
  ],
)
def test_wrong_settings_are_named(text, words):
  with pytest.raises(ValueError, match=words):
    runners.make(text)


def test_a_machine_is_not_busy_with_our_own_threads(monkeypatch):
  monkeypatch.setattr(host.os, 'getloadavg', lambda: (2.1, 0.0, 0.0))
  two, one = (host.HostRunner(host.Settings(threads=n)) for n in (2, 1))
  assert two.finish() == ()
  (remark,) = one.finish()
  assert 'load 1.1 beside us' in remark


def test_without_litert_the_way_to_it_is_told(monkeypatch):
  def missing(name):
    raise ModuleNotFoundError(name=name)

  monkeypatch.setattr(host.importlib, 'import_module', missing)
  runner = host.HostRunner(host.Settings())
  with pytest.raises(runners.DeviceError, match=r'pip install .*\[tflite\]'):
    runner.prepare()
