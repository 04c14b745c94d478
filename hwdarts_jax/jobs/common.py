"""What jobs share: from sections of the config to specs, data and a predictor.

Every section of the config is passed to a factory as keyword arguments, so a
field that the factory does not know is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.jobs import feeding, predictor_files
from hwdarts_jax.latency import cost
from hwdarts_jax.latency import predictor as predictor_lib
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.models import ops
from hwdarts_jax.runtime import optimizers
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

DTYPES = {
  'float32': jnp.float32,
  'bfloat16': jnp.bfloat16,
  'float64': jnp.float64,
}
_LARGE_IMAGE = 96  # pixels


class Specs(NamedTuple):
  """Two specs of one space.

  Attributes:
    search: its supernet is trained.
    deploy: its latency, MACs and params are reported.
  """

  search: NetworkSpec
  deploy: NetworkSpec


def make_specs(space: Mapping[str, Any]) -> Specs:
  """Makes both specs of the section `config.space`.

  Raises:
    ValueError: unknown space or setting, or the specs do not share their
      groups and rows.
  """
  specs = Specs(_make_spec(space, 'search'), _make_spec(space, 'deploy'))
  if specs.search.groups() != specs.deploy.groups():
    raise ValueError(
      'space.search and space.deploy must share their groups and rows of '
      f'alphas, but have {_sizes(specs.search)} and {_sizes(specs.deploy)}.'
    )
  return specs


def _make_spec(space: Mapping[str, Any], role: str) -> NetworkSpec:
  if space['name'] not in spaces.names():
    spaces.make(space['name'])  # raises
  try:
    return spaces.make(space['name'], **space[role])
  except ValueError as e:
    raise ValueError(f'space.{role}: {e}') from e


def _sizes(spec: NetworkSpec) -> dict[str, tuple[int, int]]:
  return {name: group.shape for name, group in spec.groups().items()}


def fit_search_spec(
  config: ml_collections.ConfigDict, dataset: feeding.Images
) -> None:
  """Fills in the fields of `config.space.search` that are 0, for the data."""
  search = config.space.search
  for name, value in _facts(dataset).items():
    if name in search and search[name] == 0:
      search[name] = value


def trained_settings(
  config: ml_collections.ConfigDict, role: str, dataset: feeding.Images
) -> dict[str, Any]:
  """Settings of the space whose networks are trained in a role.

  'deploy' keeps its depth and width, but reads the images that there are: its
  own input and classes say what the latencies were measured on.
  """
  settings = section(config, 'space', role)
  if role == 'deploy':
    facts = _facts(dataset).items()
    settings |= {k: v for k, v in facts if k in settings}
  return settings


def _facts(dataset: feeding.Images) -> dict[str, int]:
  """What a space must know of a data set."""
  height, _, channels = dataset.image_shape
  return {
    'num_classes': dataset.num_classes,
    'image_size': height,
    'image_channels': channels,
    # Networks for photographs read small images with a stem that keeps them.
    'stem_stride': 1 if height < _LARGE_IMAGE else 2,
  }


def check_data(dataset: feeding.Images, spec: NetworkSpec, role: str) -> None:
  """Checks that a spec is made for a data set.

  Args:
    dataset: what is trained on.
    spec: whose networks read the images.
    role: of the spec in `config.space`, for messages.

  Raises:
    ValueError: classes or image shape differ.
  """
  if dataset.num_classes != spec.num_classes:
    raise ValueError(
      f'space.{role}.num_classes is {spec.num_classes}, but data set '
      f'{dataset.name!r} has {dataset.num_classes} classes: set '
      f'--config.space.{role}.num_classes={dataset.num_classes}.'
    )
  if dataset.image_shape != spec.input_shape:
    height, _, channels = dataset.image_shape
    raise ValueError(
      f'space.{role} makes networks for images of {spec.input_shape}, but data '
      f'set {dataset.name!r} has {dataset.image_shape}: set '
      f'--config.space.{role}.image_size={height} and '
      f'--config.space.{role}.image_channels={channels}, or resize with '
      '--config.data.image_size.'
    )


def make_context(network: Mapping[str, Any], affine: bool) -> ops.Context:
  """Makes the op settings of the section `config.network`.

  Raises:
    ValueError: a value is not allowed.
  """
  settings = dict(network)
  name = settings.pop('dtype')
  if name not in DTYPES:
    raise ValueError(f'network.dtype is {name!r}; known are {sorted(DTYPES)}.')
  if (
    name == 'float64'
    and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
  ):
    raise ValueError(
      "network.dtype is 'float64', which jax has switched off: set the "
      'environment variable JAX_ENABLE_X64=1.'
    )
  settings.pop('evaluation')
  if settings['depthwise'] == 'auto':
    # Grouped convolutions are up to 70 times slower than shifted sums on CPU.
    on_cpu = jax.default_backend() == 'cpu'
    settings['depthwise'] = 'shift' if on_cpu else 'conv'
  return ops.Context(affine=affine, dtype=DTYPES[name], **settings)


@dataclasses.dataclass(frozen=True)
class LatencyModel:
  """The latency of the deploy spec on a device.

  Attributes:
    predict: gates f32[..., E, O] of each group -> expected ms f32[...].
    card: JSON-able facts of the fit, held-out errors included.
    device: its name.
    source: what it was made from, and the hash of that, for reports.
    variables: of the fitted predictor, which `predict` holds.
    held_out: networks that the fit has not seen, if it was made just now.
  """

  predict: Callable[[Mapping[str, Any]], jax.Array]
  card: dict[str, Any]
  device: str
  source: dict[str, str]
  variables: Any = None
  held_out: predictor_lib.HeldOut | None = None

  def of(self, spec: NetworkSpec, genotype: Genotype) -> float:
    """Predicted ms of an architecture."""
    return float(self.predict(discretize.one_hot(spec, genotype)))

  def hashes(self) -> dict[str, str]:
    """What a workdir made with it must find again."""
    return {
      k.removesuffix('_hash'): v
      for k, v in self.source.items()
      if k.endswith('_hash')
    }


def load_latency(
  latency: Mapping[str, Any],
) -> Callable[[NetworkSpec], LatencyModel]:
  """Loads the table or the fitted predictor that the section `latency` names.

  Returns:
    The function that makes the latency model of a deploy spec.

  Raises:
    ValueError: what is named is unknown or broken.
  """
  if latency['predictor']:
    saved = predictor_files.load(latency['predictor'])
    return functools.partial(_of_saved, saved, latency['predictor'])
  try:
    table = load_table(latency['table'], 'latency.table')
  except ValueError as e:
    raise _with_command(e, latency) from e

  def make(deploy: NetworkSpec) -> LatencyModel:
    try:
      return make_latency_model(
        table, deploy, name=latency['table'], rows=latency['rows']
      )
    except ValueError as e:
      raise _with_command(e, latency) from e

  return make


def _with_command(error: ValueError, latency: Mapping[str, Any]) -> ValueError:
  """The error, with the command that measures what is missing."""
  told = f'{latency["measure"]}; then name it by --config.latency.table'
  general = table_lib.MEASURE_COMMAND
  return ValueError(
    str(error).replace(general, told if latency['measure'] else general)
  )


def load_table(name: str, field: str) -> table_lib.LatencyTable:
  """Loads the table that a field of the config names.

  Raises:
    ValueError: the table is unknown or broken.
  """
  try:
    return table_lib.load(name)
  except OSError as e:
    raise ValueError(
      f'{field} is {name!r}, which cannot be read '
      f'({e.strerror}); give the path of a table or a name among '
      f'{list(table_lib.available())}.'
    ) from e


def make_latency_model(
  table: table_lib.LatencyTable,
  deploy: NetworkSpec,
  name: str = '',
  rows: int = 0,
) -> LatencyModel:
  """Fits the predictor to a table.

  Args:
    table: of the device.
    deploy: the networks whose latency counts.
    name: what the config calls the table.
    rows: how many of the whole networks are taken, at random but always the
      same ones; 0, or more than there are, is all.

  Raises:
    ValueError: the table does not cover `deploy`.
  """
  table.check_covers(deploy)
  gates: Mapping[str, np.ndarray] = {}
  measured = np.zeros(0)
  if table.has_networks(deploy):
    gates, measured = table.networks_one_hot(deploy)
  if 0 < rows < len(measured):
    drawn = np.sort(np.random.default_rng(0).permutation(len(measured))[:rows])
    gates = {group: g[drawn] for group, g in gates.items()}
    measured = measured[drawn]
  fit = fit_networks(deploy, gates, measured, sum_of_entries(table, deploy))
  source = {'latency_table': name, 'latency_table_hash': table.table_hash()}
  model = predictor_of(deploy, fit.variables)
  return LatencyModel(
    model, fit.card, table.device, source, fit.variables, fit.held_out
  )


def sum_of_entries(
  table: table_lib.LatencyTable, spec: NetworkSpec
) -> cost.CostTable | None:
  """Costs in ms by the op entries of a table; None if some are missing."""
  return None if table.missing_keys(spec) else cost.of_entries(spec, table)


def fit_networks(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  latency_ms: np.ndarray,
  entries: cost.CostTable | None,
  held_out: float = 0.1,
) -> predictor_lib.Fit:
  """Fits the predictor to whole networks and to the sum of op entries.

  Networks are fitted, on top of the sum where there is one; fewer than
  `predictor.MIN_WITH_PRIOR` only scale that sum.

  Args:
    spec: the space.
    one_hot: for each group f[N, E, O]; may be empty where N is 0.
    latency_ms: f[N].
    entries: what `sum_of_entries` returns.
    held_out: share of the networks kept for the report, of enough.

  Raises:
    ValueError: there are too few networks, and no entries.
  """
  count = len(latency_ms)
  if entries is None or count >= predictor_lib.MIN_WITH_PRIOR:
    held_out = 0.0 if count < predictor_lib.MIN_NETWORKS else held_out
    return predictor_lib.fit(spec, one_hot, latency_ms, entries, held_out)
  if count:
    entries = predictor_lib.calibrate(spec, entries, one_hot, latency_ms)
  return predictor_lib.from_table(spec, entries, len(latency_ms))


def _of_saved(
  saved: predictor_files.Saved, folder: str, deploy: NetworkSpec
) -> LatencyModel:
  """The latency model of a predictor that was fitted before."""
  if saved.spec.spec_hash() != deploy.spec_hash():
    raise ValueError(
      f'latency.predictor is {folder!r}, fitted to networks of space '
      f'{saved.space!r} with settings {dict(saved.deploy)}; space.deploy is of '
      f'{deploy.space!r} with spec hash {deploy.spec_hash()}, not '
      f'{saved.spec.spec_hash()}: make the settings equal.'
    )
  source = {
    'latency_predictor': folder,
    'latency_predictor_hash': saved.digest(),
  }
  return LatencyModel(
    predictor_of(deploy, saved.fit.variables),
    saved.fit.card,
    saved.device,
    source,
    saved.fit.variables,
  )


def predictor_of(
  spec: NetworkSpec, variables: Any
) -> Callable[[Mapping[str, Any]], jax.Array]:
  """The predictor of `spec` as a function: gates -> expected ms f32[...]."""
  model = predictor_lib.LatencyPredictor(spec)

  def predict(gates):
    return model.apply(variables, gates)

  return predict


def costs(space: NetworkSpec, genotype: Genotype) -> dict[str, float]:
  """MACs and params of an architecture of `space`."""
  spec = discretize.discretize(space, genotype)
  return {
    'macs': cost.total(spec, cost.macs),
    'params': cost.total(spec, cost.params),
  }


def section(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
  """A plain dict of a (nested) section of the config."""
  for name in names:
    config = config[name]
  return config.to_dict()


def learning_rate(
  optimizer: Mapping[str, Any], num_steps: int
) -> optimizers.Schedule:
  """The schedule step -> learning rate of an optimizer's section."""
  names = (
    'learning_rate',
    'schedule',
    'warmup_steps',
    'final_learning_rate',
    'decay_rate',
    'decay_steps',
  )
  return optimizers.make_schedule(
    num_steps=num_steps, **{k: v for k, v in optimizer.items() if k in names}
  )
