"""The mobile space: inverted residual blocks in a row, as in MobileNetV3.

The macro network is that of the Once-for-All space over MobileNetV3-Large (Cai
et al., "Once-for-All", ICLR 2020, section 4.1): stem, one fixed block, five
stages of up to four blocks, and the head of MobileNetV3 (Howard et al.,
"Searching for MobileNetV3", ICCV 2019, table 1). Each of the 20 blocks chooses
its depthwise kernel, its expansion and squeeze-and-excitation by itself, where
Once-for-All has the latter fixed by stage. Blocks after the first of a stage
may be skipped, so the depth of a stage is 1 to 4, and unlike there any of them
may be missing.

A stage is two cells, each with a group of its own: the first block, that
changes shape, and the row of the others, that may be skipped. Stages share no
alphas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import re

from hwdarts_jax.spaces import blocks
from hwdarts_jax.spaces.blocks import FusedConv, make_divisible, MBConv
from hwdarts_jax.spaces.checks import check, is_int
from hwdarts_jax.spaces.spec import (
  CellSpec,
  Choice,
  EdgeSpec,
  Genotype,
  IMAGE,
  NetworkSpec,
)

KERNELS = (3, 5, 7)
EXPANSIONS = (3, 4, 6)
FUSED_EXPANSIONS = (2, 4)
ACTIVATIONS = ('relu', 'hswish')
SKIP = 'skip_connect'
# MobileNetV3-Large: channels, and the stride of the first block.
STAGES = ((24, 2), (40, 2), (80, 2), (112, 1), (160, 2))
STEM_FEATURES = 16
_HEAD_EXPANSION, _HEAD_FEATURES = 6, 1280
_NUM_ACTIVATIONS = 1 + len(STAGES)


def make(
  features: int = STEM_FEATURES,
  num_blocks: int = 4,
  num_stages: int = len(STAGES),
  num_classes: int = 1000,
  image_size: int = 224,
  image_channels: int = 3,
  stem_stride: int = 2,
  kernels: str = '3,5,7',
  expansions: str = '3,4,6',
  squeeze_excite: bool = True,
  fused: bool = False,
  activations: str = 'relu,relu,relu,hswish,hswish,hswish',
) -> NetworkSpec:
  """Returns the space; the defaults are those of MobileNetV3-Large.

  Args:
    features: channels of the stem. All others are in proportion, rounded to
      multiples of 8: 16 is the width multiplier 1, 12 is 0.75.
    num_blocks: searched blocks of each stage.
    num_stages: how many of the five stages there are, from the first.
    num_classes: classes of the data set.
    image_size: pixels a side; 96 to 224, or 32 with a `stem_stride` of 1.
    image_channels: channels of an image.
    stem_stride: of the first convolution.
    kernels: of depthwise convolutions to choose from, with commas, among
      `KERNELS`.
    expansions: to choose from, likewise, among `EXPANSIONS`.
    squeeze_excite: whether each block may also have squeeze-and-excitation.
    fused: whether to add blocks of dense 3x3 convolutions, for accelerators
      that dislike depthwise ones.
    activations: of the fixed block and of each stage, separated by commas, or
      one for all; among `ACTIVATIONS`. Stem and head have that of the last
      stage. Runtimes without int8 kernels for hard-swish want 'relu'.

  Raises:
    ValueError: a setting is not allowed; the message names it.
  """
  _check_sizes(features, num_blocks, num_stages)
  blocks.check_image(image_size, stem_stride)
  ops_of = functools.partial(
    _candidates,
    _split_numbers('kernels', kernels, KERNELS),
    _split_numbers('expansions', expansions, EXPANSIONS),
    squeeze_excite,
    fused,
  )
  acts = _split_activations(activations)[: 1 + num_stages]
  cells = _stages(features, num_blocks, ops_of, acts[1:])
  size = -(-image_size // stem_stride)
  for _, stride in STAGES[:num_stages]:
    size = -(-size // stride)
  return NetworkSpec(
    space='mobile',
    input_shape=(image_size, image_size, image_channels),
    stem=_stem(features, stem_stride, acts[0], acts[-1]),
    cells=cells,
    head=_head(cells[-1], size, features, acts[-1], num_classes),
    num_classes=num_classes,
  )


def _stages(
  features: int,
  num_blocks: int,
  ops_of: Callable[[str], tuple[str, ...]],
  activations: Sequence[str],
) -> tuple[CellSpec, ...]:
  """The blocks of the first stages, one stage for each activation."""
  cells: list[CellSpec] = []
  source = 'block'
  for i, activation in enumerate(activations):
    channels, stride = STAGES[i]
    width = make_divisible(channels * features / STEM_FEATURES)
    ops = ops_of(activation)
    cells += _stage(f'stage_{i + 1}', source, ops, width, stride, num_blocks)
    source = cells[-1].name
  return tuple(cells)


def _head(
  last: CellSpec, size: int, features: int, activation: str, num_classes: int
) -> tuple[CellSpec, ...]:
  """That of MobileNetV3, for `size` pixels a side of the last block."""
  wide = make_divisible(_HEAD_EXPANSION * last.features)
  hidden = make_divisible(_HEAD_FEATURES * features / STEM_FEATURES)
  return blocks.head(last.name, size, (wide, hidden), activation, num_classes)


def _check_sizes(features: int, num_blocks: int, num_stages: int) -> None:
  check(is_int(features, 1), 'features', features, 'a positive whole number')
  check(is_int(num_blocks, 1), 'num_blocks', num_blocks, 'at least 1')
  check(
    is_int(num_stages, 1) and num_stages <= len(STAGES),
    'num_stages',
    num_stages,
    f'from 1 to {len(STAGES)}',
  )


def to_arch_string(genotype: Genotype) -> str:
  """Ops of the blocks of a stage separated by commas, stages by bars."""
  stages = []
  for group, choices in genotype.cells.items():
    names = [choice.op for choice in choices]
    if group.endswith('_first'):
      stages.append(names)
    else:
      stages[-1] += names
  return '|'.join(map(','.join, stages))


def from_arch_string(text: str) -> Genotype:
  """Inverse of `to_arch_string`.

  Raises:
    ValueError: `text` is not an arch string of this space.
  """
  stages = [stage.split(',') for stage in text.strip().split('|')]
  if not all(re.fullmatch(r'[\w.]+', op) for ops in stages for op in ops):
    raise ValueError(
      f'arch string is {text!r}; it must look like op,op|op,op|..., '
      'blocks of a stage separated by commas and stages by bars.'
    )
  cells: dict[str, tuple[Choice, ...]] = {}
  for i, (first, *rest) in enumerate(stages, start=1):
    cells[f'stage_{i}_first'] = (Choice(first, 0, 1),)
    if rest:
      cells[f'stage_{i}_rest'] = tuple(
        Choice(op, j, j + 1) for j, op in enumerate(rest)
      )
  return Genotype('mobile', cells)


def _stem(
  features: int, stride: int, first_act: str, last_act: str
) -> tuple[CellSpec, ...]:
  """The first convolution and the one block that is not searched."""
  block = MBConv(3, 1, False, first_act).name
  return (
    CellSpec.fixed('stem', IMAGE, f'conv_bn_3x3_{last_act}', features, stride),
    CellSpec.fixed('block', 'stem', block, features),
  )


def _stage(
  name: str,
  source: str,
  ops: tuple[str, ...],
  features: int,
  stride: int,
  num_blocks: int,
) -> list[CellSpec]:
  """The cells of a stage: its first block, and the others in a row."""
  first = CellSpec(
    f'{name}_first',
    ((0, source),),
    (EdgeSpec(0, 1, ops, 0, stride),),
    (1,),
    features,
    group=f'{name}_first',
  )
  if num_blocks == 1:
    return [first]
  edges = tuple(
    EdgeSpec(i, i + 1, (SKIP, *ops), i) for i in range(num_blocks - 1)
  )
  rest = CellSpec(
    f'{name}_rest',
    ((0, first.name),),
    edges,
    (num_blocks - 1,),
    features,
    group=f'{name}_rest',
  )
  return [first, rest]


def _candidates(
  kernels: list[int],
  expansions: list[int],
  squeeze_excite: bool,
  fused: bool,
  activation: str,
) -> tuple[str, ...]:
  """Names of the ops that every block may be."""
  ops = [
    MBConv(kernel, expansion, squeeze, activation).name
    for kernel in kernels
    for expansion in expansions
    for squeeze in ((False, True) if squeeze_excite else (False,))
  ]
  if fused:
    ops += [FusedConv(e, activation).name for e in FUSED_EXPANSIONS]
  return tuple(ops)


def _split_activations(activations: str) -> list[str]:
  """The activation of the fixed block and of each stage."""
  names = activations.split(',') if isinstance(activations, str) else []
  check(
    len(names) in (1, _NUM_ACTIVATIONS) and set(names) <= set(ACTIVATIONS),
    'activations',
    activations,
    f'one of {ACTIVATIONS}, or {_NUM_ACTIVATIONS} of them separated by commas',
  )
  return names * (_NUM_ACTIVATIONS // len(names))


def _split_numbers(
  field: str, text: str, allowed: tuple[int, ...]
) -> list[int]:
  """The numbers of a setting, which are some of those allowed."""
  names = text.split(',') if isinstance(text, str) else []
  check(
    0 < len(names) == len(set(names)) and set(names) <= {*map(str, allowed)},
    field,
    text,
    f'some of {allowed}, each once, separated by commas',
  )
  return [int(name) for name in names]
