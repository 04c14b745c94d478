r"""Search for the Raspberry Pi 4's CPU.

python -m hwdarts_jax.main --config=configs/raspberry_pi4.py

Expected, seed 0 on 2 cores with other work on them, 69 s: a cell of 51.7 ms.

A mobile network on ImageNet, `:space=mobile,dataset=imagenet2012`, needs the
table raspberry_pi4_cpu.mobile, which is not shipped and which this measures:

python -m hwdarts_jax.harness \
  --config=configs/raspberry_pi4.py:space=mobile,dataset=imagenet2012 \
  --runner=ssh:host=pi@raspberrypi --dtype=float32 \
  --out=raspberry_pi4_cpu.mobile.json

It trains by the recipe mobilenet_v3; README, "Mobile networks", has all steps.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config(
    'configs/raspberry_pi4.py',
    'raspberry_pi4_cpu',
    arg,
    'ssh:host=pi@raspberrypi',
  )


def sweep_target():
  """Milliseconds, from fast to slow cells of NAS-Bench-201."""
  for target_ms in (10.0, 18.0, 26.0, 38.0, 50.0):
    yield {'objective.target_ms': target_ms}
