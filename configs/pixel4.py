"""Search for the Pixel 4's CPU.

python -m hwdarts_jax.main --config=configs/pixel4.py
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config('configs/pixel4.py', 'pixel4_cpu', arg)
