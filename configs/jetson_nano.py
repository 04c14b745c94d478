r"""Search for the Jetson Nano's GPU in fp16.

python -m hwdarts_jax.main --config=configs/jetson_nano.py

Expected, seed 0 on 2 cores with other work on them, 57 s: a cell of 5.80 ms.

A mobile network on ImageNet, `:space=mobile,dataset=imagenet2012`, needs the
table jetson_nano_gpu_fp16.mobile, which is not shipped and which this measures:

python -m hwdarts_jax.harness \
  --config=configs/jetson_nano.py:space=mobile,dataset=imagenet2012 \
  --runner=trtexec:host=nano@jetson --dtype=float16 \
  --out=jetson_nano_gpu_fp16.mobile.json

It trains by the recipe mobilenet_v3; README, "Mobile networks", has all steps.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config(
    'configs/jetson_nano.py',
    'jetson_nano_gpu_fp16',
    arg,
    'trtexec:host=nano@jetson',
    'float16',
  )


def sweep_target():
  """Milliseconds, from fast to slow cells of NAS-Bench-201."""
  for target_ms in (3.5, 4.3, 5.2, 6.0):
    yield {'objective.target_ms': target_ms}
