"""Trains many networks in one process, each with several seeds.

Their steps and tests are those of the job `retrain`, without its checkpoints:
a training takes less than a minute on an accelerator and is made again if it
was cut short. Programs are traced and compiled in threads, some networks ahead
of the one that trains; seeds of a network share its programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import functools
import math
import time
from typing import Any

import jax
import ml_collections

from hwdarts_jax.jobs import feeding, loop, retrain
from hwdarts_jax.jobs.retrain import Training
from hwdarts_jax.latency import cost
from hwdarts_jax.runtime import sharding

_COMPILE_S = 120.0  # what is not begun so late that it outlasts the limit
_MOST_STEPS = 128  # in a call


@dataclasses.dataclass(frozen=True)
class Task:
  """A network to train.

  Attributes:
    name: of the network.
    config: of the job `retrain`.
    seeds: of the trainings that are left.
  """

  name: str
  config: ml_collections.ConfigDict
  seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Programs:
  """What was compiled of a network.

  Attributes:
    task: what is trained.
    training: by the job.
    update: (state, taught_by, chunk) -> state, metrics.
    count: (variables, batch) -> i32[], right answers.
    states: before the first step, by seed, on the host.
    steps: of a call of `update`.
    seconds: of each part of making them.
  """

  task: Task
  training: Training
  update: Callable[..., Any]
  count: Callable[..., Any]
  states: dict[int, Any]
  steps: int
  seconds: dict[str, float]


def run(
  tasks: Sequence[Task],
  save: Callable[[str, int, dict[str, Any]], None],
  limit_s: float,
  ahead: int,
) -> bool:
  """Trains what fits into the time.

  Args:
    tasks: in the order of their importance.
    save: is called with the name, the seed and the record of each training.
    limit_s: seconds from now; nothing is begun that would likely exceed it.
    ahead: networks that are compiled at a time.

  Returns:
    Whether all were trained.
  """
  ends = time.monotonic() + limit_s
  longest, is_done = 0.0, True
  with concurrent.futures.ThreadPoolExecutor(ahead) as pool:
    waiting = {pool.submit(prepare, task, ends) for task in tasks}
    for programs in _as_made(waiting):
      if programs is None:
        is_done = False
        continue
      for seed in programs.task.seeds:
        begun = time.monotonic()
        if begun + longest > ends:
          is_done = False
          break
        record = train(programs, seed)
        save(programs.task.name, seed, record)
        longest = max(longest, time.monotonic() - begun)
        _report(programs, seed, record)
  return is_done


def _as_made(waiting) -> Iterator[Programs | None]:
  """Yields the programs that are made, in the order in which they are."""
  for made in concurrent.futures.as_completed(waiting):
    waiting.discard(made)
    yield made.result()


def prepare(task: Task, ends: float = math.inf) -> Programs | None:
  """Traces and compiles; None where that would last beyond `ends`."""
  clock = _Clock()
  if time.monotonic() + _COMPILE_S > ends:
    return None
  training = retrain.make(task.config)
  steps = _steps_per_call(training.schedule.log_every_steps)
  state = jax.eval_shape(lambda: retrain.init_state(training))
  place = sharding.replicated(training.mesh)
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state
  )
  chunk = retrain.make_feed(training)(0, steps)
  images = next(_test_batches(training))
  clock.lap('make_s')
  update = retrain.jitted_step(training).lower(state, None, chunk)
  count = jax.jit(functools.partial(retrain.count_correct, training))
  tested = count.lower(state.variables, images)
  clock.lap('trace_s')
  compiled = update.compile(), tested.compile()
  clock.lap('compile_s')
  with jax.default_device(jax.devices('cpu')[0]):
    states = {
      seed: retrain.init_state(_with_seed(training, seed))
      for seed in task.seeds
    }
  clock.lap('init_s')
  return Programs(task, training, *compiled, states, steps, clock.seconds)


def train(programs: Programs, seed: int) -> dict[str, Any]:
  """Trains and tests once; returns what is worth keeping.

  Raises:
    NonFiniteError: the loss is no longer finite.
  """
  clock = _Clock()
  training = _with_seed(programs.training, seed)
  state = sharding.replicate(programs.states.pop(seed), training.mesh)
  feed = retrain.make_feed(training)
  clock.lap('move_s')
  losses, metrics = [], []
  for step in range(0, training.schedule.num_steps, programs.steps):
    state, row = programs.update(state, None, feed(step, programs.steps))
    metrics.append(row)
    jax.block_until_ready(metrics[max(len(metrics) - 4, 0)])
  losses = [float(row['train_loss']) for row in metrics]
  if not all(map(math.isfinite, losses)):
    raise loop.NonFiniteError(
      f'train_loss of {programs.task.name}, seed {seed}, is not finite; lower '
      'retrain.optimizer.learning_rate for all networks alike.'
    )
  clock.lap('train_s')
  accuracy, of_average = (
    _accuracy(programs, v) for v in (state.variables, state.average)
  )
  clock.lap('test_s')
  spec, settings = training.network.spec, training.config.retrain
  return {
    'test_accuracy': of_average,
    'test_accuracy_of_last': accuracy,
    'train_loss': losses[-1],
    'images': training.schedule.num_steps * settings.batch_size,
    'num_epochs': settings.num_epochs,
    'macs': cost.total(spec, cost.macs),
    'params': cost.total(spec, cost.params),
    'seconds': programs.seconds | clock.seconds,
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }


def _with_seed(training: Training, seed: int) -> Training:
  config = training.config.copy_and_resolve_references()
  config.seed = seed
  return dataclasses.replace(training, config=config)


def _accuracy(programs: Programs, variables) -> float:
  counts = [
    programs.count(variables, batch)
    for batch in _test_batches(programs.training)
  ]
  return sum(map(int, counts)) / programs.training.test.num_examples


def _test_batches(training: Training):
  size = training.config.retrain.eval_batch_size
  return feeding.eval_batches(training.test, size, training.mesh)


def _steps_per_call(steps_per_epoch: int) -> int:
  """As many as divide an epoch; one on CPUs, whose loops are slow."""
  if jax.default_backend() == 'cpu':
    return 1
  most = min(steps_per_epoch, _MOST_STEPS)
  return max(n for n in range(1, most + 1) if steps_per_epoch % n == 0)


def _report(programs: Programs, seed: int, record: dict[str, Any]) -> None:
  rate = record['images'] / record['seconds']['train_s']
  parts = ', '.join(f'{k} {v:.1f}' for k, v in record['seconds'].items())
  print(
    f'{programs.task.name}, seed {seed}: {100 * record["test_accuracy"]:.2f} % '
    f'({rate:,.0f} images/s; {parts})',
    flush=True,
  )


class _Clock:
  """Seconds of the parts of something."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.monotonic()

  def lap(self, name: str) -> None:
    now = time.monotonic()
    self.seconds[name] = now - self._last
    self._last = now
