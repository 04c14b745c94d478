"""Job `export`: the files of a trained network, checked and timed.

Turns the params of a finished training into TFLite files (float32, float16,
int8) and an ONNX file, compares their outputs with those of JAX on images of
the test split, and times them by a runner of the harness. Writes config.json,
the files and export.json.

export.json is written when all files are, and once more when they are timed: a
device that fails costs no file, and the same command goes on. Another
`export.runner` in the same workdir times the same files elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from hwdarts_jax.data import pipeline, sources
from hwdarts_jax.jobs import common, export_measure, export_report, feeding
from hwdarts_jax.jobs import loop as loop_lib
from hwdarts_jax.jobs import retrain as retrain_job
from hwdarts_jax.jobs import settings as settings_lib
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.runtime.checkpoints import Checkpoints
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import NetworkSpec

FILES, RESULT = export_report.FILES, export_report.RESULT
# Other orders of summation stay far below; another function does not.
_MAX_DIFFERENCE = 1e-4
_SEED = 0  # of the images that are drawn


@dataclasses.dataclass(frozen=True)
class Task:
  """All that an export needs.

  Attributes:
    config: the config.
    training: what the network was trained by, remade.
    trained: the content of its retrain.json.
    variables: 'params' and 'batch_stats', f32.
    step: of the checkpoint that they are from.
  """

  config: ml_collections.ConfigDict
  training: retrain_job.Training
  trained: dict[str, Any]
  variables: Any
  step: int

  def specs(self) -> dict[str, NetworkSpec]:
    """The network as trained, and as deployed where that is another one."""
    deploy = discretize.discretize(
      self.training.specs.deploy, self.training.genotype
    )
    trained = self.training.network.spec
    return {'trained': trained} | (
      {} if deploy == trained else {'deploy': deploy}
    )


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Exports; prints a summary at the end.

  Raises:
    ValueError: something in the config cannot be, the device failed, or a file
      does not compute what it should; the message names it.
  """
  task = make(config)
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(
      workdir,
      config.to_dict(),
      ignore=('export.runner', 'export.rounds'),
      hashes=task.training.hashes() | {'params': _digest(task.variables)},
    )
    if (path / RESULT).exists():
      record = workdir_lib.read_json(path / RESULT)
      print(
        f'{path} has its files already; a new export needs a new --workdir.'
      )
    else:
      record = _export(task, path)
    runner = config.export.runner
    if runner and not export_measure.is_done(record, runner):
      export_measure.measure(task, path, record)
    print(export_report.of(path))


def make(config: ml_collections.ConfigDict) -> Task:
  """Reads the training that the config names; see `run` for errors."""
  if jax.process_count() > 1:
    raise ValueError('one process exports a network; leave out --multihost.')
  settings_lib.check_trained(config.to_dict())
  settings = config.export
  if not settings.retrain_workdir:
    raise ValueError(
      'give --config.export.retrain_workdir, the workdir of a finished '
      'training (--config.job=retrain).'
    )
  _check_harness(settings.runner)
  folder = epath.Path(settings.retrain_workdir).expanduser()
  trained = _read(folder, retrain_job.RESULT)
  made_by = _read(folder, 'config.json')['config']
  _check_same(config, made_by, folder)
  training = retrain_job.make(_as_trained(config, made_by, folder))
  if not settings_lib.is_fixed(config.to_dict()):
    common.fit_search_spec(config, training.train)
  if training.space.spec_hash() != trained['trained']['spec_hash']:
    raise ValueError(
      f'{folder} trained a network of {trained["trained"]["spec"]}, but '
      f'space.{made_by["retrain"]["spec"]} of this config makes '
      f'{training.trained}: use the settings of the training.'
    )
  variables, step = _restore(training, folder, settings.average)
  return Task(config, training, trained, variables, step)


def _check_harness(runner: str) -> None:
  """Raises ValueError if a package is missing or there is no such runner."""
  from hwdarts_jax.harness import convert, runners

  for model_format in sorted({f for f, _ in FILES}):
    convert.check_installed(model_format)
  if runner:
    try:
      runners.make(runner).close()
    except ValueError as e:
      raise ValueError(str(e).replace('--runner', 'export.runner', 1)) from e


def _read(folder: epath.Path, name: str) -> dict[str, Any]:
  """Reads a file of a finished training."""
  if not folder.exists():
    raise ValueError(f'export.retrain_workdir is {folder}, which is no folder.')
  path = folder / name
  if not path.exists():
    raise ValueError(
      f'export.retrain_workdir is {folder}, which has no {name}: it must be '
      'that of a training that came to its end (--config.job=retrain; the same '
      'command goes on).'
    )
  try:
    record = workdir_lib.read_json(path)
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}).') from e
  wanted = 'trained' if name == retrain_job.RESULT else 'config'
  if not isinstance(record, dict) or not isinstance(record.get(wanted), dict):
    raise ValueError(f'{path} is damaged: it has no section {wanted!r}.')
  return record


def _check_same(
  config: ml_collections.ConfigDict, made_by: dict[str, Any], folder: epath.Path
) -> None:
  """Raises ValueError if the training was of other data or another space."""
  mine, theirs = (
    traverse_util.flatten_dict(
      {'space': c['space'], 'data': {'name': c['data']['name']}}, sep='.'
    )
    for c in (config.to_dict(), made_by)
  )
  for field, value in mine.items():
    from_data = value == 0 and not isinstance(value, bool)
    if not from_data and value != theirs.get(field):
      raise ValueError(
        f'{field} is {value!r}, but {folder} was trained with '
        f'{theirs.get(field)!r}: use the settings of the training.'
      )


