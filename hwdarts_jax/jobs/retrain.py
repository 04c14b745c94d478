"""Job `retrain`: trains the derived network of a genotype.

From scratch, or from params inherited from the supernet, on the whole train
split; reports accuracy on the test split. Writes config.json, checkpoints/,
metrics.jsonl, tensorboard/, retrain.json and retrain.png.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from etils import epath
from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from hwdarts_jax import spaces
from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.jobs import common, feeding, genotype_files, inherited, summary
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import distributed, plots, sharding
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

RESULT = 'retrain.json'
_SHOWN = ('train_loss', 'train_accuracy', 'learning_rate')


class TrainState(struct.PyTreeNode):
  """The state of a training; the whole checkpoint.

  Attributes:
    step: i32[], steps done.
    variables: 'params' and 'batch_stats'.
    average: exponential moving average of `variables`.
    opt: optimizer state.
    rng: typed key; folded with the step, never changed.
  """

  step: jax.Array
  variables: Any
  average: Any
  opt: Any
  rng: jax.Array


@dataclasses.dataclass(frozen=True)
class Training:
  """Everything a training needs besides its state.

  Attributes:
    config: the resolved config.
    specs: search and deploy, with all their choices.
    trained: settings of the space whose network is trained.
    space: that space.
    genotype: the architecture.
    latency: of the deploy spec; here, so that a table that lacks it is found
      before the training.
    network: discrete, in the spec that is trained.
    optimizer: of params.
    learning_rate: step -> learning rate.
    train: the whole train split.
    test: the test split.
    mesh: devices.
    schedule: when to log and to save.
  """

  config: ml_collections.ConfigDict
  specs: common.Specs
  trained: dict[str, Any]
  space: NetworkSpec
  genotype: Genotype
  latency: common.LatencyModel
  network: network_lib.Network
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  train: feeding.Images
  test: feeding.Images
  mesh: jax.sharding.Mesh
  schedule: loop_lib.Schedule


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains; prints a summary at the end.

  Raises:
    ValueError: something in the config cannot be; the message names it.
    loop.NonFiniteError: the loss is no longer finite.
  """
  training = make(config)
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(
      workdir,
      config.to_dict(),
      hashes={'spec': training.network.spec.spec_hash()}
      | training.latency.hashes(),
    )
    distributed.check_shared(path)
    loop_lib.keep_compiled(path, config.deterministic)
    if distributed.any_process((path / RESULT).exists()):
      print(
        f'{path} is finished already; a new training needs a new --workdir.'
      )
    elif not _train(training, path):
      return
    if distributed.is_first():
      print(summary.of_retrain(path))


def make(config: ml_collections.ConfigDict) -> Training:
  """Builds everything from the config; see `run` for errors."""
  settings_lib.check(config.to_dict())
  settings = config.retrain
  # First: a typo need not wait for the data.
  make_latency = common.load_latency(config.latency)
  train, test = (
    feeding.load_data(
      config.data.to_dict(),
      split,
      settings.augment.to_dict() if split == 'train' else None,
    )
    for split in ('train', 'test')
  )
  common.fit_search_spec(config, train)
  specs = common.make_specs(config.space.to_dict())
  trained = common.trained_settings(config, settings.spec, train)
  space = spaces.make(config.space.name, **trained)
  if settings.inherit and settings.spec != 'search':
    raise ValueError(
      "retrain.inherit needs retrain.spec 'search', whose supernet was trained."
    )
  genotype, derived = genotype_files.read('retrain', settings, space)
  if settings.inherit and not settings.search_workdir:
    raise ValueError('retrain.inherit needs retrain.search_workdir.')
  network = network_lib.Network(
    derived, common.make_context(config.network.to_dict(), affine=True)
  )
  common.check_data(train, space, settings.spec)
  mesh = sharding.make_mesh(config.num_devices or None)
  sharding.check_batch(
    settings.batch_size,
    config.network.bn_groups,
    mesh.size,
    'retrain.batch_size',
  )
  feeding.check_fits('retrain.batch_size', settings.batch_size, train)
  steps_per_epoch = train.num_examples // settings.batch_size
  schedule = loop_lib.Schedule(
    settings.num_epochs * steps_per_epoch,
    steps_per_epoch,
    settings.checkpoint_every_epochs * steps_per_epoch,
    settings.steps_per_call,
    settings.keep_checkpoints,
  )
  optimizer = common.section(config, 'retrain', 'optimizer')
  return Training(
    config,
    specs,
    trained,
    space,
    genotype,
    make_latency(specs.deploy),
    network,
    settings_lib.make_optimizer(
      'retrain.optimizer', optimizer, schedule.num_steps
    ),
    common.learning_rate(optimizer, schedule.num_steps),
    train,
    test,
    mesh,
    schedule,
  )


