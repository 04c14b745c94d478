"""Search a whole front of latency targets for a device at once.

python -m hwdarts_jax.main --config=configs/pareto.py:device=pixel4_cpu

Any latency table can be named as the device; the targets, by default 16 in
equal ratios, are --config.population.targets_ms='(6.0,8.0,12.0)'. The config of
a device does the same with --config.job=pareto.
"""

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is device=..., and as in a device's config."""
  own, rest = [], []
  for item in filter(None, (arg or '').split(',')):
    (own if item.partition('=')[0] == 'device' else rest).append(item)
  parsed = common.parse_arg(','.join(own), device='pixel4_cpu')
  config = common.search_config(
    'configs/pareto.py', parsed.device, ','.join(rest)
  )
  config.source = 'configs/pareto.py' + (f':{arg}' if arg else '')
  config.job = 'pareto'
  # Members share a batch: groups of 8 would have two images each.
  config.network.bn_groups = 1
  # A member moves in every fourth step only.
  config.alphas_optimizer.learning_rate *= 4
  return config
