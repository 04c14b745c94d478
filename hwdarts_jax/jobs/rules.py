"""What a field of a config may be: in words for a message, and as a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple


class Rule(NamedTuple):
  """What a field may be.

  Attributes:
    allowed: in words, after 'it must be'.
    holds: whether a value is allowed.
  """

  allowed: str
  holds: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
  """Whether a value is a whole number."""
  return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
  """Whether a value is a finite number, also as a float."""
  if not isinstance(value, int | float) or isinstance(value, bool):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # 10**400
    return False


def as_number(value: Any) -> Any:
  """A text that stands for a number, as that number."""
  try:
    return float(value) if isinstance(value, str) else value
  except ValueError:
    return None


def whole(low: int) -> Rule:
  """Whole numbers from `low` on."""
  return Rule(
    f'a whole number, at least {low}', lambda v: is_whole(v) and v >= low
  )


def among(*values: Any) -> Rule:
  """These values, of these types."""
  return Rule(
    f'one of {sorted(values, key=str)}',
    lambda v: any(type(v) is type(w) and v == w for w in values),
  )


TEXT = Rule('a text', lambda v: isinstance(v, str))
FLAG = Rule('true or false', lambda v: isinstance(v, bool))
SECTION = Rule('a section', lambda v: isinstance(v, Mapping))
NUMBER = Rule('a finite number', is_number)
NOT_NEGATIVE = Rule(
  'a finite number, at least 0', lambda v: is_number(v) and v >= 0
)
POSITIVE = Rule('a finite number, above 0', lambda v: is_number(v) and v > 0)
ABOVE_ONE = Rule('a finite number, above 1', lambda v: is_number(v) and v > 1)
SHARE = Rule(
  'a number above 0, at most 1', lambda v: is_number(v) and 0 < v <= 1
)
UP_TO_ONE = Rule('a number from 0 to 1', lambda v: is_number(v) and 0 <= v <= 1)
BELOW_ONE = Rule(
  'a number, at least 0 and below 1', lambda v: is_number(v) and 0 <= v < 1
)

LIST = Rule(
  'a tuple of finite numbers, at least 0',
  lambda v: (
    isinstance(v, tuple | list) and all(is_number(x) and x >= 0 for x in v)
  ),
)

SEED = Rule(
  'a whole number from 0 to 2**31 - 1', lambda v: is_whole(v) and 0 <= v < 2**31
)
MARGIN = Rule(
  "a share, at least 0, or 'held_out'",
  lambda v: v == 'held_out' or NOT_NEGATIVE.holds(as_number(v)),
)
