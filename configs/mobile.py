"""What searches of mobile networks have beside what all searches have.

Photographs as of ImageNet are searched in the space as it stands. Sets of small
photographs (`SMALL_PHOTOS`) deploy a network for them: images of 32 pixels, a
stem of stride 1, and blocks of dense convolutions among the choices, so that
CPUs and accelerators can be compared in one space. Their settings are those of
one H100 and a budget:

- Batches of 512, of which each of 4 members has 128: at 2x2 pixels, the last
  stage, batch norms have 512 values a channel from each member, and kernels are
  long enough to outlast their launch.
- Gates are samples (`sampled`): each member's part of a batch goes through one
  network, for which shared weights are exact, not a relaxation, so that weights
  learn what derived networks compute and judge these.
- A quarter of the steps moves no alphas and draws ops uniformly: weights that
  are fresh prefer what learns soonest, identities and small kernels.
- `lookahead`, whose step is two programs that compile side by side.
- Members take a turn each `members / 4` steps, so alphas move by larger steps
  than those of one search would.
"""

from __future__ import annotations

from typing import Any

from configs import recipes

# Choices of the space, that all its specs share.
CHOICES: dict[str, Any] = {
  'num_blocks': 4,
  'num_stages': 5,
  'kernels': '3,5,7',
  'expansions': '3,4,6',
  'squeeze_excite': True,
  'fused': False,
  'activations': 'relu,relu,relu,hswish,hswish,hswish',
}
DEPLOY = CHOICES | {
  'features': 16,
  'num_classes': 1000,
  'image_size': 224,
  'image_channels': 3,
  'stem_stride': 2,
}
# Where all would take too long.
FEW = {'num_blocks': 1, 'kernels': '3', 'expansions': '3'}
# Classes of sets whose images have 32 pixels.
SMALL_PHOTOS = {'cifar10': 10, 'cifar100': 100}


def set_up(config: Any, device: str, dataset: str, small: bool) -> None:
  """Sets what networks of inverted residual blocks are evaluated by.

  Args:
    config: of a search in the space; changed.
    device: whose latency table counts.
    dataset: its name.
    small: whether it is to take seconds or minutes on a CPU.
  """
  # 19 candidates a block, on one set of weights.
  config.network.evaluation = 'shared'
  if dataset == 'imagenet2012':
    config.network.dtype = 'bfloat16'
    config.retrain.images_per_second = recipes.MOBILE_RATE
  if dataset in SMALL_PHOTOS:
    _set_small_photos(config, device, dataset)
    if not small:
      _set_budget(config)


def _set_small_photos(config: Any, device: str, dataset: str) -> None:
  """Sets the spaces, and the table, whose keys are of other shapes."""
  config.space.search.fused = True
  config.space.deploy.update(
    num_classes=SMALL_PHOTOS[dataset], image_size=32, stem_stride=1, fused=True
  )
  table = f'{device}.mobile_{dataset}'
  config.latency.update(
    table=table,
    measure=config.latency.measure.replace(config.latency.table, table),
  )


def _set_budget(config: Any) -> None:
  """Sets a search of a population; the reasons are told above."""
  config.network.update(dtype='bfloat16', bn_groups=1)
  config.relaxation.update(
    name='sampled', temperature_start=1.0, temperature_end=0.5
  )
  config.search.update(
    num_steps=3000,
    batch_size=512,
    warmup_steps=750,
    warmup_gates='uniform',
    eval_every_steps=0,
    checkpoint_every_steps=3000,
  )
  config.params_optimizer.update(learning_rate=0.1, weight_decay=1e-4)
  config.alphas_optimizer.update(learning_rate=0.03, weight_decay=0.0)
