"""Ways to a device: run a shell script there, put a file there.

A link tells its own failures from those of the script. Neither `adb` nor `ssh`
does: both exit with statuses that the script may have too. So the script's
status comes back as a line of its output, and a reply without that line means
that the link broke. A line before the output tells it from what the start files
of an account's shell print.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import time

from hwdarts_jax.harness.parsers import tail
from hwdarts_jax.harness.runners import DeviceError

# What a quick question to a device may take, and how much longer than its own
# limit a script may need before the link itself counts as dead.
QUICK_S = 30.0
_GRACE_S = 20.0
RESUME = 'then give the same command again: it goes on where it was.'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a script did.

  Attributes:
    code: its exit status.
    output: its standard output and error, in one.
    seconds: how long it took, the link included.
  """

  code: int
  output: str
  seconds: float


class Link(abc.ABC):
  """A way to one device.

  Attributes:
    name: the device, for messages.
  """

  name: str
  grace_s: float = _GRACE_S

  def connect(self) -> None:  # noqa: B027, this machine needs none
    """Finds the device.

    Raises:
      DeviceError: it is not there, or does not let us in.
    """

  def close(self) -> None:  # noqa: B027, likewise
    """Ends the connection; never raises."""

  @abc.abstractmethod
  def _argv(self, script: str) -> list[str]:
    """The command, on this machine, that runs `script` in the device's sh."""

  @abc.abstractmethod
  def _broken(self, output: str) -> DeviceError:
    """Says why a reply came back without its last line."""

  @abc.abstractmethod
  def push(self, local: pathlib.Path, remote: str) -> None:
    """Copies a file to the device.

    Raises:
      DeviceError: it cannot; the device's disk may be full.
    """

  def run(self, script: str, timeout_s: float = QUICK_S) -> Outcome:
    """Runs a script on the device and waits for its end.

    Args:
      script: lines of POSIX sh; they may call `exit`.
      timeout_s: seconds that the script limits itself to. The link gives up
        somewhat later.

    Raises:
      DeviceError: the link broke, or the device does not answer.
    """
    mark = f'hwdarts-{secrets.token_hex(4)}'
    # The newlines before the marks serve outputs that end without one.
    wrapped = (
      f'printf "\\n{mark}\\n"\n(\n{script}\n) </dev/null 2>&1\n'
      f'printf "\\n{mark}:%d\\n" $?'
    )
    start = time.monotonic()
    done = self.call(self._argv(wrapped), timeout_s + self.grace_s)
    seconds = time.monotonic() - start
    text = done.stdout.decode(errors='replace').replace('\r\n', '\n')
    before, begun, after = text.partition(f'\n{mark}\n')
    text = after if begun else before
    output, found, status = text.rpartition(f'\n{mark}:')
    if not found:
      raise self._broken(text + done.stderr.decode(errors='replace'))
    return Outcome(int(status.split()[0]), output, seconds)

  def call(
    self, argv: list[str], timeout_s: float, stdin: int = subprocess.DEVNULL
  ) -> subprocess.CompletedProcess[bytes]:
    """Runs a program of this machine; it leaves no process behind."""
    with subprocess.Popen(
      argv,
      stdin=stdin,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
    ) as process:
      try:
        out, err = process.communicate(timeout=timeout_s)
      except subprocess.TimeoutExpired as e:
        _kill_group(process)
        raise DeviceError(
          f'{self.name} has not answered for {timeout_s:.0f} s. Check that it '
          f'is awake and connected, {RESUME}'
        ) from e
      except BaseException:
        _kill_group(process)
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)

  def checked(self, script: str, what: str) -> str:
    """The output of a quick script that must succeed.

    Args:
      script: as in `run`.
      what: what it does, for the message: `'make a folder'`.

    Raises:
      DeviceError: it fails.
    """
    done = self.run(script)
    if done.code != 0:
      check_space(self.name, done.output)
      raise DeviceError(
        f'{self.name} cannot {what}: {tail(done.output)} (status {done.code}).'
      )
    return done.output


class LocalLink(Link):
  """This machine."""

  name = 'this machine'

  def _argv(self, script: str) -> list[str]:
    return ['sh', '-c', script]

  def _broken(self, output: str) -> DeviceError:
    return DeviceError(f'sh on this machine ended early: {tail(output)}.')

  def push(self, local: pathlib.Path, remote: str) -> None:
    """See `Link.push`."""
    path = pathlib.Path(remote).expanduser()
    try:
      shutil.copyfile(local, path)
    except OSError as e:
      with contextlib.suppress(OSError):
        path.unlink()
      check_space(self.name, str(e))
      raise DeviceError(f'Cannot copy {local.name} to {path}: {e}.') from e


def check_space(name: str, text: str) -> None:
  """Raises DeviceError if a tool complained of a full disk."""
  if re.search(r'No space left on device|ENOSPC|Disk quota exceeded', text):
    raise DeviceError(
      f'{name} has no space left. Free some, or name another folder by '
      'directory=....'
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
