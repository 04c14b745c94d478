"""Variables that a training takes over from the supernet of its search."""

from __future__ import annotations

import copy
from typing import Any

from etils import epath
import ml_collections

from hwdarts_jax.bilevel import update as update_lib
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.models import evaluations
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.checkpoints import Checkpoints


def variables(config: ml_collections.ConfigDict, fresh: Any) -> Any:
  """Returns fresh variables with those that the last checkpoint has.

  Args:
    config: of the training; names the workdir of the search.
    fresh: 'params' and 'batch_stats' of the network that is trained.

  Raises:
    ValueError: the search has no checkpoint.
  """
  folder = epath.Path(config.retrain.search_workdir)
  config = copy.deepcopy(config)
  # Another machine may evaluate a supernet in another layout.
  made_by = workdir_lib.read_json(folder / 'config.json')['config']
  config.network.evaluation = made_by['network'].get('evaluation', 'plain')
  search = search_job.make(config)
  template = search_job.as_dtype(
    update_lib.init_state(search.problem, config.seed, 0.0), search.problem
  )
  with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
    restored = checkpoints.restore_latest(template)
  if restored is None:
    raise ValueError(
      f'{folder} has no checkpoint to inherit from; finish the '
      'search, or leave retrain.inherit off.'
    )
  source = evaluations.to_plain(
    search.problem.network,
    {
      'params': restored.state.params,
      'batch_stats': restored.state.batch_stats,
    },
  )
  found, missing = network_lib.inherit(fresh, source)
  print(
    f'Inherited from the supernet at step {restored.step}; fresh are '
    f'{len(missing)} arrays that it lacks, affine batch norms.'
  )
  return found