def _as_trained(
  config: ml_collections.ConfigDict, made_by: dict[str, Any], folder: epath.Path
) -> ml_collections.ConfigDict:
  """The config with the section `retrain` of the training itself."""
  plain = config.to_dict()
  plain['retrain'] = made_by['retrain'] | {
    'search_workdir': '',
    'genotype': str(folder / retrain_job.RESULT),
    'inherit': False,
    'distill': made_by['retrain']['distill'] | {'workdir': ''},
  }
  return ml_collections.ConfigDict(plain)


def _restore(
  training: retrain_job.Training, folder: epath.Path, average: bool
) -> tuple[Any, int]:
  """Returns the variables of the last checkpoint as f32, and its step."""
  template = retrain_job.init_state(training)
  with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
    restored = checkpoints.restore_latest(template)
  want = training.schedule.num_steps
  if restored is None or restored.step != want:
    found = 'none' if restored is None else f'that of step {restored.step}'
    raise ValueError(
      f'{folder} has no whole checkpoint of its last step {want}, but {found}: '
      'train again in a new --workdir.'
    )
  state = restored.state
  chosen = state.average if average else state.variables
  to_float32 = lambda v: np.asarray(v, np.float32)  # noqa: E731
  return jax.tree.map(to_float32, chosen), restored.step


def _digest(variables: Any) -> str:
  digest = hashlib.sha256()
  for path, value in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode() + value.tobytes())
  return digest.hexdigest()


def _export(task: Task, path: epath.Path) -> dict[str, Any]:
  """Writes all files and compares them with JAX; returns export.json."""
  from hwdarts_jax.harness import convert

  training = task.training
  samples = _normalized(_draw(training.train, task.config.export.num_samples))
  test = _draw(training.test, task.config.export.num_images)
  images = _normalized(test)
  logits = _logits(task, images)
  function = convert.network(training.network.spec, task.variables)
  files = {}
  bar = tqdm.tqdm(FILES.items(), desc='export', unit='file', dynamic_ncols=True)
  for (model_format, dtype), name in bar:
    converted = convert.convert(
      function,
      training.network.spec.input_shape,
      convert.Target(model_format, dtype),
      'the network',
      samples,
    )
    workdir_lib.write_bytes_atomic(path / name, converted.data)
    files[name] = {
      'format': model_format,
      'dtype': dtype,
      'bytes': len(converted.data),
      'sha256': hashlib.sha256(converted.data).hexdigest(),
      'num_ops': converted.num_ops,
      **_compare(converted.data, model_format, images, logits, test.labels),
    }
  for name, found in files.items():
    difference = found['max_relative_difference']
    if found['dtype'] == 'float32' and not difference <= _MAX_DIFFERENCE:
      raise UserError(
        f'{path / name} computes something else than JAX: its logits differ '
        f'by {difference:.1e} of the largest; it must be at most '
        f'{_MAX_DIFFERENCE:g}. Do not use it.'
      )
  record = export_report.record(
    task, files, _accuracy(logits, test.labels), len(images), len(samples)
  )
  workdir_lib.write_json_atomic(path / RESULT, record)
  return record


def _draw(dataset: feeding.Images, count: int) -> sources.Dataset:
  """Some images of a set, always the same; all of them if `count` is 0."""
  order = np.random.default_rng(_SEED).permutation(dataset.num_examples)
  return dataset.take(order[: count or None]).in_memory()


def _normalized(dataset: sources.Dataset) -> np.ndarray:
  """The images as the network reads them, f32[N, H, W, C]."""
  return np.asarray(
    pipeline.normalize(jnp.asarray(dataset.images), dataset.mean, dataset.std)
  )


def _logits(task: Task, images: np.ndarray) -> np.ndarray:
  """What JAX makes of the images, f32[N, num_classes]."""
  training = task.training
  # In the evaluation of the training: the files are made from the other one.
  network = network_lib.Network(
    training.network.spec,
    dataclasses.replace(training.network.context, dtype=jnp.float32),
  )
  size = min(training.config.retrain.eval_batch_size, len(images))
  batches = [
    images[i : i + size] for i in range(0, len(images) - size + 1, size)
  ]
  if len(images) % size:
    batches.append(images[-size:])
  apply = jax.jit(lambda v, x: network.apply(v, x, None, train=False))
  (compiled,) = loop_lib.compile_together(
    'compiling the network', [(apply, (task.variables, batches[0]))], False
  )
  parts = [np.asarray(compiled(task.variables, b)) for b in batches]
  if len(images) % size:
    parts[-1] = parts[-1][-(len(images) % size) :]
  return np.concatenate(parts)


def _compare(
  data: bytes,
  model_format: str,
  images: np.ndarray,
  logits: np.ndarray,
  labels: np.ndarray,
) -> dict[str, float]:
  """How far a file is from JAX, and how good it is."""
  from hwdarts_jax.harness import execute

  got = execute.load(data, model_format)(images).reshape(logits.shape)
  largest = max(float(np.abs(logits).max()), 1e-30)
  return {
    'max_relative_difference': float(np.abs(got - logits).max()) / largest,
    'top1_agreement': float((got.argmax(-1) == logits.argmax(-1)).mean()),
    'accuracy': _accuracy(got, labels),
  }


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
  return float((logits.argmax(-1) == labels).mean())
