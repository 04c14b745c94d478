"""Job `search`: from a config to a genotype under a latency cost.

Writes into the workdir: config.json, checkpoints/, metrics.jsonl, tensorboard/,
genotype.json and search.png. The same workdir resumes, to the bit.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hwdarts_jax.bilevel import update as update_lib
from hwdarts_jax.data import pipeline
from hwdarts_jax.data.augment import Augment
from hwdarts_jax.data.split import search_split
from hwdarts_jax.jobs import (
  accuracy,
  common,
  diagnose,
  expense,
  feeding,
  memory,
  search_problem,
  selection,
  summary,
)
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.latency import projection
from hwdarts_jax.models import evaluations
from hwdarts_jax.runtime import distributed, packing, plots, sharding
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype

GENOTYPE = 'genotype.json'
_SHOWN = ('train_loss', 'val_accuracy', 'expected_ms', 'gate_entropy')
# Fields of the state with many arrays; rows of metrics read the others.
PACKED = ('params', 'batch_stats', 'params_opt')


@dataclasses.dataclass(frozen=True)
class Search:
  """Everything a search needs besides its state.

  Attributes:
    config: the resolved config.
    specs: search and deploy.
    latency: of the deploy spec.
    bounds: on its costs.
    problem: what is optimized.
    train: half of the train split that params see.
    val: the other half, that alphas see.
    mesh: devices.
    augment: of train images.
    schedule: when to log and to save.
  """

  config: ml_collections.ConfigDict
  specs: common.Specs
  latency: common.LatencyModel
  bounds: tuple[bounds_lib.Bound, ...]
  problem: update_lib.Problem
  train: feeding.Images
  val: feeding.Images
  mesh: jax.sharding.Mesh
  augment: Augment
  schedule: loop_lib.Schedule

  def hashes(self) -> dict[str, str]:
    """Of all that a resumed run must have as it was."""
    return {
      'search_spec': self.specs.search.spec_hash(),
      'deploy_spec': self.specs.deploy.spec_hash(),
    } | self.latency.hashes()

  def normalize(self, image: jax.Array) -> jax.Array:
    """Images u8[..., C] of either half as the supernet reads them."""
    dtype = self.problem.network.context.dtype
    return pipeline.normalize(image, self.train.mean, self.train.std, dtype)

  def step(self, problem, advance=update_lib.bilevel_update):
    """`jitted_step` on the data and devices of this search."""
    dtype = self.problem.network.context.dtype
    return jitted_step(
      problem, self.train, self.augment, self.mesh, dtype, advance
    )


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Searches; prints a summary at the end.

  A finished workdir is not touched: its summary is printed again.

  Raises:
    ValueError: something in the config cannot be; the message names it.
    loop.NonFiniteError: the loss is no longer finite.
  """
  search = make(config)
  with loop_lib.opened(config, workdir, search.hashes()) as path:
    if distributed.any_process((path / GENOTYPE).exists()):
      print(f'{path} is finished already; a new search needs a new --workdir.')
    else:
      held_out = search.latency.card['held_out']
      logging.info(
        'Latency predictor of %s: %s',
        search.latency.device,
        held_out or search.latency.card['model'],
      )
      if distributed.is_first():
        print(expense.of_search(search))
      if not _search(search, path):
        return
    if distributed.is_first():
      print(summary.of_search(path))


def make(config: ml_collections.ConfigDict) -> Search:
  """Builds everything from the config; see `run` for errors."""
  settings_lib.check(config.to_dict())
  # The layout of the checkpoints depends on it: a run goes on with the one that
  # it began with.
  config.network.evaluation = evaluations.resolve(config.network.evaluation)
  # First: a typo need not wait for the data.
  make_latency = common.load_latency(config.latency)
  augment = Augment(**common.section(config, 'data', 'augment'))
  dataset = feeding.load_data(
    config.data.to_dict(), 'train', config.data.augment.to_dict()
  )
  common.fit_search_spec(config, dataset)
  specs = common.make_specs(config.space.to_dict())
  common.check_data(dataset, specs.search, 'search')
  latency = make_latency(specs.deploy)
  settings = config.search
  mesh = sharding.make_mesh(config.num_devices or None)
  sharding.check_batch(
    settings.batch_size,
    config.network.bn_groups,
    mesh.size,
    'search.batch_size',
  )
  train, val = search_split(dataset, config.data.split_seed)
  smaller = min(train, val, key=lambda half: half.num_examples)
  feeding.check_fits('search.batch_size', settings.batch_size, smaller)
  if settings.eval_every_steps % settings.log_every_steps:
    raise ValueError(
      f'search.eval_every_steps is {settings.eval_every_steps}; it must be 0 '
      f'or a multiple of search.log_every_steps = {settings.log_every_steps}.'
    )
  diagnose.check(config)
  bounds = bounds_lib.make(
    common.section(config, 'objective'), specs.deploy, latency
  )
  problem = search_problem.make(config, specs, latency, bounds)
  schedule = loop_lib.Schedule(
    settings.num_steps,
    settings.log_every_steps,
    settings.checkpoint_every_steps,
    settings.steps_per_call,
    settings.keep_checkpoints,
  )
  return Search(
    config, specs, latency, bounds, problem, train, val, mesh, augment, schedule
  )


