"""Signs that a search collapses, early enough to do something about it.

Where mass goes (ops that copy their input, ops that are zero), how decided
edges are, and how sharp the validation loss is in the alphas: the top
eigenvalue of its Hessian grows before the architecture that it stands for
becomes bad (Zela et al. 2020, section 4). All are pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import numpy as np

from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import NetworkSpec

Columns = Mapping[str, np.ndarray]
Probabilities = Mapping[str, Any]


def copying(spec: NetworkSpec) -> dict[str, np.ndarray]:
  """Which entries of alphas stand for a copy of the input: bool[E, O] a group.

  Those of ops that carry the signal on (`Op.is_skip`) wherever none of the
  sites of the row changes the shape: there such an op has no params.
  """
  found = {g: np.ones(s.shape, bool) for g, s in spec.groups().items()}
  for site in spec.sites():
    if site.group is None:
      continue
    same = site.in_shape == site.out_shape
    found[site.group][site.row] &= [
      same and op_lib.is_skip(op) for op in site.ops
    ]
  return found


def zeros(spec: NetworkSpec) -> dict[str, np.ndarray]:
  """Which entries of alphas stand for no connection: bool[E, O] a group."""
  return {
    g: np.tile([op_lib.is_zero(op) for op in s.ops], (len(s.edges), 1))
    for g, s in spec.groups().items()
  }


def mass(probs: Probabilities, columns: Columns) -> float:
  """Mean probability of some ops over the edges that have any of them.

  Args:
    probs: for each group f[E, O], rows that sum to one.
    columns: for each group bool[E, O].

  Returns:
    A share of one; 0 where no edge has such an op.
  """
  rows = [
    (np.asarray(probs[g]) * c).sum(-1)[c.any(-1)] for g, c in columns.items()
  ]
  found = np.concatenate(rows)
  return float(found.mean()) if found.size else 0.0


def row_entropies(probs: Probabilities) -> dict[str, np.ndarray]:
  """Entropy of every edge in nats: f32[E] of each group."""
  logs = {g: np.log(np.maximum(np.asarray(p), 1e-12)) for g, p in probs.items()}
  return {
    g: -(np.asarray(p) * logs[g]).sum(-1).astype(np.float32)
    for g, p in probs.items()
  }


def hessian_product(
  loss: Callable[[Any], jax.Array], alphas: Any, vector: jax.Array
) -> jax.Array:
  """The exact product of the Hessian of `loss` at `alphas` with a vector.

  The derivative of the gradient along the vector; no matrix is made.

  Args:
    loss: alphas -> f[].
    alphas: a tree with N numbers in all.
    vector: f[N], in the order of `jax.flatten_util.ravel_pytree`.

  Returns:
    f[N].
  """
  flat, unravel = ravel_pytree(alphas)
  gradient = jax.grad(lambda x: loss(unravel(x)))
  return jax.jvp(gradient, (flat,), (vector.astype(flat.dtype),))[1]


def top_eigenvalue(
  product: Callable[[np.ndarray], Any],
  size: int,
  seed: int = 0,
  num_products: int = 10,
) -> float:
  """The largest eigenvalue of a symmetric matrix, by Lanczos' iteration.

  With full reorthogonalization, in float64 on the host, so that the compiled
  program is a single product. Never above the true value, up to the rounding
  of the products; equal to it after `size` of them, and commonly after few.

  Args:
    product: f64[N] -> f[N], the matrix times a vector.
    size: N.
    seed: of the vector that it starts with.
    num_products: how often the matrix is applied, at most.

  Returns:
    The largest Ritz value.
  """
  vector = np.random.default_rng(seed).normal(size=size)
  basis = [vector / np.linalg.norm(vector)]
  diagonal: list[float] = []
  beside: list[float] = []
  for _ in range(min(num_products, size)):
    image = np.array(product(basis[-1]), np.float64)
    diagonal.append(float(image @ basis[-1]))
    for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
      image -= sum((image @ b) * b for b in basis)
    length = float(np.linalg.norm(image))
    # What is left is rounding: the space is exhausted.
    if length <= 1e-6 * max(map(abs, diagonal)):
      break
    beside.append(length)
    basis.append(image / length)
  off = beside[: len(diagonal) - 1]
  small = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
  return float(np.linalg.eigvalsh(small)[-1])


class Growth(NamedTuple):
  """Where a series of eigenvalues grew too much.

  Attributes:
    at: index of the measurement that shows it.
    before: index of the one before the growth, whose alphas can be trusted.
  """

  at: int
  before: int


def first_growth(
  eigenvalues: Sequence[float], factor: float, window: int = 5, delta: int = 2
) -> Growth | None:
  """The first growth of the smoothed eigenvalue by more than `factor`.

  The criterion of RobustDARTS (Zela et al. 2020, section 5.1), with the window,
  distance and factor of its code. There a smoothed value is compared with that
  of `delta` measurements earlier; here with the smallest until then, so that
  slow growth is seen too.

  Args:
    eigenvalues: one a measurement, the oldest first.
    factor: above 1; 1.3 in the paper's code.
    window: measurements that a smoothed value is the mean of.
    delta: measurements between the two that are compared.

  Returns:
    None where there is no such growth.
  """
  if len(eigenvalues) < window + delta:
    return None
  values = np.asarray(eigenvalues, float)
  smoothed = np.lib.stride_tricks.sliding_window_view(values, window).mean(-1)
  least = np.minimum.accumulate(smoothed)[: len(smoothed) - delta]
  grown = np.flatnonzero((least > 0) & (smoothed[delta:] > factor * least))
  if not grown.size:
    return None
  i = int(grown[0]) + delta
  # A smoothed value belongs to the middle of its window.
  return Growth(i + window - 1, i + window // 2 - delta)
