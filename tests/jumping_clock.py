"""`hwdarts_jax.main` on a machine whose wall clock is set back by a day.

Once, in the middle of the run; a monotonic clock goes on as it must.
"""

import runpy
import time

_AFTER_SECONDS = 2.0
_BACK_SECONDS = 86_400.0
_time, _started = time.time, time.monotonic()


def _jumped() -> float:
  late = time.monotonic() - _started > _AFTER_SECONDS
  return _time() - (_BACK_SECONDS if late else 0.0)


if __name__ == '__main__':
  time.time = _jumped
  time.time_ns = lambda: int(_jumped() * 1e9)
  runpy.run_module('hwdarts_jax.main', run_name='__main__', alter_sys=True)
