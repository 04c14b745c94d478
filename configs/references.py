"""Published mobile networks, to compare found ones with.

python -m hwdarts_jax.main --config=configs/references.py:model=mobilenet_v2 \
  --config.job=describe

Models: mobilenet_v3_large, mobilenet_v3_small, efficientnet_b0, mobilenet_v2.
Prints params, MACs and a table of sites, in seconds; nothing is searched.
"""

import ml_collections

from configs import common


def get_config(arg=None):
  """Returns the config; `arg` is model=..., runlocal.

  runlocal takes images of 32 pixels.
  """
  parsed = common.parse_arg(arg, model='mobilenet_v3_large', runlocal=False)
  config = ml_collections.ConfigDict()
  config.source = 'configs/references.py' + (f':{arg}' if arg else '')
  config.job = 'describe'
  config.space = {
    'name': 'references',
    'deploy': {
      'model': parsed.model,
      'width': 1.0,
      'num_classes': 1000,
      'image_size': 32 if parsed.runlocal else 224,
      'image_channels': 3,
      'stem_stride': 1 if parsed.runlocal else 2,
    },
  }
  config.describe = common.describe()
  return config
