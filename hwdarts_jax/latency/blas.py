"""Linear algebra by one thread.

NumPy and SciPy bring a BLAS each, with as many threads as there are cores,
which wait for one another by spinning. For matrices of a few hundred rows that
gains little, and on a machine with other work it costs much: where other
processes had both of two cores, a fit that took 5 s by one thread took 76 s by
two. And what is fitted does not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

_P = ParamSpec('_P')
_R = TypeVar('_R')


def by_one_thread(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """Decorator: within the function BLAS has one thread."""

  @functools.wraps(function)
  def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    with threadpool_limits(1, user_api='blas'):
      return function(*args, **kwargs)

  return limited
