"""A search that takes seconds: one DARTS cell of two edges, on digits.

python -m hwdarts_jax.main --config=tests/tiny_config.py \
  --config.latency.table=<made by tiny_runs.write_table>
"""

from configs import common

SPEC = {
  'features': 2,
  'num_cells': 1,
  'num_nodes': 1,
  'num_classes': 10,
  'image_size': 8,
  'image_channels': 1,
}
DEPLOY = SPEC | {'features': 4, 'pool_bn': False}


def get_config(arg=None):
  """Returns the config; `arg` is the dotted name of a field to set to 1."""
  config = common.search_config(
    'tests/tiny_config.py', 'pixel4_cpu', 'space=darts,runlocal'
  )
  config.source = 'tests/tiny_config.py'
  from_data = {'num_classes': 0, 'image_size': 0, 'image_channels': 0}
  config.space = {'name': 'darts', 'search': SPEC | from_data, 'deploy': DEPLOY}
  config.latency.table = 'pixel4_cpu'  # of another space
  config.network.bn_groups = 2
  config.network.depthwise = 'conv'  # compiles sooner
  config.hypergrad.name = 'first_order'
  config.relaxation.name = 'gumbel_softmax'
  config.alphas_optimizer.learning_rate = 0.1
  config.params_optimizer.learning_rate = 0.05
  config.objective.multiplier = 0.2
  config.search.update(
    num_steps=16,
    batch_size=8,
    log_every_steps=2,
    checkpoint_every_steps=2,
    eval_every_steps=0,
  )
  config.retrain.update(
    num_epochs=4, batch_size=32, checkpoint_every_epochs=1, drop_path=0.1
  )
  if arg:  # what a user's own config may get wrong
    *sections, field = arg.split('.')
    inner = config
    for section in sections:
      inner = inner[section]
    inner[field] = 1
  return config


def sweep_multiplier():
  """In place of that of all configs."""
  for multiplier in (0.0, 5.0):
    yield {'objective.multiplier': multiplier}
