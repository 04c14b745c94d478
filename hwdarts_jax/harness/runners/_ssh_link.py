"""The way to a board: `ssh`, or none for this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import shlex
import shutil
import subprocess

from hwdarts_jax.harness.parsers import tail
from hwdarts_jax.harness.runners import DeviceError
from hwdarts_jax.harness.runners._link import (
  check_space,
  Link,
  LocalLink,
  QUICK_S,
  RESUME,
)
from hwdarts_jax.harness.runners._remote import RemoteSettings

# Seconds that a connection without commands stays open.
_PERSIST_S = 600


@dataclasses.dataclass(frozen=True)
class SshSettings(RemoteSettings):
  """Which machine measures; `RemoteSettings` and the following.

  Attributes:
    host: such as `pi@raspberrypi`; empty for this machine.
    port: of ssh, 0 for what its configuration says.
    identity: private key; empty for what the configuration says.
    config: configuration file of ssh; empty for the usual ones.
  """

  host: str = ''
  port: int = 0
  identity: str = ''
  config: str = ''

  def __post_init__(self):
    super().__post_init__()
    if self.host.startswith('-'):
      raise ValueError(f'host is {self.host!r}; a host has no leading dash.')

  def link(self) -> Link:
    """The way to the host."""
    return SshLink(self) if self.host else LocalLink()


class SshLink(Link):
  """A machine by `ssh`, over one connection that stays open."""

  def __init__(self, settings: SshSettings):
    self.name = settings.host
    # A peer that is gone is noticed after 15 s.
    self._options = [
      *('-o', 'BatchMode=yes', '-o', 'ConnectTimeout=15'),
      *('-o', 'ServerAliveInterval=5', '-o', 'ServerAliveCountMax=3'),
    ]
    if settings.port:
      self._options += ['-p', str(settings.port)]
    if settings.identity:
      self._options += ['-i', os.path.expanduser(settings.identity)]
    if settings.config:
      self._options += ['-F', os.path.expanduser(settings.config)]
    self._folder: str | None = None

  def connect(self) -> None:
    """See `Link.connect`."""
    if shutil.which('ssh') is None:
      raise DeviceError(
        'ssh is not installed. Install it (Debian: apt-get install '
        'openssh-client).'
      )
    # Paths of sockets may have about 100 characters; TMPDIR may be long.
    self._folder = f'/tmp/hwdarts-{secrets.token_hex(6)}'
    os.mkdir(self._folder, 0o700)
    # The connection outlives this command, and ends by itself if we are killed.
    keep = ('-o', 'ControlMaster=auto', '-o', f'ControlPersist={_PERSIST_S}')
    log = pathlib.Path(self._folder, 'log')
    with log.open('wb') as f:  # it would keep a pipe of ours open
      try:
        code = subprocess.run(
          self._ssh('exit 0', *keep),
          stdin=subprocess.DEVNULL,
          stdout=f,
          stderr=f,
          timeout=QUICK_S,
        ).returncode
      except subprocess.TimeoutExpired:
        code = 255
    if code != 0:
      text = log.read_text(errors='replace')
      self.close()
      raise _ssh_error(self.name, text)

  def close(self) -> None:
    """See `Link.close`."""
    if self._folder is None:
      return
    with contextlib.suppress(OSError, DeviceError):
      self.call(self._ssh('', '-O', 'exit')[:-1], 5.0)
    shutil.rmtree(self._folder, ignore_errors=True)
    self._folder = None

  def push(self, local: pathlib.Path, remote: str) -> None:
    """See `Link.push`. It needs no sftp server on the board."""
    size = local.stat().st_size
    script = f'cat > {shlex.quote(remote)} && echo pushed'
    with local.open('rb') as f:
      done = self.call(
        self._argv(script), QUICK_S + size / 1e6, stdin=f.fileno()
      )
    # The account's shell may have printed something before.
    if done.stdout.split()[-1:] == [b'pushed']:
      return
    text = done.stderr.decode(errors='replace') or f'status {done.returncode}'
    check_space(self.name, text)
    if done.returncode == 255:
      raise self._broken(text)
    raise DeviceError(
      f'{self.name} cannot store {local.name} as {remote}: {tail(text)}.'
    )

  def _argv(self, script: str) -> list[str]:
    # The login shell of the account may be no POSIX shell.
    return self._ssh(f'sh -c {shlex.quote(script)}')

  def _ssh(self, command: str, *more: str) -> list[str]:
    socket = ('-S', f'{self._folder}/s')
    return ['ssh', *socket, *self._options, *more, '-T', self.name, command]

  def _broken(self, output: str) -> DeviceError:
    if re.search(r'Permission denied|Host key|resolve hostname', output):
      return _ssh_error(self.name, output)
    return DeviceError(
      f'{self.name} vanished in the middle of a command ({tail(output)}). '
      f'Check its power and network, {RESUME}'
    )


def _ssh_error(host: str, text: str) -> DeviceError:
  reasons = (
    (
      'Permission denied|Too many authentication failures',
      f'{host} does not let us in ({{}}). Put your public key there with '
      f'`ssh-copy-id {host}`, or name a key by identity=....',
    ),
    (
      'Host key verification failed|IDENTIFICATION HAS CHANGED',
      f'The host key of {host} is not known, or not the one that is known. '
      f'Connect once by hand with `ssh {host}` and check it.',
    ),
    (
      'Could not resolve hostname',
      f'There is no host {host}. Check its name in host=....',
    ),
  )
  for pattern, message in reasons:
    if re.search(pattern, text):
      return DeviceError(message.format(tail(text)))
  return DeviceError(
    f'{host} cannot be reached ({tail(text)}). Check that it is switched on '
    'and that ssh runs there.'
  )
