"""Runs a config at many points, and gathers what they found.

    python launch/sweep.py --config=configs/pixel4.py --sweep=target,seed

prints one command a point. A name is a generator `sweep_<name>` of the config
file or of configs/common.py; several make a grid. Values may also be given in
place: --sweep=seed,objective.target_ms=6:8:11. Other --config.* flags hold for
all points. Instead of printing,

    --run --jobs=2   runs the points here, two at a time (--gpus=0,1: one a GPU)
    --slurm          submits them as a SLURM array (DRY_RUN=1: shows how)
    --collect        only gathers what is there

Points whose result is there are skipped, so the same command goes on. A point
that fails stops no other one; its messages are in logs/. Afterwards the sweep's
folder has sweep.csv, sweep.json and, of searches and trainings, front.png.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import queue
import shlex
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from absl import flags  # noqa: E402
from etils import epath  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from hwdarts_jax.runtime import command, sweep_table  # noqa: E402
from hwdarts_jax.runtime import workdir as workdir_lib  # noqa: E402

UserError = workdir_lib.UserError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Path of a config; see hwdarts_jax.main.', lock_config=True
)
_SWEEP = flags.DEFINE_list(
  'sweep', [], 'Names of sweep_* functions, or field=value:value, of a grid.'
)
_ROOT = flags.DEFINE_string(
  'root', '', 'Folder of the sweep; by default one in runs/, by the settings.'
)
_RUN = flags.DEFINE_bool('run', False, 'Run the points here.')
_SLURM = flags.DEFINE_bool('slurm', False, 'Submit them as a SLURM array.')
_COLLECT = flags.DEFINE_bool('collect', False, 'Only gather what is there.')
_JOBS = flags.DEFINE_integer(
  'jobs', 0, 'How many points at a time; 0: one a GPU, or one.', lower_bound=0
)
_GPUS = flags.DEFINE_list('gpus', [], 'Numbers of the GPUs that points take.')


@dataclasses.dataclass(frozen=True)
class Point:
  """One setting of all that is swept.

  Attributes:
    values: by dotted field of the config.
    workdir: of its run.
    args: of `hwdarts_jax.main`.
  """

  values: Mapping[str, Any]
  workdir: epath.Path
  args: tuple[str, ...]

  @property
  def name(self) -> str:
    """Of its workdir, for messages."""
    return self.workdir.name

  def command(self) -> list[str]:
    """Runs it by this Python."""
    return [sys.executable, '-m', 'hwdarts_jax.main', *self.args]


def main(argv: list[str]) -> None:
  """Prints, runs, submits or gathers."""
  if len(argv) > 1:
    raise UserError(f'unknown arguments {argv[1:]}; flags are --name=value.')
  config = _CONFIG.value
  if config is None or not _SWEEP.value:
    raise UserError(
      '--config and --sweep are needed; for example '
      '--config=configs/pixel4.py --sweep=target,seed.'
    )
  if _RUN.value + _SLURM.value + _COLLECT.value > 1:
    raise UserError('give one of --run, --slurm and --collect.')
  grid = make_grid(config, _SWEEP.value, _functions(config.source))
  own = config_args(sys.argv[1:])
  root = epath.Path(_ROOT.value or _default_root(config, own)).expanduser()
  points = make_points(root, own, grid)
  left = [p for p in points if not sweep_table.is_finished(p.workdir)]
  failed: dict[str, str] = {}
  if _SLURM.value:
    _submit(root, left)
    return
  if _RUN.value:
    root.mkdir(parents=True, exist_ok=True)
    failed = run_all(root, left, len(points))
  elif not _COLLECT.value:
    for point in left:
      print(shlex.join(['python', '-m', 'hwdarts_jax.main', *point.args]))
    _tell(f'{len(points) - len(left)} of {len(points)} points are finished.')
    return
  _gather(root, points, failed)


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _functions(source: str) -> dict[str, Any]:
  """The sweeps of a config file, after those of all configs, by name."""
  path = pathlib.Path(source.partition(':')[0])
  found: dict[str, Any] = {}
  for file in (ROOT / 'configs' / 'common.py', path):
    spec = importlib.util.spec_from_file_location(f'_sweeps_{file.stem}', file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found |= {
      name.removeprefix('sweep_'): value
      for name, value in vars(module).items()
      if name.startswith('sweep_') and callable(value)
    }
  return found


def make_grid(
  config: Any, sweeps: Sequence[str], functions: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """The product of all sweeps: values by dotted field, for each point.

  Raises:
    UserError: a sweep or a field is unknown, empty, or set twice.
  """
  known = set(_fields(config.to_dict()))
  axes = []
  for text in sweeps:
    name, equals, values = text.partition('=')
    if equals:
      axis = [{name: v} for v in values.split(':')]
    elif name in functions:
      axis = list(functions[name]())
    else:
      raise UserError(
        f'--sweep names {name!r}; known are {sorted(functions)}, and any '
        'field=value:value.'
      )
    if not axis or not all(axis):
      raise UserError(f'--sweep: {name!r} has a point without any field.')
    axes.append(axis)
  for field in sorted({f for axis in axes for point in axis for f in point}):
    if field not in known:
      raise UserError(f'--sweep: the config has no field {field!r}.')
    if sum(any(field in p for p in axis) for axis in axes) > 1:
      raise UserError(f'--sweep: two sweeps set {field!r}.')
  return [
    {k: v for part in parts for k, v in part.items()}
    for parts in itertools.product(*axes)
  ]


def _fields(section: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
  """Dotted names of all sections and fields."""
  for name, value in section.items():
    yield f'{prefix}{name}'
    if isinstance(value, Mapping):
      yield from _fields(value, f'{prefix}{name}.')


def config_args(argv: Sequence[str]) -> list[str]:
  """Those arguments that are of the config, each as one word."""
  found, rest = [], iter(argv)
  for arg in rest:
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and (name + '.').startswith('config.'):
      found.append(f'--{name}={value if equals else next(rest, "")}')
  return found


def _default_root(config: Any, own: Sequence[str]) -> str:
  """A folder that belongs to exactly these settings and sweeps."""
  stem = pathlib.Path(config.source.partition(':')[0]).stem
  text = json.dumps([list(own), list(_SWEEP.value)])
  return f'runs/{stem}-sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def make_points(
  root: epath.Path, own: Sequence[str], grid: Sequence[Mapping[str, Any]]
) -> list[Point]:
  """A workdir and a command line for each point.

  Raises:
    UserError: two points are the same, or would share a workdir.
  """
  points = []
  for values in grid:
    # The last word of a field says enough, unless two fields share it.
    last = [f.rpartition('.')[2] for f in values]
    names = last if len({*last}) == len(last) else list(values)
    text = ','.join(
      f'{n}={_file_name(v)}'
      for n, v in zip(names, values.values(), strict=True)
    )
    sets = [f'--config.{field}={value}' for field, value in values.items()]
    args = (*own, *sets, f'--workdir={root / text}')
    points.append(Point(values, root / text, args))
  names = [p.name for p in points]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f'--sweep has the point {name!r} twice.')
  return points


def _file_name(value: Any) -> str:
  """A value as part of a file's name."""
  return ''.join(c if c.isalnum() or c in '.+-_' else '_' for c in str(value))


