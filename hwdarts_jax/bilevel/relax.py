"""Relaxations: alphas to gates.

Every relaxation is a pure function ``f(alphas, temperature, rng) -> gates`` of
one group, f[E, O] to f[E, O]; deterministic ones ignore the rng. Add one by
writing the function and entering it in `RELAXATIONS`.

Gates multiply the outputs of ops. `probabilities` is another thing: the
distribution over architectures that the alphas stand for, under which latency
is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Relaxation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def softmax(alphas, temperature, rng):
  """softmax(alphas / temperature): DARTS, equation 2."""
  del rng
  return jax.nn.softmax(alphas / temperature, axis=-1)


def gumbel_softmax(alphas, temperature, rng):
  """A sample of the concrete distribution (Jang et al. 2017, equation 2)."""
  noise = jax.random.gumbel(rng, alphas.shape, alphas.dtype)
  return jax.nn.softmax((alphas + noise) / temperature, axis=-1)


def straight_through(alphas, temperature, rng):
  """One-hot of the strongest op; the gradient is that of `softmax`."""
  soft = softmax(alphas, temperature, rng)
  return _hard(soft)


def sampled(alphas, temperature, rng):
  """One-hot sample of softmax(alphas); the gradient is `gumbel_softmax`'s.

  GDAS (Dong & Yang 2019), equations 5 and 6. The sample does not depend on the
  temperature, only its gradient does.
  """
  return _hard(gumbel_softmax(alphas, temperature, rng))


def sigmoid(alphas, temperature, rng):
  """Independent gates in (0, 1): Fair DARTS (Chu et al. 2020)."""
  del rng
  return jax.nn.sigmoid(alphas / temperature)


RELAXATIONS: dict[str, Relaxation] = {
    f.__name__: f
    for f in (softmax, gumbel_softmax, straight_through, sampled, sigmoid)
}


def gates(name: str, alphas: Mapping[str, jax.Array],
          temperature: jax.Array | float,
          rng: jax.Array) -> dict[str, jax.Array]:
  """Relaxes all groups, each with its own random numbers.

  Args:
    name: a key of `RELAXATIONS`.
    alphas: for each group f[E, O].
    temperature: positive.
    rng: a typed key; samples are functions of it and of the group's place.

  Returns:
    For each group f[E, O].

  Raises:
    ValueError: there is no such relaxation.
  """
  if name not in RELAXATIONS:
    raise ValueError(f'relaxation.name is {name!r}; known are '
                     f'{sorted(RELAXATIONS)}.')
  relax = RELAXATIONS[name]
  return {g: relax(alphas[g], temperature, jax.random.fold_in(rng, i))
          for i, g in enumerate(sorted(alphas))}


def probabilities(name: str, alphas: Mapping[str, jax.Array],
                  temperature: jax.Array | float) -> dict[str, jax.Array]:
  """The distribution over ops that the alphas stand for, without noise.

  For the sampling relaxations this is exact: the strongest of alphas plus
  Gumbel noise is a sample of softmax(alphas) at every temperature. Sigmoid
  gates are normalized over the ops of an edge.

  Args:
    name: a key of `RELAXATIONS`.
    alphas: for each group f[E, O].
    temperature: positive.

  Returns:
    For each group f[E, O] whose rows sum to one.
  """
  def one(a):
    if name in ('gumbel_softmax', 'sampled'):
      return jax.nn.softmax(a, axis=-1)
    if name == 'sigmoid':
      s = jax.nn.sigmoid(a / temperature)
      return s / s.sum(-1, keepdims=True)
    return jax.nn.softmax(a / temperature, axis=-1)

  return {g: one(a) for g, a in alphas.items()}


def temperature_at(progress: jax.Array | float, start: float,
                   end: float) -> jax.Array:
  """Exponential schedule from `start` to `end` as `progress` goes 0 to 1."""
  return jnp.asarray(start) * (end / start) ** progress


def entropy(probs: Mapping[str, jax.Array]) -> jax.Array:
  """Mean entropy of the rows of all groups, in nats; f32[]."""
  rows = [-(p * jnp.log(jnp.maximum(p, 1e-12))).sum(-1) for p in probs.values()]
  return jnp.concatenate(rows).mean()


def _hard(soft: jax.Array) -> jax.Array:
  """One-hot of the largest entry forward, identity backward."""
  one_hot = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=soft.dtype)
  return soft + jax.lax.stop_gradient(one_hot - soft)
