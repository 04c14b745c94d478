"""Relaxations: alphas to gates.

Every relaxation is a pure function ``f(alphas, temperature, rng) -> gates`` of
one group, f[E, O] to f[E, O]; deterministic ones ignore the rng. Add one by
writing the function and entering it in `RELAXATIONS`, and the distribution
that it stands for in `_DISTRIBUTIONS`.

Gates multiply the outputs of ops. `probabilities` is another thing: the
distribution over architectures that the alphas stand for, under which latency
is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Temperature = jax.Array | float
Relaxation = Callable[[jax.Array, Temperature, jax.Array], jax.Array]
Distribution = Callable[[jax.Array, Temperature], jax.Array]
# Of samples of gamma variables.
_BOOST = 10
_PROPOSALS = 6


def softmax(alphas, temperature, rng):
  """The softmax of alphas / temperature: DARTS, equation 2."""
  del rng
  return jax.nn.softmax(alphas / temperature, axis=-1)


def gumbel_softmax(alphas, temperature, rng):
  """A sample of the concrete distribution (Jang et al. 2017, equation 2)."""
  return softmax(_with_noise(alphas, rng), temperature, rng)


def straight_through(alphas, temperature, rng):
  """One-hot of the strongest op; the gradient is that of `softmax`."""
  return _hard(alphas, softmax(alphas, temperature, rng))


def sampled(alphas, temperature, rng):
  """One-hot sample of softmax(alphas); the gradient is `gumbel_softmax`'s.

  GDAS (Dong & Yang 2019), equations 5 and 6. The sample does not depend on the
  temperature, only its gradient does.
  """
  noisy = _with_noise(alphas, rng)
  return _hard(noisy, softmax(noisy, temperature, rng))


def sigmoid(alphas, temperature, rng):
  """Independent gates in (0, 1): Fair DARTS (Chu et al. 2020)."""
  del rng
  return jax.nn.sigmoid(alphas / temperature)


def dirichlet(alphas, temperature, rng):
  """A sample of Dirichlet(concentration(alphas)): DrNAS (Chen et al. 2021).

  Gates explore the simplex, and less so where the concentration has grown.
  Gradients are those of the sample. The temperature has no meaning here.
  Without the partial channels and the pruning in stages that the paper adds.
  """
  del temperature
  return jax.nn.softmax(_log_gamma(rng, concentration(alphas)), axis=-1)


def _log_gamma(rng: jax.Array, shape: jax.Array) -> jax.Array:
  """Logarithms of gamma variables of these shape parameters, f[...].

  Those of `jax.random` loop until all are accepted, and until the series of
  their derivatives converge; at each turn a GPU waits for its host. Here is no
  loop: proposals (Marsaglia & Tsang 2000) are made for a shape larger by
  `_BOOST`, where 0.3 % are refused, so that one of `_PROPOSALS` is accepted but
  for one time in 1e15, and brought back to the wanted shape by as many uniform
  variables. The derivative is that of both transformations
  (Naesseth et al. 2017, section 3.2); the term of acceptance, which they
  correct for, vanishes with the boost and is left out.
  """
  of_normal, of_uniform, of_boost = jax.random.split(rng, 3)
  proposals, boosts = ((n, *shape.shape) for n in (_PROPOSALS, _BOOST))
  shape = shape[None]
  d = shape + (_BOOST - 1 / 3)
  c = 1 / jnp.sqrt(9 * d)
  x = jax.random.normal(of_normal, proposals, shape.dtype)
  v = jnp.maximum(1 + c * x, 0) ** 3
  bound = x**2 / 2 + d - d * v + d * jnp.log(v)
  accepted = _log_uniform(of_uniform, proposals, shape.dtype) < bound
  first = accepted & (jnp.cumsum(accepted, axis=0) == 1)
  x = jnp.where(first, x, 0).sum(0, keepdims=True)
  steps = jnp.arange(_BOOST, dtype=shape.dtype)
  at = shape + steps.reshape(-1, *(1,) * (shape.ndim - 1))
  back = (_log_uniform(of_boost, boosts, shape.dtype) / at).sum(0)
  return (jnp.log(d) + 3 * jnp.log1p(c * x))[0] + back


def _log_uniform(rng, size, dtype):
  """Finite, as the variable is not zero."""
  least = jnp.finfo(dtype).tiny
  return jnp.log(jax.random.uniform(rng, size, dtype, minval=least))


def concentration(alphas: jax.Array) -> jax.Array:
  """Concentration of the Dirichlet distribution, f[E, O]: elu(alphas) + 1.

  Without the cancellation of that form for negative alphas. At least 1e-3,
  reached at alphas of -6.9: below, samples are one-hot in float32 and have no
  gradients anyway.
  """
  low = jnp.exp(jnp.minimum(alphas, 0))
  return jnp.maximum(jnp.where(alphas > 0, alphas + 1, low), 1e-3)


RELAXATIONS: dict[str, Relaxation] = {
  f.__name__: f
  for f in (
    softmax,
    gumbel_softmax,
    straight_through,
    sampled,
    sigmoid,
    dirichlet,
  )
}


def gates(
  name: str,
  alphas: Mapping[str, jax.Array],
  temperature: Temperature,
  rng: jax.Array,
) -> dict[str, jax.Array]:
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
  _check(name)
  relax = RELAXATIONS[name]
  return {
    g: relax(alphas[g], temperature, jax.random.fold_in(rng, i))
    for i, g in enumerate(sorted(alphas))
  }


def probabilities(
  name: str, alphas: Mapping[str, jax.Array], temperature: Temperature
) -> dict[str, jax.Array]:
  """The distribution over ops that the alphas stand for, without noise.

  For the sampling relaxations this is exact: the strongest of alphas plus
  Gumbel noise is a sample of softmax(alphas) at every temperature. Sigmoid
  gates are normalized over the ops of an edge. That of `dirichlet` is the mean
  of its gates.

  Args:
    name: a key of `RELAXATIONS`.
    alphas: for each group f[E, O].
    temperature: positive.

  Returns:
    For each group f[E, O] whose rows sum to one.

  Raises:
    ValueError: there is no such relaxation.
  """
  _check(name)
  return {g: _DISTRIBUTIONS[name](a, temperature) for g, a in alphas.items()}


def _softened(alphas, temperature):
  return jax.nn.softmax(alphas / temperature, axis=-1)


def _of_samples(alphas, temperature):
  del temperature
  return jax.nn.softmax(alphas, axis=-1)


def _normalized_sigmoid(alphas, temperature):
  # The softmax of log sigmoids: rows of vanishing gates do not become 0 / 0.
  return jax.nn.softmax(jax.nn.log_sigmoid(alphas / temperature), axis=-1)


def _mean_of_dirichlet(alphas, temperature):
  del temperature
  ones = concentration(alphas)
  return ones / ones.sum(-1, keepdims=True)


# The distribution that each relaxation stands for.
_DISTRIBUTIONS: dict[str, Distribution] = {
  'softmax': _softened,
  'gumbel_softmax': _of_samples,
  'straight_through': _softened,
  'sampled': _of_samples,
  'sigmoid': _normalized_sigmoid,
  'dirichlet': _mean_of_dirichlet,
}


def _of_dirichlet_mean(alphas, temperature, rng):
  del rng
  return _mean_of_dirichlet(alphas, temperature)


# What stands for a relaxation that samples, where there shall be no noise.
_NOISELESS: dict[str, Relaxation] = {
  'gumbel_softmax': softmax,
  'sampled': straight_through,
  'dirichlet': _of_dirichlet_mean,
}


def evaluation_gates(
  name: str, alphas: Mapping[str, jax.Array], temperature: jax.Array | float
) -> dict[str, jax.Array]:
  """Gates without noise, for evaluating the supernet.

  Relaxations that run one op at a time are evaluated at the strongest op.

  Args:
    name: a key of `RELAXATIONS`.
    alphas: for each group f[E, O].
    temperature: positive.

  Returns:
    For each group f[E, O].
  """
  relaxation = _NOISELESS.get(name, RELAXATIONS[name])
  unused = jax.random.key(0)
  return {g: relaxation(a, temperature, unused) for g, a in alphas.items()}


def temperature_at(
  progress: jax.Array | float, start: float, end: float
) -> jax.Array:
  """Exponential schedule from `start` to `end` as `progress` goes 0 to 1."""
  return jnp.asarray(start) * (end / start) ** progress


def entropy(probs: Mapping[str, jax.Array]) -> jax.Array:
  """Mean entropy of the rows of all groups, in nats; f32[]."""
  rows = [-(p * jnp.log(jnp.maximum(p, 1e-12))).sum(-1) for p in probs.values()]
  return jnp.concatenate(rows).mean()


def _with_noise(alphas: jax.Array, rng: jax.Array) -> jax.Array:
  """Alphas whose strongest entry is a sample of softmax(alphas)."""
  return alphas + jax.random.gumbel(rng, alphas.shape, alphas.dtype)


def _hard(logits: jax.Array, soft: jax.Array) -> jax.Array:
  """One-hot of the largest logit, to the bit; the gradient is that of `soft`.

  The choice reads the logits, since a softmax at a high temperature rounds
  close ones to a tie. What is added to it is zero exactly.
  """
  one_hot = jax.nn.one_hot(logits.argmax(-1), soft.shape[-1], dtype=soft.dtype)
  return one_hot + (soft - jax.lax.stop_gradient(soft))


def _check(name: str) -> None:
  if name not in RELAXATIONS:
    raise ValueError(
      f'relaxation.name is {name!r}; known are {sorted(RELAXATIONS)}.'
    )
