r"""Search for the Intel Neural Compute Stick 2.

python -m hwdarts_jax.main --config=configs/ncs2.py

Expected, seed 0 on 2 cores with other work on them, 82 s: a cell of 1.06 ms,
extrapolated: the fastest measured one takes 2.8 ms.

A mobile network on ImageNet, `:space=mobile,dataset=imagenet2012`, needs the
table intel_ncs2.mobile, which is not shipped and which this measures:

python -m hwdarts_jax.harness \
  --config=configs/ncs2.py:space=mobile,dataset=imagenet2012 \
  --runner=openvino:target=MYRIAD,host=pi@raspberrypi --dtype=float16 \
  --out=intel_ncs2.mobile.json

It trains by the recipe mobilenet_v3; README, "Mobile networks", has all steps.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config(
    'configs/ncs2.py',
    'intel_ncs2',
    arg,
    'openvino:target=MYRIAD,host=pi@raspberrypi',
    'float16',
  )


def sweep_target():
  """Milliseconds, from fast to slow cells of NAS-Bench-201."""
  for target_ms in (2.5, 3.2, 3.8, 4.6, 5.5):
    yield {'objective.target_ms': target_ms}
