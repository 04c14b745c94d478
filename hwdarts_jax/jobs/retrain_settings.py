"""What the section `retrain` of a config may hold, and its times in epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from hwdarts_jax.jobs import rules
from hwdarts_jax.runtime import optimizers

SECTION = 'retrain.optimizer'
AUGMENT = {
  'pad': rules.whole(0),
  'flip': rules.FLAG,
  'cutout': rules.whole(0),
  'crop_area': rules.UP_TO_ONE,
  'colour': rules.BELOW_ONE,
  'rand_ops': rules.whole(0),
  'rand_magnitude': rules.Rule(
    'a number from 0 to 10', lambda v: rules.is_number(v) and 0 <= v <= 10
  ),
}
# By section.
FIELDS: dict[str, dict[str, rules.Rule]] = {
  'retrain': {
    'recipe': rules.TEXT,
    'search_workdir': rules.TEXT,
    'genotype': rules.TEXT,
    'spec': rules.among('search', 'deploy'),
    'inherit': rules.FLAG,
    'num_epochs': rules.whole(1),
    'batch_size': rules.whole(1),
    'eval_batch_size': rules.whole(1),
    'steps_per_call': rules.whole(1),
    'checkpoint_every_epochs': rules.whole(1),
    'keep_checkpoints': rules.whole(1),
    'label_smoothing': rules.BELOW_ONE,
    'ema_decay': rules.BELOW_ONE,
    'bn_momentum': rules.BELOW_ONE,
    'drop_path': rules.BELOW_ONE,
    'drop_path_grows': rules.among('training', 'depth'),
    'dropout': rules.BELOW_ONE,
    'mixup': rules.NOT_NEGATIVE,
    'cutmix': rules.NOT_NEGATIVE,
    'distill': rules.SECTION,
    'augment': rules.SECTION,
    'optimizer': rules.SECTION,
    'images_per_second': rules.NOT_NEGATIVE,
  },
  'retrain.augment': AUGMENT,
  'retrain.distill': {
    'workdir': rules.TEXT,
    'weight': rules.UP_TO_ONE,
    'temperature': rules.POSITIVE,
  },
}
# Settings of the optimizer in epochs, and in steps.
_IN_EPOCHS = {'warmup_epochs': 'warmup_steps', 'decay_epochs': 'decay_steps'}


def in_steps(
  optimizer: Mapping[str, Any], steps_per_epoch: int
) -> dict[str, Any]:
  """The section of an optimizer with what it has in epochs in steps.

  Args:
    optimizer: of the config.
    steps_per_epoch: of the training.

  Raises:
    ValueError: the same is given in epochs and in steps, or is negative.
  """
  found = dict(optimizer)
  for epochs, steps in _IN_EPOCHS.items():
    if epochs not in found:
      continue
    value = found.pop(epochs)
    if steps in found or not rules.NOT_NEGATIVE.holds(value):
      raise ValueError(
        f'{SECTION}.{epochs} is {value!r}; it must be '
        f'{rules.NOT_NEGATIVE.allowed}, and {SECTION}.{steps} be left out.'
      )
    found[steps] = round(value * steps_per_epoch)
  return found


def make_optimizer(
  settings: Mapping[str, Any], num_steps: int = 2**31, steps_per_epoch: int = 1
) -> optax.GradientTransformation:
  """The optimizer of a training; `checked.make_optimizer` of the section."""
  return make_checked(SECTION, in_steps(settings, steps_per_epoch), num_steps)


def make_checked(
  section: str, settings: Mapping[str, Any], num_steps: int
) -> optax.GradientTransformation:
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
