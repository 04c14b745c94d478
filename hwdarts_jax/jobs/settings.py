"""What a config may hold: every field is known, there, and in its range.

It is checked before anything is made, loaded or written. A typo on the command
line is already an error of the locked config; this also finds those in config
files, and values that would only fail, or be wrong, hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import inspect
from typing import Any

from hwdarts_jax import spaces
from hwdarts_jax.bilevel import (
  exploration,
  hypergrad,
  objective,
  regularizers,
  relax,
)
from hwdarts_jax.jobs import (
  feeding,
  retrain_settings,
  rules,
  selection,
  shortlist_settings,
)
from hwdarts_jax.latency import budgets
from hwdarts_jax.models import evaluations, kernel_gradients

_DESCRIBE = {
  'spec': rules.among('search', 'deploy'),
  'search_workdir': rules.TEXT,
  'genotype': rules.TEXT,
}
_FIELDS: dict[str, dict[str, rules.Rule]] = {
  '': {
    'source': rules.TEXT,
    'job': rules.TEXT,
    'seed': rules.SEED,
    'num_devices': rules.whole(0),
    'deterministic': rules.FLAG,
    'space': rules.SECTION,
    'latency': rules.SECTION,
    'data': rules.SECTION,
    'network': rules.SECTION,
    'relaxation': rules.SECTION,
    'hypergrad': rules.SECTION,
    'objective': rules.SECTION,
    'population': rules.SECTION,
    'regularizers': rules.SECTION,
    'diagnostics': rules.SECTION,
    'search': rules.SECTION,
    'params_optimizer': rules.SECTION,
    'alphas_optimizer': rules.SECTION,
    'shortlist': rules.SECTION,
    'retrain': rules.SECTION,
    'export': rules.SECTION,
    'evaluate': rules.SECTION,
    'describe': rules.SECTION,
  },
  'space': {
    'name': rules.among(*spaces.names()),
    'search': rules.SECTION,
    'deploy': rules.SECTION,
  },
  'latency': {
    'table': rules.TEXT,
    'predictor': rules.TEXT,
    'measure': rules.TEXT,
    'rows': rules.whole(0),
  },
  'data': {
    'name': rules.TEXT,
    'data_dir': rules.TEXT,
    'image_size': rules.whole(0),
    'split_seed': rules.SEED,
    'resident': rules.Rule(
      "'auto', true, false or 'disk'",
      lambda v: str(v).lower() in ('auto', 'true', 'false', feeding.DISK),
    ),
    'workers': rules.Rule(
      "'auto' or a whole number, at least 0",
      lambda v: v == 'auto' or str(v).isdecimal(),
    ),
    'eval_crop': rules.SHARE,
    'max_resident_mb': rules.NOT_NEGATIVE,
    'augment': rules.SECTION,
  },
  'data.augment': retrain_settings.AUGMENT,
  'network': {
    'bn_groups': rules.whole(1),
    'bn_momentum': rules.BELOW_ONE,
    'dtype': rules.among('float32', 'bfloat16', 'float64'),
    'depthwise': rules.among('auto', 'conv', 'shift'),
    'depthwise_gradient': rules.among(*kernel_gradients.GRADIENTS),
    'evaluation': rules.among(
      'auto', *evaluations.EVALUATIONS, evaluations.SHARED
    ),
  },
  'relaxation': {
    'name': rules.among(*relax.RELAXATIONS),
    'temperature_start': rules.POSITIVE,
    'temperature_end': rules.POSITIVE,
  },
  'objective': {
    'name': rules.among(*objective.OBJECTIVES),
    'multiplier': rules.NUMBER,
    'reference_ms': rules.NOT_NEGATIVE,
    'target_ms': rules.NOT_NEGATIVE,
    'constraints': rules.SECTION,
    'margin': rules.MARGIN,
    'dual': rules.SECTION,
  },
  'population': {
    'num_targets': rules.whole(1),
    'targets_ms': rules.LIST,
    'multipliers': rules.LIST,
    'seeds': rules.whole(1),
    'members_per_step': rules.whole(1),
  },
  'objective.dual': {
    'proportional': rules.NOT_NEGATIVE,
    'integral': rules.POSITIVE,
    'sharpness': rules.SHARE,
    'sharp_from': rules.SHARE,
    'settle_from': rules.SHARE,
    'memory': rules.BELOW_ONE,
    'most': rules.POSITIVE,
    'lift': rules.BELOW_ONE,
  },
  'search': {
    'num_steps': rules.whole(1),
    'batch_size': rules.whole(1),
    'eval_batch_size': rules.whole(1),
    'warmup_steps': rules.whole(0),
    'warmup_gates': rules.among(*exploration.WARMUP_GATES),
    'auxiliary_skip': rules.NOT_NEGATIVE,
    'steps_per_call': rules.whole(1),
    'log_every_steps': rules.whole(1),
    'checkpoint_every_steps': rules.whole(1),
    'eval_every_steps': rules.whole(0),
    'keep_checkpoints': rules.whole(1),
    'memory_gb': rules.NOT_NEGATIVE,
    'images_per_second': rules.NOT_NEGATIVE,
    'selection': rules.among(*selection.SELECTIONS),
  },
  'diagnostics': {
    'every_steps': rules.whole(0),
    'num_products': rules.whole(1),
    'skip_factor': rules.ABOVE_ONE,
    'eigenvalue_factor': rules.ABOVE_ONE,
    'window': rules.whole(1),
    'from_step': rules.whole(0),
    'early_stop': rules.FLAG,
  },
  'export': {
    'retrain_workdir': rules.TEXT,
    'average': rules.FLAG,
    'num_samples': rules.whole(1),
    'num_images': rules.whole(0),
    'runner': rules.TEXT,
    'rounds': rules.whole(1),
  },
  'evaluate': {
    'search_workdir': rules.TEXT,
    'genotype': rules.TEXT,
    'device': rules.TEXT,
    'budget_ms': rules.NOT_NEGATIVE,
  },
}
_FIELDS['describe'] = _DESCRIBE
_FIELDS |= retrain_settings.FIELDS | shortlist_settings.FIELDS
# Of networks without a choice: sections of `_FIELDS`, and fields beside them.
_FIXED_SECTIONS = (
  'data',
  'data.augment',
  'network',
  'export',
  'describe',
  *retrain_settings.FIELDS,
)
_FIXED_FIELDS: dict[str, dict[str, rules.Rule]] = {
  '': {
    k: v
    for k, v in _FIELDS[''].items()
    if k in _FIXED_SECTIONS
    or k in ('source', 'job', 'seed', 'num_devices', 'deterministic', 'space')
  },
  'space': {'name': rules.among(*spaces.makers()), 'deploy': rules.SECTION},
} | {section: _FIELDS[section] for section in _FIXED_SECTIONS}
# Of the job that fits a latency predictor, which trains no network.
_PREDICTOR_FIELDS: dict[str, dict[str, rules.Rule]] = {
  '': {
    'source': rules.TEXT,
    'job': rules.TEXT,
    'seed': rules.SEED,
    'space': rules.among(*spaces.names()),
    'deploy': rules.SECTION,
    'device': rules.TEXT,
    'measurements': rules.TEXT,
    'table': rules.TEXT,
    'rows': rules.whole(0),
    'predict': rules.TEXT,
    'prior': rules.among('none', 'shipped'),
    'prior_devices': rules.TEXT,
    'exclude_devices': rules.TEXT,
    'describe': rules.SECTION,
    'suggest': rules.Rule(
      'a whole number, at least 0 and at most 1000',
      lambda v: rules.is_whole(v) and 0 <= v <= 1000,
    ),
  },
  'describe': _DESCRIBE,
}
_OPTIMIZERS = ('params_optimizer', 'alphas_optimizer', 'shortlist.optimizer')


def check(config: Mapping[str, Any]) -> None:
  """Checks all sections of a config, also those of other jobs.

  Args:
    config: the config as nested dicts.

  Raises:
    ValueError: a field is unknown, missing or not allowed; the message names
      it and what is allowed.
  """
  if is_fixed(config):
    space = config['space']
    raise ValueError(
      f'space.search is missing from the config: job {config.get("job")!r} '
      f'needs a space, and networks of {space.get("name")!r} have no choices. '
      'See what they are with --config.job=describe, train them with '
      '--config.job=retrain.'
    )
  _check_fields(config, _FIELDS)
  _check_hypergrad(config['hypergrad'])
  _check_regularizers(config['regularizers'])
  _check_constraints(config['objective']['constraints'])
  for section in _OPTIMIZERS:
    make_optimizer(section, _section(config, section), num_steps=2**31)
  retrain_settings.make_optimizer(config['retrain']['optimizer'])


def is_fixed(config: Mapping[str, Any]) -> bool:
  """Whether the networks of a config have no choices."""
  space = config.get('space')
  return isinstance(space, Mapping) and 'search' not in space


def check_trained(config: Mapping[str, Any]) -> None:
  """Checks a config whose networks are trained; raises like `check`."""
  if not is_fixed(config):
    check(config)
    return
  _check_fields(config, _FIXED_FIELDS)
  retrain_settings.make_optimizer(config['retrain']['optimizer'])
  if config['retrain']['spec'] != 'deploy' or config['retrain']['inherit']:
    raise ValueError(
      f'retrain.spec is {config["retrain"]["spec"]!r} and retrain.inherit '
      f'{config["retrain"]["inherit"]!r}; of {config["space"]["name"]!r}, '
      "which has no choices, they must be 'deploy' and false."
    )


def check_described(config: Mapping[str, Any]) -> None:
  """Checks a config of any kind; raises ValueError like `check`."""
  space = config.get('space')
  if isinstance(space, str):  # of the job `predictor`
    check_predictor(config)
  else:
    check_trained(config)


def check_predictor(config: Mapping[str, Any]) -> None:
  """Checks a config of the job `predictor`; raises ValueError like `check`."""
  _check_fields(config, _PREDICTOR_FIELDS)
  if config['space'] not in config['deploy']:
    raise ValueError(
      f'deploy.{config["space"]} is missing from the config; it has the '
      'settings of the space whose networks were measured.'
    )


def _check_fields(
  config: Mapping[str, Any], fields: Mapping[str, Mapping[str, rules.Rule]]
) -> None:
  for section, allowed in fields.items():
    values = _section(config, section)
    _check_names(section, values, tuple(allowed), tuple(allowed))
    for name, rule in allowed.items():
      if not rule.holds(values[name]):
        raise ValueError(
          f'{_dotted(section, name)} is {values[name]!r}; it must be '
          f'{rule.allowed}.'
        )


make_optimizer = retrain_settings.make_checked


def _check_hypergrad(values: Mapping[str, Any]) -> None:
  """Checks the name of the estimator and the names of its settings."""
  if 'name' not in values:
    raise ValueError('hypergrad.name is missing from the config.')
  if not rules.TEXT.holds(values['name']):
    raise ValueError(
      f'hypergrad.name is {values["name"]!r}; it must be {rules.TEXT.allowed}.'
    )
  known = _keywords(hypergrad.get(values['name']))
  _check_names(
    'hypergrad', values, ('name', *known), (), f' of {values["name"]}'
  )
  for name, value in values.items():
    rule = rules.whole(1) if name == 'num_terms' else rules.POSITIVE
    if name != 'name' and not rule.holds(value):
      raise ValueError(
        f'hypergrad.{name} is {value!r}; it must be {rule.allowed}.'
      )


def _check_regularizers(values: Mapping[str, Any]) -> None:
  """Checks the names of the regularizers, and the settings of each."""
  for name, own in values.items():
    known = _keywords(regularizers.get(name))
    section = f'regularizers.{name}'
    if not rules.SECTION.holds(own):
      raise ValueError(
        f'{section} is {own!r}; it must be {rules.SECTION.allowed} with any of '
        f'{", ".join(known)}: --config.regularizers="{{\'{name}\': {{}}}}".'
      )
    _check_names(section, own, known, ())
    for field, value in own.items():
      if not rules.NUMBER.holds(value):
        raise ValueError(
          f'{section}.{field} is {value!r}; it must be {rules.NUMBER.allowed}.'
        )


def _keywords(function: Callable[..., Any]) -> tuple[str, ...]:
  """Names of keyword-only arguments: the settings of a function."""
  return tuple(
    p.name
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.KEYWORD_ONLY
  )


def _check_constraints(values: Mapping[str, Any]) -> None:
  """Checks the names of bounded costs, and their bounds."""
  for name, value in values.items():
    budgets.check_name(name)
    if not rules.POSITIVE.holds(value):
      raise ValueError(
        f'objective.constraints.{name} is {value!r}; it must be '
        f'{rules.POSITIVE.allowed}.'
      )


def _section(config: Mapping[str, Any], dotted: str) -> Mapping[str, Any]:
  for name in filter(None, dotted.split('.')):
    config = config[name]
  return config


def _check_names(
  section: str,
  values: Mapping[str, Any],
  known: tuple[str, ...],
  needed: tuple[str, ...],
  of: str = '',
) -> None:
  for name in values:
    if name not in known:
      raise ValueError(
        f'{_dotted(section, name)} is no setting{of}; it must be one of '
        f'{", ".join(known)}.'
      )
  for name in needed:
    if name not in values:
      raise ValueError(f'{_dotted(section, name)} is missing from the config.')


def _dotted(section: str, name: str) -> str:
  return f'{section}.{name}' if section else name
