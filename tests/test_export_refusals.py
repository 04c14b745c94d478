"""What cannot be exported is said, and nothing is left of it."""

import shutil

import jax
import pytest
import tflite_extra

from hwdarts_jax.harness import convert
from hwdarts_jax.jobs import export

tflite_extra.skip_module_without()


def test_a_file_that_computes_something_else_is_refused(
  configure_export, monkeypatch, tmp_path
):
  """It is named, and the export is not finished."""
  network = convert.network

  def other(spec, variables=None):
    if variables is not None:
      variables = jax.tree.map(lambda v: v * 1.001, variables)
    return network(spec, variables)

  monkeypatch.setattr(convert, 'network', other)
  with pytest.raises(ValueError, match='float32.tflite computes something'):
    export.run(configure_export(), str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'export.json').exists()


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'export.retrain_workdir': ''}, ['--config.export.retrain_workdir']),
    ({'export.retrain_workdir': 'no/where'}, ['no/where', 'no folder']),
    ({'export.retrain_workdir': 'search'}, ['no retrain.json', 'its end']),
    ({'export.retrain_workdir': 'torn'}, ['retrain.json', 'not JSON']),
    ({'export.retrain_workdir': 'empty'}, ['retrain.json', "'trained'"]),
    ({'export.retrain_workdir': 'early'}, ['last step 176', 'step 132']),
    ({'export.retrain_workdir': 'bare'}, ['last step 176', 'none']),
    ({'space.deploy.num_cells': 2}, ['space.deploy.num_cells is 2', 'with 1']),
    ({'space.name': 'nasbench201'}, ['space.name', 'nasbench201', 'darts']),
    ({'space.search.features': 6}, ['space.search.features is 6', '2']),
    ({'data.name': 'mnist'}, ['data.name', 'mnist', 'digits']),
    ({'export.runner': 'hots'}, ['export.runner', 'hots', 'host']),
    ({'export.runner': 'host:speed=1'}, ['speed', 'threads']),
    ({'export.num_samples': 0}, ['export.num_samples', 'at least 1']),
    ({'export.rounds': 0}, ['export.rounds', 'at least 1']),
  ],
)
def test_an_export_that_cannot_be_is_one_message(
  configure_export, finished, retrained, tmp_path, overrides, words
):
  """It names the field or the file, and makes no workdir."""
  name = overrides.get('export.retrain_workdir')
  folder = tmp_path / 'training'
  if name == 'search':
    folder = finished[0]
  elif name in _DAMAGE:
    shutil.copytree(retrained[0], folder)
    _DAMAGE[name](folder)
  if name == 'search' or name in _DAMAGE:
    overrides = overrides | {'export.retrain_workdir': str(folder)}
  with pytest.raises(ValueError) as error:
    export.run(configure_export(overrides), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
  message = str(error.value)
  assert all(w in message for w in words), message


_DAMAGE = {
  'torn': lambda folder: (folder / 'retrain.json').write_text('{"trained'),
  'empty': lambda folder: (folder / 'retrain.json').write_text('{}'),
  'early': lambda folder: shutil.rmtree(folder / 'checkpoints' / '176'),
  'bare': lambda folder: shutil.rmtree(folder / 'checkpoints'),
}


def test_a_missing_package_is_found_before_anything_is_read(
  configure_export, monkeypatch, tmp_path
):
  """The message says which extra has it."""
  find_spec = convert.importlib.util.find_spec
  monkeypatch.setattr(
    convert.importlib.util,
    'find_spec',
    lambda name: None if name == 'onnxruntime' else find_spec(name),
  )
  config = configure_export({'export.retrain_workdir': 'no/where'})
  with pytest.raises(ValueError, match=r'onnxruntime.*hwdarts_jax\[tflite\]'):
    export.run(config, str(tmp_path / 'run'))
