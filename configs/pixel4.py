r"""Search for the Pixel 4's CPU.

python -m hwdarts_jax.main --config=configs/pixel4.py

Expected, seeds 0 to 9 on 2 cores, 70 s each: cells of 8.4 ± 5.5 ms
predicted and 90.9 ± 2.9 % on CIFAR-10 after full training, where random cells
of equal predicted latency have 89.4 %. See benchmarks/RESULTS.md.

A mobile network on ImageNet, `:space=mobile,dataset=imagenet2012`, needs the
table pixel4_cpu.mobile, which is not shipped and which this measures:

python -m hwdarts_jax.harness \
  --config=configs/pixel4.py:space=mobile,dataset=imagenet2012 \
  --runner=adb:upload=benchmark_model --dtype=float32 \
  --out=pixel4_cpu.mobile.json

It trains by the recipe mobilenet_v3; README, "Mobile networks", has all steps.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config(
    'configs/pixel4.py', 'pixel4_cpu', arg, 'adb:upload=benchmark_model'
  )


def sweep_target():
  """Milliseconds, from fast to slow cells of NAS-Bench-201."""
  for target_ms in (4.0, 6.0, 8.0, 11.0, 15.0):
    yield {'objective.target_ms': target_ms}
