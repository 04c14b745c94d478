"""Trains cells of NAS-Bench-201 briefly, many in one program.

Each network once, on half of the train split of CIFAR-10; its accuracy is that
on the other half. The npz has JPEG files one after the other (`data`, u8),
where each begins and the last ends (`offsets`) and `labels`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hwdarts_jax import oracle
from hwdarts_jax.data import pipeline, sources
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.split import search_split
from hwdarts_jax.jobs import shortlist_training
from hwdarts_jax.models import members, ops
from hwdarts_jax.runtime import optimizers, sharding
from hwdarts_jax.spaces import nasbench201

TIME = flags.DEFINE_bool('time', False, 'Time a step, by each evaluation.')
_RESULTS = flags.DEFINE_string('results', 'shortlist.json', 'Of trainings.')
_NPZ = flags.DEFINE_string('npz', '', 'CIFAR-10; empty: small random images.')
_EPOCHS = flags.DEFINE_integer('epochs', 12, 'Of each training.')
_BATCH = flags.DEFINE_integer('batch_size', 256, 'Images of a step.')
_FEATURES = flags.DEFINE_integer('features', 16, 'Of the first cells.')
_CELLS = flags.DEFINE_integer('num_cells', 1, 'Of each stage.')
_SUBSAMPLE = flags.DEFINE_integer(
  'subsample', 1, 'Means of n x n pixels are read.'
)
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
  images = _means(images, _SUBSAMPLE.value)
  stats = sources._KNOWN_STATS['cifar10']
  return sources.Dataset('cifar10', images, labels, 10, *stats)


def _means(images: np.ndarray, size: int) -> np.ndarray:
  """Means of squares of pixels, u8[N, H / size, W / size, C]."""
  if size == 1:
    return images
  count, height, width, channels = images.shape
  parts = count, height // size, size, width // size, size, channels
  means = [
    block.mean((2, 4)) for block in np.array_split(images.reshape(parts), 50)
  ]
  return np.round(np.concatenate(means)).astype(np.uint8)


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


class Setup(NamedTuple):
  """What trainings need.

  Attributes:
    programs: that train.
    feed: of the half that is trained on.
    val: the other half.
    batches: of it, on the device.
  """

  programs: Programs
  feed: pipeline.Feed
  val: sources.Dataset
  batches: list[Any]


def prepare() -> Setup:
  """Loads the data, compiles, and chooses by --time."""
  train, val = search_split(load_images(), 0)
  say(f'{train.num_examples} images of {train.image_shape}')
  feed = pipeline.Feed(train, _BATCH.value, _SEED.value)
  chunk = feed(0, feed.steps_per_epoch)
  # Once on the device, not once for each chunk.
  batches = [jax.device_put(b) for b in pipeline.eval_batches(val, 1000)]
  names = _EVALUATIONS.value if TIME.value else _EVALUATIONS.value[:1]
  programs = compile_all(names, train, chunk, batches[0])
  if TIME.value:
    programs.sort(key=lambda p: -time_step(p, chunk))
  return Setup(programs[0], feed, val, batches)


def train_all(setup: Setup, todo, results, suffix: str = '') -> bool:
  """Trains members chunk by chunk, and writes what is known after each.

  Args:
    setup: what trainings need.
    todo: keys and cells.
    results: changed in place.
    suffix: of the file that is written.

  Returns:
    Whether all are trained; else --limit_s is near.
  """
  size = _MEMBERS.value
  say(f'{len(todo)} networks to train by {setup.programs.name}')
  for at in range(0, len(todo), size):
    took = results.get('chunk_seconds', 0.0)
    if time.monotonic() - _BEGUN + 1.1 * took > _LIMIT.value:
      say(f'stopped by --limit_s with {len(results["accuracy"])} networks')
      return False
    begun = time.monotonic()
    _train_chunk(setup, todo[at : at + size], results)
    took = time.monotonic() - begun
    results['chunk_seconds'] = took
    results['seconds'] = results.get('seconds', 0.0) + took
    save(results, suffix)
  return True


def save(results: dict[str, Any], suffix: str = '') -> None:
  """Writes what is known, whole or not at all."""
  path = pathlib.Path(_RESULTS.value + suffix)
  new = path.with_name(path.name + '.new')
  new.write_text(json.dumps(results, indent=1))
  new.replace(path)


def _train_chunk(setup: Setup, some, results) -> None:
  """Trains a few members together, and adds their accuracies."""
  programs, feed, size = setup.programs, setup.feed, _MEMBERS.value
  trainer, begun = programs.trainer, time.monotonic()
  filled = some + some[:1] * (size - len(some))
  genotypes = [oracle.genotype(m['cell']) for m in filled]
  gates = shortlist_training.stack_gates(
    trainer.network.spec, genotypes, trainer.mesh
  )
  state, step = trainer.init(_SEED.value, size), feed.steps_per_epoch
  for epoch in range(_EPOCHS.value):
    state, metrics = programs.step(state, gates, feed(epoch * step, step))
  right = sum(programs.count(state, gates, batch) for batch in setup.batches)
  shares = np.asarray(right)[: len(some)] / setup.val.num_examples
  for member, share in zip(some, shares, strict=True):
    results['accuracy'][member['key']] = float(share)
  took = time.monotonic() - begun
  images = _EPOCHS.value * step * _BATCH.value * size
  say(
    f'{len(results["accuracy"])} networks: {took:.1f} s, '
    f'{images / took:.0f} images/s, loss {float(metrics["train_loss"]):.3f}, '
    f'accuracies {np.round(100 * shares, 1).tolist()}'
  )


def is_late() -> bool:
  """Whether --limit_s is over."""
  return time.monotonic() - _BEGUN > _LIMIT.value


def say(text: str) -> None:
  """Prints, with the seconds since the start."""
  print(f'[{time.monotonic() - _BEGUN:6.1f}] {text}', flush=True)


def load_results(is_continued: bool, suffix: str = '') -> dict[str, Any]:
  """What was trained by now.

  Args:
    is_continued: whether more is going to be trained.
    suffix: of the file.

  Raises:
    ValueError: it was trained otherwise, and is to be continued.
  """
  path = pathlib.Path(_RESULTS.value + suffix)
  if not path.exists():
    return {'settings': settings(), 'accuracy': {}}
  results = json.loads(path.read_text())
  if is_continued and results['settings'] != settings():
    raise ValueError(
      f'{path} has {results["settings"]}, not {settings()}: give another '
      '--results.'
    )
  return results
