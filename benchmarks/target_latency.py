"""Are targets hit? 200 searches for 5 devices, with a made-up task.

    python -m benchmarks.target_latency --json=target_latency.json

Everything is what a search runs (predictor, relaxation, outer update, dual
ascent, projection) but the task loss, which is made up so that hundreds of
searches take minutes: a random loss of each op on each edge and of each pair of
ops, in which slower ops tend to be better, with noise in each step. No accuracy
steers anything. Targets are the 10, 30, 50, 70 and 90 % quantiles of the
predicted latency of all connected cells.

A bound binds where the same search without one ends above the target. Tracking
is |E - target| / target of the expected latency that is bounded, at the last
step. Feasible by measurement is what the shipped series says; where it has
1,999 cells the answer is the most probable measured cell within the bound, and
the table says how often that was another one. Targets that no cell meets with
its margin are refused, as a search does. What a margin costs is the
CIFAR-10 accuracy of the best connected cell that is predicted within the bound,
with and without it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax import oracle
from hwdarts_jax.bilevel import dual, update
from hwdarts_jax.jobs import bounds, common
from hwdarts_jax.latency import budgets, corner, projection
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime import optimizers
from hwdarts_jax.spaces import nasbench201

_SEEDS = flags.DEFINE_integer('seeds', 8, 'Searches a device and target.')
_FIRST_SEED = flags.DEFINE_integer('first_seed', 1000, 'The first of them.')
_STEPS = flags.DEFINE_integer('steps', 600, 'Steps of a search.')
_RATE = flags.DEFINE_float('learning_rate', 0.02, 'Of alphas.')
_NOISE = flags.DEFINE_float('noise', 1.0, 'Of a step, in units of the losses.')
_LIFT = flags.DEFINE_float('lift', 0.1, 'objective.dual.lift.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
DEVICES = (
  'pixel4_cpu',
  'jetson_nano_gpu_fp16',
  'raspberry_pi4_cpu',
  'intel_ncs2',
  'snapdragon855_hexagon690_int8',
)
_DEVICES = flags.DEFINE_list('devices', list(DEVICES), 'Which of them.')
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
GROUP = nasbench201.GROUP


@dataclasses.dataclass(frozen=True)
class Device:
  """A device and what is known of all cells on it.

  Attributes:
    name: of the device.
    latency: the predictor.
    ms: predicted, f64[15625].
    measured: f64[15625], NaN where not measured.
  """

  name: str
  latency: common.LatencyModel
  ms: np.ndarray
  measured: np.ndarray


def load(name: str) -> Device:
  """Fits the predictor as a search does."""
  spec = nasbench201.make()
  latency = common.make_latency_model(table_lib.load(name), spec)
  budget = budgets.make(bounds.LATENCY, spec, latency.predict)
  ms = np.asarray(budget.costs(corner.corners(spec)), np.float64)
  return Device(name, latency, ms, oracle.latencies(name))


def made_up_task(device: Device, seed: int) -> dict[str, np.ndarray]:
  """Losses f32[6, 5] of ops and f32[6, 6, 5, 5] of pairs of them."""
  rng = np.random.default_rng(seed)
  cells, z = oracle.load().ops, device.ms - device.ms.mean()
  slow = np.array(
    [[z[cells[:, e] == o].mean() for o in range(5)] for e in range(6)]
  )
  upper = np.triu(np.ones((6, 6)), 1)[:, :, None, None]
  task = {
    'single': rng.normal(size=(6, 5)) - slow / slow.std(),
    'pair': 0.3 * rng.normal(size=(6, 6, 5, 5)) * upper,
  }
  std = true_loss(task)[oracle.load().connected].std()
  return {k: (v / std).astype(np.float32) for k, v in task.items()}


def true_loss(task: dict[str, np.ndarray]) -> np.ndarray:
  """The made-up loss of all cells, f64[15625]."""
  hot = np.eye(5)[oracle.load().ops]
  pairs = np.einsum('neo,efop,nfp->n', hot, task['pair'], hot, optimize=True)
  return np.einsum('neo,eo->n', hot, task['single']) + pairs


def search(device: Device, tasks, targets: np.ndarray) -> dict[str, np.ndarray]:
  """Runs a search for each target f[M] and task; infinite targets are none.

  Returns:
    The last 'probs' f[M, 6, 5], and 'expected' ms f[M] that was bounded.
  """
  steps = _STEPS.value
  problem = update.Problem(
    network=None,  # type: ignore[arg-type]  # the task is made up
    latency=device.latency.predict,
    params_optimizer=optimizers.make('sgd', 0.1, steps),
    alphas_optimizer=optimizers.make(
      'adam', _RATE.value, steps, b1=0.5, weight_decay=1e-3, schedule='constant'
    ),
    num_steps=steps,
    hypergrad='first_order',
    constraints=(dual.Constraint(bounds.LATENCY, device.latency.predict),),
    dual=dual.Settings(lift=_LIFT.value),
  )

  def one(target, task, rng):
    alphas = {GROUP: 1e-3 * jax.random.normal(rng, (6, 5))}
    state = update.SearchState(
      step=jnp.zeros((), jnp.int32), params={}, batch_stats={}, alphas=alphas,
      params_opt=(), alphas_opt=problem.alphas_optimizer.init(alphas),
      multiplier=jnp.zeros(()), rng=rng,
      duals={bounds.LATENCY: dual.start(target)},
    )  # fmt: skip

    def loss_at(step, alphas):
      noise = jax.random.normal(jax.random.fold_in(rng, step), (6, 5))
      p = jax.nn.softmax(alphas[GROUP])
      pairs = jnp.einsum('eo,efop,fp->', p, task['pair'], p)
      return ((task['single'] + _NOISE.value * noise) * p).sum() + pairs

    def step(state, _):
      def val_loss(params, alphas):
        del params
        return loss_at(state.step, alphas), {}

      state, metrics = update.outer_update(problem, state, val_loss, val_loss)
      return state.replace(step=state.step + 1), metrics['expected/latency_ms']

    state, expected = jax.lax.scan(step, state, length=steps)
    return {
      'probs': jax.nn.softmax(state.alphas[GROUP]),
      'expected': expected[-1],
    }

  rngs = jax.random.split(jax.random.key(_FIRST_SEED.value), len(targets))
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *tasks)
  found = jax.jit(jax.vmap(one))(
    jnp.asarray(targets, jnp.float32), stacked, rngs
  )
  return jax.tree.map(np.asarray, found)


def project(device: Device, probs: np.ndarray, aim: float, measured: bool):
  """The answer of a search: the number of the cell, if it is feasible."""
  powers = 5 ** np.arange(5, -1, -1)

  def table(values):
    return lambda hot: values[hot[GROUP].argmax(-1) @ powers]

  limits = [projection.Limit('latency_ms', table(device.ms), aim)]
  if measured:
    unknown = np.isnan(device.measured).astype(float)
    limits.append(projection.Limit('unmeasured', table(unknown), 0.5))
  spec = nasbench201.make()
  found = projection.project(spec, {GROUP: probs}, limits)
  return oracle.index(found.genotype) if found.is_feasible else None


def report(device: Device, margin: float, free, tasks) -> dict[str, Any]:
  """Searches and answers of a device at one margin."""
  connected = oracle.load().connected
  quantiles = np.quantile(device.ms[connected], QUANTILES)
  fastest = device.ms[connected].min()
  can = np.repeat(quantiles / (1 + margin) > fastest, _SEEDS.value)
  tasks = [task for task, ok in zip(tasks, can, strict=True) if ok]
  free = {k: v[can] for k, v in free.items()}
  targets = np.repeat(quantiles, _SEEDS.value)[can]
  quantiles = np.unique(targets)
  aims = targets / (1 + margin)
  found = search(device, tasks, aims)
  binds = free['expected'] > 1.02 * aims
  off = 100 * np.abs(found['expected'] / aims - 1)[binds]
  pairs = list(zip(found['probs'], aims, strict=True))
  answers = [project(device, *x, False) for x in pairs]
  judged = [project(device, *x, True) for x in pairs]
  predicted, slow, moved, regret = [], [], [], []
  for i, (cell, known) in enumerate(zip(answers, judged, strict=True)):
    predicted.append(cell is not None and device.ms[cell] <= targets[i])
    if known is None:  # no measured cell is predicted within the bound
      continue
    slow.append(device.measured[known] <= targets[i])
    moved.append(known != cell)
    loss = true_loss(tasks[i])
    regret.append(loss[cell] - loss[connected & (device.ms <= aims[i])].min())
  accuracy = oracle.accuracies('cifar10')
  best = [
    accuracy[connected & (device.ms <= limit)].max() for limit in (*quantiles,)
  ]
  within = [
    accuracy[connected & (device.ms <= limit / (1 + margin))].max()
    for limit in quantiles
  ]
  return {
    'device': device.name,
    'margin_percent': 100 * margin,
    'runs': len(targets),
    'refused': int((~can).sum()),  # no cell is within the margin
    'binding': int(binds.sum()),
    'tracking_median_percent': float(np.median(off)),
    'tracking_p90_percent': float(np.quantile(off, 0.9)),
    'feasible_predicted_percent': float(100 * np.mean(predicted)),
    'judged': len(slow),
    'feasible_measured_percent': float(100 * np.mean(slow)),
    'moved_to_measured_percent': float(100 * np.mean(moved)),
    'task_regret': float(np.mean(regret)),
    'best_accuracy_lost': float(np.mean(np.subtract(best, within))),
  }


def main(argv: list[str]) -> None:
  """Searches for all devices, prints the table, writes the JSON."""
  del argv
  rows, begun = [], time.monotonic()
  for name in _DEVICES.value:
    device = load(name)
    count = len(QUANTILES) * _SEEDS.value
    first = _FIRST_SEED.value + 20_000 * DEVICES.index(name)
    seeds = first + np.arange(count)
    tasks = [made_up_task(device, int(seed)) for seed in seeds]
    free = search(device, tasks, np.full(count, 1e9))
    for value in ('0', bounds.HELD_OUT):
      margin = bounds.margin(value, device.latency)
      rows.append(report(device, margin, free, tasks))
      figures = ' | '.join(
        f'{v:.2f}' if isinstance(v, float) else str(v)
        for v in rows[-1].values()
      )
      print(' | '.join(rows[-1]) if len(rows) == 1 else '', figures, flush=True)
  print(f'{time.monotonic() - begun:.0f} s on {jax.devices()[0].device_kind}')
  if _JSON.value:
    text = json.dumps({'flags': flags.FLAGS.flag_values_dict(), 'rows': rows},
                      indent=1, default=str)  # fmt: skip
    pathlib.Path(_JSON.value).write_text(text + '\n')


if __name__ == '__main__':
  app.run(main)
