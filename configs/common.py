"""What all configs share: parsing of the argument, and the default sections.

Every section of a config is passed to a factory, so its fields are that
factory's arguments and a typo is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_collections

from configs import mobile, recipes

# Zeros are filled in from the data set.
_FROM_DATA = {'num_classes': 0, 'image_size': 0, 'image_channels': 0}
# The published searches; a small one for the embedded data set.
SEARCH_SPECS: dict[str, dict[str, Any]] = {
  'nasbench201': {'features': 16, 'num_cells': 5},
  'darts': {'features': 16, 'num_cells': 8},
  'mobile': mobile.CHOICES | {'features': 16, 'stem_stride': 0},
}
SMALL_SEARCH_SPECS: dict[str, dict[str, Any]] = {
  'nasbench201': {'features': 8, 'num_cells': 1},
  'darts': {'features': 4, 'num_cells': 3},
  'mobile': mobile.CHOICES | {'features': 4, 'stem_stride': 0},
}
_NO_AUGMENT: dict[str, Any] = {
  'pad': 0,
  'flip': False,
  'cutout': 0,
  # Of images as they are stored, by workers.
  'crop_area': 0.0,
  'colour': 0.0,
  'rand_ops': 0,
  'rand_magnitude': 0.0,
}
# Of photographs, whose sizes vary; other images are taken as they are.
IMAGE_SIZES = {'imagenet2012': 224, 'tf_flowers': 160}
# How multipliers are found; see hwdarts_jax.bilevel.dual.
DUAL = {
  'proportional': 5.0,
  'integral': 20.0,
  'sharpness': 0.1,
  'sharp_from': 0.5,
  'settle_from': 0.7,
  'memory': 0.95,
  'most': 1.5,
  'lift': 0.1,
}
# The networks whose latency counts.
DEPLOY_SPECS: dict[str, dict[str, Any]] = {
  'nasbench201': {
    'features': 16,
    'num_cells': 5,
    'num_classes': 10,
    'image_size': 32,
    'image_channels': 3,
  },
  'darts': {
    'features': 36,
    'num_cells': 20,
    'num_classes': 10,
    'image_size': 32,
    'image_channels': 3,
    'pool_bn': False,
  },
  'mobile': mobile.DEPLOY,
}
# Fewer choices, also of the deployed network, where all would take too long.
_RUNLOCAL = {'mobile': mobile.FEW}


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses ``name=value,flag`` strictly.

  Args:
    arg: what follows the colon of --config; a name alone means true.
    **defaults: the names that are allowed, with values of their types.

  Raises:
    ValueError: a name is unknown, or a value does not fit its type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, equals, text = item.partition('=')
    if name not in defaults:
      raise ValueError(
        f'config argument {name!r} is unknown; known are {sorted(defaults)}.'
      )
    values[name] = _convert(name, text if equals else 'true', defaults[name])
  return ml_collections.ConfigDict(values)


def _convert(name: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    if text not in ('true', 'false'):
      raise ValueError(
        f'config argument {name} is {text!r}; it must be true or false.'
      )
    return text == 'true'
  try:
    return type(default)(text)
  except ValueError as e:
    raise ValueError(
      f'config argument {name} is {text!r}; it must be of type '
      f'{type(default).__name__}.'
    ) from e


def sweep_seed() -> Iterator[dict[str, Any]]:
  """Points of launch/sweep.py: what to set in the config for each."""
  for seed in range(3):
    yield {'seed': seed}


def sweep_multiplier() -> Iterator[dict[str, Any]]:
  """Weights of latency, from none to one that leaves few convolutions."""
  for multiplier in (0.0, 0.001, 0.003, 0.01, 0.03):
    yield {'objective.multiplier': multiplier}


def search_config(
  source: str,
  device: str,
  arg: str | None = None,
  runner: str = 'host',
  dtype: str = 'float32',
) -> ml_collections.ConfigDict:
  """The config of a search for one device.

  Args:
    source: path of the config file, for the commands that summaries print.
    device: whose latency table counts.
    arg: `space`, `dataset`, `recipe` and `runlocal`.
    runner: of the harness, by which the device is measured.
    dtype: of the networks on the device, likewise.

  Raises:
    ValueError: the argument is not one of ours.
  """
  parsed = _parse_search(arg)
  small = parsed.dataset == 'digits' or parsed.runlocal
  specs = SMALL_SEARCH_SPECS if small else SEARCH_SPECS
  config = ml_collections.ConfigDict()
  config.source = source + (f':{arg}' if arg else '')
  config.job = 'search'
  config.seed = 0
  config.num_devices = 0  # 0 is all of them
  config.deterministic = False
  few = _RUNLOCAL.get(parsed.space, {}) if parsed.runlocal else {}
  config.space = {
    'name': parsed.space,
    'search': specs[parsed.space] | _FROM_DATA | few,
    'deploy': DEPLOY_SPECS[parsed.space] | few,
  }
  measure = f'--runner={runner} --dtype={dtype}'
  config.latency = _latency(
    config.source, f'{device}.{parsed.space}', measure, parsed.runlocal
  )
  config.data = data(parsed.dataset)
  _set_method(config)
  _set_schedule(config, small, parsed.runlocal)
  config.retrain = recipes.retrain(
    parsed.recipe or recipes.default(parsed.space, parsed.dataset, small),
    augment(parsed.dataset)
    | ({'cutout': 16} if parsed.dataset == 'cifar10' else {}),
    'search' if small else 'deploy',
    parsed.runlocal,
  )
  if parsed.space == 'mobile':
    mobile.set_up(config, device, parsed.dataset, small)
  config.export = export(parsed.runlocal)
  config.population = _population(parsed.runlocal)
  config.shortlist = _shortlist(small, parsed.runlocal)
  config.evaluate = _evaluate()
  config.describe = describe()
  return config


def _parse_search(arg: str | None) -> Any:
  """The argument of a search's config."""
  parsed = parse_arg(
    arg, space='nasbench201', dataset='digits', recipe='', runlocal=False
  )
  if parsed.space not in SEARCH_SPECS:
    raise ValueError(
      f'config argument space is {parsed.space!r}; known are '
      f'{sorted(SEARCH_SPECS)}.'
    )
  return parsed


