"""Job `shortlist`: trains the best candidates of a search briefly, and chooses.

A search knows of ops, hardly of whole networks: alphas are a product of
distributions, and several networks near the top look alike to it. This job
takes, for each target, the most probable networks that meet it, trains all of
them from scratch for a few epochs in one compiled program, and keeps the one
with the best validation accuracy. `shortlist.max_measured` of them may be
measured first, so that those that are trained meet their target on the device
(`shortlist_measure`).

Writes config.json, measure/, chunks/*/ (metrics), pool.json (the accuracies of
trained networks, which other shortlists can take), shortlist.json and
genotype.json, or members/*.json where there are several targets. The same
workdir resumes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.split import search_split
from hwdarts_jax.jobs import (
  common,
  feeding,
  shortlist_measure,
  shortlist_report,
  shortlist_source,
)
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.jobs import shortlist_candidates as candidates_lib
from hwdarts_jax.jobs import shortlist_pool as pool_lib
from hwdarts_jax.jobs import shortlist_training as training_lib
from hwdarts_jax.models import evaluations
from hwdarts_jax.models import members as members_lib
from hwdarts_jax.runtime import sharding
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

_SHOWN = ('train_loss', 'train_accuracy')


@dataclasses.dataclass(frozen=True)
class Shortlist:
  """Everything that the job needs besides its state.

  Attributes:
    config: resolved.
    specs: search and deploy.
    proxy: the space whose networks are trained.
    latency: of the deploy spec.
    targets: what candidates are for.
    candidates: of each target, the most probable first.
    pool: accuracies that are known before anything is trained.
    trainer: how networks are trained.
    train: the half of the train split that they see.
    val: the other half.
    schedule: of one chunk of members.
    measured_ms: of what was measured, None of those that failed.
  """

  config: ml_collections.ConfigDict
  specs: common.Specs
  proxy: NetworkSpec
  latency: common.LatencyModel
  targets: list[candidates_lib.Target]
  candidates: list[list[candidates_lib.Candidate]]
  pool: pool_lib.Pool
  trainer: training_lib.Trainer
  train: feeding.Images
  val: feeding.Images
  schedule: loop_lib.Schedule
  measured_ms: dict[Genotype, float | None] = dataclasses.field(
    default_factory=dict
  )

  def hashes(self) -> dict[str, str]:
    """Of all that a resumed run must have as it was."""
    return {
      'proxy_spec': self.proxy.spec_hash(),
      'deploy_spec': self.specs.deploy.spec_hash(),
      'pool': self.pool.digest(),
    } | self.latency.hashes()


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains what is not known yet; prints the choice at the end.

  Raises:
    ValueError: something in the config cannot be; the message names it.
    loop.NonFiniteError: the loss is no longer finite.
  """
  shortlist = make(config)
  with loop_lib.opened(config, workdir, shortlist.hashes()) as path:
    if (path / shortlist_report.RESULT).exists():
      print(f'{path} is finished already; a new one needs a new --workdir.')
    else:
      measured = _measure(shortlist, path)
      if measured is None:
        return
      accuracies = _train(measured, path)
      if accuracies is None:
        return
      shortlist_report.write(path, measured, accuracies)
    print(shortlist_report.of(path))


def _measure(shortlist: Shortlist, path: epath.Path) -> Shortlist | None:
  """With candidates that were measured; None if another machine has to."""
  if not shortlist.config.shortlist.max_measured:
    return shortlist
  found = shortlist_measure.refine(shortlist, path)
  if found is None:
    return None
  return dataclasses.replace(
    shortlist, candidates=found.candidates, measured_ms=found.ms
  )


