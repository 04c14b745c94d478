"""Nvidia boards such as the Jetson Nano, timed by TensorRT's `trtexec`.

    --runner=trtexec:host=nano@jetson

The models are ONNX of opset 12, so that TensorRT 8.2, the last one for the
Nano, reads them. The first reading of a model builds its engine, which takes
many seconds there; later ones load it. One timing cache serves all models.
Without a host it runs on this machine.
"""

from __future__ import annotations

import dataclasses
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

# Where JetPack and the packages of TensorRT put it, outside of PATH.
_ELSEWHERE = ('/usr/src/tensorrt/bin/trtexec', '/opt/tensorrt/bin/trtexec')
_PRECISIONS = {
  'float32': (),
  'float16': ('--fp16',),
  # What has no int8 kernel runs in float16, as it would in use.
  'int8': ('--int8', '--fp16'),
}

# float32 is not to mean TF32, and waking up is not to be timed.
_IF_KNOWN = ('--noTF32', '--useSpinWait')


@dataclasses.dataclass(frozen=True)
class Settings(SshSettings):
  """How a TensorRT device is measured; `SshSettings` and the following.

  Attributes:
    binary: `trtexec` on the device.
    flags: further flags of `trtexec`, separated by spaces.
    build_s: seconds that building an engine may take, beside the time limit.
  """

  binary: str = 'trtexec'
  flags: str = ''
  build_s: float = 900.0

  def __post_init__(self):
    super().__post_init__()
    if self.build_s < 0:
      raise ValueError(f'build_s is {self.build_s}; it must be at least 0.')


class TrtexecRunner(RemoteRunner):
  """Runs `trtexec` once for each reading."""

  model_format: ClassVar[str] = 'onnx'
  overhead_s: ClassVar[float] = 5.0  # a guess; building an engine takes longer

  def __init__(self, settings: Settings):
    super().__init__(settings.link(), settings)
    self._settings = settings
    self._program = ''
    self._help = ''
    self._built: set[str] = set()

  @property
  def dtypes(self) -> tuple[str, ...]:
    """See `Runner.dtypes`."""
    return tuple(_PRECISIONS)

  def prepare(self) -> Description:
    """See `Runner.prepare`."""
    self.open()
    self._program = self.find(self._settings.binary, _ELSEWHERE)
    self._help = self.usage(self._program, '--help')
    if '--onnx' not in self._help:
      raise DeviceError(
        f'{self._program} on {self.link.name} is not trtexec: its --help has '
        f'no --onnx ({parsers.tail(self._help)}).'
      )
    version = re.search(r'\[TensorRT v(\d+)\]', self._help)
    soc, facts = self.facts()
    mode = self.link.run('nvpmodel -q 2>/dev/null; true').output
    if mode.strip():
      facts['nvpmodel'] = parsers.tail(mode)
    return Description(
      soc=soc,
      runtime='TensorRT',
      runtime_version=_version(version[1]) if version else None,
      delegate=None,
      threads=None,
      affinity=None,
      statistic='median GPU compute time of trtexec',
      facts=facts,
    )

  def measure(self, model: Model, protocol: Protocol) -> Reading:
    """See `Runner.measure`."""
    key = _key(model)
    if key not in self._built:
      build_s = protocol.timeout_s + self._settings.build_s
      protocol = dataclasses.replace(protocol, timeout_s=build_s)
    reading = super().measure(model, protocol)
    self._built.add(key)
    return reading

  def forget(self, name: str) -> None:
    """See `RemoteRunner.forget`."""
    self._built = {k for k in self._built if not k.startswith(f'{name}.')}

  def command(self, model: Model, file: str, protocol: Protocol) -> str:
    """See `RemoteRunner.command`."""
    engine = f'{self.folder}/{_key(model)}'
    if _key(model) in self._built:
      flags = [f'--loadEngine={engine}']
    else:
      flags = [f'--onnx={file}', f'--saveEngine={engine}']
      if '--timingCacheFile' in self._help:
        flags.append(f'--timingCacheFile={self.folder}/timing.cache')
    flags += self.pick(_PRECISIONS, model)
    # Both bounds hold; the duration is in whole seconds in old versions.
    seconds = max(1, math.ceil(protocol.min_ms / 1e3))
    flags += [f'--iterations={protocol.min_runs}', f'--duration={seconds}']
    flags += [f for f in _IF_KNOWN if f in self._help]
    flags += shlex.split(self._settings.flags)
    return shlex.join([self._program, *flags])

  def read(self, model: Model, log: str) -> Reading:
    """See `RemoteRunner.read`."""
    if re.search(r'CUDA (?:error|failure)|no CUDA-capable device', log):
      raise DeviceError(
        f'CUDA fails on {self.link.name}: {parsers.tail(log)}. Check the GPU '
        'with deviceQuery, or restart the device.'
      )
    unknown = re.search(r'Unknown option: (\S+)', log)
    if unknown:
      raise ModelError(
        f'This trtexec does not know {unknown[1]}; check flags=....'
      )
    timing = parsers.trtexec(log)
    return Reading(timing.value_ms, timing.repeats or 1)


def _key(model: Model) -> str:
  """File name of an engine: precision is built into it."""
  return f'{model.path.name}.{model.dtype}.engine'


def _version(digits: str) -> str:
  """TensorRT v8201 is 8.2.1, v100200 is 10.2.0."""
  major = 1000 if len(digits) <= 4 else 10000
  number = int(digits)
  return f'{number // major}.{number % major // 100}.{number % 100}'


def make(settings: Settings) -> TrtexecRunner:
  """Makes the runner."""
  return TrtexecRunner(settings)
