"""Search for the Intel Neural Compute Stick 2.

python -m hwdarts_jax.main --config=configs/ncs2.py
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config('configs/ncs2.py', 'intel_ncs2', arg)
