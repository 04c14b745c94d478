"""Peak memory of activations: the images that are alive at once.

An inference runtime runs the ops of a network one after the other and keeps an
image as long as somebody will read it. `Peak` follows that schedule: the sites
of the spec in their order, one float32 example, ops as `footprint` tells.

- An edge that hands on its node makes no image; two poolings of a node are one.
- The first image that enters a node becomes the node; others are added to it.
- A node that some edges read through ReLU and others do not is there twice.
  One that is read through ReLU only is computed when that is first read, being
  one operation with it, and its inputs are kept until then.
- Dead ops are not run, and what does not depend on the image is a constant.
- The image itself stays; outputs of cells stay until the last cell that reads
  them.

The schedule is written in the logic of independent events: an op runs with the
chance p that its gate gives, a and b is pq, a or b is 1 - (1 - p)(1 - q). At
one-hot gates all chances are 0 or 1, so that the peak is exactly that of the
architecture. Inside it is the largest over the schedule of the bytes that are
alive with these chances, which takes events that share edges for independent
and, by Jensen, the largest of means for the mean of the largest: an
approximation. Of spaces that can be enumerated `budgets` takes the exact mean.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.latency import expectation, footprint
from hwdarts_jax.latency.footprint import FLOAT_BYTES, Footprint
from hwdarts_jax.latency.schedule import Layout, Schedule
from hwdarts_jax.spaces.spec import IMAGE, NetworkSpec


def peak_bytes(spec: NetworkSpec, gates: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the peak of the bytes of activations, f[...].

  Args:
    spec: the space; a discrete one takes no gates.
    gates: for each group f[..., E, O]; see `expectation.marginals`.
  """
  probs = expectation.marginals(
    spec, {name: jnp.asarray(g) for name, g in gates.items()}
  )
  return functools.reduce(jnp.maximum, _peaks(spec, probs))


def of_architectures(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns `peak_bytes` of architectures, f[...] of f[..., E, O], in numpy."""
  return functools.reduce(np.maximum, _peaks(spec, one_hot))


def _peaks(spec: NetworkSpec, probs: Mapping[str, Any]) -> list[Any]:
  return [
    Schedule(layout, probs.get(layout.group)).peak()
    for layout in dict.fromkeys(layouts(spec))
  ]


@functools.lru_cache(maxsize=64)
def layouts(spec: NetworkSpec) -> tuple[Layout, ...]:
  """Of each cell of a network, all that its schedule depends on."""
  sizes = output_bytes(spec)
  last_read = {
    source: i for i, c in enumerate(spec.all_cells) for _, source in c.inputs
  }
  last_read[IMAGE] = len(spec.all_cells)  # runtimes never reuse their input
  earlier = [IMAGE]
  found = []
  for i, cell in enumerate(spec.all_cells):
    sources = tuple(dict.fromkeys(source for _, source in cell.inputs))
    apart = _apart(spec)
    outside = [
      s for s in earlier if s not in sources and last_read.get(s, -1) >= i
    ]
    found.append(
      Layout(
        cell.group or '',
        tuple((node, sources.index(s)) for node, s in cell.inputs),
        cell.edges,
        _footprints(spec)[cell.name],
        cell.outputs,
        cell.combine == 'concat',
        tuple(sizes[s] for s in sources),
        tuple(last_read[s] > i for s in sources),
        tuple(apart.get(s) == i for s in sources),
        sum(sizes[s] for s in outside),
      )
    )
    earlier.append(cell.name)
  return tuple(found)


@functools.lru_cache(maxsize=64)
def _apart(spec: NetworkSpec) -> dict[str, int]:
  """Joined outputs that all readers want through ReLU: the first to read."""
  joined = {cell.name for cell in spec.all_cells if cell.combine == 'concat'}
  first: dict[str, int] = {}
  for i, cell in enumerate(spec.all_cells):
    for node, source in cell.inputs:
      first.setdefault(source, i)
      for edge, ops in zip(
        cell.edges, _footprints(spec)[cell.name], strict=True
      ):
        raw = any(
          op.is_identity or any(step.reads_input for step in op.steps)
          for op in ops
        )
        if edge.src == node and (raw or len(ops) > 1):
          joined.discard(source)
  return {source: i for source, i in first.items() if source in joined}


@functools.lru_cache(maxsize=64)
def output_bytes(spec: NetworkSpec) -> dict[str, int]:
  """Bytes of the image and of the outputs of all cells, by name."""
  sizes = {IMAGE: FLOAT_BYTES * math.prod(spec.input_shape)}
  for cell in spec.all_cells:
    nodes = {
      edge.dst: ops[0].out_bytes
      for edge, ops in zip(
        cell.edges, _footprints(spec)[cell.name], strict=True
      )
    }
    parts = [nodes[n] for n in cell.outputs]
    sizes[cell.name] = sum(parts) if cell.combine == 'concat' else max(parts)
  return sizes


@functools.lru_cache(maxsize=64)
def _footprints(
  spec: NetworkSpec,
) -> dict[str, tuple[tuple[Footprint, ...], ...]]:
  """Of each cell, by name: the ops of each edge."""
  sites = {s.path: s for s in spec.sites()}
  return {
    cell.name: tuple(
      tuple(footprint.of(sites[f'{cell.name}/{e.name}'], op) for op in e.ops)
      for e in cell.edges
    )
    for cell in spec.all_cells
  }
