"""What the runners of all remote devices have in common.

A folder on the device holds the models. It is this run's alone: a file in it
names the owner, and every command looks first whether it still does, since two
runs on one device would measure each other.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
import secrets
import shlex
import time
from typing import Any, TypeVar

from hwdarts_jax.harness import device_state, parsers
from hwdarts_jax.harness.runners import (
  DeviceError,
  Model,
  ModelError,
  Protocol,
  Reading,
  Runner,
)
from hwdarts_jax.harness.runners._link import (
  check_space,
  Link,
  Outcome,
  QUICK_S,
)

_Flags = TypeVar('_Flags')
# Status of our own script; the tools use 0 and 1, `timeout` 124 and up.
_TAKEN = 96
_TIMED_OUT = (124, 137, 143)
_KILL_AFTER_S = 5
# Files kept on the device between rounds.
_KEEP_BYTES = 256 << 20
_NAME = 'hwdarts_jax-harness'
_SENSORS = """\
dumpsys thermalservice 2>/dev/null
vcgencmd get_throttled 2>/dev/null
for z in /sys/class/thermal/thermal_zone*; do
  [ -r "$z/temp" ] && echo "$(cat "$z/type") $(cat "$z/temp" 2>/dev/null)"
done
true"""
_HOT = 'dumpsys thermalservice 2>/dev/null; vcgencmd get_throttled 2>/dev/null'
# Android's properties, or the device tree of a board: the last name that it is
# compatible with is that of the chip, such as `brcm,bcm2711`.
_FACTS = r"""
getprop 2>/dev/null |
  sed -n 's/^\[ro\.\([a-z.]*\)\]: \[\(.*\)\]$/\1=\2/p' | grep -E \
  '^(product.model|board.platform|soc.model|build.(id|version.release))='
t=/proc/device-tree
[ -r $t/model ] && echo "model=$(tr -d '\0' < $t/model)"
[ -r $t/compatible ] &&
  echo "soc.model=$(tr '\0' '\n' < $t/compatible | tail -n 1)"
echo "kernel=$(uname -sr)"
echo "machine=$(uname -m)"
g=/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
[ -r $g ] && echo "governor=$(cat $g)"
echo "cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
"""
# Ends what the pid file of the current folder names, if that still runs here:
# after a restart of the device the number may be another process's. `timeout`
# leads a group of its own, with the tool in it.
_END = """\
if read -r p 2>/dev/null < pid; then
  here=$(pwd -P)
  for kill in 'kill -15' : : : : 'kill -9'; do
    [ "$(readlink "/proc/$p/cwd")" = "$here" ] || break
    $kill "-$p"
    $kill "$p"
    sleep 1
  done 2>/dev/null
