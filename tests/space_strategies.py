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
