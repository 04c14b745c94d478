"""What the call of a model costs that computes next to nothing.

Whole networks pay it once, not for each op: runners whose readings contain it
subtract it from them.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import statistics
import tempfile

from hwdarts_jax.harness import convert
from hwdarts_jax.harness.runners import Model, Protocol, Reading


def call_ms(measure: Callable[[Model, Protocol], Reading]) -> float:
  """Milliseconds of an empty TFLite model, the median of three readings.

  Args:
    measure: of a runner that subtracts nothing yet.
  """
  shape = (1, 1, 1, 1)
  made = convert.convert(lambda x: x + 1, shape[1:], convert.Target())
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'hwdarts_empty.tflite'
    path.write_bytes(made.data)
    model = Model('an empty model', path, 'float32', 1, shape)
    readings = [measure(model, Protocol()) for _ in range(3)]
  return statistics.median(r.ms for r in readings)
