"""A limit of time for the jobs of this process."""

from __future__ import annotations

import functools
import os
import signal
import threading
from typing import Any


class Limit:
  """Ends a job in time, which saves its state and says so."""

  def __init__(self, seconds: float):
    stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), stop)

  def __enter__(self) -> None:
    self._timer.daemon = True
    self._timer.start()

  def __exit__(self, *unused: Any) -> None:
    self._timer.cancel()