fi"""
_CHECK_EVERY = 10
_COOL_STEP_S = 5.0


@dataclasses.dataclass(frozen=True)
class RemoteSettings:
  """What is set for every remote device.

  Attributes:
    directory: folder on the device; models go to one below it.
    cooldown_s: longest pause, in seconds, for a throttled device.
  """

  directory: str = '/tmp'
  cooldown_s: float = 120.0

  def __post_init__(self):
    if not self.directory.startswith(('/', '~/')):
      raise ValueError(
        f'directory is {self.directory!r}; it must begin with / or ~/.'
      )
    if self.cooldown_s < 0:
      raise ValueError(
        f'cooldown_s is {self.cooldown_s}; it must be at least 0.'
      )


class RemoteRunner(Runner):
  """Pushes models over a link, and runs a benchmark tool on them.

  Attributes:
    link: the way to the device.
    folder: where the models are on the device.
  """

  def __init__(self, link: Link, settings: RemoteSettings):
    self.link = link
    self.folder = f'{settings.directory.rstrip("/")}/{_NAME}'
    self._cooldown_s = settings.cooldown_s
    self._owner = secrets.token_hex(8)
    self._kept: dict[str, int] = {}
    self._readings = 0
    self._opened = False

  @abc.abstractmethod
  def command(self, model: Model, file: str, protocol: Protocol) -> str:
    """The shell command that times `file`, a path on the device."""

  @abc.abstractmethod
  def read(self, model: Model, log: str) -> Reading:
    """Makes a reading of what the command printed.

    Raises:
      DeviceError: as in `Runner.measure`.
      ModelError: as in `Runner.measure`.
      parsers.LogError: the log holds no measurement.
    """

  def open(self) -> None:
    """Connects, and makes the folder anew.

    Raises:
      DeviceError: the device is not there, or the folder cannot be made.
    """
    self.link.connect()
    # A folder named by ~ is the account's; quotes would hide that from sh.
    if self.folder.startswith('~/'):
      home = self.link.checked('echo "$HOME"', 'run a shell').strip()
      self.folder = home + self.folder[1:]
    folder = shlex.quote(self.folder)
    # Only what a run of ours left there is ever removed, or ended: a run that
    # was killed, or lost its link, left its tool behind.
    self.link.checked(
      f'[ ! -e {folder} ] || [ -f {folder}/owner ] || '
      f'{{ echo "{self.folder} is there, but not ours"; exit 1; }}\n'
      f'if cd {folder} 2>/dev/null; then\n'
      f'echo {self._owner} > owner\n{_END}\ncd /\nfi\n'
      f'rm -rf {folder}; mkdir -p {folder} && '
      f'echo {self._owner} > {folder}/owner',
      f'make the folder {self.folder}',
    )
    self._opened = True

  def measure(self, model: Model, protocol: Protocol) -> Reading:
    """See `Runner.measure`."""
    remarks = self._cool()
    self._readings += 1
    file = self.place(model.path)
    command = self.command(model, file, protocol)
    done = self._execute(command, protocol.timeout_s)
    self._check(model, done, protocol)
    # Tools cite the path of the model, and with it perhaps an account.
    log = done.output.replace(f'{self.folder}/', '')
    try:
      reading = self.read(model, log)
    except parsers.LogError as e:
      raise ModelError(f'{model.name}: {e}') from e
    if done.code != 0:
      raise ModelError(
        f'{model.name}: the tool printed a time and then failed with status '
        f'{done.code}: {parsers.tail(log)}.'
      )
    return dataclasses.replace(reading, remarks=(*remarks, *reading.remarks))

  def pick(self, precisions: Mapping[str, _Flags], model: Model) -> _Flags:
    """The flags of a model's dtype.

    Raises:
      DeviceError: there are none.
    """
    if model.dtype not in precisions:
      raise DeviceError(
        f'The runner for {self.link.name} does not measure {model.dtype}; '
        f'choose one of {sorted(precisions)}.'
      )
    return precisions[model.dtype]

  def place(self, path: pathlib.Path) -> str:
    """Pushes a file unless it is there; returns its path on the device."""
    target = f'{self.folder}/{path.name}'
    if path.name not in self._kept:
      size = path.stat().st_size
      for name in list(self._kept):
        if sum(self._kept.values()) + size <= _KEEP_BYTES:
          break
        self.link.checked(
          f'rm -f {shlex.quote(f"{self.folder}/{name}")}*', 'remove a file'
        )
        del self._kept[name]
        self.forget(name)
      self.link.push(path, target)
      self._kept[path.name] = size
    return target

  def forget(self, name: str) -> None:
    """Is told that a file, and what was made of it, is no longer there."""

  def install(self, path: str) -> str:
    """Pushes a program of this machine; returns its path on the device.

    Raises:
      DeviceError: there is no such file.
    """
    local = pathlib.Path(path).expanduser()
    if not local.is_file():
      raise DeviceError(
        f'upload is {path!r}; there is no such file on this machine.'
      )
    target = f'{self.folder}/{local.name}'
    self.link.push(local, target)
    self.link.checked(f'chmod 755 {shlex.quote(target)}', 'make it executable')
    return target

  def find(
    self, program: str, elsewhere: tuple[str, ...] = (), setting: str = 'binary'
  ) -> str:
    """The absolute path of a program on the device.

    Args:
      program: its name or its path, from the folder that commands start in.
      elsewhere: paths to try where the name is not in PATH.
      setting: that gives its path, for the message.

    Raises:
      DeviceError: it is missing, or not executable.
    """
    found = self.link.checked(
      f'f={shlex.quote(program)}\n'
      'case $f in "~"/*) f=$HOME/${f#"~"/};; esac\n'
      f'for p in "$f" {shlex.join(elsewhere)}; do\n'
      '  p=$(command -v "$p") && [ -x "$p" ] || continue\n'
      '  case $p in /*) ;; *) p=$PWD/$p;; esac\n'
      '  echo "ok $p"; exit\n'
      'done\n'
      '[ -e "$f" ] && echo exists; true',
      'look for a program',
    ).strip()
    if found.startswith('ok '):
      return found[3:]
    if found == 'exists':
      raise DeviceError(
        f'{program} on {self.link.name} is not executable. Run chmod +x on it '
        'there.'
      )
    raise DeviceError(
      f'There is no {program} on {self.link.name}. Give its path there by '
      f'{setting}=....'
    )

  def usage(self, program: str, arguments: str) -> str:
    """What a program says of itself; a check that it runs at all.

    Raises:
      DeviceError: it cannot be executed.
    """
    done = self.link.run(
      f'timeout {QUICK_S:.0f} {shlex.quote(program)} {arguments}', QUICK_S
    )
    if done.code in (126, 127) or 'Exec format error' in done.output:
      raise DeviceError(
        f'{program} cannot be executed on {self.link.name} '
        f'({parsers.tail(done.output)}). It may be built for another processor.'
      )
    return done.output

  def facts(self) -> tuple[str | None, dict[str, Any]]:
    """The chip, and what else the device says about itself."""
    text = self.link.run(_FACTS).output
    facts = {k: v for k, v in device_state.properties(text).items() if v}
    names = [facts.pop(k, None) for k in ('soc.model', 'board.platform', 'cpu')]
    soc = next(filter(None, names), None)
    heat = self._heat()
    return soc, facts | ({'celsius_before': heat} if heat else {})

  def finish(self) -> tuple[str, ...]:
    """See `Runner.finish`."""
    heat = self._heat()
    if not heat:
      return ()
    name = max(heat, key=lambda n: heat[n])
    return (f'warmest sensor at the end: {name}, {heat[name]:.0f} C',)

  def close(self) -> None:
    """See `Runner.close`."""
    if self._opened:
      folder = shlex.quote(self.folder)
      with contextlib.suppress(DeviceError, OSError):
        # What a broken connection left running is ended, too.
        self.link.run(
          f'cd {folder} && read -r o < owner && [ "$o" = {self._owner} ] '
          f'|| exit 0\n{_END}\ncd / && rm -rf {folder}'
        )
      self._opened = False
    self.link.close()

  def _execute(self, command: str, timeout_s: float) -> Outcome:
    """Runs a tool in the folder, under the device's own time limit."""
    inner = shlex.quote(
      f'echo $$ > pid; exec timeout -k {_KILL_AFTER_S} {timeout_s:g} {command}'
    )
    return self.link.run(
      f'cd {shlex.quote(self.folder)} 2>/dev/null || exit {_TAKEN}\n'
      'read -r o < owner || o=\n'
      f'[ "$o" = {self._owner} ] || exit {_TAKEN}\n'
      f'sh -c {inner}\nstatus=$?\n'
      # Whoever takes the folder over ends the tool.
      'read -r o 2>/dev/null < owner || o=\n'
      f'[ "$o" = {self._owner} ] || exit {_TAKEN}\n'
      'rm -f pid\nexit $status',
      timeout_s + _KILL_AFTER_S,
    )

  def _check(self, model: Model, done: Outcome, protocol: Protocol) -> None:
    """Raises the error that a status stands for, if it does.

    A table's notes cite a ModelError, so that it does not say where this is.
    """
    name = self.link.name
    if done.code == _TAKEN:
      raise DeviceError(
        f'The folder {self.folder} on {name} is gone, or another run has taken '
        'it over. Let one run measure a device at a time, and start again.'
      )
    if done.code != 0:
      check_space(name, done.output)
    late = done.seconds >= 0.9 * protocol.timeout_s
    if done.code in _TIMED_OUT and late:
      raise ModelError(
        f'{model.name} ran into the limit of {protocol.timeout_s:g} s and was '
        'ended on the device.'
      )
    if done.code == 137:
      raise ModelError(
        f'{model.name} was killed on the device; its memory may be too small.'
      )
    if done.code in (126, 127):
      raise DeviceError(
        f'The benchmark tool on {name} cannot be executed any more: '
        f'{parsers.tail(done.output)}.'
      )
    if 'taskset: ' in done.output and done.code != 0:
      raise DeviceError(
        f'{name} does not let us pin to these cores '
        f'({parsers.tail(done.output)}). Choose others by affinity=..., or '
        'affinity=none.'
      )

  def _heat(self) -> dict[str, float]:
    return device_state.temperatures(self.link.run(_SENSORS).output)

  def _cool(self) -> tuple[str, ...]:
    """Waits, now and then, until the device is no longer throttled."""
    if self._readings % _CHECK_EVERY:
      return ()
    end = time.monotonic() + self._cooldown_s
    while level := device_state.throttling(self.link.run(_HOT).output):
      if time.monotonic() >= end:
        return (f'some readings were taken while throttled ({level})',)
      time.sleep(min(_COOL_STEP_S, max(0.0, end - time.monotonic())))
    return ()
