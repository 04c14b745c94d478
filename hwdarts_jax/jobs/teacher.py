"""A trained network that another is trained to agree with (distillation).

The averaged params of a finished training, of a found or a published network,
or the supernet of a finished search at its last gates. It sees the very images
that its student sees, augmented and mixed, as a "patient" teacher (Beyer et
al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
import copy
import dataclasses
import hashlib
from typing import Any

from etils import epath
import jax
import ml_collections

from hwdarts_jax import spaces
from hwdarts_jax.bilevel import update as update_lib
from hwdarts_jax.jobs import common, retrain_settings, train_state
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.checkpoints import Checkpoints
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

_TRAINED = 'retrain.json'
_SEARCHED = 'genotype.json'


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network whose answers are imitated.

  Attributes:
    logits: (variables, images f[B, H, W, C]) -> f[B, num_classes]; batch norms
      use their running statistics.
    variables: all arrays that it needs.
  """

  logits: Callable[[Any, jax.Array], jax.Array]
  variables: Any

  def digest(self) -> str:
    """A hash of the variables."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(self.variables):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(jax.device_get(value).tobytes())
    return digest.hexdigest()


def load(workdir: str, data_name: str, student: NetworkSpec) -> Teacher:
  """Loads the teacher of a workdir.

  Args:
    workdir: of a finished training or search.
    data_name: name of the data set of the student.
    student: what is trained.

  Raises:
    ValueError: there is no such network, or it reads other images or knows
      other classes.
  """
  folder = epath.Path(workdir).expanduser()
  makers = {_TRAINED: _of_training, _SEARCHED: _of_search}
  found = [name for name in makers if (folder / name).exists()]
  if not found:
    raise ValueError(
      f'retrain.distill.workdir is {workdir!r}, which has neither {_TRAINED} '
      f'nor {_SEARCHED}: it must be that of a finished training or search.'
    )
  record = workdir_lib.read_json(folder / found[0])
  made_by = workdir_lib.read_json(folder / 'config.json')['config']
  if made_by['data']['name'] != data_name:
    raise ValueError(
      f'retrain.distill.workdir is {workdir!r}, whose network was trained on '
      f'{made_by["data"]["name"]!r}, not on data.name {data_name!r}.'
    )
  spec, teacher = makers[found[0]](folder, record, made_by)
  for what in ('input_shape', 'num_classes'):
    theirs, ours = getattr(spec, what), getattr(student, what)
    if theirs != ours:
      raise ValueError(
        f'retrain.distill.workdir is {workdir!r}, whose network has '
        f'{what} {theirs}; the student has {ours}, and both must agree.'
      )
  return teacher


def _of_training(
  folder: epath.Path, record: dict[str, Any], made_by: dict[str, Any]
) -> tuple[NetworkSpec, Teacher]:
  """The averaged params of a training."""
  space = spaces.make(made_by['space']['name'], **record['trained']['spec'])
  spec = space
  if record['genotype'] is not None:
    genotype = Genotype.from_dict(record['genotype'])
    spec = discretize.discretize(space, genotype)
  network = network_lib.Network(
    spec, common.make_context(made_by['network'], affine=True)
  )
  optimizer = retrain_settings.make_optimizer(made_by['retrain']['optimizer'])
  template = train_state.init(network, optimizer, seed=0)
  state = _restored(folder, template)

  def logits(variables, image):
    found = network.apply(variables, image, train=False)
    assert isinstance(found, jax.Array)
    return found

  return spec, Teacher(logits, state.average)


def _of_search(
  folder: epath.Path, record: dict[str, Any], made_by: dict[str, Any]
) -> tuple[NetworkSpec, Teacher]:
  """A supernet; its gates are of its last step, without noise."""
  del record
  search = search_job.make(ml_collections.ConfigDict(copy.deepcopy(made_by)))
  problem = search.problem
  template = search_job.as_dtype(
    update_lib.init_state(
      problem, 0, 0.0, targets={b.name: b.aim for b in search.bounds}
    ),
    problem,
  )
  state = _restored(folder, template)

  def logits(variables, image):
    network, gates = problem.network, variables['gates']
    own = {k: variables[k] for k in ('params', 'batch_stats')}
    found = network.apply(own, image, gates, train=False)
    assert isinstance(found, jax.Array)
    return found

  variables = {
    'params': state.params,
    'batch_stats': state.batch_stats,
    'gates': problem.evaluation_gates(state),
  }
  return search.specs.search, Teacher(logits, variables)


def _restored(folder: epath.Path, template: Any) -> Any:
  with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
    restored = checkpoints.restore_latest(template)
  if restored is None:
    raise ValueError(
      f'retrain.distill.workdir is {str(folder)!r}, which has no checkpoint.'
    )
  return restored.state
