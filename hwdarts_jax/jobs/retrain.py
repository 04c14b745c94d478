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
import jax
import ml_collections
import optax

from hwdarts_jax import spaces
from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.jobs import (
  common,
  expense,
  feeding,
  genotype_files,
  inherited,
  retrain_settings,
  summary,
  train_state,
  train_step,
)
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.jobs import teacher as teacher_lib
from hwdarts_jax.jobs.train_state import TrainState
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import distributed, plots, sharding
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

RESULT = 'retrain.json'
_SHOWN = ('train_loss', 'train_accuracy', 'learning_rate')


@dataclasses.dataclass(frozen=True)
class Training:
  """Everything a training needs besides its state.

  Attributes:
    config: the resolved config.
    specs: search and deploy, with all their choices; the same one where there
      are no choices.
    trained: settings of the space whose network is trained.
    space: that space.
    genotype: the architecture; empty where there are no choices.
    text: what it is called.
    latency: of the deploy spec; here, so that a table that lacks it is found
      before the training. None where no table is named.
    network: discrete, in the spec that is trained.
    teacher: whose answers are imitated, if any.
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
  text: str
  latency: common.LatencyModel | None
  network: network_lib.Network
  teacher: teacher_lib.Teacher | None
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  train: feeding.Images
  test: feeding.Images
  mesh: jax.sharding.Mesh
  schedule: loop_lib.Schedule

  def hashes(self) -> dict[str, str]:
    """Of all that a resumed run must have as it was."""
    found = {'spec': self.network.spec.spec_hash()}
    if self.latency is not None:
      found |= self.latency.hashes()
    if self.teacher is not None:
      found['teacher'] = self.teacher.digest()
    return found


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains; prints a summary at the end.

  Raises:
    ValueError: something in the config cannot be; the message names it.
    loop.NonFiniteError: the loss is no longer finite.
  """
  training = make(config)
  with loop_lib.opened(config, workdir, training.hashes()) as path:
    if distributed.any_process((path / RESULT).exists()):
      print(
        f'{path} is finished already; a new training needs a new --workdir.'
      )
    else:
      if distributed.is_first():
        print(expense.of_training(training))
      if not _train(training, path):
        return
    if distributed.is_first():
      print(summary.of_retrain(path))


