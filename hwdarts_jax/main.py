"""Entry point: ``python -m hwdarts_jax.main --config=configs/pixel4.py``.

Runs the job named by `config.job`. What a user can mend ends in one message
and exit code 2.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pathlib

from absl import flags, logging
import jax
from ml_collections import config_flags

from hwdarts_jax.runtime import command

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
flags.DEFINE_bool(
  'multihost',
  False,
  'Connect the processes of a pod or cluster (jax.distributed.initialize).',
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
)
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
  if flags.FLAGS.multihost:
    jax.distributed.initialize()
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    cache = str(pathlib.Path(_CACHE).expanduser())
    jax.config.update('jax_compilation_cache_dir', cache)
  job = importlib.import_module(f'hwdarts_jax.jobs.{config.job}')
  if config.job == 'report':
    job.run(config, _existing(), _COMPARE.value)
    return
  if _COMPARE.value:
    raise ValueError(
      f'--compare is {_COMPARE.value}; only --config.job=report takes it.'
    )
  job.run(config, _WORKDIR.value or default_workdir(config))


def _existing() -> str:
  """The workdir that a report is made of."""
  if not _WORKDIR.value:
    raise ValueError(
      '--workdir is missing: --config.job=report shows what is in one.'
    )
  return _WORKDIR.value


if __name__ == '__main__':
  command.run(main)
