"""OpenVINO devices, timed by its `benchmark_app`: NCS2, CPU, GPU.

    --runner=openvino:target=MYRIAD,host=me@machine_with_the_stick
    --runner=openvino:target=CPU                                 on this machine

The plugin MYRIAD of the Neural Compute Stick 2 ended with OpenVINO 2022.3; the
last wheel that has it is 2021.4.2. The models are ONNX of opset 12, which all
of them read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from typing import ClassVar

from hwdarts_jax.harness import parsers
from hwdarts_jax.harness.runners import (
  Description,
  DeviceError,
  Model,
  ModelError,
  Protocol,
  Reading,
)
from hwdarts_jax.harness.runners._remote import RemoteRunner
from hwdarts_jax.harness.runners._ssh_link import SshSettings

# Asks the Python of benchmark_app; the first API is that of 2022 and later.
_ABOUT = """\
import json
try:
  import openvino
  try:
    core = openvino.Core()
  except AttributeError:
    from openvino.runtime import Core
    core = Core()
except ImportError:
  from openvino.inference_engine import IECore
  core = IECore()
try:
  from openvino.runtime import get_version
except ImportError:
  try:
    from openvino import get_version
  except ImportError:
    from openvino.inference_engine import get_version
ask = getattr(core, 'get_property', None) or core.get_metric
names = {d: str(ask(d, 'FULL_DEVICE_NAME')) for d in core.available_devices}
print('hwdarts: ' + json.dumps([get_version(), names]))
"""
_NO_DEVICE = (
  r'Can not init Myriad device|is not registered in the OpenVINO Runtime|'
  r'Failed to create plugin|NC_ERROR|X_LINK_ERROR|No available devices'
)
_PRECISIONS = {'float32': 'f32', 'float16': 'f16'}
_STICK_PRECISIONS = {'float16': 'f16'}  # it has no float32


@dataclasses.dataclass(frozen=True)
class Settings(SshSettings):
  """How an OpenVINO device is measured; `SshSettings` and the following.

  Attributes:
    target: OpenVINO's name of the device: `MYRIAD`, `CPU`, `GPU.1`.
    binary: `benchmark_app` on the host.
    threads: CPU threads; only for the target CPU.
    flags: further flags of `benchmark_app`, separated by spaces.
  """

  target: str = 'CPU'
  binary: str = 'benchmark_app'
  threads: int = 1
  flags: str = ''

  def __post_init__(self):
    super().__post_init__()
    if not re.fullmatch(r'[A-Z]+(\.[A-Za-z0-9_.-]+)?', self.target):
      raise ValueError(
        f'target is {self.target!r}; it must be a name such as MYRIAD, CPU or '
        'GPU.'
      )
    if self.threads < 1:
      raise ValueError(f'threads is {self.threads}; it must be at least 1.')


class OpenvinoRunner(RemoteRunner):
  """Runs `benchmark_app` once for each reading."""

  model_format: ClassVar[str] = 'onnx'
  overhead_s: ClassVar[float] = 3.0  # a guess; sticks are slow to start

  def __init__(self, settings: Settings):
    super().__init__(settings.link(), settings)
    self._settings = settings
    self._program = ''
    self._help = ''
    self._on_stick = settings.target.startswith('MYRIAD')
    self._precisions = _STICK_PRECISIONS if self._on_stick else _PRECISIONS

  @property
  def dtypes(self) -> tuple[str, ...]:
    """See `Runner.dtypes`."""
    return tuple(self._precisions)

  def prepare(self) -> Description:
    """See `Runner.prepare`."""
    self.open()
    self._program = self.find(self._settings.binary)
    self._help = self.usage(self._program, '-h')
    if '-niter' not in self._help:
      raise DeviceError(
        f'{self._program} on {self.link.name} is not benchmark_app: its -h has '
        f'no -niter ({parsers.tail(self._help)}).'
      )
    version, devices = self._about()
    name = self._name(version, devices)
    _, facts = self.facts()
    on_cpu = self._settings.target == 'CPU'
    return Description(
      soc=name,
      runtime='OpenVINO',
      runtime_version=version,
      delegate=self._settings.target,
      threads=self._settings.threads if on_cpu else None,
      affinity=None,
      statistic=(
        'benchmark_app, synchronous, wall time: median, or mean where it '
        'rounds the median to less than two digits'
      ),
      facts=facts,
    )

  def command(self, model: Model, file: str, protocol: Protocol) -> str:
    """See `RemoteRunner.command`."""
    precision = self.pick(self._precisions, model)
    # With both limits the tool goes on until both are reached.
    seconds = max(1, math.ceil(protocol.min_ms / 1e3))
    flags = ['-m', file, '-d', self._settings.target, '-api', 'sync']
    flags += ['-nireq', '1', '-niter', str(protocol.min_runs)]
    flags += ['-t', str(seconds)]
    if self._knows('-ip'):  # else a conversion from bytes is timed, too
      flags += ['-ip', 'f32' if 'f32' in self._help else 'FP32']
    if self._settings.target == 'CPU':
      flags += ['-nthreads', str(self._settings.threads)]
      if self._knows('-nstreams'):
        flags += ['-nstreams', '1']
    # Without it a CPU that has bfloat16 takes that for float32.
    if not self._on_stick and self._knows('-infer_precision'):
      flags += ['-infer_precision', precision]
    if self._knows('-hint') and re.search(r'\bnone\b', self._help):
      flags += ['-hint', 'none']
    flags += shlex.split(self._settings.flags)
    return shlex.join([self._program, *flags])

  def read(self, model: Model, log: str) -> Reading:
    """See `RemoteRunner.read`."""
    if re.search(_NO_DEVICE, log):
      raise self._absent(parsers.tail(log))
    used = re.search(r"EXECUTION_DEVICES: \['([^']*)'", log)
    target = self._settings.target.split('.')[0]
    if used and used[1].split('.')[0].strip('()') != target:
      raise ModelError(
        f'{model.name} ran on {used[1]} in place of {target}; no latency of '
        f'{target} is known of it.'
      )
    timing = parsers.benchmark_app(log)
    return Reading(timing.value_ms, timing.repeats or 1)

  def _knows(self, flag: str) -> bool:
    return re.search(rf'(?m)(?<!\S){flag}(?![\w-])', self._help) is not None

  def _about(self) -> tuple[str | None, dict[str, str]]:
    """OpenVINO's version and the names of its devices.

    Both are known where benchmark_app is a Python program.
    """
    head = self.link.run(f'head -n 1 {shlex.quote(self._program)}').output
    python = re.match(r'#!\s*(\S*python\S*)\s*$', head.strip())
    if python is None:
      return None, {}
    log = self.usage(python[1], f'-c {shlex.quote(_ABOUT)}')
    found = re.search(r'(?m)^hwdarts: (\[.*\])$', log)
    return json.loads(found[1]) if found else (None, {})

  def _name(self, version: str | None, devices: dict[str, str]) -> str | None:
    """What the target is called, if devices are known.

    Raises:
      DeviceError: it is not one of them, or may be several.
    """
    target = self._settings.target
    if not devices or target in devices:
      return devices.get(target)  # if not known, a reading will tell
    # The only one of its kind needs no number.
    named = [d for d in devices if d.partition('.')[0] == target]
    if not named:
      raise self._absent(f'OpenVINO {version} has {list(devices)} there')
    if len(named) > 1:
      raise DeviceError(
        f'There are {len(named)} devices ({", ".join(named)}) on '
        f'{self.link.name}. Name one by target={named[0]}.'
      )
    return devices[named[0]]

  def _absent(self, why: str) -> DeviceError:
    target = self._settings.target
    advice = (
      'Plug the stick in, add its udev rules, and use OpenVINO 2022.3 or older.'
      if self._on_stick
      else 'Name another device by target=....'
    )
    return DeviceError(
      f'OpenVINO finds no device {target} on {self.link.name}: {why}. {advice}'
    )


def make(settings: Settings) -> OpenvinoRunner:
  """Makes the runner."""
  return OpenvinoRunner(settings)
