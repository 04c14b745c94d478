"""Recipes of training: the section `retrain` of a config, by name.

Each names its source and where it deviates from it. Batches are those of all
devices together; learning rates go with their size, so change both.
"""

from __future__ import annotations

from typing import Any

# What most do without.
_COMMON: dict[str, Any] = {
  'search_workdir': '',  # of a finished search, or:
  'genotype': '',  # path of a genotype.json
  'inherit': False,
  'eval_batch_size': 256,
  'steps_per_call': 1,
  'checkpoint_every_epochs': 5,
  'keep_checkpoints': 3,
  'label_smoothing': 0.0,
  'bn_momentum': 0.9,
  'drop_path': 0.0,
  'drop_path_grows': 'training',
  'dropout': 0.0,
  'mixup': 0.0,
  'cutmix': 0.0,
  # A finished training or search whose network is imitated.
  'distill': {'workdir': '', 'weight': 0.5, 'temperature': 1.0},
  # Of one device, as it is known; the cost that is printed at the start is
  # computed from it.
  'images_per_second': 0.0,
}
# As NAS-Bench-201 was trained (Dong & Yang 2020, section 2.3), with clipped
# gradients.
SGD: dict[str, Any] = {
  'name': 'sgd',
  'learning_rate': 0.1,
  'momentum': 0.9,
  'nesterov': True,
  'weight_decay': 5e-4,
  'schedule': 'cosine',
  'clip_norm': 5.0,
}
# TensorFlow's RMSProp, whose averages begin with ones.
_RMSPROP = {
  'name': 'rmsprop',
  'decay': 0.9,
  'momentum': 0.9,
  'eps': 1e-3,
  'eps_in_sqrt': True,
  'initial_scale': 1.0,
  'weight_decay': 1e-5,
  'decay_kernels_only': True,
  'schedule': 'exponential',
}
RECIPES: dict[str, dict[str, Any]] = {
  # For the embedded digits, in seconds.
  'small': {
    'num_epochs': 30,
    'batch_size': 64,
    'label_smoothing': 0.1,
    'ema_decay': 0.99,
    'optimizer': dict(SGD),
  },
  # Liu et al. 2019, section 3.2, for CIFAR-10, without the auxiliary tower;
  # Nesterov's momentum and the average are ours.
  'darts': {
    'num_epochs': 600,
    'batch_size': 96,
    'ema_decay': 0.999,
    'drop_path': 0.2,
    'optimizer': {
      'name': 'sgd',
      'learning_rate': 0.025,
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 3e-4,
      'schedule': 'cosine',
      'clip_norm': 5.0,
    },
  },
  # Howard et al. 2019, section 6.1: RMSProp, 0.1 for batches of 4096, 1 %
  # less every 3 epochs, dropout 0.2, weight decay 1e-5, average 0.9999,
  # statistics of batch norms 0.99, Inception's crops and colours. They do not
  # say how long: 600 epochs here. Without Inception's change of hue; colours
  # change by up to 0.4. A warm-up of 5 epochs is ours, and so are batches of
  # 512, for one device, with a learning rate in proportion.
  'mobilenet_v3': {
    'num_epochs': 600,
    'batch_size': 512,
    'ema_decay': 0.9999,
    'bn_momentum': 0.99,
    'dropout': 0.2,
    'augment': {'colour': 0.4},
    'optimizer': _RMSPROP
    | {
      'learning_rate': 0.0125,
      'warmup_epochs': 5.0,
      'decay_rate': 0.99,
      'decay_epochs': 3.0,
    },
  },
  # Tan & Le 2019, section 5.2, B0: RMSProp, 0.256 for batches of 4096, times
  # 0.97 every 2.4 epochs, 350 epochs, dropout 0.2, survival 0.8 of the deepest
  # block, statistics of batch norms 0.99, weight decay 1e-5. RandAugment takes
  # the place of AutoAugment. Label smoothing, average, warm-up and the learning
  # rate of smaller batches (0.016 for each 256 images) are those of their code.
  'efficientnet': {
    'num_epochs': 350,
    'batch_size': 512,
    'label_smoothing': 0.1,
    'ema_decay': 0.9999,
    'bn_momentum': 0.99,
    'drop_path': 0.2,
    'drop_path_grows': 'depth',
    'dropout': 0.2,
    'augment': {'rand_ops': 2, 'rand_magnitude': 9.0},
    'optimizer': _RMSPROP
    | {
      'learning_rate': 0.032,
      'warmup_epochs': 5.0,
      'decay_rate': 0.97,
      'decay_epochs': 2.4,
    },
  },
  # Ours, for one device and a budget: what the long ones have, in few epochs.
  'short': {
    'num_epochs': 90,
    'batch_size': 256,
    'label_smoothing': 0.1,
    'ema_decay': 0.999,
    'optimizer': {
      'name': 'sgd',
      'learning_rate': 0.1,
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 4e-5,
      'decay_kernels_only': True,
      'schedule': 'cosine',
      'warmup_epochs': 5.0,
    },
  },
  # Ours, for many networks of small photographs on one accelerator: 1.5 million
  # images of CIFAR-10 each. Large batches, whose kernels outlast their launch;
  # the decay is that which CIFAR is commonly trained with, as epochs are few.
  'budget': {
    'num_epochs': 30,
    'batch_size': 512,
    'label_smoothing': 0.1,
    'ema_decay': 0.995,
    'optimizer': {
      'name': 'sgd',
      'learning_rate': 0.2,
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 5e-4,
      'decay_kernels_only': True,
      'schedule': 'cosine',
      'warmup_epochs': 2.0,
      'clip_norm': 5.0,
    },
  },
}
_PHOTOS = ('imagenet2012',)
# Images/s of one H100, plain steps of the largest network of the space mobile
# at 224 pixels, in batches of 128, in bfloat16: `benchmarks.superkernels`.
MOBILE_RATE = 2800.0


def default(space: str, dataset: str, small: bool) -> str:
  """The recipe of a space and a data set."""
  if small:
    return 'small'
  if space not in ('mobile', 'references'):
    return 'darts'
  return 'mobilenet_v3' if dataset in _PHOTOS else 'short'


def retrain(
  recipe: str, augment: dict[str, Any], spec: str, runlocal: bool
) -> dict[str, Any]:
  """The section `retrain`.

  Args:
    recipe: one of `RECIPES`.
    augment: of the images of the data set; the recipe adds to it.
    spec: 'search' or 'deploy', whose network is trained.
    runlocal: whether it takes seconds.

  Raises:
    ValueError: there is no such recipe.
  """
  if recipe not in RECIPES:
    raise ValueError(
      f'config argument recipe is {recipe!r}; known are {sorted(RECIPES)}.'
    )
  section = _COMMON | RECIPES[recipe] | {'recipe': recipe, 'spec': spec}
  section['augment'] = augment | _allowed(section.get('augment', {}), augment)
  if runlocal:
    section |= {'num_epochs': 2, 'checkpoint_every_epochs': 1}
    section['batch_size'] = min(section['batch_size'], 64)
    section['optimizer'] = section['optimizer'] | {'warmup_epochs': 0.0}
  return section


def _allowed(extra: dict[str, Any], augment: dict[str, Any]) -> dict[str, Any]:
  """What workers vary, of images that they read as they were stored."""
  return extra if augment['crop_area'] else {}
