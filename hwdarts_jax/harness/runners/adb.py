"""Android devices by adb, timed by `benchmark_model`.

    --runner=adb:upload=benchmark_model                       a Pixel 4's CPU
    --runner=adb:upload=benchmark_model,delegate=nnapi,accelerator=eden-drv
                                                     a Samsung Exynos NPU, int8

`benchmark_model` is a program of TensorFlow Lite that no package holds: take
the one for android_aarch64 from its site, or build it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import subprocess
from typing import ClassVar

from hwdarts_jax.harness.parsers import tail
from hwdarts_jax.harness.runners import DeviceError
from hwdarts_jax.harness.runners._benchmark_model import (
  BenchmarkModelRunner,
  ToolSettings,
)
from hwdarts_jax.harness.runners._link import check_space, Link, QUICK_S, RESUME


@dataclasses.dataclass(frozen=True)
class Settings(ToolSettings):
  """How an Android device is measured; `ToolSettings` and the following.

  Attributes:
    serial: of the device; needed where there are several.
    adb: the program.
  """

  serial: str = ''
  adb: str = 'adb'
  directory: str = '/data/local/tmp'

  def __post_init__(self):
    super().__post_init__()
    if not (self.upload or self.binary):
      raise ValueError(
        'upload is not given; name benchmark_model on this machine, or by '
        'binary=... on the device.'
      )


class AdbRunner(BenchmarkModelRunner):
  """`benchmark_model` on an Android device."""

  overhead_s: ClassVar[float] = 0.6  # a guess; phones differ


def make(settings: Settings) -> AdbRunner:
  """Makes the runner."""
  return AdbRunner(AdbLink(settings.serial, settings.adb), settings)


class AdbLink(Link):
  """The way to an Android device.

  Attributes:
    serial: of the device; empty for the only one there is.
    adb: the program.
  """

  def __init__(self, serial: str = '', adb: str = 'adb'):
    self.serial = serial
    self.adb = adb
    self.name = f'The device {serial}' if serial else 'The device'

  def connect(self) -> None:
    """See `Link.connect`."""
    if shutil.which(self.adb) is None:
      raise DeviceError(
        f'{self.adb!r} is not installed. Install it (Debian: apt-get install '
        'adb) or give its path by adb=....'
      )
    started = self.call([self.adb, 'start-server'], QUICK_S)
    if started.returncode != 0:
      raise DeviceError(f'adb cannot start its server: {_said(started)}.')
    states = self._states()
    usable = [s for s, state in states.items() if state == 'device']
    if not self.serial and len(usable) > 1:
      raise DeviceError(
        f'There are {len(usable)} devices ({", ".join(usable)}). Name one by '
        f'serial={usable[0]}.'
      )
    if not self.serial and usable:
      self.serial = usable[0]
    elif not self.serial and states:
      self.serial = next(iter(states))
    elif not self.serial:
      raise DeviceError(
        'adb sees no device. Connect one by USB with USB debugging switched '
        'on, or by `adb connect <address>`.'
      )
    self.name = f'The device {self.serial}'
    state = states.get(self.serial, 'absent')
    if state != 'device':
      raise _adb_state_error(self.serial, state, sorted(states))

  def push(self, local: pathlib.Path, remote: str) -> None:
    """See `Link.push`."""
    argv = [self.adb, '-s', self.serial, 'push', str(local), remote]
    # 1 MB/s is a slow wireless connection.
    limit_s = QUICK_S + local.stat().st_size / 1e6
    done = self.call(argv, limit_s)
    if done.returncode != 0:
      text = _said(done)
      check_space(self.name, text)
      if self._states().get(self.serial) != 'device':
        raise self._broken(text)
      raise DeviceError(f'adb cannot push {local.name} to {remote}: {text}.')

  def _argv(self, script: str) -> list[str]:
    return [self.adb, '-s', self.serial, 'shell', '-n', '-T', script]

  def _broken(self, output: str) -> DeviceError:
    state = self._states().get(self.serial, 'absent')
    if state in ('unauthorized', 'no permissions'):
      return _adb_state_error(self.serial, state, [])
    return DeviceError(
      f'The device {self.serial} vanished in the middle of a command (adb says '
      f'{state}; {tail(output)}). Connect it again, {RESUME}'
    )

  def _states(self) -> dict[str, str]:
    """{serial: state} of all devices that adb sees."""
    done = self.call([self.adb, 'devices'], QUICK_S)
    rows = re.findall(
      r'(?m)^(\S+)[\t ]+([a-z][a-z ]*[a-z])', done.stdout.decode()
    )
    return {s: state for s, state in rows if s not in ('List', '*')}


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
  # adb prints some of its errors on standard output.
  return tail((done.stdout + b'\n' + done.stderr).decode(errors='replace'))


def _adb_state_error(serial: str, state: str, known: list[str]) -> DeviceError:
  if state == 'unauthorized':
    return DeviceError(
      f'The device {serial} does not trust this computer yet. Unlock its '
      'screen and allow USB debugging, then try again.'
    )
  if state == 'no permissions':
    return DeviceError(
      f'This user may not open the device {serial}. Add the user to the group '
      'plugdev, or install the udev rules of Android devices.'
    )
  if state == 'absent':
    return DeviceError(
      f'adb sees no device {serial}; it sees {known or "none"}. Connect it, or '
      'name another one by serial=....'
    )
  return DeviceError(
    f'The device {serial} is {state}. Connect it again, or restart it.'
  )