def make(config: ml_collections.ConfigDict) -> Shortlist:
  """Builds everything from the config; see `run` for errors."""
  settings_lib.check(config.to_dict())
  # The layout of the checkpoints depends on it.
  config.network.evaluation = evaluations.resolve(config.network.evaluation)
  settings = config.shortlist
  source = shortlist_source.read(settings.search_workdir)
  make_latency = common.load_latency(config.latency)
  if settings.image_size:
    config.data.image_size = settings.image_size
  dataset = feeding.load_data(
    config.data.to_dict(), 'train', config.data.augment.to_dict()
  )
  common.fit_search_spec(config, dataset)
  specs = common.make_specs(config.space.to_dict())
  latency = make_latency(specs.deploy)
  targets = shortlist_source.targets(source, config, specs.deploy, latency)
  candidates = [
    candidates_lib.best(specs.deploy, target, settings.size)
    for target in targets
  ]
  _check_found(targets, candidates)
  shortlist_measure.check(settings, targets)
  train, val = search_split(dataset, config.data.split_seed)
  proxy = _proxy(config)
  common.check_data(dataset, proxy, 'search')
  feeding.check_fits('shortlist.batch_size', settings.batch_size, train)
  mesh = sharding.make_mesh(config.num_devices or None)
  if settings.members_per_program % mesh.size:
    raise workdir_lib.UserError(
      f'shortlist.members_per_program is {settings.members_per_program}; it '
      f'must be a multiple of the {mesh.size} devices.'
    )
  sharding.check_batch(
    settings.batch_size, config.network.bn_groups, 1, 'shortlist.batch_size'
  )
  per_epoch = train.num_examples // settings.batch_size
  return Shortlist(
    config,
    specs,
    proxy,
    latency,
    targets,
    candidates,
    pool_lib.load(settings.pool, pool_lib.of_config(config, proxy)),
    _trainer(config, proxy, train, mesh, per_epoch),
    train,
    val,
    loop_lib.Schedule(
      settings.num_epochs * per_epoch,
      per_epoch,
      per_epoch,
      settings.steps_per_call,
      1,
    ),
  )


def _check_found(targets, candidates) -> None:
  for target, found in zip(targets, candidates, strict=True):
    if not found:
      asked = ', '.join(f'{b.name} = {b.target:g}' for b in target.bounds)
      raise workdir_lib.UserError(
        f'no architecture was found that meets {asked}: give larger bounds.'
      )


def _proxy(config: ml_collections.ConfigDict) -> NetworkSpec:
  """The space of the networks that are trained."""
  own = common.section(config, 'space', 'search')
  for name in ('num_cells', 'features'):
    value = config.shortlist[name]
    if value and name not in own:
      raise workdir_lib.UserError(
        f'shortlist.{name} is {value}, but space {config.space.name!r} has no '
        f'such setting: leave it 0.'
      )
    if value:
      own[name] = value
  try:
    return spaces.make(config.space.name, **own)
  except ValueError as e:
    raise workdir_lib.UserError(f'shortlist: {e}') from e


def _trainer(
  config: ml_collections.ConfigDict,
  proxy: NetworkSpec,
  train: feeding.Images,
  mesh: jax.sharding.Mesh,
  steps_per_epoch: int,
) -> training_lib.Trainer:
  settings, network = config.shortlist, config.network.evaluation
  optimizer = settings.optimizer.to_dict() | {
    'warmup_steps': round(settings.warmup_epochs * steps_per_epoch)
  }
  return training_lib.Trainer(
    members_lib.make(
      proxy,
      common.make_context(config.network.to_dict(), affine=False),
      # Each member has weights of its own, whatever the search shared.
      'plain' if network == evaluations.SHARED else network,
      settings.evaluation,
    ),
    settings_lib.make_optimizer(
      'shortlist.optimizer', optimizer, settings.num_epochs * steps_per_epoch
    ),
    Augment(**common.section(config, 'data', 'augment')),
    train.mean,
    train.std,
    settings.evaluation,
    mesh,
  )


