"""Boards by ssh, such as a Raspberry Pi 4, timed by LiteRT.

    --runner=ssh:host=pi@raspberrypi                     LiteRT in Python there
    --runner=ssh:host=pi@raspberrypi,tool=benchmark_model,upload=benchmark_model

The first needs `pip install ai-edge-litert` on the board (or the older
tflite-runtime). What the call of the runtime takes there is measured by a model
of a single addition and subtracted, as on the host. The second needs
`benchmark_model` of TensorFlow Lite for aarch64, which no package holds. Keys
must let in without a password.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
from typing import Any, ClassVar

from hwdarts_jax.harness import parsers
from hwdarts_jax.harness.runners import (
  Description,
  DeviceError,
  Model,
  ModelError,
  Protocol,
  Reading,
  Runner,
)
from hwdarts_jax.harness.runners._benchmark_model import (
  BenchmarkModelRunner,
  cores,
  ToolSettings,
)
from hwdarts_jax.harness.runners._empty_model import call_ms
from hwdarts_jax.harness.runners._link import Link
from hwdarts_jax.harness.runners._remote import RemoteRunner
from hwdarts_jax.harness.runners._ssh_link import SshSettings

_BOARD = pathlib.Path(__file__).with_name('_board.py')


@dataclasses.dataclass(frozen=True)
class Settings(ToolSettings, SshSettings):
  """How a board is measured; `ToolSettings`, `SshSettings` and the following.

  Attributes:
    tool: `litert` in Python, or `benchmark_model`.
    python: Python on the board, for `litert`.
  """

  tool: str = 'litert'
  python: str = 'python3'

  def __post_init__(self):
    super().__post_init__()
    if not self.host:
      raise ValueError('host is not given; name one such as pi@raspberrypi.')
    if self.tool not in _TOOLS:
      raise ValueError(
        f'tool is {self.tool!r}; it must be one of {sorted(_TOOLS)}.'
      )
    unused = [n for n in ('upload', 'binary', 'flags') if getattr(self, n)]
    if self.tool == 'litert' and (unused or self.delegate != 'xnnpack'):
      raise ValueError(
        f'{(unused or ["delegate"])[0]} is a setting of tool=benchmark_model; '
        'tool=litert has none such.'
      )


class LitertRunner(RemoteRunner):
  """LiteRT in the board's Python, a process for each reading."""

  overhead_s: ClassVar[float] = 1.0  # a guess; boards differ

  def __init__(self, link: Link, settings: Settings):
    super().__init__(link, settings)
    self._settings = settings
    self._python = ''
    self._script = ''
    self._mask = ''
    self._call_ms = 0.0

  def prepare(self) -> Description:
    """See `Runner.prepare`."""
    self.open()
    self._python = self.find(self._settings.python, setting='python')
    self._script = f'{self.folder}/{_BOARD.name}'
    self.link.push(_BOARD, self._script)
    log = self.usage(self._python, f'{self._script} --about')
    about = _result(log)
    if about is None:
      raise DeviceError(
        f'{self._settings.python} on {self.link.name} has no LiteRT '
        f'({parsers.tail(log)}). Run pip install ai-edge-litert there, or name '
        'another Python by python=....'
      )
    threads = self._settings.threads
    self._mask = cores(self.link, self._settings.affinity, threads)
    soc, facts = self.facts()
    self._call_ms = self._measure_call()
    facts['empty_model_ms'] = round(self._call_ms, 6)
    clock = 'median of CPU time' if threads == 1 else 'minimum of wall time'
    return Description(
      soc=soc,
      runtime=about['runtime'],
      runtime_version=about['version'],
      delegate='XNNPACK',
      threads=threads,
      affinity=f'mask 0x{self._mask}' if self._mask else None,
      statistic=f'{clock}, less that of an empty model',
      facts=facts,
    )

  def command(self, model: Model, file: str, protocol: Protocol) -> str:
    """See `RemoteRunner.command`."""
    words = (
      *(('taskset', self._mask) if self._mask else ()),
      self._python,
      self._script,
      file,
      str(self._settings.threads),
      str(protocol.warmup_runs),
      str(protocol.min_runs),
      str(protocol.min_ms),
    )
    return shlex.join(words)

  def read(self, model: Model, log: str) -> Reading:
    """See `RemoteRunner.read`."""
    result = _result(log)
    if result is None:
      raise parsers.LogError(
        f'LiteRT printed no time. It said: {parsers.tail(log)}'
      )
    return Reading(max(result['ms'] - self._call_ms, 0.0), result['runs'])

  def _measure_call(self) -> float:
    """Milliseconds of a model that computes next to nothing."""
    self._call_ms = 0.0
    try:
      found = call_ms(self.measure)
    except ModelError as e:
      raise DeviceError(f'{self.link.name} measures nothing: {e}') from e
    self._readings = 0  # the first one of a table looks at the heat again
    return found


def _result(log: str) -> dict[str, Any] | None:
  """What `_board.py` printed."""
  lines = re.findall(r'(?m)^hwdarts: (\{.*\})$', log)
  return json.loads(lines[-1]) if lines else None


class BoardRunner(BenchmarkModelRunner):
  """`benchmark_model` on a board."""

  overhead_s: ClassVar[float] = 0.6  # a guess; boards differ


_TOOLS = {'litert': LitertRunner, 'benchmark_model': BoardRunner}


def make(settings: Settings) -> Runner:
  """Makes the runner."""
  runner: Any = _TOOLS[settings.tool]
  return runner(settings.link(), settings)
