"""Hardware-aware differentiable architecture search.

  python -m hwdarts_jax.main --config=configs/pixel4.py

Seconds, to see that it runs here: --config=configs/pixel4.py:runlocal. Each job
prints the command of the next one. By --config.job=NAME:

  search     (default) finds an architecture for a device
  pareto     one for each of many latency targets, in one run
  shortlist  trains the best candidates of either briefly, and chooses
  retrain    trains what was found, and tests it
  export     turns a trained network into .tflite and .onnx files
  evaluate   looks up what NAS-Bench-201 knows of a found cell
  describe   params, MACs and sites of a network or a space
  predictor  fits a latency predictor to measurements of yours
  report     shows a finished run as one HTML page

Every field of a config is a flag: --config.objective.target_ms=8. The same
--workdir resumes. What a user can mend ends in one message and exit code 2.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import pathlib

from absl import flags, logging
import jax
from ml_collections import config_flags

from hwdarts_jax.runtime import command, distributed

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Path of a config, with an optional argument after a colon: '
  'configs/pixel4.py:dataset=cifar10. Fields are set by --config.x.y=value.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'Folder of the run; the same folder resumes. By default a folder in runs/ '
  'named after the config, the job and a hash of the settings.',
)
_COMPARE = flags.DEFINE_list(
  'compare',
  [],
  'Of --config.job=report: workdirs, or folders of workdirs, whose '
  'architectures are shown beside those of --workdir; separated by commas.',
)
_MULTIHOST = flags.DEFINE_bool(
  'multihost',
  False,
  'Connect the processes of a pod or cluster: the same command on every host '
  'is one run.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  '',
  'host:port of process 0. Only with --multihost, where JAX does not find the '
  'processes itself.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', -1, 'How many there are; see --coordinator_address.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', -1, 'Which one this is, from 0; see --coordinator_address.'
)
_CONNECT_TIMEOUT = flags.DEFINE_integer(
  'connect_timeout_s',
  300,
  'Seconds in which all processes of --multihost must have started.',
)
_PEER_TIMEOUT = flags.DEFINE_integer(
  'peer_timeout_s',
  100,
  'Seconds after which a silent process of --multihost counts as lost, and the '
  'run ends.',
)

# The modules of `hwdarts_jax.jobs` that have `run`.
JOBS = (
  'describe',
  'evaluate',
  'export',
  'pareto',
  'predictor',
  'report',
  'retrain',
  'search',
  'shortlist',
)
# Those that use the devices of many hosts.
_MULTIHOST_JOBS = ('pareto', 'retrain', 'search')
_CACHE = '~/.cache/hwdarts_jax/xla'


def default_workdir(config) -> str:
  """A folder that belongs to exactly these settings."""
  stem = pathlib.Path(config.source.split(':')[0]).stem
  text = json.dumps(config.to_dict(), sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  return f'runs/{stem}-{config.job}-{digest}'


def main(argv: list[str]) -> None:
  """Runs the job."""
  if len(argv) > 1:
    raise ValueError(
      f'unknown arguments {argv[1:]}; settings are given as '
      '--config.name=value.'
    )
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
  config = _CONFIG.value
  if config is None:
    raise ValueError(
      '--config is missing; for example --config=configs/pixel4.py.'
    )
  if config.job not in JOBS:
    raise ValueError(f'config.job is {config.job!r}; known are {list(JOBS)}.')
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    cache = str(pathlib.Path(_CACHE).expanduser())
    jax.config.update('jax_compilation_cache_dir', cache)
  if not os.environ.get('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
    # Dozens of small programs make the first params.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
  job = importlib.import_module(f'hwdarts_jax.jobs.{config.job}')
  processes = _processes(config.job)
  if config.job == 'report':
    job.run(config, _existing(), _COMPARE.value)
    return
  if _COMPARE.value:
    raise ValueError(
      f'--compare is {_COMPARE.value}; only --config.job=report takes it.'
    )
  workdir = _WORKDIR.value or default_workdir(config)
  if processes is None:
    job.run(config, workdir)
  else:
    distributed.run(
      processes, functools.partial(_run_job, job, config, workdir)
    )


def _existing() -> str:
  """The workdir that a report is made of."""
  if not _WORKDIR.value:
    raise ValueError(
      '--workdir is missing: --config.job=report shows what is in one.'
    )
  return _WORKDIR.value


def _processes(job: str) -> distributed.Settings | None:
  """How the processes of this run meet; None if there is only this one.

  Raises:
    ValueError: a flag does not go with the others, or with the job.
  """
  settings = distributed.Settings(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    _CONNECT_TIMEOUT.value,
    _PEER_TIMEOUT.value,
  )
  if _MULTIHOST.value and job not in _MULTIHOST_JOBS:
    raise ValueError(
      f'job {job} runs in one process, on any machine that sees its workdirs; '
      f'leave out --multihost, which is for {list(_MULTIHOST_JOBS)}.'
    )
  for name, default in distributed.Settings()._asdict().items():
    if not _MULTIHOST.value and getattr(settings, name) != default:
      raise ValueError(
        f'--{name} is {getattr(settings, name)!r}, which means something only '
        'with --multihost.'
      )
  return settings if _MULTIHOST.value else None


def _run_job(job, config, workdir: str) -> None:
  """What each of many processes does."""
  distributed.check_same_settings({'config': config.to_dict(), 'to': workdir})
  job.run(config, workdir)


if __name__ == '__main__':
  command.run(main)
