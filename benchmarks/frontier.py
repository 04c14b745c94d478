"""Searched networks against published ones, retrained alike and measured.

    F="python -m benchmarks.frontier --state=runs/frontier"
    $F --step=measure --device=host_cpu --runner=host --dtype=float32
    $F --step=search --device=host_cpu --table=host_cpu.mobile_cifar10.json
    $F --step=retrain
    $F --step=measure --device=host_cpu --runner=host --dtype=float32
    $F --step=judge

Every network is of one space and for one set of images: searched ones, and
MobileNetV3-Large and -Small and EfficientNet-B0 at the same resolution and
stem, all trained by the recipe of `--config`. Steps can be made on different
machines, if the folder of the state goes along:

- `measure` reads the latency of all networks that there are, side by side.
- `search` is one population (job `pareto`) for a device whose references were
  measured. Its targets bracket them: `--at` times the latency of each
  reference, and between two of them their geometric mean (more, where the
  members could not take equal turns); besides, for
  `benchmarks.claim` alone, `--quantiles` of the latencies that the space has,
  on a logarithmic scale. Each target has `--seeds` members; the one that the
  shared weights hold most accurate on the validation half is a network.
- `retrain` trains all networks with `--trainings` seeds each, as many as fit
  into `--limit_s`; the same command goes on.
- `judge` prints tables, draws DEVICE.png and writes judged.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
import time
from typing import Any

from absl import app, flags
import jax

from benchmarks import (
  claim,
  frontier_judge,
  frontier_measure,
  frontier_train,
  limit,
  packed,
)
from benchmarks.frontier_state import choose, LATENCY, NETWORKS, State, TRAINED
from hwdarts_jax import api, spaces
from hwdarts_jax.harness.measure import Rounds
from hwdarts_jax.jobs import bounds, common, pareto
from hwdarts_jax.latency import budgets

_STEP = flags.DEFINE_enum(
  'step', None, ['measure', 'search', 'retrain', 'judge'], 'What to do.'
)
_STATE = flags.DEFINE_string('state', 'runs/frontier', 'Folder of the state.')
_CONFIG = flags.DEFINE_string(
  'config',
  'configs/host_cpu.py:space=mobile,dataset=cifar10,recipe=budget',
  'Config of the space, its data and the recipe, with its argument.',
)
_SET = flags.DEFINE_multi_string('set', [], 'FIELD=VALUE of that config.')
_DEVICE = flags.DEFINE_string('device', 'host_cpu', 'Measured, searched for.')
_RUNNER = flags.DEFINE_string(
  'runner', 'host', 'Of the harness, that measures.'
)
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Of numbers on the device.')
_BATCH = flags.DEFINE_integer('batch', 1, 'Images in one inference there.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Readings of each network.')
_TABLE = flags.DEFINE_string('table', '', 'Latency table of the device.')
_REFERENCES = flags.DEFINE_list(
  'references',
  ['mobilenet_v3_small', 'mobilenet_v3_large', 'efficientnet_b0'],
  'Published networks.',
)
_AT = flags.DEFINE_float(
  'at', 0.95, 'Share of the latency of a reference that is aimed at.'
)
_QUANTILES = flags.DEFINE_list(
  'quantiles', ['0.25', '0.5', '0.75'], 'Of the range, for benchmarks.claim.'
)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Members for each target.')
_TRAININGS = flags.DEFINE_integer('trainings', 3, 'Seeds of each network.')
_LIMIT_S = flags.DEFINE_float('limit_s', 1e9, 'Seconds after which to stop.')
_AHEAD = flags.DEFINE_integer('ahead', 6, 'Networks compiled at a time.')
_PACKED = flags.DEFINE_string('packed', '', 'Folder of packed data.')
_IMAGES = flags.DEFINE_integer('images', 0, 'Of packed data; 0: all.')
_JUDGED = 'judged.json'


def state() -> State:
  """The comparison that the flags describe."""
  packed_settings = ['data.resident=true'] if _PACKED.value else []
  return State(
    pathlib.Path(_STATE.value),
    _CONFIG.value,
    # What is packed is not looked for where TFDS would have it.
    dict(text.split('=', 1) for text in [*_SET.value, *packed_settings]),
    tuple(_REFERENCES.value),
  )


def measure(own: State) -> None:
  """Measures all networks that there are for the device, and references."""
  device = _DEVICE.value
  ours = [n for n, r in own.found().items() if r['device'] == device]
  names = (*own.references, *ours)
  rounds = Rounds(rounds=_ROUNDS.value)
  own.write(
    LATENCY,
    device,
    frontier_measure.run(
      {n: own.spec(n) for n in names},
      _RUNNER.value,
      _DTYPE.value,
      _BATCH.value,
      rounds,
    ),
  )
  for name, ms in own.milliseconds(device).items():
    print(f'{device}: {name} {ms:.4g} ms', flush=True)


def search(own: State) -> None:
  """Searches a population for the device, and chooses its networks."""
  device = _DEVICE.value
  workdir = own.folder / 'search' / device
  config = own.config()
  config.job = 'pareto'
  config.latency.table = _TABLE.value
  front, between = targets(own, config)
  front = filled(front, len(between), config.population.members_per_step)
  with config.unlocked():
    config.population.targets_ms = tuple(sorted({*front, *between.values()}))
    config.population.seeds = _SEEDS.value
  print(f'{device}: targets {front} ms; for the claim {between} ms', flush=True)
  with limit.Limit(_LIMIT_S.value):
    pareto.run(config, str(workdir))
  path = workdir / pareto.FRONT
  if not path.exists():
    return
  (workdir / claim.QUANTILES).write_text(json.dumps(between) + '\n')
  members = json.loads(path.read_text())['members']
  for i, member in enumerate(choose(members, front)):
    own.write(NETWORKS, f'{device}_{i}', member | {'device': device})


def targets(own: State, config: Any) -> tuple[list[float], dict[str, float]]:
  """Targets in ms: around the references, and quantiles of the space."""
  deploy = spaces.make('mobile', **config.space.deploy.to_dict())
  latency = common.load_latency(config.latency.to_dict())(deploy)
  found = budgets.make(bounds.LATENCY, deploy, latency.predict).range
  span = math.log(found.high / found.low)
  between = {
    q: _round(found.low * math.exp(float(q) * span)) for q in _QUANTILES.value
  }
  measured = own.milliseconds(_DEVICE.value)
  theirs = sorted(_AT.value * measured[n] for n in own.references)
  means = [math.sqrt(a * b) for a, b in zip(theirs, theirs[1:], strict=False)]
  met = [ms for ms in sorted([*theirs, *means]) if ms > 1.02 * found.low]
  if len(met) < len(theirs) + len(means):
    # What is faster than the space can be has the fastest network it has.
    met = [1.02 * found.low, *met]
  return [*map(_round, met)], between


def filled(front: list[float], others: int, per_step: int) -> list[float]:
  """Targets, with others in the widest gaps until all members can take turns.

  Args:
    front: targets in ms, from the fastest on.
    others: how many more there are.
    per_step: members that take their turn at a time.
  """
  front = list(front)
  while _SEEDS.value * (len(front) + others) % per_step:
    if len(front) < 2:
      front.append(_round(1.2 * front[-1]))
      continue
    gaps = [b / a for a, b in zip(front, front[1:], strict=False)]
    at = gaps.index(max(gaps))
    front.insert(at + 1, _round(math.sqrt(front[at] * front[at + 1])))
  return front


def _round(ms: float) -> float:
  return float(f'{ms:.4g}')


def retrain(own: State) -> None:
  """Trains what is left to train."""
  begun = time.monotonic()
  tasks = []
  for name in own.names():
    seeds = tuple(
      s for s in range(_TRAININGS.value) if not own.is_trained(name, s)
    )
    if seeds:
      tasks.append(frontier_train.Task(name, training(own, name), seeds))
  is_done = frontier_train.run(
    tasks,
    lambda name, seed, record: own.write(TRAINED, f'{name}.{seed}', record),
    _LIMIT_S.value,
    _AHEAD.value,
  )
  print(
    f'{"All is trained" if is_done else "Some is left to train"}, after '
    f'{time.monotonic() - begun:.0f} s.'
  )


def training(own: State, name: str):
  """The config by which a network is trained, the same for all."""
  config = own.config()
  config.job = 'retrain'
  config.latency.table = ''
  config.retrain.spec = 'deploy'
  if name not in own.references:
    config.retrain.genotype = str(own.folder / NETWORKS / f'{name}.json')
    return config
  fixed = api.load_config(f'configs/references.py:model={name}')
  with fixed.unlocked():
    fixed.space.deploy = own.reference_settings(name)
    for section in ('data', 'network', 'retrain'):
      fixed[section] = config[section]
    fixed.job = 'retrain'
  return fixed


def judge(own: State) -> dict[str, Any]:
  """Prints the tables of all devices, draws them and writes judged.json."""
  accuracies, everything = own.accuracies(), {}
  for device in own.devices():
    ours = [n for n, r in own.found().items() if r['device'] == device]
    judged = frontier_judge.judge(
      own.references, ours, own.milliseconds(device), accuracies
    )
    everything[device] = judged
    if any(not n['is_reference'] for n in judged['networks']):
      frontier_judge.draw(device, judged, own.folder / f'{device}.png')
    print(frontier_judge.table(device, judged) + '\n')
  (own.folder / _JUDGED).write_text(json.dumps(everything, indent=1) + '\n')
  return everything


STEPS: Mapping[str, Any] = {
  'measure': measure,
  'search': search,
  'retrain': retrain,
  'judge': judge,
}


def main(argv: Sequence[str]) -> None:
  """Makes one step."""
  del argv
  begun = time.monotonic()
  if _PACKED.value:
    packed.use(pathlib.Path(_PACKED.value), _IMAGES.value)
  STEPS[_STEP.value](state())
  print(
    f'{_STEP.value}: {time.monotonic() - begun:.0f} s on '
    f'{jax.devices()[0].device_kind}'
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('step')
  app.run(main)
