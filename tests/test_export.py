"""What the job export writes, and what stops it."""

import hashlib
import json
import shutil

from flax import traverse_util
import jax
import numpy as np
import pytest
import tflite_extra
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.data import sources
from hwdarts_jax.harness import execute, runners
from hwdarts_jax.jobs import export
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype

tflite_extra.skip_module_without()

FILES = {
  'network_float32.tflite': ('tflite', 'float32'),
  'network_float16.tflite': ('tflite', 'float16'),
  'network_int8.tflite': ('tflite', 'int8'),
  'network.onnx': ('onnx', 'float32'),
}


def _record(workdir):
  return json.loads((workdir / 'export.json').read_text())


@pytest.fixture(scope='module')
def exported(nursery, command, retrained, tmp_path_factory):
  """Workdir and result of an export of the tiny training, timed on the host."""
  workdir = tmp_path_factory.mktemp('exported') / 'export'
  overrides = {'job': 'export', 'export.retrain_workdir': retrained[0]}
  return nursery.finish(workdir, command(workdir, **overrides))


def _trained_logits(retrained, images):
  """What the averaged params of the last checkpoint make of images."""
  record = json.loads((retrained[0] / 'retrain.json').read_text())
  spec = discretize.discretize(
    spaces.make('darts', **tiny_runs.tiny('SPEC')),
    Genotype.from_dict(record['genotype']),
  )
  flat = {
    tuple(k.strip("[']").split("']['")): v
    for k, v in tiny_runs.last_state(retrained[0]).items()
    if k.startswith("['average']")
  }
  variables = traverse_util.unflatten_dict(flat)['average']
  network = network_lib.Network(spec)
  return np.asarray(network.apply(variables, images, train=False))


def _test_images(count):
  """The first test images that an export draws, normalized, and labels."""
  test = sources.load('digits', 'test')
  order = np.random.default_rng(0).permutation(test.num_examples)[:count]
  images = test.images[order] / 255
  images = (images - np.array(test.mean)) / np.array(test.std)
  return images.astype(np.float32), test.labels[order]


def test_files_compute_what_the_checkpoint_computes(exported, retrained):
  """Read back from disk and run, they give the figures of export.json."""
  record = _record(exported[0])
  images, labels = _test_images(record['checked']['test_images'])
  want = _trained_logits(retrained, images)
  accuracy = (want.argmax(-1) == labels).mean()
  assert record['checked']['jax_accuracy'] == accuracy
  assert list(record['files']) == list(FILES)
  for name, (model_format, dtype) in FILES.items():
    found = record['files'][name]
    data = (exported[0] / name).read_bytes()
    assert found['sha256'] == hashlib.sha256(data).hexdigest()
    assert (found['format'], found['dtype']) == (model_format, dtype)
    got = execute.load(data, model_format)(images)
    difference = np.abs(got - want).max() / np.abs(want).max()
    bound = {'float32': 1e-5, 'float16': 3e-3, 'int8': 0.3}[dtype]
    assert difference <= bound, name
    np.testing.assert_allclose(
      found['max_relative_difference'], difference, rtol=1e-2, atol=1e-6
    )
    assert found['accuracy'] == (got.argmax(-1) == labels).mean()
    assert found['top1_agreement'] == (got.argmax(-1) == want.argmax(-1)).mean()
    assert found['top1_agreement'] >= (0.8 if dtype == 'int8' else 1.0), name


def test_int8_ranges_are_those_of_training_images(exported):
  """The input of the int8 file spans what normalized digits span."""
  from ai_edge_litert.interpreter import Interpreter

  data = (exported[0] / 'network_int8.tflite').read_bytes()
  interpreter = Interpreter(model_content=data)
  (image,) = interpreter.get_input_details()
  scale, zero = image['quantization']
  train = sources.load('digits', 'train')
  wanted = [(pixel - train.mean[0]) / train.std[0] for pixel in (0.0, 1.0)]
  spanned = [(level - zero) * scale for level in (-128, 127)]
  np.testing.assert_allclose(spanned, wanted, atol=2 * scale)


