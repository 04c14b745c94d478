"""Job `shortlist`: trains the best candidates of a search briefly, and chooses.

A search knows of ops, hardly of whole networks: alphas are a product of
distributions, and several networks near the top look alike to it. This job
takes, for each target, the most probable networks that meet it, trains all of
them from scratch for a few epochs in one compiled program, and keeps the one
with the best validation accuracy. With `shortlist.rounds` these trainings teach
which networks to train next (`shortlist_rounds`). `shortlist.max_measured`
networks may be measured first, so that those that are trained meet their target
on the device (`shortlist_measure`).

Writes config.json, measure/, rounds/, chunks/*/ (metrics), pool.json (the
accuracies of trained networks, which other shortlists can take), shortlist.json
and genotype.json, or members/*.json where there are several targets. The same
workdir resumes.
"""

from __future__ import annotations

import dataclasses

from etils import epath
import jax
import ml_collections

from hwdarts_jax import spaces
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.split import search_split
from hwdarts_jax.jobs import (
  common,
  feeding,
  shortlist_chunks,
  shortlist_measure,
  shortlist_report,
  shortlist_rounds,
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
from hwdarts_jax.spaces.spec import NetworkSpec


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
      train = shortlist_chunks.Chunks(shortlist, path).train
      if shortlist.config.shortlist.rounds > 1:
        found = shortlist_rounds.play(shortlist, path, train)
      else:
        found = _in_one(shortlist, path, train)
      if found is None:
        return
      shortlist_report.write(path, shortlist, found)
    print(shortlist_report.of(path))


def _in_one(
  shortlist: Shortlist, path: epath.Path, train: shortlist_rounds.Train
) -> shortlist_report.Found | None:
  """One round: trains the most probable; None if it cannot go on now."""
  outcome = shortlist_measure.Outcome(shortlist.candidates, {})
  if shortlist.config.shortlist.max_measured:
    measured = shortlist_measure.refine(shortlist, path)
    if measured is None:
      return None
    outcome = measured
  accuracies = train(candidates_lib.union(outcome.candidates))
  if accuracies is None:
    return None
  return shortlist_report.Found(outcome.candidates, accuracies, outcome.ms)


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
  pool = pool_lib.load(settings.pool, pool_lib.of_config(config, proxy))
  pool_lib.check_genotypes(settings.pool, specs.deploy, pool)
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
    pool,
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
