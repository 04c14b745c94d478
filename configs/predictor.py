"""Fit a latency predictor to measured networks, and predict others.

python -m hwdarts_jax.main --config=configs/predictor.py \
  --config.measurements=train.csv --config.predict=all.csv --workdir=W

`train.csv` has the columns genotype and latency_ms, `all.csv` the column
genotype. A few measurements are enough beside the shipped series of other
devices (--config.prior=shipped); which ones to take, --config.suggest=10 says.
"""

import ml_collections

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is space=..., runlocal.

  runlocal fits to 200 of the published latencies of the Pixel 4.
  """
  parsed = common.parse_arg(arg, space='nasbench201', runlocal=False)
  config = ml_collections.ConfigDict()
  config.source = 'configs/predictor.py' + (f':{arg}' if arg else '')
  config.job = 'predictor'
  config.seed = 0
  config.space = parsed.space
  # The network that was measured, for each space.
  config.deploy = {name: dict(s) for name, s in common.DEPLOY_SPECS.items()}
  config.device = ''  # its name, for reports; by default that of the file
  config.measurements = ''  # CSV with genotype and latency_ms
  # A latency table, shipped or a path: its whole networks are measurements
  # too, the sum of its op entries is what the fit corrects.
  config.table = 'pixel4_cpu' if parsed.runlocal else ''
  config.rows = 200 if parsed.runlocal else 0  # a random part; 0: all
  config.predict = ''  # CSV with genotype
  config.prior = 'none'  # or 'shipped': the series of other devices
  config.prior_devices = ''  # only these, separated by commas
  config.exclude_devices = ''  # all but these
  config.suggest = 0  # how many architectures to name for measuring
  config.describe = common.describe()
  return config
