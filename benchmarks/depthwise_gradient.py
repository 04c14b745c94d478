"""Gradients of the depthwise kernels of the mobile space, each way.

python -m benchmarks.depthwise_gradient --json=depthwise_gradient.json

One row for each size that the largest network of the space has (see
`superkernels`), and each way that `kernel_gradients` has for it. Timed is one
program with `--copies` gradients, each of images of its own, called without
waiting: so that neither starting programs nor what caches keep counts. Small
on a CPU: --features=8 --image_size=32 --batch=8 --calls=3; images of data sets
like CIFAR-10: --image_size=32 --stem_stride=1.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
import pathlib
import statistics
import time
from typing import Any, NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp

from benchmarks import search_step_report as report
from hwdarts_jax import spaces
from hwdarts_jax.jobs import common
from hwdarts_jax.models import kernel_gradients
from hwdarts_jax.models import op as op_lib

_BATCH = flags.DEFINE_integer('batch', 128, 'Images of a batch.')
_IMAGE = flags.DEFINE_integer('image_size', 224, 'Height and width.')
_STEM = flags.DEFINE_integer('stem_stride', 2, 'Of the first convolution.')
_FEATURES = flags.DEFINE_integer('features', 16, 'Of the stem; 16: width 1.')
_KERNELS = flags.DEFINE_list('kernels', ['3', '5', '7'], 'Their sizes.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', sorted(common.DTYPES), 'Of images and kernels.'
)
_COPIES = flags.DEFINE_integer('copies', 4, 'Gradients of a program.')
_CALLS = flags.DEFINE_integer('calls', 20, 'Of a program, in one timing.')
_TIMINGS = flags.DEFINE_integer('timings', 5, 'Of which the median counts.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')


class Size(NamedTuple):
  """A depthwise convolution; images are square."""

  kernel: int
  stride: int
  pixels: int
  channels: int


def sizes() -> list[Size]:
  """Those of the space's blocks of the largest expansion, each once."""
  spec = spaces.make(
    'mobile',
    features=_FEATURES.value,
    image_size=_IMAGE.value,
    stem_stride=_STEM.value,
  )
  found = {}
  for site in spec.sites():
    expansions = [
      op_lib.OPS[name].keywords.get('expansion', 0) for name in site.ops
    ]
    if len(site.ops) == 1 or not max(expansions):
      continue
    height, _, channels = site.in_shape
    for kernel in map(int, _KERNELS.value):
      hidden = round(max(expansions) * channels)
      found[Size(kernel, site.stride, height, hidden)] = None
  return list(found)


def ways(size: Size) -> tuple[str, ...]:
  """XLA's own, and what may take its place."""
  image = (size.pixels, size.pixels)
  others = kernel_gradients.ways(size.kernel, size.stride, 1, image)
  return (kernel_gradients.CONV, *others)


def make_program(size: Size, way: str):
  """Returns ``program(images, cotangents, kernel)``: a list of gradients."""

  def program(images, cotangents, kernel):
    def gradient(x, cotangent):
      def convolve(k):
        return kernel_gradients.convolve(x, k, size.stride, 1, way)

      return jax.vjp(convolve, kernel)[1](cotangent)[0]

    return [gradient(x, g) for x, g in zip(images, cotangents, strict=True)]

  return program


def time_way(size: Size, way: str) -> dict[str, Any]:
  """Times one row."""
  dtype = common.DTYPES[_DTYPE.value]
  out = -(-size.pixels // size.stride)
  batch = _BATCH.value
  keys = jax.random.split(jax.random.key(0), 2 * _COPIES.value + 1)
  images, cotangents = (
    [jax.random.normal(k, (batch, n, n, size.channels), dtype) for k in part]
    for n, part in (
      (size.pixels, keys[1 : _COPIES.value + 1]),
      (out, keys[_COPIES.value + 1 :]),
    )
  )
  shape = (size.kernel, size.kernel, 1, size.channels)
  kernel = jax.random.normal(keys[0], shape, dtype)
  arguments = images, cotangents, kernel
  start = time.perf_counter()
  program = jax.jit(make_program(size, way)).lower(*arguments).compile()
  compile_s = time.perf_counter() - start
  found = jax.block_until_ready(program(*arguments))
  seconds = []
  for _ in range(_TIMINGS.value):
    start = time.perf_counter()
    for _ in range(_CALLS.value):
      last = program(*arguments)
    jax.block_until_ready(last)
    seconds.append(time.perf_counter() - start)
  ms = 1e3 * statistics.median(seconds) / _CALLS.value / _COPIES.value
  # What no way can do without: both images, read once.
  read = images[0].nbytes + cotangents[0].nbytes
  return {
    **size._asdict(),
    'way': way,
    'ms': ms,
    'gb_per_s': read / ms / 1e6,
    'compile_s': compile_s,
    'gradient': found[0].astype(jnp.float32),
  }


def compare(rows: list[dict[str, Any]]) -> None:
  """Sets how far each way is from the first, and how much faster.

  Raises:
    AssertionError: it is another gradient.
  """
  first, ms = rows[0]['gradient'], rows[0]['ms']
  for row in rows:
    error = jnp.abs(row.pop('gradient') - first).max() / jnp.abs(first).max()
    row['error'], row['faster'] = float(error), ms / row['ms']
    if not row['error'] < 0.02:  # three digits of bfloat16, and some sums
      raise AssertionError(f'not the same gradient: {row}')


def main(argv: Sequence[str]) -> None:
  """Times all rows, prints a table, writes JSON."""
  del argv
  rows: list[dict[str, Any]] = []
  for size in sizes():
    of_size = [time_way(size, way) for way in ways(size)]
    compare(of_size)
    for row in of_size:
      print(row, flush=True)
    rows += of_size
  columns = ('kernel', 'stride', 'pixels', 'channels')
  figures = ('ms', 'gb_per_s', 'faster', 'error', 'compile_s')
  print(
    report.format_table(
      (*columns, *figures, 'way'),
      [
        (*(str(r[c]) for c in columns), *(r[c] for c in figures), r['way'])
        for r in rows
      ],
    )
  )
  if _JSON.value:
    shown = (
      _BATCH,
      _IMAGE,
      _STEM,
      _FEATURES,
      _KERNELS,
      _DTYPE,
      _COPIES,
      _CALLS,
      _TIMINGS,
    )
    content = {
      'device': jax.devices()[0].device_kind,
      'jax': jax.__version__,
      'xla_flags': os.environ.get('XLA_FLAGS', ''),
      'settings': {f.name: f.value for f in shown},
      'rows': rows,
    }
    pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  app.run(main)
