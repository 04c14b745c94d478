"""TensorFlow Lite's `benchmark_model` on a device behind any link."""

from __future__ import annotations

import dataclasses
import re
import shlex

from hwdarts_jax.harness import device_state, parsers
from hwdarts_jax.harness.runners import (
  Description,
  DeviceError,
  Model,
  Protocol,
  Reading,
)
from hwdarts_jax.harness.runners._link import Link
from hwdarts_jax.harness.runners._remote import RemoteRunner, RemoteSettings

DELEGATES = ('xnnpack', 'nnapi', 'gpu', 'hexagon', 'none')
_STATISTIC = (
  'benchmark_model, wall time: median where it prints one of 0.1 ms or more, '
  'else mean'
)


@dataclasses.dataclass(frozen=True)
class ToolSettings(RemoteSettings):
  """How `benchmark_model` is run; `RemoteSettings` and the following.

  Attributes:
    upload: the program on this machine, pushed to the device.
    binary: or its path on the device.
    threads: CPU threads.
    affinity: `big` (as many of the fastest cores as there are threads),
      `none`, or a hexadecimal mask.
    delegate: `xnnpack`, `nnapi`, `gpu`, `hexagon` or `none`.
    accelerator: of NNAPI, such as `eden-drv`.
    partial_delegate: whether parts of a model may run on the CPU.
    flags: further flags of `benchmark_model`, separated by spaces.
  """

  upload: str = ''
  binary: str = ''
  threads: int = 1
  affinity: str = 'big'
  delegate: str = 'xnnpack'
  accelerator: str = ''
  partial_delegate: bool = False
  flags: str = ''

  def __post_init__(self):
    super().__post_init__()
    if self.threads < 1:
      raise ValueError(f'threads is {self.threads}; it must be at least 1.')
    if self.upload and self.binary:
      raise ValueError(
        f'upload is {self.upload!r} and binary is {self.binary!r}; give one of '
        'them: benchmark_model on this machine, or on the device.'
      )
    if self.affinity not in ('big', 'none') and not re.fullmatch(
      '(0x)?0*[1-9a-fA-F][0-9a-fA-F]*', self.affinity
    ):
      raise ValueError(
        f'affinity is {self.affinity!r}; it must be big, none or a hexadecimal '
        'mask such as f0.'
      )
    if self.delegate not in DELEGATES:
      raise ValueError(
        f'delegate is {self.delegate!r}; it must be one of {DELEGATES}.'
      )
    if self.accelerator and self.delegate != 'nnapi':
      raise ValueError(
        f'accelerator is {self.accelerator!r}, but delegate={self.delegate} '
        'has no accelerators; give delegate=nnapi.'
      )


