"""What a config may hold: every field is known, there, and in its range.

It is checked before anything is made, loaded or written. A typo on the command
line is already an error of the locked config; this also finds those in config
files, and values that would only fail, or be wrong, hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import inspect
import math
from typing import Any, NamedTuple

from hwdarts_jax import spaces
from hwdarts_jax.bilevel import (
  exploration,
  hypergrad,
  objective,
  regularizers,
  relax,
)
from hwdarts_jax.jobs import selection
from hwdarts_jax.latency import budgets
from hwdarts_jax.models import fused
from hwdarts_jax.runtime import optimizers


class _Rule(NamedTuple):
  """What a field may be: in words for a message, and as a test."""

  allowed: str
  holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _as_number(value: Any) -> Any:
  """A text that stands for a number, as that number."""
  try:
    return float(value) if isinstance(value, str) else value
  except ValueError:
    return None


def _whole(low: int) -> _Rule:
  return _Rule(
    f'a whole number, at least {low}', lambda v: _is_whole(v) and v >= low
  )


def _among(*values: Any) -> _Rule:
  return _Rule(
    f'one of {sorted(values, key=str)}',
    lambda v: any(type(v) is type(w) and v == w for w in values),
  )


_TEXT = _Rule('a text', lambda v: isinstance(v, str))
_FLAG = _Rule('true or false', lambda v: isinstance(v, bool))
_SECTION = _Rule('a section', lambda v: isinstance(v, Mapping))
_NUMBER = _Rule('a finite number', _is_number)
_NOT_NEGATIVE = _Rule(
  'a finite number, at least 0', lambda v: _is_number(v) and v >= 0
)
_POSITIVE = _Rule('a finite number, above 0', lambda v: _is_number(v) and v > 0)
_ABOVE_ONE = _Rule(
  'a finite number, above 1', lambda v: _is_number(v) and v > 1
)
_SHARE = _Rule(
  'a number above 0, at most 1', lambda v: _is_number(v) and 0 < v <= 1
)
_BELOW_ONE = _Rule(
  'a number, at least 0 and below 1', lambda v: _is_number(v) and 0 <= v < 1
)

_LIST = _Rule(
  'a tuple of finite numbers, at least 0',
  lambda v: (
    isinstance(v, tuple | list) and all(_is_number(x) and x >= 0 for x in v)
  ),
)

_SEED = _Rule(
  'a whole number from 0 to 2**31 - 1',
  lambda v: _is_whole(v) and 0 <= v < 2**31,
)
_DESCRIBE = {
  'spec': _among('search', 'deploy'),
  'search_workdir': _TEXT,
  'genotype': _TEXT,
}
_MARGIN = _Rule(
  "a share, at least 0, or 'held_out'",
  lambda v: v == 'held_out' or _NOT_NEGATIVE.holds(_as_number(v)),
)
_AUGMENT = {'pad': _whole(0), 'flip': _FLAG, 'cutout': _whole(0)}
_FIELDS: dict[str, dict[str, _Rule]] = {
  '': {
    'source': _TEXT,
    'job': _TEXT,
    'seed': _SEED,
    'num_devices': _whole(0),
    'deterministic': _FLAG,
    'space': _SECTION,
    'latency': _SECTION,
    'data': _SECTION,
    'network': _SECTION,
    'relaxation': _SECTION,
    'hypergrad': _SECTION,
    'objective': _SECTION,
    'population': _SECTION,
    'regularizers': _SECTION,
    'diagnostics': _SECTION,
    'search': _SECTION,
    'params_optimizer': _SECTION,
    'alphas_optimizer': _SECTION,
    'retrain': _SECTION,
    'export': _SECTION,
    'evaluate': _SECTION,
    'describe': _SECTION,
  },
  'space': {
    'name': _among(*spaces.names()),
    'search': _SECTION,
    'deploy': _SECTION,
  },
  'latency': {'table': _TEXT, 'predictor': _TEXT, 'measure': _TEXT},
  'data': {
    'name': _TEXT,
    'data_dir': _TEXT,
    'image_size': _whole(0),
    'split_seed': _SEED,
    'resident': _Rule(
      "'auto', true or false",
      lambda v: str(v).lower() in ('auto', 'true', 'false'),
    ),
    'max_resident_mb': _NOT_NEGATIVE,
    'augment': _SECTION,
  },
  'data.augment': _AUGMENT,
  'network': {
    'bn_groups': _whole(1),
    'bn_momentum': _BELOW_ONE,
    'dtype': _among('float32', 'bfloat16', 'float64'),
    'depthwise': _among('auto', 'conv', 'shift'),
    'evaluation': _among('auto', *fused.EVALUATIONS),
  },
  'relaxation': {
    'name': _among(*relax.RELAXATIONS),
    'temperature_start': _POSITIVE,
    'temperature_end': _POSITIVE,
  },
  'objective': {
    'name': _among(*objective.OBJECTIVES),
    'multiplier': _NUMBER,
    'reference_ms': _NOT_NEGATIVE,
    'target_ms': _NOT_NEGATIVE,
    'constraints': _SECTION,
    'margin': _MARGIN,
    'dual': _SECTION,
  },
  'population': {
    'num_targets': _whole(1),
    'targets_ms': _LIST,
    'multipliers': _LIST,
    'seeds': _whole(1),
    'members_per_step': _whole(1),
  },
  'objective.dual': {
    'proportional': _NOT_NEGATIVE,
    'integral': _POSITIVE,
    'sharpness': _SHARE,
    'sharp_from': _SHARE,
    'settle_from': _SHARE,
    'memory': _BELOW_ONE,
    'most': _POSITIVE,
    'lift': _BELOW_ONE,
  },
  'search': {
    'num_steps': _whole(1),
    'batch_size': _whole(1),
    'eval_batch_size': _whole(1),
    'warmup_steps': _whole(0),
    'warmup_gates': _among(*exploration.WARMUP_GATES),
    'auxiliary_skip': _NOT_NEGATIVE,
    'steps_per_call': _whole(1),
    'log_every_steps': _whole(1),
    'checkpoint_every_steps': _whole(1),
    'eval_every_steps': _whole(0),
    'keep_checkpoints': _whole(1),
    'memory_gb': _NOT_NEGATIVE,
    'selection': _among(*selection.SELECTIONS),
  },
  'diagnostics': {
    'every_steps': _whole(0),
    'num_products': _whole(1),
    'skip_factor': _ABOVE_ONE,
    'eigenvalue_factor': _ABOVE_ONE,
    'window': _whole(1),
    'from_step': _whole(0),
    'early_stop': _FLAG,
  },
  'retrain': {
    'search_workdir': _TEXT,
    'genotype': _TEXT,
    'spec': _among('search', 'deploy'),
    'inherit': _FLAG,
    'num_epochs': _whole(1),
    'batch_size': _whole(1),
    'eval_batch_size': _whole(1),
    'steps_per_call': _whole(1),
    'checkpoint_every_epochs': _whole(1),
    'keep_checkpoints': _whole(1),
    'label_smoothing': _BELOW_ONE,
    'ema_decay': _BELOW_ONE,
    'drop_path': _BELOW_ONE,
    'augment': _SECTION,
    'optimizer': _SECTION,
  },
  'retrain.augment': _AUGMENT,
  'export': {
    'retrain_workdir': _TEXT,
    'average': _FLAG,
    'num_samples': _whole(1),
    'num_images': _whole(0),
    'runner': _TEXT,
    'rounds': _whole(1),
  },
  'evaluate': {
    'search_workdir': _TEXT,
    'genotype': _TEXT,
    'device': _TEXT,
    'budget_ms': _NOT_NEGATIVE,
  },
}
_FIELDS['describe'] = _DESCRIBE
# Of networks without a choice.
_FIXED_FIELDS: dict[str, dict[str, _Rule]] = {
  '': {'source': _TEXT, 'job': _TEXT, 'space': _SECTION, 'describe': _SECTION},
  'space': {'name': _among(*spaces.makers()), 'deploy': _SECTION},
  'describe': _DESCRIBE,
}
# Of the job that fits a latency predictor, which trains no network.
_PREDICTOR_FIELDS: dict[str, dict[str, _Rule]] = {
  '': {
    'source': _TEXT,
    'job': _TEXT,
    'seed': _SEED,
    'space': _among(*spaces.names()),
    'deploy': _SECTION,
    'device': _TEXT,
    'measurements': _TEXT,
    'table': _TEXT,
    'rows': _whole(0),
    'predict': _TEXT,
    'prior': _among('none', 'shipped'),
    'prior_devices': _TEXT,
    'exclude_devices': _TEXT,
    'describe': _SECTION,
    'suggest': _Rule(
      'a whole number, at least 0 and at most 1000',
      lambda v: _is_whole(v) and 0 <= v <= 1000,
    ),
  },
  'describe': _DESCRIBE,
}
_OPTIMIZERS = ('params_optimizer', 'alphas_optimizer', 'retrain.optimizer')


def check(config: Mapping[str, Any]) -> None:
  """Checks all sections of a config, also those of other jobs.

  Args:
    config: the config as nested dicts.

  Raises:
    ValueError: a field is unknown, missing or not allowed; the message names
      it and what is allowed.
  """
  space = config.get('space')
  if isinstance(space, Mapping) and 'search' not in space:
    raise ValueError(
      f'space.search is missing from the config: job {config.get("job")!r} '
      f'needs a space, and networks of {space.get("name")!r} have no choices. '
      'See what they are with --config.job=describe.'
    )
  _check_fields(config, _FIELDS)
  _check_hypergrad(config['hypergrad'])
  _check_regularizers(config['regularizers'])
  _check_constraints(config['objective']['constraints'])
  for section in _OPTIMIZERS:
    make_optimizer(section, _section(config, section), num_steps=2**31)


def check_described(config: Mapping[str, Any]) -> None:
  """Checks a config of any kind; raises ValueError like `check`."""
  space = config.get('space')
  if isinstance(space, str):  # of the job `predictor`
    check_predictor(config)
  elif isinstance(space, Mapping) and 'search' not in space:
    _check_fields(config, _FIXED_FIELDS)
  else:
    check(config)


def check_predictor(config: Mapping[str, Any]) -> None:
  """Checks a config of the job `predictor`; raises ValueError like `check`."""
  _check_fields(config, _PREDICTOR_FIELDS)
  if config['space'] not in config['deploy']:
    raise ValueError(
      f'deploy.{config["space"]} is missing from the config; it has the '
      'settings of the space whose networks were measured.'
    )


def _check_fields(
  config: Mapping[str, Any], fields: Mapping[str, Mapping[str, _Rule]]
) -> None:
  for section, rules in fields.items():
    values = _section(config, section)
    _check_names(section, values, tuple(rules), tuple(rules))
    for name, rule in rules.items():
      if not rule.holds(values[name]):
        raise ValueError(
          f'{_dotted(section, name)} is {values[name]!r}; it must be '
          f'{rule.allowed}.'
        )


def make_optimizer(section: str, settings: Mapping[str, Any], num_steps: int):
  """The optimizer that a section describes; errors name the section.

  Args:
    section: dotted name, for messages.
    settings: arguments of `optimizers.make`.
    num_steps: updates of the whole run.

  Raises:
    ValueError: a setting is unknown, missing or not allowed.
  """
  if 'name' not in settings:
    raise ValueError(f'{section}.name is missing from the config.')
  try:
    # A misspelt learning rate shall be named as such, not as missing.
    made = optimizers.make(
      num_steps=num_steps, **{'learning_rate': 0.0, **settings}
    )
  except ValueError as e:
    raise ValueError(str(e).replace('optimizer.', f'{section}.', 1)) from e
  if 'learning_rate' not in settings:
    raise ValueError(f'{section}.learning_rate is missing from the config.')
  return made


def _check_hypergrad(values: Mapping[str, Any]) -> None:
  """Checks the name of the estimator and the names of its settings."""
  if 'name' not in values:
    raise ValueError('hypergrad.name is missing from the config.')
  known = _keywords(hypergrad.get(values['name']))
  _check_names(
    'hypergrad', values, ('name', *known), (), f' of {values["name"]}'
  )
  for name, value in values.items():
    rule = _whole(1) if name == 'num_terms' else _POSITIVE
    if name != 'name' and not rule.holds(value):
      raise ValueError(
        f'hypergrad.{name} is {value!r}; it must be {rule.allowed}.'
      )


def _check_regularizers(values: Mapping[str, Any]) -> None:
  """Checks the names of the regularizers, and the settings of each."""
  for name, own in values.items():
    known = _keywords(regularizers.get(name))
    section = f'regularizers.{name}'
    if not _SECTION.holds(own):
      raise ValueError(
        f'{section} is {own!r}; it must be {_SECTION.allowed} with any of '
        f'{", ".join(known)}: --config.regularizers="{{\'{name}\': {{}}}}".'
      )
    _check_names(section, own, known, ())
    for field, value in own.items():
      if not _NUMBER.holds(value):
        raise ValueError(
          f'{section}.{field} is {value!r}; it must be {_NUMBER.allowed}.'
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
    if not _POSITIVE.holds(value):
      raise ValueError(
        f'objective.constraints.{name} is {value!r}; it must be '
        f'{_POSITIVE.allowed}.'
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
