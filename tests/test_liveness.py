"""What runs, against a search for paths edge by edge."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.harness import convert, inference, to_tflite
from hwdarts_jax.latency import liveness, sampling
from hwdarts_jax.models import ops
from hwdarts_jax.spaces import discretize, nasbench201


def _draw(spec, count, seed):
  rng = np.random.default_rng(seed)
  gates = {
    g: rng.dirichlet(np.ones(s.shape[1]), s.shape[0])
    for g, s in spec.groups().items()
  }
  return sampling.draw(spec, gates, count, rng)


def _reaches(edges, start, goals):
  """Whether a path of `edges` leads from `start` into `goals`."""
  return start in goals or any(
    _reaches(edges, dst, goals) for src, dst in edges if src == start
  )


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  spec=space_strategies.small_specs(), seed=st.integers(0, 2**31)
)
def test_ops_run_where_a_path_says_so(spec, seed):
  """Pruned: to an output; compiled: also from an input."""
  (cell,) = spec.cells
  ((name, group),) = spec.groups().items()
  one_hot = _draw(spec, 5, seed)
  sources = [node for node, _ in cell.inputs]
  pruned, compiled = (
    liveness.paid_ops(spec, one_hot, s)[name] for s in ('pruned', 'compiled')
  )
  for n, hot in enumerate(one_hot[name]):
    chosen = {
      edge: group.ops[hot[row].argmax()]
      for row, edge in enumerate(group.edges)
      if hot[row].any()
    }
    runs = [e for e, op in chosen.items() if not ops.is_zero(op)]
    runs += [(e.src, e.dst) for e in cell.edges if e.row is None]
    for row, (src, dst) in enumerate(group.edges):
      needed = (src, dst) in runs and _reaches(runs, dst, cell.outputs)
      fed = any(_reaches(runs, s, [src]) for s in sources)
      np.testing.assert_array_equal(pruned[n, row], hot[row] * needed)
      np.testing.assert_array_equal(compiled[n, row], hot[row] * needed * fed)


def test_a_converter_runs_equal_poolings_once():
  """What 'merged' counts is what is left in the graph that is deployed."""
  spec = nasbench201.make(features=4, num_cells=1, image_size=8)
  one_hot = _draw(spec, 40, 0)
  one_hot = {'cell': one_hot['cell'][liveness.is_connected(spec, one_hot)]}
  compiled, merged = (
    liveness.paid_ops(spec, one_hot, name)['cell'].sum(1)
    for name in ('compiled', liveness.MERGED)
  )
  pool = nasbench201.OPS.index('avg_pool_3x3')
  fewer = np.flatnonzero(merged[:, pool] < compiled[:, pool])
  assert fewer.size > 2
  for row in [*fewer, 0, 1]:
    genotype = discretize.derive(spec, {'cell': 9 * one_hot['cell'][row]})
    network = convert.network(discretize.discretize(spec, genotype))
    deployed = inference.simplify(network, (1, *spec.input_shape), False)
    image = np.zeros((1, *spec.input_shape), np.float32)
    text = jax.jit(deployed).lower(image).as_text()
    # Three cells, two reductions with a pooling and three convolutions each.
    pools, convs = merged[row, pool], merged[row, 2:4].sum()
    assert text.count('stablehlo.reduce_window') == 3 * pools + 2
    assert text.count('stablehlo.convolution') == 3 * convs + 1 + 2 * 3 + 1


def test_sums_are_those_of_the_graph_that_is_deployed():
  """Also where a convolution of nothing leaves a constant image."""
  pytest.importorskip('litert_converter', reason='needs the extra tflite')
  spec = nasbench201.make(features=4, num_cells=1, image_size=8)
  uniform = {'cell': np.full((6, 5), 0.2)}
  one_hot = sampling.draw(spec, uniform, 60, np.random.default_rng(3))
  one_hot = {'cell': one_hot['cell'][liveness.is_connected(spec, one_hot)]}
  sums = liveness.sums(spec, one_hot)['cell']
  pruned, compiled = (
    liveness.paid_ops(spec, one_hot, name)['cell'][..., 2:4]
    for name in ('pruned', 'compiled')
  )
  constant = np.flatnonzero((pruned > compiled).any((1, 2)))
  assert constant.size > 3
  for row in [*constant[:6], *range(6)]:
    hot = one_hot['cell'][row]
    genotype = discretize.derive(spec, {'cell': 9 * hot})
    network = convert.network(discretize.discretize(spec, genotype))
    data = convert.convert(network, spec.input_shape, convert.Target()).data
    # In the two reductions; and in the last batch norm, unless it is folded
    # into a convolution that alone makes the output of the cell.
    last = hot[3:, 1:]
    folded = last.sum() == 1 and last[:, 1:3].any()
    want = 3 * sums[row] + 2 + (not folded)
    assert to_tflite.op_names(data).count('ADD') == want


@pytest.mark.parametrize('name', spaces.names())
def test_eager_runtimes_pay_for_all_and_the_others_for_ever_fewer(name):
  spec = spaces.make(name)
  one_hot = _draw(spec, 50, 0)
  eager, pruned, compiled = (
    liveness.paid_ops(spec, one_hot, s) for s in liveness.SEMANTICS
  )
  for group, hot in one_hot.items():
    np.testing.assert_array_equal(eager[group], hot)
    assert (pruned[group] <= eager[group]).all()
    assert (compiled[group] <= pruned[group]).all()
    dead = (compiled[group] < hot).any()
    assert dead == liveness.has_dead_ops(spec)


@pytest.mark.parametrize(
  'arch, compiled, pruned',
  [
    # Node 1 is fed, but nothing reads it.
    ('|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|', 1, 1),
    # Node 2 is read, but nothing feeds it.
    ('|none~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|', 1, 2),
    # No path at all.
    ('|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|', 0, 1),
  ],
)
def test_dead_ends_and_sources_of_nothing(arch, compiled, pruned):
  spec = spaces.make('nasbench201')
  genotype = nasbench201.from_arch_string(arch)
  hot = {g: p[None] for g, p in discretize.one_hot(spec, genotype).items()}
  counts = {
    s: liveness.paid_ops(spec, hot, s)['cell'].sum() for s in liveness.SEMANTICS
  }
  assert counts == {'eager': 6, 'pruned': pruned, 'compiled': compiled}
  assert liveness.is_connected(spec, hot)[0] == (compiled > 0)


def test_341_cells_of_nasbench201_have_no_path():
  """As many as its measurements lack."""
  spec = spaces.make('nasbench201')
  digits = np.arange(5**6)[:, None] // 5 ** np.arange(6) % 5
  connected = liveness.is_connected(spec, {'cell': np.eye(5)[digits]})
  assert (~connected).sum() == 341