def _latency(
  source: str, table: str, measure: str, runlocal: bool
) -> dict[str, Any]:
  """The section of the latency model."""
  return {
    'table': table,
    # A folder that the job `predictor` made takes the place of the table.
    'predictor': '',
    # What makes a table, where none is shipped.
    'measure': (
      f'python -m hwdarts_jax.harness --config={source} {measure} '
      f'--out={table}.json'
    ),
    # Of its whole networks, that the predictor is fitted to; 0: all.
    'rows': 300 if runlocal else 0,
  }


def data(dataset: str) -> dict[str, Any]:
  """The section of the data set, of all jobs that train."""
  return {
    'name': dataset,
    'data_dir': '',
    'image_size': IMAGE_SIZES.get(dataset, 0),
    'split_seed': 0,
    'resident': 'auto',  # on the devices: true, false, or disk
    'max_resident_mb': 2048,
    'workers': 'auto',  # processes that decode images on disk; 0: threads
    # Of the shorter side, what tests of resized images show.
    'eval_crop': 0.875 if dataset == 'imagenet2012' else 1.0,
    'augment': augment(dataset),
  }


def _evaluate() -> dict[str, Any]:
  """The section of the job `evaluate`."""
  return {
    'search_workdir': '',  # of a finished search, or:
    'genotype': '',  # path of a genotype.json
    'device': '',  # with a shipped series; empty: that of latency.table
    'budget_ms': 0.0,  # 0: the target of the search, if it had one
  }


def describe() -> dict[str, Any]:
  """The section of the job `describe`."""
  return {
    'spec': 'deploy',  # or 'search'
    # Of one architecture; empty: of the whole space.
    'search_workdir': '',  # of a finished search, or:
    'genotype': '',  # path of a genotype.json
  }


def augment(dataset: str) -> dict[str, Any]:
  """How images of a data set may vary, without changing what they are."""
  if dataset == 'digits':  # a mirrored digit is another sign
    return _NO_AUGMENT | {'pad': 1, 'cutout': 4}
  if dataset in IMAGE_SIZES:
    return _NO_AUGMENT | {'crop_area': 0.08, 'flip': True}
  return _NO_AUGMENT | {'pad': 4, 'flip': dataset != 'mnist'}


def network() -> dict[str, Any]:
  """The section of how networks are evaluated."""
  return {
    'bn_groups': 8,
    'bn_momentum': 0.9,
    'dtype': 'float32',
    'depthwise': 'auto',
    'depthwise_gradient': 'conv',
    'evaluation': 'auto',
  }