def _train(training: Training, path: epath.Path) -> bool:
  """Trains or resumes; returns whether the training came to its end."""
  settings = training.config.retrain
  state = sharding.replicate(init_state(training), training.mesh)
  feed = feeding.make_feed(
    training.train,
    training.config.data,
    Augment(**settings.augment.to_dict()),
    settings.batch_size,
    training.config.seed,
    training.mesh,
  )
  loop = loop_lib.Loop(
    name='retrain',
    schedule=training.schedule,
    compile=functools.partial(_compile, training),
    feeds=[feed],
    on_row=lambda state, step, row: {
      'learning_rate': float(training.learning_rate(step))
    },
    shown=_SHOWN,
    advice='Try a lower retrain.optimizer.learning_rate, with a new --workdir.',
  )
  state, done = loop.run(path, state)
  if done:
    _finish(training, path, state)
  return done


def init_state(training: Training) -> TrainState:
  """Fresh variables, or those of the supernet where it has them."""
  init_rng, step_rng = jax.random.split(jax.random.key(training.config.seed))
  variables = network_lib.init(training.network, init_rng)
  settings = training.config.retrain
  if settings.inherit:
    variables = inherited.variables(training.config, variables)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    # A copy: donated buffers must not be shared.
    average=jax.tree.map(jnp.copy, variables),
    opt=training.optimizer.init(variables['params']),
    rng=step_rng,
  )


def _compile(training: Training, state, chunks):
  """Compiles the training step."""
  replicated = sharding.replicated(training.mesh)
  update = jax.jit(
    functools.partial(_step, training),
    donate_argnums=0,
    out_shardings=replicated,
  )
  (compiled,) = loop_lib.compile_together(
    'compiling the training step',
    [(update, (state, *chunks))],
    training.config.deterministic,
  )
  return compiled


def _step(training: Training, state: TrainState, chunk):
  """K optimizer steps; metrics are means."""
  if chunk.indices.shape[0] == 1:
    return _one_step(training, state, chunk, chunk.indices[0])
  state, metrics = jax.lax.scan(
    lambda s, i: _one_step(training, s, chunk, i), state, chunk.indices
  )
  return state, jax.tree.map(lambda m: m.mean(0), metrics)


def _one_step(training: Training, state: TrainState, chunk, indices):
  """One optimizer step, and one of the moving average."""
  settings = training.config.retrain
  rng = jax.random.fold_in(state.rng, state.step)
  data_rng, drop_rng = jax.random.split(rng)
  batch = pipeline.make_batch(
    chunk.images,
    chunk.labels,
    indices,
    data_rng,
    Augment(**settings.augment.to_dict()),
    training.train.mean,
    training.train.std,
    training.network.context.dtype,
  )
  batch = jax.lax.with_sharding_constraint(
    batch, sharding.batched(training.mesh)
  )
  # The rate of dropping grows linearly over the training, as in DARTS.
  progress = state.step / training.schedule.num_steps
  drop_path = settings.drop_path * progress if settings.drop_path else 0.0

  def loss_fn(params):
    logits, updates = training.network.apply(
      {'params': params, 'batch_stats': state.variables['batch_stats']},
      batch['image'],
      train=True,
      drop_path=drop_path,
      mutable=['batch_stats'],
      rngs={'drop_path': drop_rng},
    )
    labels = optax.smooth_labels(
      jax.nn.one_hot(batch['label'], logits.shape[-1], dtype=logits.dtype),
      settings.label_smoothing,
    )
    loss = optax.softmax_cross_entropy(logits, labels).mean()
    accuracy = (logits.argmax(-1) == batch['label']).mean()
    return loss, (updates['batch_stats'], accuracy)

  params = state.variables['params']
  (loss, (stats, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    params
  )
  updates, opt = training.optimizer.update(grads, state.opt, params)
  variables = {
    'params': optax.apply_updates(params, updates),
    'batch_stats': stats,
  }
  # Early averages would remember the start: Polyak's warm-up of the decay.
  decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
  average = optax.incremental_update(variables, state.average, 1 - decay)
  metrics = {
    'train_loss': loss,
    'train_accuracy': accuracy,
    'grad_norm': optax.tree.norm(grads),
  }
  return TrainState(state.step + 1, variables, average, opt, state.rng), metrics


def _count_correct(training: Training, variables, batch) -> jax.Array:
  """Number of correct answers; i32[]."""
  image = pipeline.normalize(
    batch['image'],
    training.train.mean,
    training.train.std,
    training.network.context.dtype,
  )
  return network_lib.count_correct(training.network, variables, image, batch)


def _finish(training: Training, path: epath.Path, state: TrainState) -> None:
  """Evaluates on the test split and writes the result, last of all files."""
  size = training.config.retrain.eval_batch_size
  example = next(pipeline.eval_batches(training.test, size))
  (count,) = loop_lib.compile_together(
    'compiling the evaluation',
    [
      (
        jax.jit(functools.partial(_count_correct, training)),
        (state.variables, example),
      )
    ],
    training.config.deterministic,
  )
  accuracy = {
    'test_accuracy': loop_lib.count_correct(
      count, state.variables, training.test, size
    ),
    'test_accuracy_of_average': loop_lib.count_correct(
      count, state.average, training.test, size
    ),
  }
  record = summary.retrain_record(training, accuracy)
  if distributed.is_first():
    plots.plot_retrain(
      metrics_lib.read(path),
      path / 'retrain.png',
      f'{record["text"]} on {record["trained"]["data"]}',
    )
    workdir_lib.write_json_atomic(path / RESULT, record)
