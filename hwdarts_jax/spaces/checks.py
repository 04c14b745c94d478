"""Checks of the values that specs are made of."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any


def check(ok: bool, field: str, value: Any, allowed: str) -> None:
  """Raises ValueError with field, value and what is allowed, unless `ok`."""
  if not ok:
    raise ValueError(f'{field} is {value!r}; it must be {allowed}.')


def is_int(value: Any, least: float = -math.inf) -> bool:
  """Whether `value` is a whole number of at least `least`; a bool is none."""
  return (
    isinstance(value, int) and not isinstance(value, bool) and value >= least
  )


def is_name(value: Any) -> bool:
  """Whether `value` is a text that is not empty."""
  return isinstance(value, str) and bool(value)


def are(test: Callable[[Any], bool], values: Any) -> bool:
  """Whether `values` is a tuple whose values all pass `test`."""
  return isinstance(values, tuple) and all(map(test, values))
