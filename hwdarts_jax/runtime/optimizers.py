"""Optimizers by name, equal to those of the published searches.

Weight decay is the L2 kind of PyTorch, as in the published DARTS code: it is
added to the gradient before momentum or moments, and to *every* leaf, biases
and batch-norm scales and alphas included. Only `adamw` decouples it. Gradients
are clipped before decay is added, as `clip_grad_norm_` does.

The schedules are functions of the number of updates, warm-up included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

_SCHEDULES = ('cosine', 'constant', 'exponential')
Schedule = Callable[[Any], Any]  # number of past updates -> learning rate


def make(
  name: str, learning_rate: float, num_steps: int, **settings: Any
) -> optax.GradientTransformation:
  """An optimizer by name.

  Settings of all: `schedule` ('cosine'), `warmup_steps` (0),
  `final_learning_rate` (0.), `decay_rate` and `decay_steps` of schedule
  'exponential', `clip_norm` (0., global norm, 0 is off), `weight_decay` (0.)
  and `decay_kernels_only` (False; True spares biases and batch norms). Of each:
  sgd `momentum` (0.9) and `nesterov` (False); adam and adamw `b1`, `b2`, `eps`
  and `eps_root`; rmsprop `decay`, `momentum`, `eps`, `eps_in_sqrt` and
  `initial_scale` (0., TensorFlow's is 1.). An inner optimizer that is
  differentiated needs `eps_root > 0` or `eps_in_sqrt`, since the root of zero
  has no derivative.

  Args:
    name: 'sgd', 'adam', 'adamw' or 'rmsprop'.
    learning_rate: the highest learning rate.
    num_steps: updates of the whole run, for the schedule.
    **settings: as above.

  Raises:
    ValueError: an unknown name or setting, or a value that is not allowed.
  """
  _check_among('optimizer.name', name, _TABLE)
  rule = _TABLE[name]
  own = _names(rule)
  shared = (*_names(make_schedule), 'clip_norm')
  for key in settings:
    if key not in own + shared:
      raise ValueError(
        f'optimizer.{key} is no setting of {name}; it must be one of '
        f'{", ".join(own + shared)}.'
      )
  schedule = make_schedule(
    learning_rate,
    num_steps,
    **{k: v for k, v in settings.items() if k in _names(make_schedule)},
  )
  clip_norm = settings.get('clip_norm', 0.0)
  _check_number('clip_norm', clip_norm, 0.0)
  clip = [_clip(clip_norm)] if clip_norm else []
  return optax.chain(
    *clip,
    *rule(**{k: v for k, v in settings.items() if k in own}),
    optax.scale_by_learning_rate(schedule),
  )


def global_norm(tree: Any) -> jax.Array:
  """Euclidean norm of all leaves, f[]; in one sum, not in one for each leaf."""
  flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
  return jnp.sqrt(jnp.square(flat).sum())


def make_schedule(
  learning_rate: float,
  num_steps: int,
  *,
  schedule: str = 'cosine',
  warmup_steps: int = 0,
  final_learning_rate: float = 0.0,
  decay_rate: float = 1.0,
  decay_steps: float = 1.0,
) -> Schedule:
  """The learning rate as a function of the number of past updates.

  Args:
    learning_rate: reached at the end of the warm-up.
    num_steps: updates of the whole run.
    schedule: 'cosine' falls to `final_learning_rate` at `num_steps` and stays
      there; 'constant' stays at `learning_rate`; 'exponential' is multiplied by
      `decay_rate` after every `decay_steps` updates, in stairs, those of the
      warm-up included.
    warmup_steps: updates over which the rate rises linearly. The first has
      1/warmup_steps of it, not zero, so that it is not lost.
    final_learning_rate: of 'cosine' only.
    decay_rate: of 'exponential' only, above 0, at most 1.
    decay_steps: of 'exponential' only, above 0.

  Raises:
    ValueError: a value is not allowed; the message names the field.
  """
  _check_among('optimizer.schedule', schedule, _SCHEDULES)
  _check_number('learning_rate', learning_rate, 0.0)
  _check_number('final_learning_rate', final_learning_rate, 0.0)
  if schedule != 'cosine' and final_learning_rate:
    raise ValueError(
      f'optimizer.final_learning_rate is {final_learning_rate!r}; it must be '
      f'0 with schedule {schedule!r}, which never falls to it.'
    )
  if not 0 < decay_rate <= 1 or not decay_steps > 0:
    raise ValueError(
      f'optimizer.decay_rate is {decay_rate!r} and decay_steps '
      f'{decay_steps!r}; they must be above 0, and the rate at most 1.'
    )
  if num_steps < 1:
    raise ValueError(f'num_steps is {num_steps!r}; it must be at least 1.')
  if not 0 <= warmup_steps <= num_steps:
    raise ValueError(
      f'optimizer.warmup_steps is {warmup_steps!r}; it must be from 0 to '
      f'{num_steps}, the number of steps.'
    )

  def rate(count: Any) -> Any:
    late = (count - warmup_steps) / max(num_steps - warmup_steps, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(late, 0.0, 1.0)))
    stairs = decay_rate ** jnp.floor(jnp.asarray(count) / decay_steps)
    shares = {'cosine': cosine, 'constant': jnp.ones(()), 'exponential': stairs}
    share = shares[schedule]
    value = final_learning_rate + (learning_rate - final_learning_rate) * share
    rising = learning_rate * (count + 1) / max(warmup_steps, 1)
    return jnp.where(count < warmup_steps, rising, value)

  return rate


def _sgd(
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  decay_kernels_only: bool = False,
) -> list[optax.GradientTransformation]:
  _check_number('momentum', momentum, 0.0, 1.0)
  if nesterov and not momentum:
    raise ValueError('optimizer.nesterov is True; it needs momentum > 0.')
  return [
    *_decay(weight_decay, decay_kernels_only),
    *_trace(momentum, nesterov),
  ]


def _adam(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  eps_root: float = 0.0,
  weight_decay: float = 0.0,
  decay_kernels_only: bool = False,
) -> list[optax.GradientTransformation]:
  return [
    *_decay(weight_decay, decay_kernels_only),
    _moments(b1, b2, eps, eps_root),
  ]


def _adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  eps_root: float = 0.0,
  weight_decay: float = 0.0,
  decay_kernels_only: bool = False,
) -> list[optax.GradientTransformation]:
  return [
    _moments(b1, b2, eps, eps_root),
    *_decay(weight_decay, decay_kernels_only),
  ]


def _rmsprop(
  *,
  decay: float = 0.9,
  momentum: float = 0.0,
  eps: float = 1e-8,
  eps_in_sqrt: bool = False,
  initial_scale: float = 0.0,
  weight_decay: float = 0.0,
  decay_kernels_only: bool = False,
) -> list[optax.GradientTransformation]:
  _check_number('decay', decay, 0.0, 1.0)
  _check_number('momentum', momentum, 0.0, 1.0)
  _check_number('eps', eps, 0.0)
  _check_number('initial_scale', initial_scale, 0.0)
  rms = optax.scale_by_rms(decay, eps, initial_scale, eps_in_sqrt)
  return [
    *_decay(weight_decay, decay_kernels_only),
    rms,
    *_trace(momentum, False),
  ]


_TABLE: Mapping[str, Callable[..., list[optax.GradientTransformation]]] = {
  'sgd': _sgd,
  'adam': _adam,
  'adamw': _adamw,
  'rmsprop': _rmsprop,
}


def _clip(clip_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm` with the norm above."""

  def clip(updates, params):
    del params
    norm = global_norm(updates)
    shrink = jnp.where(norm < clip_norm, 1.0, clip_norm / norm)
    return jax.tree.map(lambda u: u * shrink.astype(u.dtype), updates)

  return optax.stateless(clip)


def _decay(
  weight_decay: float, kernels_only: bool
) -> list[optax.GradientTransformation]:
  _check_number('weight_decay', weight_decay, 0.0)
  mask = _kernels if kernels_only else None
  return [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []


def _kernels(params: Any) -> Any:
  """Which leaves are no biases, and no scales of batch norms."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _trace(
  momentum: float, nesterov: bool
) -> list[optax.GradientTransformation]:
  return [optax.trace(momentum, nesterov)] if momentum else []


def _moments(
  b1: float, b2: float, eps: float, eps_root: float
) -> optax.GradientTransformation:
  _check_number('b1', b1, 0.0, 1.0)
  _check_number('b2', b2, 0.0, 1.0)
  _check_number('eps', eps, 0.0)
  _check_number('eps_root', eps_root, 0.0)
  return optax.scale_by_adam(b1, b2, eps, eps_root)


def _names(function: Callable[..., Any]) -> tuple[str, ...]:
  """Names of the keyword-only parameters."""
  return tuple(
    p.name
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.KEYWORD_ONLY
  )


def _check_among(field: str, value: str, allowed: Iterable[str]) -> None:
  if value not in tuple(allowed):  # also what cannot be hashed
    raise ValueError(
      f'{field} is {value!r}; it must be one of {", ".join(allowed)}.'
    )


def _check_number(
  field: str, value: Any, low: float, below: float = float('inf')
) -> None:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not low <= value < below:
    upper = '' if below == float('inf') else f' and below {below:g}'
    raise ValueError(
      f'optimizer.{field} is {value!r}; it must be a number, at least '
      f'{low:g}{upper}.'
    )