def _search(search: Search, path: epath.Path) -> bool:
  """Runs or resumes; returns whether the search came to its end."""
  state = update_lib.init_state(
    search.problem,
    search.config.seed,
    # Bounds find their multipliers; a fixed one would pull beyond them.
    0.0 if search.bounds else search.config.objective.multiplier,
    targets={b.name: b.aim for b in search.bounds},
  )
  state = sharding.replicate(as_dtype(state, search.problem), search.mesh)
  evaluate = accuracy.Evaluation(search)
  diagnosis = diagnose.Diagnosis(search, path)
  loop = loop_lib.Loop(
    name='search',
    schedule=search.schedule,
    compile=functools.partial(_compile, search, evaluate, diagnosis),
    feeds=feeds(search),
    on_row=functools.partial(_extend_row, search, evaluate, diagnosis),
    shown=_SHOWN,
    advice='Try a lower params_optimizer.learning_rate or '
    'alphas_optimizer.learning_rate, with a new --workdir.',
    ended=diagnose.has_stopped,
    packs=PACKED,
  )
  state, done = loop.run(path, state)
  if done:
    finish(search, path, state, evaluate(state))
  return done


def feeds(search: Search) -> list[feeding.Feed]:
  """The data of both levels."""
  # Two seeds, or the halves would be walked in step.
  return [
    feeding.make_feed(
      half,
      search.config.data,
      search.augment,
      search.config.search.batch_size,
      2 * search.config.seed + i,
      search.mesh,
    )
    for i, half in enumerate((search.train, search.val))
  ]


def jitted_step(
  problem,
  train: feeding.Images,
  augment: Augment,
  mesh: jax.sharding.Mesh,
  dtype: Any,
  advance=update_lib.bilevel_update,
):
  """The update, with augmentation, over the mesh; it takes over its state.

  Args:
    problem: what `advance` optimizes.
    train: whose mean and standard deviation are those of all images.
    augment: of images.
    mesh: devices.
    dtype: of images.
    advance: see `update.make_step`.
  """
  batched = sharding.batched(mesh)

  def fetch(chunk, indices, rng):
    return pipeline.make_batch(
      chunk.images,
      chunk.labels,
      indices,
      rng,
      augment,
      train.mean,
      train.std,
      dtype,
    )

  step = update_lib.make_step(
    problem,
    fetch,
    lambda batch: jax.lax.with_sharding_constraint(batch, batched),
    advance,
  )
  return jax.jit(
    step, donate_argnums=0, out_shardings=sharding.replicated(mesh)
  )


def _compile(
  search: Search,
  evaluate: accuracy.Evaluation,
  diagnosis: diagnose.Diagnosis,
  held,
  chunks,
):
  """Compiles the bilevel update and the evaluation side by side."""
  state = packing.unpacked(held)

  def compile_step(problem):
    jobs = [(search.step(problem), (held, *chunks))]
    facts = [search_problem.facts(search, problem, 'update')]
    users = []
    if not evaluate.compiled:
      jobs.append(evaluate.job(state))
      facts.append(search_problem.facts(search, problem, 'evaluation'))
      users.append(evaluate.use)
    if diagnosis.is_measuring:
      jobs.append(diagnosis.job(problem, state))
      facts.append(None)
      users.append(diagnosis.use)
    compiled, *others = loop_lib.compile_together(
      'compiling the bilevel update', jobs, search.config.deterministic, facts
    )
    for use, other in zip(users, others, strict=True):
      use(other)
    return compiled

  size = search.config.search.batch_size
  image = jax.ShapeDtypeStruct(
    (size, *search.specs.search.input_shape),
    search.problem.network.context.dtype,
  )
  return memory.compile_within(
    search.problem,
    search.config.search.memory_gb,
    compile_step,
    state,
    {'image': image, 'label': jax.ShapeDtypeStruct((size,), jnp.int32)},
    search.mesh.size,
  )


def _extend_row(
  search: Search,
  evaluate: accuracy.Evaluation,
  diagnosis: diagnose.Diagnosis,
  state,
  step: int,
  row,
):
  """Adds gates, temperature, diagnostics and, when due, an evaluation."""
  del row
  every = search.config.search.eval_every_steps
  extra: dict[str, Any] = {
    'temperature': float(search.problem.temperature(step))
  }
  if every and step % every == 0:
    extra['supernet_val_accuracy'] = evaluate(packing.unpacked(state))
  extra |= diagnosis.row(state, step)
  for bound in search.bounds:
    if bound.name == bounds_lib.LATENCY:
      extra['target_ms'] = bound.aim
  probs = search.problem.probabilities(state)
  return extra | {
    f'gates/{g}': np.asarray(p, np.float32) for g, p in probs.items()
  }


def as_dtype(state, problem: update_lib.Problem):
  """Casts the state to float64 if the network computes in it."""
  if problem.network.context.dtype != jnp.float64:
    return state
  return jax.tree.map(
    lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
  )


def finish(
  search: Search, path: epath.Path, state, val_accuracy: float
) -> Genotype:
  """Derives the genotype and writes what a user wants to see.

  `genotype.json` is written last: its presence says that the run is finished.
  """
  rows = metrics_lib.read(path)
  probs = diagnose.final_probabilities(search.problem, state, rows)
  select = selection.SELECTIONS[search.config.search.selection]
  found = projection.project(
    search.specs.search,
    select(search, state, probs),
    [b.limit for b in search.bounds],
  )
  genotype = found.genotype
  groups = search.specs.search.groups()
  record = summary.search_record(search, found, state, val_accuracy, rows)
  if distributed.is_first():
    plots.plot_search(
      rows,
      {g: np.array([r[f'gates/{g}'] for r in rows]) for g in groups},
      {g: s.ops for g, s in groups.items()},
      {g: s.edges for g, s in groups.items()},
      [r['step'] for r in rows],
      path / 'search.png',
      summary.title(record),
    )
    workdir_lib.write_json_atomic(path / GENOTYPE, record)
  return genotype
