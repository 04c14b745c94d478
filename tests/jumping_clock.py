"""`hwdarts_jax.main` on a machine whose wall clock runs wildly, and backwards.

A monotonic clock goes on as it must.
"""

import runpy
import time

_now = [2e9]


def _jump() -> float:
  _now[0] -= 86_400.0 if int(_now[0]) % 3 else -7_200.0
  return _now[0]


if __name__ == '__main__':
  time.time = _jump
  time.time_ns = lambda: int(_jump() * 1e9)
  runpy.run_module('hwdarts_jax.main', run_name='__main__', alter_sys=True)
