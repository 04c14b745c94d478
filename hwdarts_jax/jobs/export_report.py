"""What an export says: the record on disk and the text on the screen."""

from __future__ import annotations

from typing import Any

from etils import epath

from hwdarts_jax.jobs import common
from hwdarts_jax.runtime import workdir as workdir_lib

RESULT = 'export.json'
# What is written, by format and type.
FILES = {
  ('tflite', 'float32'): 'network_float32.tflite',
  ('tflite', 'float16'): 'network_float16.tflite',
  ('tflite', 'int8'): 'network_int8.tflite',
  ('onnx', 'float32'): 'network.onnx',
}


def record(
  task: Any,
  files: dict[str, dict[str, Any]],
  accuracy: float,
  num_images: int,
  num_samples: int,
) -> dict[str, Any]:
  """The content of export.json before anything is measured.

  Args:
    task: the export.
    files: what was written and how it compares with JAX, by name.
    accuracy: of JAX on the same images.
    num_images: how many they are.
    num_samples: training images that int8 ranges were taken from.
  """
  training = task.training
  role = task.trained['trained']['role']
  return {
    'space': training.genotype.space,
    'genotype': training.genotype.to_dict(),
    'text': training.text,
    'seed': training.config.seed,
    'trained': {
      'workdir': task.config.export.retrain_workdir,
      'step': task.step,
      'averaged': task.config.export.average,
      'role': role,
      'spec': training.trained,
      'spec_hash': training.space.spec_hash(),
      'data': training.config.data.name,
    },
    'input': {
      'shape': [1, *training.network.spec.input_shape],
      'layout': 'NHWC in TFLite, NCHW in ONNX',
      'value': '(pixel / 255 - mean) / std; int8 files quantize that',
      'mean': list(training.train.mean),
      'std': list(training.train.std),
    },
    'output': 'logits of the classes',
    'num_samples': num_samples,
    'checked': {'test_images': num_images, 'jax_accuracy': accuracy},
    'files': files,
    'predicted': _predicted(task),
    'measured': {},
  }


def _predicted(task: Any) -> dict[str, Any]:
  """Predicted ms of the network in each spec, None where nothing is known."""
  training = task.training
  latency = training.latency
  spec = task.config.space.deploy.to_dict()
  ms: dict[str, float | None] = {}
  if latency is None:
    ms = dict.fromkeys(task.specs())
    return {'device': None, 'spec': spec, 'ms': ms}
  deploy_ms = latency.of(training.specs.deploy, training.genotype)
  if 'deploy' in task.specs():
    ms['deploy'] = deploy_ms
    try:
      model = common.load_latency(task.config.latency)(training.space)
      ms['trained'] = model.of(training.space, training.genotype)
    except ValueError:  # the table does not cover what was trained
      ms['trained'] = None
  else:
    ms['trained'] = deploy_ms
  return {'device': latency.device, **latency.source, 'spec': spec, 'ms': ms}


def of(path: epath.Path) -> str:
  """The summary of an export, read from its workdir."""
  content = workdir_lib.read_json(path / RESULT)
  trained, checked = content['trained'], content['checked']
  params = 'averaged' if trained['averaged'] else 'last'
  lines = [
    '',
    f'Exported ({content["space"]}, seed {content["seed"]}):',
    f'  {content["text"]}',
    f'As trained ({trained["role"]} spec: {_settings(trained["spec"])}), '
    f'{params} params, on {checked["test_images"]} test images of '
    f'{trained["data"]}:',
    f'  {"":24} {"size":>10} {"accuracy":>9} {"as JAX":>8} {"difference":>11}',
    f'  {"JAX":24} {"":10} {100 * checked["jax_accuracy"]:7.2f} %',
  ]
  for name, found in content['files'].items():
    lines.append(
      f'  {name:24} {found["bytes"] / 1e3:7.1f} kB '
      f'{100 * found["accuracy"]:7.2f} % '
      f'{100 * found["top1_agreement"]:6.1f} % '
      f'{found["max_relative_difference"]:11.1e}'
    )
  for runner, measured in content['measured'].items():
    lines += _timed(runner, measured, content['predicted'])
  if not content['measured']:
    lines += [
      'Nothing was measured (export.runner is empty).',
      *_alone(content['predicted']),
    ]
  lines.append(
    f'Everything is in {path}: {", ".join(content["files"])}, {RESULT}, '
    'config.json'
  )
  return '\n'.join(lines)


def _timed(
  runner: str, measured: dict[str, Any], predicted: dict[str, Any]
) -> list[str]:
  """Measured ms by network and type, beside the predicted ones."""
  device = measured['device']
  threads = f', {device["threads"]} thread(s)' if device['threads'] else ''
  networks = measured['networks']
  known = predicted['device']
  dtypes = list(dict.fromkeys(d for found in networks.values() for d in found))
  heading = ''.join(f' {d:>9}' for d in dtypes)
  lines = [
    f'Milliseconds of one image by {runner} ({device["soc"] or "unknown"}, '
    f'{device["runtime"]} {device["runtime_version"] or ""}{threads}):',
    f'  {"":24}{heading}' + (f'   predicted for {known}' if known else ''),
  ]
  for network, found in networks.items():
    values = [(found.get(d) or {}).get('ms') for d in dtypes]
    expected = predicted['ms'].get(network)
    lines.append(
      f'  {"as " + _WORDS[network]:24}'
      + ''.join(f' {_ms(v):>9}' for v in values)
      + f'   {_ms(expected)}'
    )
  if 'deploy' in networks:
    lines.append(
      f'  (as deployed: {_settings(predicted["spec"])}; random weights, for '
      'its latency alone)'
    )
  lines += [f'  {remark}' for remark in measured['remarks']]
  return lines


_WORDS = {'trained': 'trained', 'deploy': 'deployed'}


def _alone(predicted: dict[str, Any]) -> list[str]:
  return [
    f'  predicted as {_WORDS[n]}: {_ms(ms)} ms on {predicted["device"]}'
    for n, ms in predicted['ms'].items()
    if ms is not None
  ]


def _ms(value: float | None) -> str:
  if value is None:
    return '-'
  return f'{value:.4f}' if value < 1 else f'{value:.2f}'


def _settings(spec: dict[str, Any]) -> str:
  return ', '.join(f'{k} {v}' for k, v in spec.items())
