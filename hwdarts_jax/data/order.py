"""Deterministic orders of examples: pure functions of small integers."""

from __future__ import annotations

import numpy as np

EPOCH = 0  # order of an epoch
SEARCH_SPLIT = 1  # train and val halves of a search
HELD_OUT = 2  # test part of a data set that comes without one
AUGMENT = 3  # random changes of an image, by workers on the host


def permutation(
  num: int, seed: int, *, stream: int, epoch: int = 0
) -> np.ndarray:
  """Returns a permutation i64[num] of 0..num-1.

  The raw Philox stream is sorted rather than `Generator.permutation` called,
  since NumPy keeps only the former the same in every release: a split that
  moved with an upgrade would mix train and test examples of old checkpoints.

  Args:
    num: how many numbers to permute.
    seed: any of 0..2**64-1.
    stream: what the order is for; `EPOCH`, `SEARCH_SPLIT` or `HELD_OUT`. Orders
      of different streams have nothing to do with each other.
    epoch: which of the orders of this seed and stream.

  Raises:
    ValueError: `seed` is out of range.
  """
  if not 0 <= seed < 2**64:
    raise ValueError(f'seed is {seed!r}; it must be in 0..2**64-1.')
  bits = np.random.Philox(
    key=np.array([seed, epoch], np.uint64),
    counter=np.array([0, 0, 0, stream], np.uint64),
  )
  return np.argsort(bits.random_raw(num), kind='stable')


class Draws:
  """Random numbers of one example; a pure function of three integers.

  Like `permutation` from the raw stream, so that they never change.
  """

  def __init__(self, seed: int, position: int):
    """Starts the stream.

    Args:
      seed: of the order of the examples, any of 0..2**64-1.
      position: of the example in that order, counted over all epochs.
    """
    self._bits = np.random.Philox(
      key=np.array([seed, position], np.uint64),
      counter=np.array([0, 0, 0, AUGMENT], np.uint64),
    )

  def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
    """A number from `low` to below `high`."""
    return low + (high - low) * (int(self._bits.random_raw()) >> 11) / 2**53

  def whole(self, num: int) -> int:
    """One of 0..num-1."""
    return int(self.uniform(0, num))
