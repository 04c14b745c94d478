r"""Search for the CPU of the machine on which the shipped tables were measured.

python -m hwdarts_jax.main --config=configs/host_cpu.py

For your own machine measure a table first, and name it by
--config.latency.table; minutes on two cores:

python -m hwdarts_jax.harness --config=configs/host_cpu.py:space=nasbench201 \
  --runner=host --out=my_cpu.nasbench201.json

A mobile network on ImageNet, `:space=mobile,dataset=imagenet2012`, needs the
table host_cpu.mobile, which is not shipped and which this measures:

python -m hwdarts_jax.harness \
  --config=configs/host_cpu.py:space=mobile,dataset=imagenet2012 \
  --runner=host --dtype=float32 --out=host_cpu.mobile.json

It trains by the recipe mobilenet_v3; README, "Mobile networks", has all steps.

`:space=mobile,dataset=cifar10` is for images of 32 pixels, with blocks of dense
convolutions among the choices; its table, host_cpu.mobile_cifar10, is shipped.
It was measured by

python -m hwdarts_jax.harness \
  --config=configs/host_cpu.py:space=mobile,dataset=cifar10 \
  --runner=host --dtype=float32 --out=host_cpu.mobile_cifar10.json

It trains by the recipe short; with recipe=budget in 30 epochs instead of 90.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config('configs/host_cpu.py', 'host_cpu', arg)


def sweep_target():
  """Milliseconds, from fast to slow cells of NAS-Bench-201."""
  for target_ms in (0.3, 0.6, 0.9, 1.3, 2.0):
    yield {'objective.target_ms': target_ms}