def _train(shortlist: Shortlist, path: epath.Path) -> dict[str, float] | None:
  """Accuracies of all candidates by their keys; None if it was stopped."""
  settings = shortlist.config.shortlist
  size = settings.members_per_program
  own = pool_lib.Pool(shortlist.pool.settings, {})
  if (path / pool_lib.POOL).exists():
    own = pool_lib.load(str(path / pool_lib.POOL), own.settings)
  wanted = candidates_lib.union(shortlist.candidates)
  todo = [k for k in wanted if k not in shortlist.pool.accuracies]
  print(
    f'{len(wanted)} networks, of which {len(todo)} are to be trained for '
    f'{settings.num_epochs} epochs, {size} at a time.'
  )
  programs = _Programs(shortlist)
  for number, start in enumerate(range(0, len(todo), size)):
    keys = todo[start : start + size]
    if all(key in own.accuracies for key in keys):
      continue
    filled = keys + keys[:1] * (size - len(keys))  # one program for all
    genotypes = [wanted[key] for key in filled]
    found = _train_chunk(
      shortlist, programs, path / 'chunks' / f'{number:03d}', genotypes
    )
    if found is None:
      return None
    known = dict(zip(keys, found[: len(keys)], strict=True))
    own = pool_lib.Pool(own.settings, own.accuracies | known)
    own.save(path)
    # What is known need not be trained again.
    (path / 'chunks' / f'{number:03d}' / 'checkpoints').rmtree()
  # Once more with all that came from elsewhere, for others to take.
  both = pool_lib.Pool(
    own.settings,
    own.accuracies
    | {k: v for k, v in shortlist.pool.accuracies.items() if k in wanted},
  )
  both.save(path)
  return {key: both.accuracies[key] for key in wanted}


def _train_chunk(
  shortlist: Shortlist,
  programs: _Programs,
  path: epath.Path,
  genotypes: list[Genotype],
) -> list[float] | None:
  """Accuracies of members that are trained together; None if stopped."""
  config, trainer = shortlist.config, shortlist.trainer
  path.mkdir(parents=True, exist_ok=True)
  gates = training_lib.stack_gates(shortlist.proxy, genotypes, trainer.mesh)
  feed = feeding.make_feed(
    shortlist.train,
    config.data,
    trainer.augment,
    config.shortlist.batch_size,
    config.seed,
    trainer.mesh,
    is_split=False,
  )
  loop = loop_lib.Loop(
    name=f'shortlist, chunk {int(path.name) + 1}',
    schedule=shortlist.schedule,
    compile=functools.partial(programs.step, gates),
    feeds=[feed],
    on_row=lambda state, step, row: {},
    shown=_SHOWN,
    advice='Try a lower shortlist.optimizer.learning_rate, with a new '
    '--workdir.',
  )
  state = trainer.init(config.seed, len(genotypes))
  state, done = loop.run(path, state)
  return programs.accuracies(state, gates) if done else None


class _Programs:
  """The compiled step and evaluation, the same for all chunks."""

  def __init__(self, shortlist: Shortlist):
    self._shortlist = shortlist
    self._size = shortlist.config.shortlist.eval_batch_size
    self._step: Any = None
    self._count: Any = None

  def step(self, gates, state, chunks):
    """What `Loop.compile` is, for members with these gates."""
    trainer = self._shortlist.trainer
    if self._step is None:
      (self._step,) = loop_lib.compile_together(
        'compiling the training step',
        [(jax.jit(trainer.step, donate_argnums=0), (state, gates, *chunks))],
        self._shortlist.config.deterministic,
      )
    return lambda state, *chunks: self._step(state, gates, *chunks)

  def accuracies(self, state, gates) -> list[float]:
    """The shares of right answers of all members on the validation half."""
    val = self._shortlist.val
    batches = pipeline.eval_batches(val, self._size)
    if self._count is None:
      (self._count,) = loop_lib.compile_together(
        'compiling the evaluation',
        [
          (
            jax.jit(self._shortlist.trainer.count_correct),
            (state, gates, next(pipeline.eval_batches(val, self._size))),
          )
        ],
        self._shortlist.config.deterministic,
      )
    counts = [np.asarray(self._count(state, gates, b)) for b in batches]
    return (np.sum(counts, 0) / val.num_examples).tolist()
