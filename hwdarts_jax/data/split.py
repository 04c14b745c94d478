"""The two halves of a train set that a bilevel search needs."""

from __future__ import annotations

import numpy as np

from hwdarts_jax.data import order
from hwdarts_jax.data.records import Images


def search_split(
  dataset: Images, seed: int, fraction: float = 0.5
) -> tuple[Images, Images]:
  """Splits a train set into the parts of the inner and the outer problem.

  The same seed puts the examples in the same order whatever the fraction, so
  the train part of a smaller fraction lies inside that of a larger one.

  Args:
    dataset: usually the whole train split.
    seed: picks the split; nothing else does.
    fraction: share of examples in the train part.

  Returns:
    (train, val): disjoint, together all of `dataset`, each in its order.

  Raises:
    ValueError: `fraction` leaves one of the parts empty.
  """
  num = dataset.num_examples
  num_train = round(num * fraction) if 0 < fraction < 1 else 0
  if not 0 < num_train < num:
    raise ValueError(
      f'fraction is {fraction!r}; it must be between 0 and 1 and leave at '
      f'least one of the {num} examples on either side.'
    )
  shuffled = order.permutation(num, seed, stream=order.SEARCH_SPLIT)
  return (
    dataset.take(np.sort(shuffled[:num_train])),
    dataset.take(np.sort(shuffled[num_train:])),
  )
