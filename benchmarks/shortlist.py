"""What does a brief training of a few single cells add to a search?

    python -m benchmarks.shortlist --plan --score=macs --plan_file=plan.json
    python -m benchmarks.shortlist --train --plan_file=plan.json --npz=cifar.npz
    python -m benchmarks.shortlist --judge --plan_file=plan.json

NAS-Bench-201, with the devices, budgets, predictors and judge of
`benchmarks.search_quality`. `--plan` makes the shortlists: for each budget the
cells of the highest score that are predicted within it, and for comparison the
same number at random. `--score=macs` scores a cell by its MACs, of ops that are
on a path from input to output; any other value is the pattern of workdirs whose
mean gates are the score. `--train` trains every network of them once, on half
of the train split, and takes its accuracy on the other half; it goes on where
it was stopped, and stops by itself before `--limit_s`. `--judge` prints what
the best of each shortlist is worth; it alone reads true accuracies.

The npz has JPEG files one after the other (`data`, u8), where each begins and
the last ends (`offsets`) and `labels`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import glob
import io
import json
import pathlib
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import search_quality, shortlist_judge
from hwdarts_jax import oracle
from hwdarts_jax.data import pipeline, sources
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.split import search_split
from hwdarts_jax.jobs import shortlist_training
from hwdarts_jax.latency import cost, liveness, sameness
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.models import members, ops
from hwdarts_jax.runtime import optimizers, sharding
from hwdarts_jax.spaces import nasbench201

_PLAN = flags.DEFINE_bool('plan', False, 'Make the shortlists.')
_TIME = flags.DEFINE_bool('time', False, 'Time a step, by each evaluation.')
_TRAIN = flags.DEFINE_bool('train', False, 'Train what is not trained yet.')
_JUDGE = flags.DEFINE_bool('judge', False, 'Print what they are worth.')
_PLAN_FILE = flags.DEFINE_string('plan_file', 'shortlist_plan.json', 'Which.')
_RESULTS = flags.DEFINE_string('results', 'shortlist.json', 'Of trainings.')
_SCORE = flags.DEFINE_string('score', 'macs', 'Or a pattern of workdirs.')
_SIZE = flags.DEFINE_integer('size', 16, 'Networks of each shortlist.')
_NPZ = flags.DEFINE_string('npz', '', 'CIFAR-10; empty: small random images.')
_EPOCHS = flags.DEFINE_integer('epochs', 12, 'Of each training.')
_BATCH = flags.DEFINE_integer('batch_size', 256, 'Images of a step.')
_FEATURES = flags.DEFINE_integer('features', 16, 'Of the first cells.')
_CELLS = flags.DEFINE_integer('num_cells', 1, 'Of each stage.')
_SUBSAMPLE = flags.DEFINE_integer('subsample', 1, 'Every n-th pixel is read.')
_MEMBERS = flags.DEFINE_integer('members', 8, 'Networks of one program.')
_RATE = flags.DEFINE_float('learning_rate', 0.1, 'At its highest.')
_EVALUATIONS = flags.DEFINE_list(
  'evaluations',
  ['loop:fused', 'loop:plain', 'vmap:fused', 'matmul:fused'],
  'Of members and of the network; the fastest of --time, or the first, trains.',
)
_LIMIT = flags.DEFINE_float('limit_s', 1e9, 'Seconds, all things included.')
_SEED = flags.DEFINE_integer('training_seed', 0, 'Of params and batches.')
_BEGUN = time.monotonic()


def scores() -> np.ndarray:
  """The score of all cells, f64[15625].

  Raises:
    ValueError: there is no workdir.
  """
  if _SCORE.value == 'macs':
    spec = nasbench201.make()
    paid = liveness.paid_ops(spec, corners(spec), 'compiled')
    macs = cost.tabulate(spec, cost.macs, 'macs').per_op
    total = sum(np.einsum('neo,eo->n', paid[g], macs[g]) for g in paid)
    return np.asarray(total, np.float64)
  paths = sorted(glob.glob(_SCORE.value))
  if not paths:
    raise ValueError(f'--score={_SCORE.value}: there is no such folder.')
  each = [
    gates for p in paths for gates in search_quality.last_gates(pathlib.Path(p))
  ]
  return oracle.log_probabilities(np.mean(each, 0))


def plan() -> dict[str, Any]:
  """Shortlists of all cases, and what to train for them, in this order."""
  keys = np.array(
    sameness.keys(
      nasbench201.make(), [oracle.genotype(i) for i in range(oracle.NUM_CELLS)]
    )
  )
  connected = oracle.load().connected
  rng = np.random.default_rng(0)
  ties, chance = (rng.random(oracle.NUM_CELLS) for _ in range(2))
  values = scores()
  order = np.lexsort((ties, -values))
  cases = [{'device': '', 'scored': _best(order, connected, keys)}]
  for device in flags.FLAGS.devices:
    measured = oracle.candidates(device)
    known = oracle.latencies(device)[measured]
    for seed in range(flags.FLAGS.seeds):
      ms = search_quality.predicted_ms(device, seed)
      for quantile in map(float, flags.FLAGS.quantiles):
        budget = float(np.quantile(known, quantile))
        within = measured & (ms <= budget / (1 + flags.FLAGS.margin))
        cases.append(
          {
            'device': device,
            'seed': seed,
            'quantile': quantile,
            'budget_ms': budget,
            'scored': _best(order, within, keys),
            'random': _best(np.argsort(chance), within, keys),
          }
        )
      say(f'{device}, rows of seed {seed}: done')
  return {
    'score': _SCORE.value,
    'size': _SIZE.value,
    'cases': cases,
    'members': _union(cases, keys),
  }


def _best(order: np.ndarray, allowed: np.ndarray, keys: np.ndarray):
  """Cells of the first networks in an order, of those that are allowed."""
  found: dict[str, int] = {}
  for cell in order[allowed[order]]:
    found.setdefault(str(keys[cell]), int(cell))
    if len(found) == _SIZE.value:
      break
  return list(found.values())


def _union(cases, keys) -> list[dict[str, Any]]:
  """What to train: the first of all shortlists, then the second, and so on."""
  found: dict[str, int] = {}
  for kind in ('scored', 'random'):
    for rank in range(_SIZE.value):
      for case in cases:
        if rank < len(case.get(kind, ())):
          cell = case[kind][rank]
          found.setdefault(str(keys[cell]), cell)
    say(f'{len(found)} networks with those that are {kind}')
  return [{'key': key, 'cell': cell} for key, cell in found.items()]


def load_images() -> sources.Dataset:
  """CIFAR-10 of the npz, or noise to see that everything runs."""
  if not _NPZ.value:
    rng = np.random.default_rng(0)
    count = 4 * _BATCH.value
    images = rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
  else:
    with np.load(_NPZ.value) as arrays:
      data, at = arrays['data'].tobytes(), arrays['offsets']
      labels = arrays['labels'].astype(np.int32)

    def decode(i):
      file = io.BytesIO(data[at[i] : at[i + 1]])
      return np.asarray(Image.open(file).convert('RGB'))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      images = np.stack(list(pool.map(decode, range(len(labels)))))
  every = _SUBSAMPLE.value
  images = np.ascontiguousarray(images[:, ::every, ::every])
  stats = sources._KNOWN_STATS['cifar10']
  return sources.Dataset('cifar10', images, labels, 10, *stats)


@dataclasses.dataclass
class Programs:
  """The compiled programs of one evaluation.

  Attributes:
    name: of the evaluation.
    trainer: what is compiled.
    step: (state, gates, chunk) -> state, metrics.
    count: (state, gates, batch) -> i32[M].
  """

  name: str
  trainer: shortlist_training.Trainer
  step: Any
  count: Any


def settings() -> dict[str, Any]:
  """What accuracies depend on."""
  return {
    'epochs': _EPOCHS.value,
    'batch_size': _BATCH.value,
    'features': _FEATURES.value,
    'num_cells': _CELLS.value,
    'subsample': _SUBSAMPLE.value,
    'learning_rate': _RATE.value,
    'seed': _SEED.value,
  }


def lower(name: str, train, feed, batch) -> tuple[Any, Any, Any]:
  """Trainer, and both programs before they are compiled."""
  evaluation, _, network = name.partition(':')
  on_cpu = jax.default_backend() == 'cpu'
  context = ops.Context(
    affine=False,
    dtype=jnp.float32 if on_cpu else jnp.bfloat16,
    depthwise='shift' if on_cpu else 'conv',
  )
  spec = nasbench201.make(
    features=_FEATURES.value,
    num_cells=_CELLS.value,
    image_size=train.image_shape[0],
  )
  per_epoch = train.num_examples // _BATCH.value
  optimizer = optimizers.make(
    'sgd',
    _RATE.value,
    _EPOCHS.value * per_epoch,
    nesterov=True,
    weight_decay=5e-4,
    warmup_steps=per_epoch // 2,
    clip_norm=5.0,
  )
  trainer = shortlist_training.Trainer(
    members.make(spec, context, network, evaluation),
    optimizer,
    Augment(pad=4 // _SUBSAMPLE.value, flip=True),
    train.mean,
    train.std,
    evaluation,
    sharding.make_mesh(1),
  )
  cells = [oracle.genotype(oracle.NUM_CELLS - 1)] * _MEMBERS.value
  gates = shortlist_training.stack_gates(spec, cells, trainer.mesh)
  state = trainer.init(0, _MEMBERS.value)
  step = jax.jit(trainer.step, donate_argnums=0)
  begun = time.monotonic()
  lowered = (
    step.lower(state, gates, feed),
    jax.jit(trainer.count_correct).lower(state, gates, batch),
  )
  say(f'{name}: traced in {time.monotonic() - begun:.0f} s')
  return trainer, *lowered


def compile_all(names, train, chunk, batch) -> list[Programs]:
  """Compiles the programs of all evaluations side by side."""

  def finish(name, trainer, step, count):
    # Batched products have crashed in the other code generator of XLA.
    options = {}
    if name.startswith('matmul') and jax.default_backend() == 'gpu':
      options['xla_gpu_enable_triton_gemm'] = False
    begun = time.monotonic()
    try:
      made = [p.compile(compiler_options=options) for p in (step, count)]
    except Exception as e:  # one evaluation that fails is a result
      say(f'{name}: not compiled, {str(e)[:300]}')
      return None
    used = made[0].memory_analysis().temp_size_in_bytes / 2**30
    say(f'{name}: compiled in {time.monotonic() - begun:.0f} s, {used:.1f} GiB')
    return Programs(name, trainer, *made)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    running = [
      pool.submit(finish, name, *lower(name, train, chunk, batch))
      for name in names
    ]
    return [p for p in (r.result() for r in running) if p is not None]


def time_step(programs: Programs, chunk) -> float:
  """Images a second of a program, all members together; prints it."""
  state = programs.trainer.init(0, _MEMBERS.value)
  spec = programs.trainer.network.spec
  cells = [oracle.genotype(oracle.NUM_CELLS - 1)] * _MEMBERS.value
  gates = shortlist_training.stack_gates(spec, cells, programs.trainer.mesh)
  seconds = []
  for _ in range(3):
    begun = time.monotonic()
    state, metrics = programs.step(state, gates, chunk)
    jax.block_until_ready((state, metrics))
    seconds.append(time.monotonic() - begun)
  images = _MEMBERS.value * chunk.indices.size
  rate = images / min(seconds[1:])
  say(
    f'{programs.name}: {1e3 * min(seconds[1:]) / len(chunk.indices):.2f} ms a '
    f'step of {_MEMBERS.value} members, {rate:.0f} images/s; first call '
    f'{seconds[0]:.1f} s'
  )
  return rate


def train_all(programs: Programs, feed, val, todo, results) -> None:
  """Trains members chunk by chunk, and writes what is known after each."""
  spec, size = programs.trainer.network.spec, _MEMBERS.value
  chunks = [todo[i : i + size] for i in range(0, len(todo), size)]
  # Once on the device, not once for each chunk.
  batches = [jax.device_put(b) for b in pipeline.eval_batches(val, 1000)]
  took = 0.0
  for number, some in enumerate(chunks):
    if time.monotonic() - _BEGUN + 1.1 * took > _LIMIT.value:
      say(f'stopped by --limit_s with {len(results["accuracy"])} networks')
      return
    begun = time.monotonic()
    filled = some + some[:1] * (size - len(some))
    genotypes = [oracle.genotype(m['cell']) for m in filled]
    gates = shortlist_training.stack_gates(
      spec, genotypes, programs.trainer.mesh
    )
    state, step = programs.trainer.init(_SEED.value, size), feed.steps_per_epoch
    for epoch in range(_EPOCHS.value):
      chunk = feed(epoch * step, step)
      state, metrics = programs.step(state, gates, chunk)
    right = sum(programs.count(state, gates, batch) for batch in batches)
    shares = np.asarray(right) / val.num_examples
    for member, share in zip(some, shares, strict=False):
      results['accuracy'][member['key']] = float(share)
    took = time.monotonic() - begun
    results['seconds'] = results.get('seconds', 0.0) + took
    pathlib.Path(_RESULTS.value).write_text(json.dumps(results, indent=1))
    images = _EPOCHS.value * step * _BATCH.value * size
    say(
      f'chunk {number + 1} of {len(chunks)}: {took:.1f} s, '
      f'{images / took:.0f} images/s, loss {float(metrics["train_loss"]):.3f}, '
      f'accuracies {np.round(100 * shares[: len(some)], 1).tolist()}'
    )


def run(todo, results) -> None:
  """Compiles, times and trains."""
  train, val = search_split(load_images(), 0)
  say(f'{train.num_examples} images of {train.image_shape}')
  feed = pipeline.Feed(train, _BATCH.value, _SEED.value)
  chunk = feed(0, feed.steps_per_epoch)
  batch = next(pipeline.eval_batches(val, 1000))
  names = _EVALUATIONS.value if _TIME.value else _EVALUATIONS.value[:1]
  programs = compile_all(names, train, chunk, batch)
  if _TIME.value:
    programs.sort(key=lambda p: -time_step(p, chunk))
  if _TRAIN.value:
    say(f'{len(todo)} networks to train by {programs[0].name}')
    train_all(programs[0], feed, val, todo, results)


def say(text: str) -> None:
  """Prints, with the seconds since the start."""
  print(f'[{time.monotonic() - _BEGUN:6.1f}] {text}', flush=True)


def main(argv: list[str]) -> None:
  """Does what the flags ask for."""
  del argv
  path, results = pathlib.Path(_PLAN_FILE.value), {'settings': settings()}
  if _PLAN.value:
    path.write_text(json.dumps(plan()))
  results['accuracy'] = {}
  if pathlib.Path(_RESULTS.value).exists():
    results = json.loads(pathlib.Path(_RESULTS.value).read_text())
    if not _JUDGE.value and results['settings'] != settings():
      raise ValueError(
        f'{_RESULTS.value} has {results["settings"]}, not {settings()}: give '
        'another --results.'
      )
  if _TIME.value or _TRAIN.value:
    wanted = json.loads(path.read_text())['members'] if _TRAIN.value else []
    run([m for m in wanted if m['key'] not in results['accuracy']], results)
  if _JUDGE.value:
    print(shortlist_judge.describe(json.loads(path.read_text()), results))


if __name__ == '__main__':
  app.run(main)
