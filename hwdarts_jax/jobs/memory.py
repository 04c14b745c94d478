"""How a search is made to fit into the memory of a device.

What fills it are the values that backward passes need. There are two ways to
keep fewer of them, and both cost time: to compute some of them again
(`fused.FusedNetwork.remat`), and to evaluate a batch in parts
(`Problem.batch_parts`). The first plan that fits is taken. Whether it does is
known for certain when the step is compiled, before it ever runs; plans that
cannot fit are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import jax

from hwdarts_jax.bilevel import losses
from hwdarts_jax.bilevel.problem import Problem
from hwdarts_jax.models import fused
from hwdarts_jax.runtime.workdir import UserError

GB = 1e9
_REMATS = {
  'nothing': '',
  'activations': 'activations are computed again',
  'first_convolutions': 'activations and first convolutions are computed again',
}


class OutOfMemoryError(UserError):
  """The search does not fit; the message says what would."""


class Plan(NamedTuple):
  """How memory is saved.

  Attributes:
    remat: what the fused evaluation computes again.
    batch_parts: parts that a batch is evaluated in.
  """

  remat: str = 'nothing'
  batch_parts: int = 1

  def __str__(self):
    parts = [
      _REMATS[self.remat],
      f'batches in {self.batch_parts} parts' if self.batch_parts > 1 else '',
    ]
    return ', '.join(filter(None, parts)) or 'nothing saved'


def plans(problem: Problem, num_devices: int = 1) -> tuple[Plan, ...]:
  """All plans, from the fastest to the smallest.

  Args:
    problem: what is optimized.
    num_devices: each has batch groups of every part.
  """
  groups = problem.network.context.bn_groups
  parts = [
    n
    for n in range(1, groups + 1)
    if groups % n == 0 and (n == 1 or groups // n % num_devices == 0)
  ]
  if not isinstance(problem.network, fused.FusedNetwork):
    return tuple(Plan(batch_parts=n) for n in parts)
  *rest, last = problem.network.remats
  return (*map(Plan, rest), *(Plan(last, n) for n in parts))


def planned(problem: Problem, plan: Plan) -> Problem:
  """The problem, evaluated as the plan says."""
  network = problem.network
  if isinstance(network, fused.FusedNetwork):
    network = dataclasses.replace(network, remat=plan.remat)
  return dataclasses.replace(
    problem, network=network, batch_parts=plan.batch_parts
  )


def kept_bytes(problem: Problem, state: Any, batch: Any) -> int:
  """Bytes that the backward pass of the train loss keeps, of one part.

  Less than a step needs, and known without compiling.

  Args:
    problem: what is optimized.
    state: a `SearchState`, of arrays or shapes.
    batch: shapes of one batch.
  """
  parts = problem.batch_parts
  part = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (x.shape[0] // parts, *x.shape[1:]), x.dtype
    ),
    batch,
  )
  whole = dataclasses.replace(
    problem, network=losses.of_a_part(problem), batch_parts=1
  )

  def pullback(state, batch):
    train_loss, _ = losses.losses(whole, state, batch, batch)
    _, pull = jax.vjp(lambda p: train_loss(p, state.alphas)[0], state.params)
    return pull

  kept = jax.tree.leaves(jax.eval_shape(pullback, state, part))
  # One pass over two batches keeps the values of both.
  return (1 + problem.takes_both_batches) * sum(
    math.prod(x.shape) * x.dtype.itemsize for x in kept
  )


def needed_bytes(compiled: Any) -> int:
  """Bytes on one device while a compiled function runs."""
  stats = compiled.memory_analysis()
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
  )


def device_bytes() -> int | None:
  """Memory of a device that programs may use, None if it does not tell."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit')


def compile_within(
  problem: Problem,
  memory_gb: float,
  compile_step: Callable[[Problem], Any],
  state: Any,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  num_devices: int = 1,
) -> Any:
  """Compiles the step by the first plan that fits; says which, if asked to fit.

  Args:
    problem: what is optimized.
    memory_gb: gigabytes that the step may need on each device; 0 for all that
      there are, with nothing saved.
    compile_step: makes a compiled function of a problem.
    state: a `SearchState`.
    batch: shapes of one batch.
    num_devices: that share it.

  Raises:
    OutOfMemoryError: no plan fits.
  """
  if not memory_gb:
    compiled = compile_step(problem)
    _check_device(needed_bytes(compiled))
    return compiled
  found, plan = '', Plan()
  for plan in plans(problem, num_devices):
    candidate = planned(problem, plan)
    kept = kept_bytes(candidate, state, batch) // num_devices
    if kept > memory_gb * GB:
      found = f'more than {_gb(kept)}'
      continue
    compiled = compile_step(candidate)
    needed = needed_bytes(compiled)
    if needed <= memory_gb * GB:
      print(
        f'search.memory_gb={memory_gb:g}: the bilevel step needs '
        f'{_gb(needed)}; {plan}.'
      )
      return compiled
    found = _gb(needed)
  raise OutOfMemoryError(
    f'search.memory_gb is {memory_gb:g}; the bilevel step needs {found} with '
    f'{plan}. Allow more, or lower search.batch_size or the features of '
    'space.search.'
  )


def _check_device(needed: int) -> None:
  limit = device_bytes()
  if limit is not None and needed > limit:
    raise OutOfMemoryError(
      f'the bilevel step needs {_gb(needed)}, the device has {_gb(limit)}. '
      f'--config.search.memory_gb={_floor(limit)} makes it fit, at the price '
      'of time; so may a lower search.batch_size.'
    )


def _floor(count: int) -> str:
  """Gigabytes, two digits, not more than there are."""
  digits = max(1 - math.floor(math.log10(count / GB)), 0)
  return f'{math.floor(count / GB * 10**digits) / 10**digits:g}'


def _gb(count: float) -> str:
  return f'{count / GB:.2g} GB' if count < GB else f'{count / GB:.1f} GB'
