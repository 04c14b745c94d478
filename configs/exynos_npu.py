r"""Search for a Samsung Exynos NPU, by a stand-in.

    python -m hwdarts_jax.main --config=configs/exynos_npu.py

No latency of an Exynos NPU over NAS-Bench-201 is public. The table is that of
another phone's accelerator, the Hexagon 690 of a Snapdragon 855 in int8, and is
reported under that name. Measure your own and set --config.latency.table.

Expected, seed 0 on 2 cores with other work on them, 142 s: a cell of 2.05 ms.

A mobile network on ImageNet, `:space=mobile,dataset=imagenet2012`, needs the
table snapdragon855_hexagon690_int8.mobile, which is not shipped and which this
measures (`--config.space.deploy.activations=relu` where int8 lacks hard-swish):

python -m hwdarts_jax.harness \
  --config=configs/exynos_npu.py:space=mobile,dataset=imagenet2012 \
  --runner=adb:upload=benchmark_model,delegate=nnapi\
,accelerator=eden-drv \
  --dtype=int8 --out=snapdragon855_hexagon690_int8.mobile.json

It trains by the recipe mobilenet_v3; README, "Mobile networks", has all steps.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., dataset=..., runlocal."""
  return common.search_config(
    'configs/exynos_npu.py',
    'snapdragon855_hexagon690_int8',
    arg,
    'adb:upload=benchmark_model,delegate=nnapi,accelerator=eden-drv',
    'int8',
  )


def sweep_target():
  """Milliseconds, from fast to slow cells of NAS-Bench-201."""
  for target_ms in (1.6, 2.0, 2.5, 3.0, 3.5):
    yield {'objective.target_ms': target_ms}
