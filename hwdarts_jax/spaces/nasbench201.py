"""NAS-Bench-201: five ops on the six edges of a four-node cell.

Dong & Yang, "NAS-Bench-201", ICLR 2020, section 2: stem of one 3x3
convolution, three stages of `num_cells` equal cells with `features`,
2 x `features` and 4 x `features` channels, a residual block of stride 2
between stages, then BN-ReLU, global pooling and a dense layer.
"""

from __future__ import annotations

import re

from hwdarts_jax.spaces.spec import (
  CellSpec,
  Choice,
  EdgeSpec,
  Genotype,
  IMAGE,
  NetworkSpec,
)

# The order of the published supernet and of LatBench.
OPS = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
# (src, dst) in the order of the arch string.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
GROUP = 'cell'
_ARCH_STRING = re.compile(
  r'\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|'
)


def make(
  features: int = 16,
  num_cells: int = 5,
  num_classes: int = 10,
  image_size: int = 32,
  image_channels: int = 3,
) -> NetworkSpec:
  """Returns the space; the defaults are those of the benchmark."""
  if num_cells < 1:
    raise ValueError(f'num_cells is {num_cells!r}; it must be at least 1.')
  stem = CellSpec.fixed('stem', IMAGE, 'conv_bn_3x3', features)
  cells: list[CellSpec] = []
  source, size = 'stem', image_size
  for stage in range(3):
    width = features * 2**stage
    if stage > 0:
      cells.append(
        CellSpec.fixed(
          f'reduction_{stage}', source, 'residual_block_3x3', width, stride=2
        )
      )
      source, size = cells[-1].name, -(-size // 2)
    for i in range(num_cells):
      cells.append(
        CellSpec(
          name=f'stage_{stage}_cell_{i}',
          inputs=((0, source),),
          edges=tuple(
            EdgeSpec(src, dst, OPS, row) for row, (src, dst) in enumerate(EDGES)
          ),
          outputs=(3,),
          features=width,
          group=GROUP,
        )
      )
      source = cells[-1].name
  head = (
    CellSpec.fixed('last_act', source, 'bn_relu', 4 * features),
    CellSpec.fixed('pool', 'last_act', 'global_avg_pool', 4 * features, size),
    CellSpec.fixed('classifier', 'pool', 'dense', num_classes),
  )
  return NetworkSpec(
    space='nasbench201',
    input_shape=(image_size, image_size, image_channels),
    stem=(stem,),
    cells=tuple(cells),
    head=head,
    num_classes=num_classes,
  )


def to_arch_string(genotype: Genotype) -> str:
  """The usual ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`` form of a genotype."""
  by_edge = {(c.src, c.dst): c.op for c in genotype.cells[GROUP]}
  nodes = (
    '|' + ''.join(f'{by_edge[src, dst]}~{src}|' for src in range(dst))
    for dst in (1, 2, 3)
  )
  return '+'.join(nodes)


def from_arch_string(text: str) -> Genotype:
  """Inverse of `to_arch_string`.

  >>> text = '|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|'
  >>> genotype = from_arch_string(text)
  >>> genotype.cells['cell'][0]
  Choice(op='nor_conv_3x3', src=0, dst=1)
  >>> to_arch_string(genotype) == text
  True

  Raises:
    ValueError: `text` is not an arch string of this space.
  """
  match = _ARCH_STRING.fullmatch(text.strip())
  if match is None:
    raise ValueError(
      f'arch string is {text!r}; it must look like '
      '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|.'
    )
  unknown = sorted(set(match.groups()) - set(OPS))
  if unknown:
    raise ValueError(
      f'arch string {text!r} has ops {unknown}; known ops are {list(OPS)}.'
    )
  pairs = zip(match.groups(), EDGES, strict=True)
  return Genotype(
    'nasbench201', {GROUP: tuple(Choice(op, *edge) for op, edge in pairs)}
  )
