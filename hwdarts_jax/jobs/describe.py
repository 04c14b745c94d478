"""Job `describe`: what a config's networks consist of, and what they cost.

For a space with choices: how many architectures there are, and from what to
what their params and MACs go. For a fixed network, or an architecture of a
space: its params and MACs. And for each place where an op runs, the same.
Writes config.json and describe.json. Nothing is trained or measured.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath
import jax
import ml_collections

from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, describe_report, feeding, genotype_files
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.latency import cost
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec, Site

RESULT = describe_report.RESULT
_COSTS = {'params': cost.params, 'macs': cost.macs}


@dataclasses.dataclass(frozen=True)
class Task:
  """What is described.

  Attributes:
    name: of what made the spec, a module of `hwdarts_jax.spaces`.
    role: 'deploy' or 'search', the section that has its settings.
    settings: of the space.
    genotype: of the architecture, None for all of the space.
    spec: the space, or that architecture.
  """

  name: str
  role: str
  settings: dict[str, Any]
  genotype: Genotype | None
  spec: NetworkSpec


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Describes; prints what it writes.

  Raises:
    ValueError: something in the config cannot be; the message names it.
  """
  task = make(config)
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(
      workdir, config.to_dict(), hashes={'spec': task.spec.spec_hash()}
    )
    if jax.process_index() == 0 and not (path / RESULT).exists():
      workdir_lib.write_json_atomic(path / RESULT, record(task))
    print(describe_report.of(path))


def make(config: ml_collections.ConfigDict) -> Task:
  """Makes the spec that the config names; see `run` for errors."""
  settings_lib.check_described(config.to_dict())
  section, role = config.describe, config.describe.spec
  if isinstance(config.space, str):  # of the job `predictor`
    name, settings = config.space, config.deploy[config.space].to_dict()
  else:
    if role not in config.space:
      raise ValueError(
        f'describe.spec is {role!r}; of {config.space.name!r} there is '
        "'deploy' only."
      )
    name, settings = config.space.name, config.space[role].to_dict()
  if role == 'search' and 0 in [*map(_number, settings.values())]:
    common.fit_search_spec(
      config,
      feeding.load_data(
        config.data.to_dict(), 'train', config.data.augment.to_dict()
      ),
    )
    settings = config.space.search.to_dict()
  spec = spaces.make(name, **settings)
  genotype = None
  if section.search_workdir or section.genotype:
    genotype, spec = genotype_files.read('describe', _resolved(section), spec)
  return Task(name, role, settings, genotype, spec)


def _number(value: Any) -> Any:
  """The value, unless it is False, which equals 0."""
  return None if isinstance(value, bool) else value


def _resolved(section: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The section, with a folder that is given as a file taken as a workdir."""
  path = epath.Path(section.genotype)
  if not section.genotype or section.search_workdir or not path.is_dir():
    return section
  return ml_collections.ConfigDict(
    {'search_workdir': section.genotype, 'genotype': ''}
  )


def record(task: Task) -> dict[str, Any]:
  """The content of describe.json."""
  spec = task.spec
  genotype = task.genotype
  return {
    'space': task.name,
    'role': task.role,
    'settings': task.settings,
    'spec_hash': spec.spec_hash(),
    'genotype': None if genotype is None else genotype.to_dict(),
    'text': None if genotype is None else spaces.to_text(genotype),
    'num_architectures': discretize.num_architectures(spec),
    **{name: _total(spec, value, name) for name, value in _COSTS.items()},
    'sites': [_site(site) for site in spec.sites()],
  }


def _total(spec: NetworkSpec, value: cost.ValueFn, unit: str) -> Any:
  low, high = cost.extremes(spec, cost.tabulate(spec, value, unit))
  return _range(low, high, spec.is_discrete)


def _site(site: Site) -> dict[str, Any]:
  costs = {n: [f(site, op) for op in site.ops] for n, f in _COSTS.items()}
  return {
    'path': site.path,
    'ops': list(site.ops),
    'in_shape': list(site.in_shape),
    'out_shape': list(site.out_shape),
    'stride': site.stride,
    **{
      name: _range(min(values), max(values), len(values) == 1)
      for name, values in costs.items()
    },
  }


def _range(low: float, high: float, is_one: bool) -> Any:
  """One number where there is no choice, or else the least and the most."""
  return int(low) if is_one else {'min': int(low), 'max': int(high)}
