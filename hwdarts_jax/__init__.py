"""Hardware-aware differentiable architecture search in JAX.

    config = hwdarts_jax.load_config('configs/pixel4.py')
    found = hwdarts_jax.search(config, 'runs/search')

and `retrain` and `export` after it: see `hwdarts_jax.api`.
"""

import importlib
from typing import Any

__version__ = '0.1.0'
__all__ = ('export', 'load_config', 'retrain', 'search')


def __getattr__(name: str) -> Any:
  """Functions of `api`, imported when used: spaces and tables need no jax."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  # By name: else all modules, which import this one, would import the jobs.
  return getattr(importlib.import_module('hwdarts_jax.api'), name)
