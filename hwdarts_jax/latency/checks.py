"""Checks of single values that come from outside."""

from __future__ import annotations

import datetime
import json
import reprlib
import sys
from typing import Any


def check(ok: bool, field: str, value: Any, allowed: str) -> None:
  """Raises ValueError with field, value and what is allowed, unless `ok`."""
  if not ok:
    raise ValueError(f'{field} is {reprlib.repr(value)}; it must be {allowed}.')


def is_number(value: Any) -> bool:
  """Whether `value` is a finite float or int of at least 0."""
  return (
    isinstance(value, float | int)
    and not isinstance(value, bool)
    and 0 <= value <= sys.float_info.max
  )  # false for NaN as well


def is_hash(value: Any) -> bool:
  """Whether `value` looks like what `NetworkSpec.spec_hash` returns."""
  return (
    isinstance(value, str)
    and len(value) == 12
    and set(value) <= set('0123456789abcdef')
  )


def is_date(value: str) -> bool:
  """Whether `value` is a date, or a date and a time, by ISO 8601."""
  try:
    datetime.datetime.fromisoformat(value)
  except ValueError:
    return False
  return True


def is_json(value: Any) -> bool:
  """Whether JSON gives `value` back as it is."""
  try:
    return json.loads(json.dumps(value, allow_nan=False)) == value
  except (TypeError, ValueError, RecursionError):
    return False