def test_predicted_and_measured_are_of_the_same_network(exported, table):
  """Both of the deploy spec; no table knows the one that was trained."""
  record = _record(exported[0])
  genotype = Genotype.from_dict(record['genotype'])
  deploy = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  entries = table_lib.load(table).entries
  total = sum(
    entries[site.key(op)].value_ms
    for site in discretize.discretize(deploy, genotype).sites()
    for op in site.ops
  )
  np.testing.assert_allclose(record['predicted']['ms']['deploy'], total)
  assert record['predicted']['ms']['trained'] is None
  assert record['predicted']['device'] == 'toy'
  networks = record['measured']['host']['networks']
  assert set(networks) == {'trained', 'deploy'}
  for found in networks.values():
    assert set(found) == {'float32', 'float16', 'int8'}
    assert all(x['ms'] > 0 and x['runs'] >= 60 for x in found.values())
  assert record['measured']['host']['device']['runtime'] == 'LiteRT'


def test_the_summary_has_the_figures_of_the_record(exported):
  """What a person reads is what the file says."""
  record, out = _record(exported[0]), exported[1].out
  for name, found in record['files'].items():
    (line,) = (x for x in out.splitlines() if x.strip().startswith(name))
    assert f'{100 * found["accuracy"]:.2f} %' in line
    assert f'{found["max_relative_difference"]:.1e}' in line
  (line,) = (x for x in out.splitlines() if x.strip().startswith('as deployed'))
  measured = record['measured']['host']['networks']['deploy']['float32']['ms']
  assert f'{measured:.4f}' in line
  assert f'{record["predicted"]["ms"]["deploy"]:.2f}' in line


def test_a_finished_export_is_not_overwritten(
  exported, configure_export, capsys
):
  """The same command says so, and shows the summary again."""
  before = {p.name: p.read_bytes() for p in exported[0].iterdir()}
  config = configure_export({'num_devices': 0})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(export.retrain_job.sharding, 'make_mesh', _one_device)
    export.run(config, str(exported[0]))
  out = capsys.readouterr().out
  assert 'has its files already' in out and 'network_int8.tflite' in out
  after = {p.name: p.read_bytes() for p in exported[0].iterdir()}
  assert {**after, '.lock': b''} == {**before, '.lock': b''}


_make_mesh = export.retrain_job.sharding.make_mesh


def _one_device(num_devices):
  """The mesh of the process that made the run, which had one device."""
  del num_devices
  return _make_mesh(1)


class _Runner(runners.Runner):
  """A device that says 1, 2, 3 ms and so on, and may fail."""

  dtypes = runners.DTYPES

  def __init__(self, device_error=None, model_error=''):
    self.device_error = device_error
    self.model_error = model_error
    self.seen = []
    self.data = {}

  def prepare(self):
    if self.device_error == 'prepare':
      raise runners.DeviceError('no device is connected.')
    return runners.Description(
      'chip', 'toy runtime', '1', None, 1, None, 'guess', remarks=('warm',)
    )

  def measure(self, model, protocol):
    self.data[tuple(model.name.split('/'))] = model.path.read_bytes()
    if self.device_error == len(self.seen):
      raise runners.DeviceError('the device vanished.')
    if model.dtype == self.model_error:
      raise runners.ModelError(f'{model.name} was refused by the delegate.')
    self.seen.append(model.name)
    return runners.Reading(float(len(self.seen)), 7)


@pytest.fixture
def device(monkeypatch):
  """Makes `runners.make` give this runner."""

  def use(**settings):
    runner = _Runner(**settings)
    monkeypatch.setattr(runners, 'make', lambda text: runner)
    return runner

  return use


