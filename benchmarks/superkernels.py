"""A plain training step of the mobile supernet on shared weights.

python -m benchmarks.superkernels --json=superkernels.json

Beside the largest single network of the space, the one of most MACs: what the
choice costs. `search_step --space=mobile --evaluation=shared` times bilevel
steps. Small on a CPU: --features=8 --image_size=32 --batch=8 --steps=3.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import search_step_report as report
from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, memory
from hwdarts_jax.latency import cost
from hwdarts_jax.models import evaluations, kernel_gradients
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec

_BATCH = flags.DEFINE_integer('batch', 128, 'Images of a step.')
_IMAGE = flags.DEFINE_integer('image_size', 224, 'Height and width.')
_FEATURES = flags.DEFINE_integer('features', 16, 'Of the stem; 16: width 1.')
_BLOCKS = flags.DEFINE_integer('num_blocks', 4, 'Of a stage.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', sorted(common.DTYPES), 'Of activations.'
)
_GRADIENT = flags.DEFINE_enum(
  'depthwise_gradient',
  'conv',
  kernel_gradients.GRADIENTS,
  'Of depthwise kernels, on small images.',
)
_STEPS = flags.DEFINE_integer('steps', 100, 'Steps that are timed.')
_WARMUP = flags.DEFINE_integer('warmup', 20, 'Steps before.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')


@dataclasses.dataclass(frozen=True)
class Case:
  """What is timed.

  Attributes:
    name: of the row.
    network: evaluated in training mode.
    gates: of the network; None for one without choices.
  """

  name: str
  network: Any
  gates: Any


def cases() -> list[Case]:
  """The largest network of 18 candidates, and supernets with it in them."""
  settings = {
    'features': _FEATURES.value,
    'image_size': _IMAGE.value,
    'num_blocks': _BLOCKS.value,
  }
  context = op_lib.Context(
    affine=False,
    dtype=common.DTYPES[_DTYPE.value],
    depthwise_gradient=_GRADIENT.value,
  )
  candidates = spaces.make('mobile', **settings)
  full = spaces.make('mobile', **settings, fused=True)
  largest = discretize.discretize(candidates, _largest(candidates))
  return [
    Case('largest single network', network_lib.Network(largest, context), None),
    _supernet('supernet of 18 candidates', _without_skip(candidates), context),
    _supernet('supernet with skip and fused blocks', full, context),
  ]


def _supernet(name: str, spec: NetworkSpec, context: op_lib.Context) -> Case:
  uniform = discretize.uniform(spec, np.float32)
  return Case(name, evaluations.make(spec, context, 'shared'), uniform)


def _largest(spec: NetworkSpec):
  """The genotype of most MACs."""
  table = cost.tabulate(spec, cost.macs, 'macs')
  return discretize.derive(spec, table.per_op)


def _without_skip(spec: NetworkSpec) -> NetworkSpec:
  """The same spec, in which every block is there."""

  def edges(cell):
    return tuple(
      dataclasses.replace(
        edge, ops=tuple(o for o in edge.ops if not op_lib.is_skip(o))
      )
      if len(edge.ops) > 1
      else edge
      for edge in cell.edges
    )

  return dataclasses.replace(
    spec,
    cells=tuple(
      dataclasses.replace(cell, edges=edges(cell)) for cell in spec.cells
    ),
  )


def make_step(case: Case, optimizer: optax.GradientTransformation):
  """Returns ``step(variables, opt_state, gates, images, labels)``.

  Gates are an argument, or the compiler would know them.
  """

  def step(variables, opt_state, gates, images, labels):
    def loss(params):
      logits, updates = case.network.apply(
        {**variables, 'params': params},
        images.astype(jnp.float32) / 128 - 1,
        gates,
        train=True,
        mutable=['batch_stats'],
      )
      each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return each.mean(), updates['batch_stats']

    params = variables['params']
    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    moves, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, moves)
    return {'params': params, 'batch_stats': stats}, opt_state, value

  return step


def time_case(case: Case) -> dict[str, Any]:
  """Times one row."""
  optimizer = optax.sgd(0.01, 0.9)
  variables = network_lib.init(case.network, jax.random.key(0))
  opt_state = optimizer.init(variables['params'])
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, *case.network.spec.input_shape)
  images = jnp.asarray(rng.integers(0, 256, shape, np.uint8))
  labels = jnp.asarray(rng.integers(0, 1000, _BATCH.value, np.int32))
  step = jax.jit(make_step(case, optimizer), donate_argnums=(0, 1))
  start = time.perf_counter()
  compiled = step.lower(
    variables, opt_state, case.gates, images, labels
  ).compile()
  compile_s = time.perf_counter() - start
  seconds = []
  value = None
  for _ in range(_WARMUP.value + _STEPS.value):
    start = time.perf_counter()
    variables, opt_state, value = jax.block_until_ready(
      compiled(variables, opt_state, case.gates, images, labels)
    )
    seconds.append(time.perf_counter() - start)
  if not np.isfinite(float(value)):
    raise AssertionError(f'the loss of {case.name} is {float(value)}.')
  ms = 1e3 * statistics.median(seconds[_WARMUP.value :])
  return {
    'name': case.name,
    'ms': ms,
    'images_per_s': 1e3 * _BATCH.value / ms,
    'compile_s': compile_s,
    'needed_mib': memory.needed_bytes(compiled) / 2**20,
    'params': sum(v.size for v in jax.tree.leaves(variables['params'])),
  }


def main(argv: Sequence[str]) -> None:
  """Times all rows, prints a table, writes JSON."""
  del argv
  rows = []
  for case in cases():
    rows.append(time_case(case))
    rows[-1]['ratio'] = rows[-1]['ms'] / rows[0]['ms']
    print(rows[-1], flush=True)
  columns = ('ms', 'ratio', 'images_per_s', 'compile_s', 'needed_mib')
  print(
    report.format_table(
      (*columns, ''), [(*(r[c] for c in columns), r['name']) for r in rows]
    )
  )
  if _JSON.value:
    content = {
      'device': jax.devices()[0].device_kind,
      'jax': jax.__version__,
      'settings': {
        f.name: f.value
        for f in (
          _BATCH,
          _IMAGE,
          _FEATURES,
          _BLOCKS,
          _DTYPE,
          _GRADIENT,
          _STEPS,
          _WARMUP,
        )
      },
      'rows': rows,
    }
    pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  app.run(main)
