"""What the tests of remote runners talk to: programs, adb servers, sshd.

Tools here execute their "model" as a shell script. So a test says by the model
what the tool prints, how long it takes and how it ends.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

from jax import lax
import numpy as np
import pytest

from hwdarts_jax.harness.runners import Model, Protocol

LOGS = pathlib.Path(__file__).with_name('logs')
QUICK = Protocol(warmup_runs=1, min_runs=2, min_ms=1.0, timeout_s=20.0)
TOOL = """\
#!/bin/sh
for a; do case $a in
  --help|-h) echo "usage: --graph --onnx --timingCacheFile"; exit;;
  --graph=*|--onnx=*) model=${a#*=};;
esac; done
. "$model"
"""
_GETPROP = """\
#!/bin/sh
echo '[ro.product.model]: [Loopback 4]'
echo '[ro.board.platform]: [msmnile]'
echo '[ro.serialno]: [SECRET]'
"""


def skip_without(*programs):
  """Skips a test where a program of Debian is missing; CI has them."""
  missing = [p for p in programs if find(p) is None]
  if missing:
    pytest.skip(f'not installed: {", ".join(missing)} (see .ci/run)')


def find(program):
  return shutil.which(program) or shutil.which(program, path='/usr/sbin')


def program(folder, name, text):
  """Writes an executable script."""
  path = pathlib.Path(folder, name)
  path.write_text(text)
  path.chmod(0o755)
  return path


def programs(folder):
  """The programs of an Android device."""
  folder.mkdir(exist_ok=True)
  program(folder, 'getprop', _GETPROP)
  heat = (
    (LOGS / 'thermalservice.txt').read_text().replace('Status: 2', 'Status: 0')
  )
  (folder / 'heat.txt').write_text(heat)
  program(folder, 'dumpsys', f'#!/bin/sh\ncat {folder}/heat.txt\n')
  return folder


def model(folder, script, name='op', dtype='float32', suffix='tflite'):
  """A model that the tools execute."""
  path = pathlib.Path(folder, f'{name}.{suffix}')
  path.write_text(script)
  return Model(f'{name}/key', path, dtype, 1, (1, 8, 8, 3))


def convolution(folder, size, suffix):
  """A real model: one 3x3 convolution of 8 features at `size` pixels."""
  needs = {'tflite': 'litert_converter', 'onnx': 'onnx'}[suffix]
  pytest.importorskip(needs, reason='needs the extra [tflite]')
  convert = pytest.importorskip('hwdarts_jax.harness.convert')
  kernel = np.ones((3, 3, 8, 8), np.float32)
  layout = ('NHWC', 'HWIO', 'NHWC')
  converted = convert.convert(
    lambda x: lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=layout
    ),
    (size, size, 8),
    convert.Target(suffix),
  )
  path = pathlib.Path(folder, f'conv{size}.{suffix}')
  path.write_bytes(converted.data)
  return Model(f'conv/{size}', path, 'float32', 1, (1, size, size, 8))


def takes(microseconds):
  """A model for `benchmark_model` that takes so long."""
  return (
    'echo "INFO: count=60 first=9 curr=9 min=9 max=9 '
    f'avg={microseconds} std=0"\n'
    'echo "INFO: Inference timings in us: Init: 9, First inference: 9, '
    f'Warmup (avg): 9, Inference (avg): {microseconds}"\n'
  )


def gone(pid, within_s=10.0):
  """Whether a process ends in time."""
  end = time.monotonic() + within_s
  while time.monotonic() < end:
    try:
      state = pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2]
    except OSError:
      return True
    if state == 'Z':
      return True
    time.sleep(0.05)
  return False


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as s:
    return s.getsockname()[1]


@contextlib.contextmanager
def serving(argv, port, env=None):
  """Runs a server until the end of the block."""
  with (
    tempfile.TemporaryFile() as log,
    subprocess.Popen(argv, stdout=log, stderr=log, env=env) as process,
  ):
    try:
      end = time.monotonic() + 20.0
      while True:
        with contextlib.suppress(OSError):
          socket.create_connection(('127.0.0.1', port), 1.0).close()
          break
        if process.poll() is not None or time.monotonic() > end:
          log.seek(0)
          raise RuntimeError(f'{argv[0]} does not serve: {log.read()!r}')
        time.sleep(0.05)
      yield process
    finally:
      process.kill()


@contextlib.contextmanager
def adb_server(home):
  """A server of adb of the tests' own; yields its environment."""
  port = free_port()
  env = {
    'ANDROID_ADB_SERVER_PORT': str(port),
    'ADB_LOCAL_TRANSPORT_MAX_PORT': '5554',  # look for no emulators
    'HOME': str(home),
  }
  argv = ['adb', '-L', f'tcp:localhost:{port}', 'nodaemon', 'server']
  with serving(argv, port, os.environ | env):
    yield env


@contextlib.contextmanager
def ssh_server(folder, greeting=''):
  """A real sshd with its own keys; yields the path of an ssh configuration.

  Every command prints the greeting first, as by a line in `.bashrc`.
  """
  folder = pathlib.Path(folder)
  for name in ('host_key', 'user_key', 'stranger_key'):
    subprocess.run(
      ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', folder / name],
      check=True,
    )
  (folder / 'authorized').write_text((folder / 'user_key.pub').read_text())
  port = free_port()
  (folder / 'sshd_config').write_text(
    f'Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n'
    f'AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\n'
    'KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n'
    f'PermitRootLogin prohibit-password\nPidFile {folder}/pid\n'
    + (
      f'ForceCommand echo {greeting}; eval "$SSH_ORIGINAL_COMMAND"\n'
      if greeting
      else ''
    )
  )
  known = (folder / 'host_key.pub').read_text()
  (folder / 'known_hosts').write_text(f'[127.0.0.1]:{port} {known}')
  config = folder / 'ssh_config'
  config.write_text(
    f'Host board\n HostName 127.0.0.1\n Port {port}\n'
    f' IdentityFile {folder}/user_key\n IdentitiesOnly yes\n'
    f' UserKnownHostsFile {folder}/known_hosts\n'
  )
  if os.geteuid() == 0:  # else sshd does without privilege separation
    pathlib.Path('/run/sshd').mkdir(exist_ok=True)
  argv = [find('sshd'), '-D', '-e', '-f', str(folder / 'sshd_config')]
  with serving(argv, port):
    yield config
