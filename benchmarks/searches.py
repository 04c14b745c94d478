"""Searches one after the other, as many as fit into a limit of time.

    python -m benchmarks.searches --config=configs/pixel4.py:dataset=cifar10 \
      --packed=packed --folder=runs/searches --limit_s=560 \
      --set='{"data.image_size": 16}' \
      --plan='[["plain", 0, {}], ["gdas", 0, {"relaxation.name": "sampled"}]]'

Each point of the plan, a name, a seed and settings, is a run of the job
`search` in FOLDER/NAME_SEED. They share this process, so what the first one
compiles and reads serves the others. At the limit the search in flight saves
its state and those not begun are left out; the same command goes on.
FOLDER/times.json says what each run took; `benchmarks.search_quality` judges
what was found.
"""

from __future__ import annotations

import json
import logging as std_logging
import pathlib
import re
import time
from typing import Any

from absl import app, flags, logging
import jax

from benchmarks import limit, packed
from hwdarts_jax import api
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.runtime import metrics

_CONFIG = flags.DEFINE_string(
  'config', 'configs/pixel4.py:dataset=cifar10', 'With its argument.'
)
_SET = flags.DEFINE_string('set', '{}', 'JSON: settings of all searches.')
_PLAN = flags.DEFINE_string('plan', '[]', 'JSON, or the path of a file of it.')
_FOLDER = flags.DEFINE_string('folder', 'runs/searches', 'Of the workdirs.')
_LIMIT_S = flags.DEFINE_float('limit_s', 1e9, 'Seconds after which to stop.')
_PACKED = flags.DEFINE_string('packed', '', 'Folder of packed data.')
_IMAGES = flags.DEFINE_integer('images', 0, 'Of packed data; 0: all.')
# What the job says it took, in its log.
_TOOK = re.compile(r'^(.*): (?:\d+ steps in )?([\d.]+) s$')


class _Log(std_logging.Handler):
  """Keeps what a job logs that it took, in seconds."""

  def __init__(self):
    super().__init__()
    self.took: dict[str, float] = {}

  def emit(self, record: std_logging.LogRecord) -> None:
    if found := _TOOK.match(record.getMessage()):
      self.took[found[1]] = self.took.get(found[1], 0.0) + float(found[2])


def plan() -> list[tuple[str, int, dict[str, Any]]]:
  """Name, seed and settings of each search.

  Raises:
    ValueError: it is not a list of those.
  """
  text = _PLAN.value
  points = json.loads(
    text if text.startswith('[') else pathlib.Path(text).read_text()
  )
  for point in points:
    if not (isinstance(point, list) and len(point) == 3):
      raise ValueError(
        f'--plan has {point!r}; it must be [name, seed, settings].'
      )
  return [tuple(p) for p in points]


def search(name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
  """Runs or resumes one search; says what it took."""
  shared = {'data.resident': 'true'} if _PACKED.value else {}
  config = api.load_config(
    _CONFIG.value, {'seed': seed} | shared | json.loads(_SET.value) | settings
  )
  workdir = pathlib.Path(_FOLDER.value) / f'{name}_{seed}'
  log, begun = _Log(), time.monotonic()
  logger = logging.get_absl_logger()
  logger.addHandler(log)
  try:
    search_job.run(config, str(workdir))
  finally:
    logger.removeHandler(log)
  rows = metrics.read(workdir)
  return {
    'name': name,
    'seed': seed,
    'settings': settings,
    'step': rows[-1]['step'] if rows else 0,
    'is_done': (workdir / search_job.GENOTYPE).exists(),
    'seconds': time.monotonic() - begun,
    'took': log.took,
  }


def main(argv: list[str]) -> None:
  """Searches; writes FOLDER/times.json after each."""
  del argv
  logging.set_verbosity(logging.INFO)
  end = time.monotonic() + _LIMIT_S.value
  if _PACKED.value:
    packed.use(pathlib.Path(_PACKED.value), _IMAGES.value)
  times = []
  out = pathlib.Path(_FOLDER.value)
  out.mkdir(parents=True, exist_ok=True)
  for point in plan():
    if time.monotonic() >= end:
      break
    with limit.Limit(end - time.monotonic()):
      times.append(search(*point))
    print(json.dumps(times[-1]), flush=True)
    record = {'device': jax.devices()[0].device_kind, 'searches': times}
    (out / 'times.json').write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
