"""Search for an NVIDIA H100 that serves batches of 64 images in bfloat16.

python -m hwdarts_jax.main --config=configs/h100.py

--config.latency.table=h100_1.nasbench201 is the same GPU, one image at a time.
For another accelerator, measure its table there, in a few minutes, and name it
by --config.latency.table:

python -m hwdarts_jax.harness --config=configs/h100.py --runner=jax_device \
  --dtype=bfloat16 --batch=64 --out=my_gpu.nasbench201.json

`:space=mobile,dataset=cifar10` is the space of configs/host_cpu.py for images
of 32 pixels; its table is h100_64.mobile_cifar10, 211 ops, measured by

python -m hwdarts_jax.harness \
  --config=configs/h100.py:space=mobile,dataset=cifar10 --runner=jax_device \
  --dtype=bfloat16 --batch=64 --networks=24 --out=h100_64.mobile_cifar10.json
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config(
    'configs/h100.py', 'h100_64', arg, 'jax_device --batch=64', 'bfloat16'
  )