def make(config: ml_collections.ConfigDict) -> Training:
  """Builds everything from the config; see `run` for errors."""
  settings_lib.check_trained(config.to_dict())
  settings = config.retrain
  # First: a typo need not wait for the data.
  make_latency = _latency_maker(config)
  train, test = (
    feeding.load_data(
      config.data.to_dict(),
      split,
      settings.augment.to_dict() if split == 'train' else None,
    )
    for split in ('train', 'test')
  )
  specs, trained, space = _spaces(config, train)
  genotype, derived, text = _architecture(config, space, trained)
  network = network_lib.Network(
    derived,
    common.make_context(
      config.network.to_dict() | {'bn_momentum': settings.bn_momentum},
      affine=True,
    ),
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
  schedule = _schedule(settings, train)
  in_steps = retrain_settings.in_steps(
    settings.optimizer.to_dict(), schedule.log_every_steps
  )
  return Training(
    config,
    specs,
    trained,
    space,
    genotype,
    text,
    make_latency(specs.deploy) if make_latency is not None else None,
    network,
    _teacher(config, derived),
    retrain_settings.make_checked(
      retrain_settings.SECTION, in_steps, schedule.num_steps
    ),
    common.learning_rate(in_steps, schedule.num_steps),
    train,
    test,
    mesh,
    schedule,
  )


def _latency_maker(config: ml_collections.ConfigDict):
  """What makes the latency model; None where no source of it is named."""
  latency = config.get('latency')  # published networks have none
  if latency is None or not (latency.table or latency.predictor):
    return None
  return common.load_latency(latency)


def _spaces(
  config: ml_collections.ConfigDict, train: feeding.Images
) -> tuple[common.Specs, dict[str, Any], NetworkSpec]:
  """Both specs, and settings and space of the one that is trained."""
  if settings_lib.is_fixed(config.to_dict()):
    deploy = spaces.make(config.space.name, **config.space.deploy.to_dict())
    specs = common.Specs(deploy, deploy)
  else:
    common.fit_search_spec(config, train)
    specs = common.make_specs(config.space.to_dict())
  trained = common.trained_settings(config, config.retrain.spec, train)
  return specs, trained, spaces.make(config.space.name, **trained)


def _architecture(
  config: ml_collections.ConfigDict, space: NetworkSpec, trained: dict[str, Any]
) -> tuple[Genotype, NetworkSpec, str]:
  """The genotype that is trained, its network, and its name."""
  settings = config.retrain
  if settings_lib.is_fixed(config.to_dict()):
    text = ', '.join(f'{k} {trained[k]}' for k in ('model', 'width'))
    return Genotype(space.space, {}), space, text
  if settings.inherit and settings.spec != 'search':
    raise ValueError(
      "retrain.inherit needs retrain.spec 'search', whose supernet was trained."
    )
  genotype, derived = genotype_files.read('retrain', settings, space)
  if settings.inherit and not settings.search_workdir:
    raise ValueError('retrain.inherit needs retrain.search_workdir.')
  return genotype, derived, spaces.to_text(genotype)


def _schedule(
  settings: ml_collections.ConfigDict, train: feeding.Images
) -> loop_lib.Schedule:
  """A row of metrics for each epoch."""
  steps_per_epoch = train.num_examples // settings.batch_size
  return loop_lib.Schedule(
    settings.num_epochs * steps_per_epoch,
    steps_per_epoch,
    settings.checkpoint_every_epochs * steps_per_epoch,
    settings.steps_per_call,
    settings.keep_checkpoints,
  )


def _teacher(
  config: ml_collections.ConfigDict, student: NetworkSpec
) -> teacher_lib.Teacher | None:
  distill = config.retrain.distill
  if not distill.workdir:
    return None
  return teacher_lib.load(distill.workdir, config.data.name, student)


def _train(training: Training, path: epath.Path) -> bool:
  """Trains or resumes; returns whether the training came to its end."""
  state = sharding.replicate(init_state(training), training.mesh)
  loop = loop_lib.Loop(
    name='retrain',
    schedule=training.schedule,
    compile=functools.partial(_compile, training),
    feeds=[make_feed(training)],
    on_row=lambda state, step, row: {
      'learning_rate': float(training.learning_rate(step))
    },
    shown=_SHOWN,
    advice='Try a lower retrain.optimizer.learning_rate, with a new --workdir.',
    packs=('variables', 'average', 'opt'),
  )
  state, done = loop.run(path, state)
  if done:
    _finish(training, path, state)
  return done


def make_feed(training: Training) -> feeding.Feed:
  """The batches of the training, in the order of its seed."""
  settings = training.config.retrain
  return feeding.make_feed(
    training.train,
    training.config.data,
    Augment(**settings.augment.to_dict()),
    settings.batch_size,
    training.config.seed,
    training.mesh,
  )


def init_state(training: Training) -> TrainState:
  """Fresh variables, or those of the supernet where it has them."""
  config = training.config
  state = train_state.init(training.network, training.optimizer, config.seed)
  if not config.retrain.inherit:
    return state
  variables = inherited.variables(config, state.variables)
  return train_state.init(
    training.network, training.optimizer, config.seed, variables
  )


def jitted_step(training: Training):
  """The update ``f(state, taught_by, chunk)``; it takes over its state."""
  return jax.jit(
    functools.partial(train_step.step, training),
    donate_argnums=0,
    out_shardings=sharding.replicated(training.mesh),
  )


def _compile(training: Training, state, chunks):
  """Compiles the training step."""
  # An argument: constants of this size would be compiled into the program.
  taught_by = None
  if training.teacher is not None:
    taught_by = sharding.replicate(training.teacher.variables, training.mesh)
  (compiled,) = loop_lib.compile_together(
    'compiling the training step',
    [(jitted_step(training), (state, taught_by, *chunks))],
    training.config.deterministic,
  )
  return lambda state, *chunks: compiled(state, taught_by, *chunks)


def count_correct(training: Training, variables, batch) -> jax.Array:
  """Number of correct answers to a batch of test images; i32[]."""
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
  example = next(feeding.eval_batches(training.test, size, training.mesh))
  counted = jax.jit(
    functools.partial(count_correct, training),
    out_shardings=sharding.replicated(training.mesh),
  )
  (count,) = loop_lib.compile_together(
    'compiling the evaluation',
    [(counted, (state.variables, example))],
    training.config.deterministic,
  )
  accuracy = {
    name: loop_lib.count_correct(
      count, variables, training.test, size, training.mesh
    )
    for name, variables in (
      ('test_accuracy', state.variables),
      ('test_accuracy_of_average', state.average),
    )
  }
  record = summary.retrain_record(training, accuracy)
  if distributed.is_first():
    plots.plot_retrain(
      metrics_lib.read(path),
      path / 'retrain.png',
      f'{record["text"]} on {record["trained"]["data"]}',
    )
    workdir_lib.write_json_atomic(path / RESULT, record)