class BenchmarkModelRunner(RemoteRunner):
  """Runs `benchmark_model` once for each reading."""

  def __init__(self, link: Link, settings: ToolSettings):
    super().__init__(link, settings)
    self._settings = settings
    self._mask = ''
    self._program = ''

  def prepare(self) -> Description:
    """See `Runner.prepare`."""
    self.open()
    self._program = (
      self.install(self._settings.upload)
      if self._settings.upload
      else self.find(self._settings.binary or 'benchmark_model')
    )
    help_text = self.usage(self._program, '--help')
    if '--graph' not in help_text:
      raise DeviceError(
        f'{self._program} on {self.link.name} is not benchmark_model: its '
        f'--help has no --graph ({parsers.tail(help_text)}).'
      )
    self._mask = cores(
      self.link, self._settings.affinity, self._settings.threads
    )
    soc, facts = self.facts()
    digest = self.link.run(f'sha256sum < {shlex.quote(self._program)}').output
    facts['benchmark_model_sha256'] = digest.split(' ')[0]
    return Description(
      soc=soc,
      runtime='TensorFlow Lite benchmark_model',
      runtime_version=None,
      delegate=self._delegate_name(),
      threads=self._settings.threads,
      affinity=f'mask 0x{self._mask}' if self._mask else None,
      statistic=_STATISTIC,
      facts=facts,
    )

  def command(self, model: Model, file: str, protocol: Protocol) -> str:
    """See `RemoteRunner.command`."""
    flags = [
      f'--graph={file}',
      f'--num_threads={self._settings.threads}',
      f'--warmup_runs={protocol.warmup_runs}',
      '--warmup_min_secs=0.01',
      f'--num_runs={protocol.min_runs}',
      f'--min_secs={protocol.min_ms / 1e3:g}',
      f'--max_secs={protocol.timeout_s / 2:g}',
      *self._chosen_flags(),
    ]
    pin = f'taskset {self._mask} ' if self._mask else ''
    return f'{pin}{shlex.join([self._program, *flags])}'

  def read(self, model: Model, log: str) -> Reading:
    """See `RemoteRunner.read`."""
    # The accelerator is absent for all models alike.
    for line in parsers.clean(log):
      unknown = re.search(r'Unconsumed cmdline flags:(.*)', line)
      if unknown and set(unknown[1].split()) & set(self._chosen_flags()):
        raise DeviceError(
          f'benchmark_model on {self.link.name} does not know'
          f'{unknown[1]}. Use a newer one, or leave the flag out.'
        )
      if 'Could not find the specified NNAPI accelerator' in line:
        raise DeviceError(
          f'{self.link.name} has no NNAPI accelerator '
          f'{self._settings.accelerator!r} ({line}). Name one that it has by '
          'accelerator=....'
        )
    remarks = self._delegate_remarks(log)
    timing = parsers.benchmark_model(log)
    if timing.statistic == 'mean' and timing.value_ms >= 0.1:
      remarks += ('this benchmark_model prints means only',)
    return Reading(timing.value_ms, timing.repeats or 1, remarks)

  def _delegate_remarks(self, log: str) -> tuple[str, ...]:
    """Says which of the delegate's work something else did."""
    name = self._settings.delegate
    if name == 'none':
      return ()
    if name == 'xnnpack':  # in use, too, the rest runs on the same CPU
      if parsers.delegate(log, name).share in ('part', 'none'):
        return ('XNNPACK left some ops to the kernels of TensorFlow Lite',)
      return ()
    share = parsers.check_delegate(log, name, self._settings.partial_delegate)
    if share == 'part':
      return ('parts of some models ran on the CPU (partial_delegate)',)
    return ()

  def _delegate_name(self) -> str | None:
    if self._settings.delegate == 'none':
      return None
    label = parsers.DELEGATE_NAMES[self._settings.delegate]
    return f'{label} {self._settings.accelerator}'.strip()

  def _chosen_flags(self) -> list[str]:
    """Flags without which it would measure something else."""
    more = shlex.split(self._settings.flags)
    if self._settings.delegate == 'none':
      return ['--use_xnnpack=false', *more]
    flags = [f'--use_{self._settings.delegate}=true']
    if self._settings.delegate == 'nnapi':
      # The reference implementation of Android is no accelerator.
      flags.append('--disable_nnapi_cpu=true')
      flags.append('--nnapi_execution_preference=sustained_speed')
      if self._settings.accelerator:
        flags.append(f'--nnapi_accelerator_name={self._settings.accelerator}')
    return flags + more


def cores(link: Link, affinity: str, threads: int) -> str:
  """The mask for `taskset`, hexadecimal; empty for no pinning.

  Args:
    link: way to the device.
    affinity: `big` for as many of the fastest cores as there are threads,
      `none`, or a hexadecimal mask.
    threads: CPU threads.

  Raises:
    DeviceError: the device does not tell how fast its cores are.
  """
  if affinity == 'none':
    return ''
  if affinity != 'big':
    return f'{int(affinity, 16):x}'
  text = link.run(
    'for c in /sys/devices/system/cpu/cpu[0-9]*; do\n'
    '  f=$c/cpufreq/cpuinfo_max_freq\n'
    '  [ -r $f ] && echo "${c##*/cpu}=$(cat $f)"\ndone; true'
  ).output
  speeds = {
    int(core): int(speed)
    for core, speed in device_state.properties(text).items()
    if core.isdigit() and speed.isdigit()
  }
  if len(speeds) < threads:
    raise DeviceError(
      f'{link.name} tells the speed of {len(speeds)} cores, for {threads} '
      'threads. Give a mask of cores by affinity=..., or affinity=none.'
    )
  fastest = sorted(speeds, key=lambda c: (speeds[c], c))[-threads:]
  return f'{sum(1 << c for c in fastest):x}'
