"""What hypothesis draws for the tests of spaces."""

import copy
import importlib
import inspect
import json

import hypothesis
from hypothesis import strategies as st

from hwdarts_jax import spaces
from hwdarts_jax.spaces import spec as spec_lib

# Settings that tests vary, by name; a space may have others.
_SETTINGS = {
  'features': st.integers(1, 32),
  'num_cells': st.integers(1, 9),
  'num_classes': st.integers(2, 20),
  'image_size': st.integers(1, 64),
  'image_channels': st.integers(1, 4),
  'num_nodes': st.integers(1, 5),
  'pool_bn': st.booleans(),
  'num_blocks': st.integers(1, 5),
  'num_stages': st.integers(1, 5),
  'stem_stride': st.integers(1, 2),
  'kernels': st.sampled_from(['3', '7,5', '3,5,7']),
  'fused': st.booleans(),
  'activations': st.sampled_from(['relu', 'relu,relu,relu,hswish,relu,hswish']),
}

# Settings of the smallest mobile network with every kind of cell.
SMALL_MOBILE = {
  'features': 2,
  'num_blocks': 2,
  'num_stages': 1,
  'num_classes': 4,
  'image_size': 8,
  'stem_stride': 1,
  'kernels': '3',
  'expansions': '3',
}

JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-3, 100)
  | st.floats()
  | st.sampled_from(['', 'none', 'stem', 'image', 'a/b', 'concat', 'é']),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
  ),
  max_leaves=5,
)


@st.composite
def network_specs(draw, name):
  """A spec of the space `name` with drawn settings."""
  module = importlib.import_module(f'hwdarts_jax.spaces.{name}')
  known = inspect.signature(module.make).parameters
  drawn = {k: draw(v) for k, v in _SETTINGS.items() if k in known}
  try:
    return spaces.make(name, **drawn)
  except ValueError:
    hypothesis.reject()


@st.composite
def genotypes(draw, spec):
  """An architecture of `spec`, each with some chance."""
  keep = {c.group: c.keep for c in spec.all_cells}
  cells = {}
  for name, group in spec.groups().items():
    ops = st.sampled_from([o for o in group.ops if o not in spec.excluded])
    rows = []
    for dst in sorted({d for _, d in group.edges}):
      into = [r for r, (_, d) in enumerate(group.edges) if d == dst]
      order = draw(st.permutations(into))
      rows += order[: keep[name]]
    cells[name] = tuple(
      spec_lib.Choice(draw(ops), *group.edges[r]) for r in sorted(rows)
    )
  return spec_lib.Genotype(spec.space, cells)


@st.composite
def small_specs(draw):
  """One searched cell of a few nodes, in which ops may be dead.

  Some edges are fixed, some nodes may keep only some of their edges, an op may
  be excluded. Few enough architectures to enumerate.
  """
  num_inputs = draw(st.integers(1, 2))
  last = num_inputs + draw(st.integers(1, 3))
  names = ['none', 'skip_connect', 'nor_conv_1x1']
  ops = tuple(names[: draw(st.integers(2, 3))])
  edges, rows = [], 0
  for dst in range(num_inputs, last):
    sources = draw(st.sets(st.integers(0, dst - 1), min_size=1, max_size=3))
    # Only nodes that something writes can be read.
    known = {e.dst for e in edges} | set(range(num_inputs))
    for src in sorted(sources & known) or [0]:
      fixed = draw(st.integers(0, 4)) == 0
      kinds = ('nor_conv_1x1',) if fixed else ops
      row = None if fixed else rows
      rows += not fixed
      edges.append(spec_lib.EdgeSpec(src, dst, kinds, row))
  hypothesis.assume(1 <= rows <= 7)
  outputs = draw(st.sets(st.sampled_from([e.dst for e in edges]), min_size=1))
  cell = spec_lib.CellSpec(
    'cell',
    tuple((i, spec_lib.IMAGE) for i in range(num_inputs)),
    tuple(edges),
    tuple(sorted(outputs)),
    2,
    group='group',
    keep=draw(st.sampled_from([None, 1, 2])),
  )
  pool = spec_lib.EdgeSpec(0, 1, ('global_avg_pool',), None, 4)
  head = spec_lib.CellSpec('head', ((0, 'cell'),), (pool,), (1,), 2)
  excluded = draw(st.sampled_from([(), ('skip_connect',)]))
  return spec_lib.NetworkSpec(
    'small', (4, 4, 2), (), (cell,), (head,), 2, excluded
  )


def _paths(value, path=()):
  yield path
  children = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  for key, child in children:
    yield from _paths(child, (*path, key))


@st.composite
def mutated(draw, data):
  """JSON-able `data` with one place replaced, removed or doubled."""
  data = json.loads(json.dumps(data))
  path = draw(st.sampled_from(list(_paths(data))))
  new = draw(JSON)
  if not path:
    return new
  parent = data
  for key in path[:-1]:
    parent = parent[key]
  match draw(st.sampled_from(['replace', 'remove', 'double'])):
    case 'replace':
      parent[path[-1]] = new
    case 'remove':
      del parent[path[-1]]
    case 'double' if isinstance(parent, list):
      parent.append(copy.deepcopy(parent[path[-1]]))
    case 'double':
      parent[path[-1] + '_'] = parent[path[-1]]
  return data
