"""Gates beside those of the relaxation, so that ops are compared fairly.

Pure functions of gates. They change what the supernet computes, not the
distribution over architectures that alphas stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import NetworkSpec

Gates = Mapping[str, jax.Array]


def uniform(gates: Gates, rng: jax.Array) -> dict[str, jax.Array]:
  """One op of each edge, all equally likely, whatever the gates.

  For the warm-up: every op is trained as often and as strongly as every other,
  in networks of the kind that are looked for (as single-path one-shot, Guo et
  al. 2020, trains the whole supernet). Ops that are zero are among them.

  Args:
    gates: for each group f[E, O].
    rng: a typed key.

  Returns:
    For each group one-hot f[E, O].
  """
  found = {}
  for i, g in enumerate(sorted(gates)):
    rows, columns = gates[g].shape
    chosen = jax.random.randint(jax.random.fold_in(rng, i), (rows,), 0, columns)
    found[g] = jax.nn.one_hot(chosen, columns, dtype=gates[g].dtype)
  return found


# Gates while alphas do not move yet; None: those of the relaxation.
WARMUP_GATES: dict[str, Callable[..., dict[str, jax.Array]] | None] = {
  'relaxed': None,
  'uniform': uniform,
}


def auxiliary_skip(
  spec: NetworkSpec, gates: Gates, coefficient: jax.Array | float
) -> dict[str, jax.Array]:
  """Adds the input of every searched edge to its output.

  The auxiliary skip of DARTS- (Chu et al. 2021). It takes over what identity
  is good for while a supernet is trained, so that the gate of the skip op says
  what it is good for in the network. The skip op of the edge computes it:
  `coefficient` is added to its gate, which is the same number and costs nothing
  in every evaluation. Where the shape changes, the paper's skip is a factorized
  reduction of its own; here it shares the params of the skip op.

  Args:
    spec: of the supernet.
    gates: for each group f[E, O].
    coefficient: of the extra skip; the paper lets it decay linearly, 1 to 0.

  Returns:
    For each group f[E, O].
  """
  found = {}
  for g, columns in skips(spec).items():
    extra = jnp.asarray(columns, gates[g].dtype) * coefficient
    found[g] = gates[g] + extra.astype(gates[g].dtype)
  return found


def skips(spec: NetworkSpec) -> dict[str, np.ndarray]:
  """Which columns carry their input on (`Op.is_skip`): bool[E, O] a group."""
  return {
    g: np.tile([op_lib.is_skip(op) for op in group.ops], (len(group.edges), 1))
    for g, group in spec.groups().items()
  }


def check_skips(spec: NetworkSpec) -> None:
  """Checks that every searched edge has exactly one skip op.

  Raises:
    ValueError: some have none or several.
  """
  for g, group in spec.groups().items():
    count = sum(map(op_lib.is_skip, group.ops))
    if count != 1:
      raise ValueError(
        f'search.auxiliary_skip needs one op that carries its input on among '
        f'those of an edge; group {g!r} has {count} among {list(group.ops)}: '
        'set search.auxiliary_skip=0, or take another space.'
      )
