"""Published mobile networks, to compare found ones with.

python -m hwdarts_jax.main --config=configs/references.py:model=mobilenet_v2 \
  --config.job=describe

Models: mobilenet_v3_large, mobilenet_v3_small, efficientnet_b0, mobilenet_v2.
`describe` prints params, MACs and a table of sites, in seconds; nothing is
searched. `--config.job=retrain` trains the model on the images of `dataset`, by
a recipe of configs/recipes.py, `--config.job=export` exports it.
"""

import ml_collections

from configs import common, recipes


def get_config(arg=None):
  """Returns the config; `arg` is model=..., dataset=..., recipe=..., runlocal.

  runlocal takes images of 32 pixels, and digits unless a set is named.
  """
  parsed = common.parse_arg(
    arg, model='mobilenet_v3_large', dataset='', recipe='', runlocal=False
  )
  dataset = parsed.dataset or ('digits' if parsed.runlocal else 'imagenet2012')
  config = ml_collections.ConfigDict()
  config.source = 'configs/references.py' + (f':{arg}' if arg else '')
  config.job = 'describe'
  config.seed = 0
  config.num_devices = 0  # 0 is all of them
  config.deterministic = False
  config.space = {
    'name': 'references',
    # What is described, exported for a device, and, for other images and
    # classes, trained.
    'deploy': {
      'model': parsed.model,
      'width': 1.0,
      'num_classes': 1000,
      'image_size': 32 if parsed.runlocal else 224,
      'image_channels': 3,
      'stem_stride': 1 if parsed.runlocal else 2,
    },
  }
  config.data = common.data(dataset)
  config.network = common.network()
  config.retrain = recipes.retrain(
    parsed.recipe
    or recipes.default('references', dataset, small=dataset == 'digits'),
    common.augment(dataset),
    'deploy',
    parsed.runlocal,
  )
  if dataset == 'imagenet2012':
    config.network.dtype = 'bfloat16'
  config.export = common.export(parsed.runlocal)
  config.describe = common.describe()
  return config