def _set_method(config) -> None:
  """Sets the sections that say how alphas are found."""
  config.network = network()
  config.relaxation = {
    'name': 'softmax',
    'temperature_start': 1.0,
    'temperature_end': 1.0,
  }
  config.hypergrad = {'name': 'lookahead'}
  config.objective = {
    'name': 'relative',
    'multiplier': 0.003,
    'reference_ms': 0.0,  # 0: expected at uniform gates
    # Bounds find their multipliers themselves; the fixed one is not used then.
    'target_ms': 0.0,  # 0: none
    'constraints': {},  # such as {'latency_ms': 8.0, 'peak_memory_mb': 0.25}
    # How far below bounds of what is predicted to aim, as predictors err: a
    # share such as 0.05, or held_out.
    'margin': '0',
    'dual': dict(DUAL),
  }
  # Such as {'beta_decay': {'scale': 50.0}}: see bilevel/regularizers.py.
  config.regularizers = {}


def _set_schedule(config, small: bool, runlocal: bool) -> None:
  """Sets the sections that depend on how long the search is."""
  # DARTS searches 50 epochs of 25,000 images in batches of 64.
  num_steps = 20 if runlocal else 600 if small else 19500
  config.search = {
    'num_steps': num_steps,
    'batch_size': 64,
    'eval_batch_size': 256,
    'warmup_steps': 0,
    'warmup_gates': 'relaxed',
    'auxiliary_skip': 0.0,
    'steps_per_call': 1,
    'log_every_steps': 10 if small else 50,
    'checkpoint_every_steps': 10 if runlocal else 100 if small else 500,
    'eval_every_steps': num_steps // 2 if small else 1950,
    'keep_checkpoints': 3,
    # Of one device, as it is known; the cost that is printed at the start is
    # computed from it.
    'images_per_second': 0.0,
    'memory_gb': 0.0,  # on each device; 0 is all, with nothing saved
    'selection': 'argmax',
  }
  config.diagnostics = {
    'every_steps': 0,  # between measurements of the eigenvalue; 0: none
    'num_products': 10,
    'skip_factor': 2.0,
    'eigenvalue_factor': 1.3,
    'window': 5,
    'from_step': 2 * num_steps // 5,
    'early_stop': False,
  }
  config.params_optimizer = {
    'name': 'sgd',
    'learning_rate': 0.2 if small else 0.025,
    'momentum': 0.9,
    'weight_decay': 3e-4,
    'schedule': 'cosine',
    'clip_norm': 5.0,
    'final_learning_rate': 0.0 if small else 0.001,
  }
  config.alphas_optimizer = {
    'name': 'adam',
    'learning_rate': 0.02 if small else 3e-4,
    'b1': 0.5,
    'b2': 0.999,
    'weight_decay': 1e-3,
    'schedule': 'constant',
  }


def _population(runlocal: bool) -> dict[str, Any]:
  """The section of the job `pareto`: each target or multiplier, and seed."""
  return {
    'num_targets': 4 if runlocal else 16,
    'targets_ms': (),  # empty: as many as above, in equal ratios
    'multipliers': (),
    'seeds': 1,
    'members_per_step': 4,
  }


def export(runlocal: bool) -> dict[str, Any]:
  """The section of the job `export`."""
  return {
    'retrain_workdir': '',  # of a finished training
    'average': True,  # the averaged params, or else the last ones
    # Training images: what none of them reaches, int8 files clip.
    'num_samples': 200 if runlocal else 1000,
    'num_images': 32 if runlocal else 1000,  # test images, 0: all of them
    'runner': 'host',  # what measures the files; empty: nothing
    'rounds': 1 if runlocal else 5,
  }


def _shortlist(small: bool, runlocal: bool) -> dict[str, Any]:
  """The section of the job `shortlist`: brief trainings of many networks.

  How many candidates it takes is in benchmarks/NOTES.md.
  """
  return {
    'search_workdir': '',  # of a finished search or population
    'targets_ms': (),  # empty: those of the search
    'size': 2 if runlocal else 4 if small else 16,  # of each target
    # Later rounds train what the trainings so far say is best; 1: none does.
    'rounds': 1,
    'more': 1 if runlocal else 2 if small else 4,  # of each target and round
    'pool': '',  # pool.json of another shortlist, whose trainings are taken
    # Networks that may be measured before they are trained; 0: none is.
    'max_measured': 0,
    'runner': '',  # of the harness, that measures them; empty: another machine
    'runner_dtype': 'float32',
    'runner_batch': 1,
    'num_epochs': 1 if runlocal else 8 if small else 12,
    'batch_size': 64 if small else 256,
    'eval_batch_size': 256,
    'steps_per_call': 1,
    'members_per_program': 2 if runlocal else 4 if small else 8,
    'evaluation': 'auto',
    # Of the networks that are trained; 0: as in space.search, and of the data.
    'num_cells': 0,
    'features': 0,
    'image_size': 0,
    'warmup_epochs': 0.5,
    'optimizer': dict(recipes.SGD),
  }