def test_a_device_that_fails_costs_no_file(
  configure_export, device, tmp_path, capsys
):
  """Files are kept and checked; the same command measures what is left."""
  workdir = tmp_path / 'run'
  config = configure_export({'export.rounds': 3})
  for error in ('prepare', 4):
    device(device_error=error)
    with pytest.raises(ValueError, match='All files are kept in .*run') as e:
      export.run(config, str(workdir))
    assert 'no device' in str(e.value) or 'vanished' in str(e.value)
    assert _record(workdir)['measured'] == {}
  made = (workdir / 'network_int8.tflite').stat().st_mtime_ns
  device()
  export.run(config, str(workdir))
  assert (workdir / 'network_int8.tflite').stat().st_mtime_ns == made
  measured = _record(workdir)['measured']['host']
  # In three rounds over six models: the first is read as 1, 7 and 13.
  assert measured['networks']['trained']['float32'] == {
    'ms': 7.0,
    'spread_ms': 12.0,
    'rounds': 3,
    'runs': 21,
  }
  assert measured['remarks'] == ['warm']
  assert 'chip, toy runtime 1' in capsys.readouterr().out
  # On another device the same files are timed.
  runner = device()
  export.run(configure_export({'export.runner': 'adb'}), str(workdir))
  assert set(_record(workdir)['measured']) == {'host', 'adb'}
  assert len(runner.seen) == 6


def test_a_model_that_a_device_refuses_is_named(
  configure_export, device, tmp_path
):
  """The others are measured, and the exit code is that of an error."""
  device(model_error='int8')
  with pytest.raises(ValueError, match='trained/int8 was refused'):
    export.run(configure_export(), str(tmp_path / 'run'))
  networks = _record(tmp_path / 'run')['measured']['host']['networks']
  assert networks['deploy']['float16']['ms'] > 0
  assert networks['deploy']['int8']['ms'] is None
  assert 'refused' in networks['deploy']['int8']['failed']
  # A delegate that was busy may not be the next time.
  device()
  export.run(configure_export(), str(tmp_path / 'run'))
  networks = _record(tmp_path / 'run')['measured']['host']['networks']
  assert networks['deploy']['int8']['ms'] > 0


def test_a_runner_is_given_no_type_that_it_does_not_measure(
  configure_export, device, tmp_path
):
  runner = device()
  runner.model_format, runner.dtypes = 'onnx', ('float16',)
  export.run(
    configure_export({'export.runner': 'stick'}), str(tmp_path / 'run')
  )
  found = _record(tmp_path / 'run')['measured']['stick']['networks']
  assert [set(x) for x in found.values()] == [{'float16'}] * 2


@pytest.mark.parametrize(
  ('model_format', 'dtypes'),
  [('onnx', {'float32', 'float16'}), ('jax', {'float32', 'bfloat16'})],
)
def test_a_runner_is_given_files_of_its_format(
  configure_export, device, tmp_path, model_format, dtypes
):
  """Both networks, in the types that its runtimes know."""
  runner = device()
  runner.model_format = model_format
  export.run(
    configure_export({'export.runner': 'board'}), str(tmp_path / 'run')
  )
  found = _record(tmp_path / 'run')['measured']['board']['networks']
  assert {name: set(x) for name, x in found.items()} == {
    'trained': dtypes,
    'deploy': dtypes,
  }
  for (network, dtype), data in runner.data.items():
    if model_format == 'onnx':
      # Runtimes convert by themselves, and read the file that was checked.
      kept = (tmp_path / 'run' / 'network.onnx').read_bytes()
      assert (data == kept) == (network == 'trained'), dtype
    else:
      (image,) = jax.export.deserialize(bytearray(data)).in_avals
      assert (image.shape, str(image.dtype)) == ((1, 8, 8, 1), dtype)


def test_files_that_were_changed_are_not_measured(
  exported, configure_export, device, tmp_path
):
  """A latency belongs to the file that was checked."""
  workdir = tmp_path / 'run'
  config = configure_export({'export.runner': ''})
  export.run(config, str(workdir))
  assert _record(workdir)['measured'] == {}
  shutil.copy(
    exported[0] / 'network_int8.tflite', workdir / 'network_float16.tflite'
  )
  device()
  with pytest.raises(ValueError, match='network_float16.tflite was changed'):
    export.run(configure_export({'export.runner': 'host'}), str(workdir))
