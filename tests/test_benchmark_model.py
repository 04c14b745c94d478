"""`benchmark_model` on any device; here it is a script on this machine."""

import pytest
import remote_peers as peers

from hwdarts_jax.harness.runners import (
  _benchmark_model,
  _link,
  DeviceError,
  ModelError,
)


@pytest.fixture
def tool(tmp_path):
  return peers.program(tmp_path, 'benchmark_model', peers.TOOL)


def _runner(tmp_path, tool, **settings):
  (tmp_path / 'device').mkdir(exist_ok=True)
  return _benchmark_model.BenchmarkModelRunner(
    _link.LocalLink(),
    _benchmark_model.ToolSettings(
      upload=str(tool),
      directory=f'{tmp_path}/device',
      affinity='none',
      **settings,
    ),
  )


class _Cores:
  """A device that tells the speed of its cores."""

  name = 'The device'

  def __init__(self, speeds):
    self.speeds = speeds

  def run(self, script):
    del script
    lines = [f'{core}={speed}' for core, speed in self.speeds.items()]
    return type('Outcome', (), {'output': '\n'.join(lines)})


def test_big_cores_are_the_fastest_ones():
  pixel4 = dict(enumerate([1785600] * 4 + [2419200] * 3 + [2841600]))
  assert _benchmark_model.cores(_Cores(pixel4), 'big', 1) == '80'
  assert _benchmark_model.cores(_Cores(pixel4), 'big', 4) == 'f0'
  with pytest.raises(DeviceError, match='speed of 0 cores'):
    _benchmark_model.cores(_Cores({}), 'big', 1)


@pytest.mark.parametrize(
  ('log', 'message'),
  [
    ('benchmark_model_2020_refused.log', 'did not execute the model'),
    ('benchmark_model_2020_partial.log', 'only a part'),
    ('benchmark_model_2025.log', 'does not say whether'),
  ],
)
def test_a_delegate_that_did_not_apply_costs_one_model_only(
  tool, tmp_path, log, message
):
  settings = {'delegate': 'nnapi', 'accelerator': 'eden-drv'}
  with _runner(tmp_path, tool, **settings) as runner:
    assert runner.prepare().delegate == 'NNAPI eden-drv'
    refused = peers.model(tmp_path, f'cat {peers.LOGS / log}', dtype='int8')
    with pytest.raises(ModelError, match=message):
      runner.measure(refused, peers.QUICK)
    log = peers.LOGS / 'benchmark_model_2020_nnapi.log'
    taken = peers.model(
      tmp_path,
      'case "$*" in *disable_nnapi_cpu=true*nnapi_accelerator_name=eden-drv*)'
      f' cat {log};; esac',
      'taken',
      'int8',
    )
    assert runner.measure(taken, peers.QUICK).ms == pytest.approx(0.5719)


def test_what_an_accelerator_leaves_to_the_cpu_may_be_allowed(tool, tmp_path):
  log = peers.LOGS / 'benchmark_model_2020_partial.log'
  model = peers.model(tmp_path, f'cat {log}', dtype='int8')
  with _runner(
    tmp_path, tool, delegate='nnapi', partial_delegate=True
  ) as runner:
    runner.prepare()
    remarks = runner.measure(model, peers.QUICK).remarks
    assert 'parts of some models ran on the CPU (partial_delegate)' in remarks


@pytest.mark.parametrize(
  ('said', 'noted'),
  [
    (
      'Explicitly applied XNNPACK delegate, and the model graph will be '
      'completely executed by the delegate.',
      False,
    ),
    (
      'Explicitly applied XNNPACK delegate, and the model graph will be '
      'partially executed by the delegate w/ 2 delegate kernels.',
      True,
    ),
    (
      'Though XNNPACK delegate is explicitly applied, the model graph will '
      'not be executed by the delegate.',
      True,
    ),
  ],
)
def test_what_xnnpack_leaves_to_other_kernels_is_noted(
  tool, tmp_path, said, noted
):
  script = f'echo "INFO: {said}"\n{peers.takes(700)}'
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    reading = runner.measure(peers.model(tmp_path, script), peers.QUICK)
  assert reading.ms == pytest.approx(0.7)
  assert any('XNNPACK left some ops' in r for r in reading.remarks) == noted


def test_an_accelerator_that_the_device_lacks_ends_the_run(tool, tmp_path):
  log = peers.LOGS / 'benchmark_model_no_accelerator.log'
  settings = {'delegate': 'nnapi', 'accelerator': 'eden-drv'}
  with _runner(tmp_path, tool, **settings) as runner:
    runner.prepare()
    with pytest.raises(DeviceError, match="no NNAPI accelerator 'eden-drv'"):
      runner.measure(peers.model(tmp_path, f'cat {log}'), peers.QUICK)


def test_a_flag_that_the_tool_does_not_know_ends_the_run(tool, tmp_path):
  """It goes on without it, and would measure something else."""
  script = 'echo "WARN: Unconsumed cmdline flags: --use_xnnpack=true"\n'
  old = peers.model(tmp_path, script + peers.takes(5))
  with _runner(tmp_path, tool) as runner:
    runner.prepare()
    with pytest.raises(DeviceError, match='not know --use_xnnpack=true'):
      runner.measure(old, peers.QUICK)
