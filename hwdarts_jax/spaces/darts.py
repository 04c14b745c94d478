"""The DARTS space: eight ops, four intermediate nodes, two kinds of cells.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019,
section 3.1, in the CIFAR form of the published code. Nodes 0 and 1 of a cell
are the preprocessed outputs of the two cells before it (nodes -2 and -1), so
that genotypes carry the published numbering.
"""

from __future__ import annotations

from hwdarts_jax.spaces.spec import CellSpec, EdgeSpec, IMAGE, NetworkSpec

# The order of the published code.
OPS = (
  'none',
  'max_pool_3x3',
  'avg_pool_3x3',
  'skip_connect',
  'sep_conv_3x3',
  'sep_conv_5x5',
  'dil_conv_3x3',
  'dil_conv_5x5',
)
STEM_MULTIPLIER = 3


def make(
  features: int = 16,
  num_cells: int = 8,
  num_classes: int = 10,
  image_size: int = 32,
  image_channels: int = 3,
  num_nodes: int = 4,
  pool_bn: bool = True,
) -> NetworkSpec:
  """Returns the space; the defaults are those of the published search.

  Args:
    features: channels of the first cell; doubled at each reduction cell.
    num_cells: cells of the body; the ones at 1/3 and 2/3 reduce.
    num_classes: classes of the data set.
    image_size: height and width of an image.
    image_channels: channels of an image.
    num_nodes: intermediate nodes of a cell.
    pool_bn: batch normalization after pooling, as in the published supernet;
      the published derived network has none.
  """
  stem = CellSpec.fixed(
    'stem', IMAGE, 'conv_bn_3x3', STEM_MULTIPLIER * features
  )
  if num_cells < 1:
    raise ValueError(f'num_cells is {num_cells!r}; it must be at least 1.')
  reductions = {num_cells // 3, 2 * num_cells // 3}
  cells: list[CellSpec] = []
  before, last, width, size = 'stem', 'stem', features, image_size
  reduced_last = False
  for i in range(num_cells):
    reduce = i in reductions
    width *= 2 if reduce else 1
    cells.append(
      _cell(f'cell_{i}', before, last, width, num_nodes, reduce, reduced_last)
    )
    before, last, reduced_last = last, cells[-1].name, reduce
    size = -(-size // 2) if reduce else size
  head = (
    CellSpec.fixed('pool', last, 'global_avg_pool', num_nodes * width, size),
    CellSpec.fixed('classifier', 'pool', 'dense', num_classes),
  )
  return NetworkSpec(
    space='darts',
    input_shape=(image_size, image_size, image_channels),
    stem=(stem,),
    cells=tuple(cells),
    head=head,
    num_classes=num_classes,
    excluded=('none',),
    pool_bn=pool_bn,
  )


def _cell(
  name: str,
  before: str,
  last: str,
  features: int,
  num_nodes: int,
  reduce: bool,
  reduced_last: bool,
) -> CellSpec:
  """One cell: two preprocessing edges, then every earlier node to each node."""
  # After a reduction the older input is twice as large as the newer one.
  pre = ('factorized_reduce', 2) if reduced_last else ('relu_conv_bn_1x1', 1)
  edges = [
    EdgeSpec(-2, 0, (pre[0],), None, pre[1]),
    EdgeSpec(-1, 1, ('relu_conv_bn_1x1',)),
  ]
  pairs = [(src, dst) for dst in range(2, 2 + num_nodes) for src in range(dst)]
  edges += [
    EdgeSpec(src, dst, OPS, row, 2 if reduce and src < 2 else 1)
    for row, (src, dst) in enumerate(pairs)
  ]
  return CellSpec(
    name,
    ((-2, before), (-1, last)),
    tuple(edges),
    tuple(range(2, 2 + num_nodes)),
    features,
    'concat',
    'reduce' if reduce else 'normal',
    keep=2,
  )
