"""Many processes as one run: how they meet, agree, lose one another, and part.

Each process of a run makes the same calls on its own part of the data, as JAX
wants it (`jax.distributed`). When one of them dies, nothing that waits for it
can go on: JAX notices, at the next collective or when its heartbeats stay out,
and ends the process, often by an abort deep inside C++. So the work is done in
a child, and the process that was started only watches how it ends: whatever was
lost, the user reads one sentence, and a script finds one exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import ctypes
import faulthandler
import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
from typing import Any, NamedTuple, NoReturn

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from hwdarts_jax.runtime import command, workdir

EXIT_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed
_SHARED_SECONDS = 30.0  # network file systems keep for a while what they saw
_LAST_WORDS_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1
# What XLA, gloo and the coordination service raise, as whatever type.
_LOST = re.compile(
  r'(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|INTERNAL|DEADLINE_EXCEEDED): '
)


class Settings(NamedTuple):
  """How processes find one another.

  Attributes:
    coordinator_address: host and port of process 0; empty: JAX finds it, which
      it does on TPU pods, and under SLURM, Open MPI and Kubernetes.
    num_processes: of the run; -1: JAX finds it.
    process_id: of this one, from 0; -1: JAX finds it.
    connect_timeout_s: seconds in which all processes must have started.
    peer_timeout_s: seconds without a sign of life after which a process counts
      as lost, and the run ends.
  """

  coordinator_address: str = ''
  num_processes: int = -1
  process_id: int = -1
  connect_timeout_s: int = 300
  peer_timeout_s: int = 100


def run(settings: Settings, function: Callable[[], None]) -> None:
  """Runs a function as one of many processes; ends them together.

  Args:
    settings: how they find one another.
    function: what each of them does. Only process 0 prints.

  Raises:
    ValueError: a setting cannot be.
    SystemExit: 2 for what the user can mend, `EXIT_LOST` if another process was
      lost.
  """
  _check(settings)
  sys.stdout.flush()
  sys.stderr.flush()
  watcher = os.getpid()
  child = os.fork()
  if child:
    code = _watch(child)
    if code:
      sys.exit(code)
    return
  _die_with(watcher)
  faulthandler.disable()  # an abort tells of others, not of what is run here
  try:
    _connect(settings)
    if jax.process_index() != 0:
      sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    function()
    barrier('the end')
    jax.distributed.shutdown()
  except BaseException as e:
    _leave(e)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(0)  # what runs at exit belongs to the watcher


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_process(value: bool) -> bool:
  """Whether the value is true in one process at least; all must ask."""
  if jax.process_count() == 1:
    return value
  return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def check_same_settings(config: Mapping[str, Any]) -> None:
  """Checks that all processes have one config.

  Raises:
    UserError: they do not; the message says which differ from process 0.
  """
  if jax.process_count() == 1:
    return
  digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).digest()
  _check_as_first(
    digest,
    'have other settings or another version of the config file than process '
    '0: give all the same command',
  )


def check_shared(path: epath.Path) -> None:
  """Checks that all processes see the workdir that process 0 has prepared.

  Raises:
    UserError: some do not.
  """
  if jax.process_count() == 1:
    return
  barrier('workdir prepared')
  config = path / workdir.CONFIG
  begun = time.monotonic()
  while not config.exists() and time.monotonic() - begun < _SHARED_SECONDS:
    time.sleep(0.2)
  data = config.read_bytes() if config.exists() else b''
  _check_as_first(
    hashlib.sha256(data).digest(),
    f'do not see the {workdir.CONFIG} in {path} that process 0 sees: --workdir '
    'must be in a bucket, or on a file system that all hosts share',
  )


def _check_as_first(digest: bytes, words: str) -> None:
  """Raises UserError if a process has another digest than process 0."""
  mine = np.frombuffer(digest, np.uint8)
  all_of_them = multihost_utils.process_allgather(mine)
  others = np.flatnonzero((all_of_them != all_of_them[0]).any(-1)).tolist()
  if others:
    raise workdir.UserError(f'the processes {others} {words}.')


def _check(settings: Settings) -> None:
  given = {
    'coordinator_address': settings.coordinator_address != '',
    'num_processes': settings.num_processes >= 0,
    'process_id': settings.process_id >= 0,
  }
  missing = [f'--{name}' for name, there in given.items() if not there]
  if any(given.values()) and missing:
    raise ValueError(
      f'{" and ".join(missing)} is missing: give --coordinator_address, '
      '--num_processes and --process_id together, or none of them where JAX '
      'finds the processes itself (TPU pods, SLURM, Open MPI, Kubernetes).'
    )
  if not missing and not settings.process_id < settings.num_processes:
    raise ValueError(
      f'--process_id is {settings.process_id}; it must be from 0 to '
      f'{settings.num_processes - 1}, below --num_processes.'
    )
  if not missing and not re.fullmatch(
    r'.+:\d{1,5}', settings.coordinator_address
  ):
    raise ValueError(
      f'--coordinator_address is {settings.coordinator_address!r}; it must be '
      'host:port of process 0, such as 10.0.0.1:1234.'
    )
  for name in ('connect_timeout_s', 'peer_timeout_s'):
    if getattr(settings, name) < 1:
      raise ValueError(
        f'--{name} is {getattr(settings, name)}; it must be at least 1.'
      )


def _connect(settings: Settings) -> None:
  """Joins the other processes; from here on jax sees all devices."""
  known = settings.coordinator_address != ''
  try:
    jax.distributed.initialize(
      settings.coordinator_address if known else None,
      settings.num_processes if known else None,
      settings.process_id if known else None,
      initialization_timeout=settings.connect_timeout_s,
      heartbeat_timeout_seconds=settings.peer_timeout_s,
    )
  except ValueError as e:
    if known:
      raise
    raise ValueError(
      f'JAX does not find the other processes ({e}). Give '
      '--coordinator_address, --num_processes and --process_id.'
    ) from e
  logging.info(
    'Process %d of %d, with %d of %d devices.',
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
  )


def _leave(error: BaseException) -> NoReturn:
  """Says what happened and ends at once: others would be waited for."""
  if isinstance(error, SystemExit):
    code = error.code if isinstance(error.code, int) else 1
  elif isinstance(error, Exception) and _LOST.match(str(error)):
    print(f'\n{str(error).splitlines()[0]}', file=sys.stderr)
    code = EXIT_LOST
  elif isinstance(error, ValueError | OSError) and not logging.level_debug():
    command.report(error)
    code = 2
    # The others may be about to say the same, and end without process 0.
    time.sleep(_LAST_WORDS_SECONDS)
  else:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _watch(child: int) -> int:
  """Waits for the child; returns the exit code, and says what it means.

  Signals to end are passed on.
  """
  forwarded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  for number in forwarded:
    signal.signal(number, lambda n, frame: os.kill(child, n))
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  for number in forwarded:
    signal.signal(number, signal.SIG_DFL)
  # Without the coordinator, or told by it that a process died, JAX aborts.
  if code not in (EXIT_LOST, -signal.SIGABRT):
    if code < 0:
      name = signal.Signals(-code).name
      print(f'\nError: this process was ended by {name}.', file=sys.stderr)
    return code if code >= 0 else 128 - code
  print(
    '\nError: another process of this run was lost, so it cannot go on; what '
    'happened to it is in its own output, or in that of its machine. The same '
    'command in all processes, of which there may be more or fewer than '
    'before, goes on from the last checkpoint.',
    file=sys.stderr,
  )
  return EXIT_LOST


def _die_with(watcher: int) -> None:
  """Nothing is left running when the process that was started is killed."""
  try:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  except (OSError, AttributeError):  # not on Linux
    return
  if os.getppid() != watcher:
    os._exit(1)
