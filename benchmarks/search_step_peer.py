"""What the PyTorch peer is asked to do; PyTorch itself is not imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import importlib.util
from typing import Any

import numpy as np

from benchmarks import search_step_setup as setup_lib
from hwdarts_jax.data import pipeline


@dataclasses.dataclass(frozen=True)
class Variant:
  """How the step runs.

  Attributes:
    graph: captured once and replayed; else launched op by op.
    bf16: under autocast; else float32, with TF32 in products.
    channels_last: memory layout NHWC.
  """

  graph: bool
  bf16: bool
  channels_last: bool


VARIANTS = {
  ('graph' if graph else 'eager')
  + ('_bf16' if bf16 else '')
  + ('_channels_last' if last else ''): Variant(graph, bf16, last)
  for graph in (False, True)
  for bf16 in (False, True)
  for last in (False, True)
}
SECOND_ORDER = {'first_order': False, 'finite_difference': True}
# What stands for ours in a comparison: the paper's second order is the peer of
# the exact one.
_PEER_OF = {name: name for name in SECOND_ORDER} | {
  'unrolled': 'finite_difference'
}


@dataclasses.dataclass(frozen=True)
class Work:
  """What every variant does.

  Attributes:
    network: keyword arguments of `torch_peer.Supernet`.
    alphas: at the start, for each group f[E, O].
    costs: keyword arguments of `torch_peer.Costs`.
    second_order: see `torch_peer.Search`.
    sets: train and validation (u8[N, H, W, C], i32[N]).
    mean: of the channels, in 0..1.
    std: of the channels, in 0..1.
    indices: step -> train and validation indices i32[B].
    rate: step -> learning rate of params.
  """

  network: dict[str, int]
  alphas: dict[str, np.ndarray]
  costs: dict[str, Any]
  second_order: bool
  sets: Sequence[tuple[np.ndarray, np.ndarray]]
  mean: Sequence[float]
  std: Sequence[float]
  indices: Callable[[int], Sequence[np.ndarray]]
  rate: Callable[[int], float]


def check(settings: setup_lib.Settings, variants: Sequence[str]) -> None:
  """Checks, before anything is timed, that the peer can do the same.

  Raises:
    ValueError: it cannot; the message names the setting and what it can.
  """
  for field, allowed in (
    ('space', ('darts',)),
    ('hypergrad', tuple(_PEER_OF)),
    ('devices', (1,)),
    ('members', (0,)),
  ):
    value = getattr(settings, field)
    if value not in allowed:
      raise ValueError(
        f'{field} is {value!r}; the peer has {allowed}. Leave out --peer.'
      )
  for name in variants:
    if name not in VARIANTS:
      raise ValueError(
        f'peer_variants has {name!r}; it may have {sorted(VARIANTS)}.'
      )
  if importlib.util.find_spec('torch') is None:
    raise ValueError(
      'peer is torch, but PyTorch is not installed: `pip install torch`, or '
      'leave out --peer.'
    )


def make_work(setup: setup_lib.Setup) -> Work:
  """The same work on the same images."""
  settings, spec, sets = setup.settings, setup.spec, setup.sets
  sizes = setup_lib.size_settings(settings)
  return Work(
    network={
      **{k: v for k, v in sizes.items() if k in ('features', 'num_cells')},
      'num_classes': spec.num_classes,
      'image_channels': spec.input_shape[-1],
    },
    alphas={
      g: np.random.default_rng(settings.seed).normal(0, 1e-3, s.shape)
      for g, s in spec.groups().items()
    },
    costs={
      'per_op': setup.costs.per_op,
      'fixed_ms': setup.costs.fixed,
      'reference_ms': setup.problem.reference_ms,
      'multiplier': setup.config.objective.multiplier,
    },
    second_order=SECOND_ORDER[_PEER_OF[settings.hypergrad]],
    sets=[(s.images, s.labels) for s in sets],
    mean=sets[0].mean,
    std=sets[0].std,
    indices=lambda step: [
      pipeline.batch_indices(
        s.num_examples, settings.batch, 2 * settings.seed + i, step
      )
      for i, s in enumerate(sets)
    ],
    # On the host, and not a call into jax for every step.
    rate=functools.partial(_rate, setup.config, setup.problem.num_steps),
  )


def _rate(config: Any, num_steps: int, step: int) -> float:
  """The cosine schedule of the params, in numpy."""
  section = config.params_optimizer
  low, high = section.final_learning_rate, section.learning_rate
  return float(
    low + (high - low) * 0.5 * (1 + np.cos(np.pi * min(step / num_steps, 1)))
  )
