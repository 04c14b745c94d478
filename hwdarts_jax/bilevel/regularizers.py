"""What the outer loss adds to the task, so that alphas do not collapse.

A regularizer is a pure function ``f(alphas, progress, **settings) -> f[]`` of
all groups' alphas f[E, O] and of how much of the search is done, 0 to 1. Add
one by writing the function and entering it in `REGULARIZERS`; its
keyword-only arguments are its settings. The config names those that are on:
``regularizers = {'beta_decay': {'scale': 50.0}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from hwdarts_jax.bilevel import relax

Alphas = Mapping[str, jax.Array]
Progress = jax.Array | float
Regularizer = Callable[..., jax.Array]


def beta_decay(
  alphas: Alphas, progress: Progress, *, scale: float = 50.0
) -> jax.Array:
  """Beta decay (beta-DARTS, Ye et al. 2022): the smoothmax of each edge.

  Its gradient, the softmax of the alphas, takes from each alpha in proportion
  to its gate, so that no op runs away with a small early advantage. The weight
  grows linearly from 0; `scale` is 50 on NAS-Bench-201 and 25 on the DARTS
  space in the paper, after 100 and 50 epochs. The mean is over the edges of
  all groups at once.

  It also lowers the alphas of an edge together, without end unless
  ``alphas_optimizer.weight_decay`` holds them. A softmax does not see that;
  the relaxations `sigmoid` and `dirichlet` do, whose gates fade or become
  one-hot: take another regularizer with those.

  Args:
    alphas: for each group f[E, O].
    progress: 0 at the first step of the search, 1 at the last.
    scale: weight at the end.

  Returns:
    scale * progress * mean over edges of logsumexp(alphas).
  """
  return scale * progress * _mean_over_rows(jax.nn.logsumexp, alphas)


def dirichlet_distance(
  alphas: Alphas, progress: Progress, *, scale: float = 1e-3
) -> jax.Array:
  """The distance regularizer of DrNAS (Chen et al. 2021): a KL divergence.

  How far the Dirichlet distribution of each edge (`relax.concentration`) is
  from the uniform one on the simplex, summed over edges; constant over the
  search. The paper's default distance, l2 of the alphas, is
  ``alphas_optimizer.weight_decay``. Meant for the relaxation `dirichlet`.

  Args:
    alphas: for each group f[E, O].
    progress: not used.
    scale: weight.

  Returns:
    scale * sum over edges of KL(Dirichlet(concentration) || Dirichlet(1)).
  """
  del progress
  rows = [_divergence(alphas[g]) for g in sorted(alphas)]
  return scale * jnp.concatenate(rows).sum()


def entropy(
  alphas: Alphas, progress: Progress, *, start: float = 0.0, end: float = 0.1
) -> jax.Array:
  """Entropy of the edges, with a weight that goes from `start` to `end`.

  A negative weight keeps all ops in play, a positive one drives each edge to
  one op, so that little is lost by discretization (discretization-aware
  search, Tian et al. 2020, whose weight grows too). That of the softmax of the
  alphas, whatever the relaxation.

  Args:
    alphas: for each group f[E, O].
    progress: 0 at the first step of the search, 1 at the last.
    start: weight at the first step, in units of loss per nat.
    end: weight at the last step; linear between.

  Returns:
    weight * mean over edges of the entropy.
  """
  weight = start + (end - start) * progress
  probs = {g: jax.nn.softmax(a, axis=-1) for g, a in alphas.items()}
  return weight * relax.entropy(probs)


REGULARIZERS: dict[str, Regularizer] = {
  f.__name__: f for f in (beta_decay, dirichlet_distance, entropy)
}


def get(name: str) -> Regularizer:
  """Returns the regularizer `name`.

  Raises:
    ValueError: there is none; the message lists the known ones.
  """
  if name not in REGULARIZERS:
    raise ValueError(
      f'regularizers has {name!r}; known are {sorted(REGULARIZERS)}.'
    )
  return REGULARIZERS[name]


def values(
  settings: Mapping[str, Mapping[str, float]],
  alphas: Alphas,
  progress: Progress,
) -> dict[str, jax.Array]:
  """The value of each regularizer that is on.

  Args:
    settings: keyword arguments of each, by name.
    alphas: for each group f[E, O].
    progress: 0 at the first step of the search, 1 at the last.

  Returns:
    For each name f[], to be added to the outer loss.

  Raises:
    ValueError: there is no such regularizer.
  """
  return {
    name: get(name)(alphas, progress, **own) for name, own in settings.items()
  }


def _mean_over_rows(function, alphas: Alphas) -> jax.Array:
  rows = [function(alphas[g], axis=-1) for g in sorted(alphas)]
  return jnp.concatenate(rows).mean()


def _divergence(alphas: jax.Array) -> jax.Array:
  """KL divergence f[E] of the rows' Dirichlet from the uniform one."""
  gammaln, digamma = jax.scipy.special.gammaln, jax.scipy.special.digamma
  ones = relax.concentration(alphas)
  total = ones.sum(-1, keepdims=True)
  slopes = ((ones - 1) * (digamma(ones) - digamma(total))).sum(-1)
  size = jnp.asarray(alphas.shape[-1], alphas.dtype)
  normalizers = gammaln(total[:, 0]) - gammaln(ones).sum(-1) - gammaln(size)
  return normalizers + slopes