def run_all(
  root: epath.Path, points: Sequence[Point], total: int
) -> dict[str, str]:
  """Runs points here, some at a time; returns why points failed, by name."""
  (root / 'logs').mkdir(parents=True, exist_ok=True)
  jobs = _JOBS.value or len(_GPUS.value) or 1
  slots: queue.Queue[str | None] = queue.Queue()
  for i in range(jobs):
    slots.put(_GPUS.value[i % len(_GPUS.value)] if _GPUS.value else None)
  failed: dict[str, str] = {}
  begun, done = time.monotonic(), 0
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    running = {pool.submit(_run, root, p, slots): p for p in points}
    for future in concurrent.futures.as_completed(running):
      point, why = running[future], future.result()
      done += 1
      if why:
        failed[point.name] = why
      hours = (time.monotonic() - begun) / done * (len(points) - done) / 3600
      _tell(
        f'[{total - len(points) + done}/{total}] {point.name}: '
        f'{why or "finished"}; about {60 * hours:.0f} min left'
      )
  return failed


def _run(root: epath.Path, point: Point, slots: queue.Queue) -> str:
  """Runs a point; returns why it failed, or nothing."""
  gpu = slots.get()
  try:
    own = {} if gpu is None else {'CUDA_VISIBLE_DEVICES': gpu}
    ran = subprocess.run(
      point.command(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors='replace',
      env=os.environ | own,
    )
  finally:
    slots.put(gpu)
  workdir_lib.write_text_atomic(root / 'logs' / f'{point.name}.log', ran.stdout)
  if ran.returncode == 0 and sweep_table.is_finished(point.workdir):
    return ''
  lines = [x for x in ran.stdout.splitlines() if x.strip()] or ['']
  told = [x for x in lines if x.startswith('Error: ')]
  return f'failed with exit code {ran.returncode}: {(told or lines)[-1]}'


def _submit(root: epath.Path, points: Sequence[Point]) -> None:
  """Submits points as an array: task i runs line i of arguments.txt."""
  if not points:
    _tell('All points are finished.')
    return
  path = root / 'arguments.txt'
  limit = f'%{_JOBS.value}' if _JOBS.value else ''
  words = ['sbatch', f'--array=1-{len(points)}{limit}']
  words += ['launch/slurm_array.sbatch', str(path)]
  text = ''.join(shlex.join(p.args) + '\n' for p in points)
  if os.environ.get('DRY_RUN'):
    print(f'+ {shlex.join(words)}\n{path}:\n{text}', end='')
    return
  root.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_text_atomic(path, text)
  try:
    subprocess.run(words, check=True, cwd=ROOT)
  except (OSError, subprocess.CalledProcessError) as e:
    raise UserError(f'sbatch failed ({e}); is this a SLURM cluster?') from e
  _tell('When they are done: the same command with --collect.')


def _gather(
  root: epath.Path, points: Sequence[Point], failed: Mapping[str, str]
) -> None:
  """Writes the table and the picture; says which points lack."""
  rows = [
    sweep_table.row(p.values, p.workdir, failed.get(p.name, '')) for p in points
  ]
  print(sweep_table.write(root, rows))
  lacking = [r for r in rows if r['status'] != sweep_table.FINISHED]
  if lacking:
    lines = [f'{len(lacking)} of {len(rows)} points are not finished:']
    lines += [f'  {r["workdir"]}: {r["status"]}' for r in lacking]
    lines += [f'The same command goes on; messages are in {root / "logs"}.']
    raise UserError('\n'.join(lines))


if __name__ == '__main__':
  command.run(main)
