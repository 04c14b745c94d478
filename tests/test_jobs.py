"""What the jobs search and retrain leave behind, and what moves them."""

import io
import json

import numpy as np
from PIL import Image
import pytest
from tensorboardX.proto import event_pb2
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.data import sources
from hwdarts_jax.jobs import search as search_job
from hwdarts_jax.latency import cost
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype

_TFDS = tiny_runs.ROOT.parent / 'shared' / 'data' / 'tfds'


def _record(workdir, name='genotype.json'):
  return json.loads((workdir / name).read_text())


def _sum_of_entries(table, spec, genotype):
  """Milliseconds of a derived network, entry by entry."""
  derived = discretize.discretize(spec, genotype)
  entries = table_lib.load(table).entries
  return sum(
    entries[site.key(op)].value_ms
    for site in derived.sites()
    for op in site.ops
  )


def test_a_workdir_says_what_made_it(finished, table):
  """config.json has the resolved config, the versions and the inputs."""
  record = _record(finished[0], 'config.json')
  config = tiny_runs.tiny('get_config')()
  config.latency.table = str(table)
  config.space.search.update(tiny_runs.tiny('SPEC'))  # zeros are filled in
  config.network.evaluation = 'plain'  # what 'auto' stands for on a CPU
  assert record['config'] == json.loads(config.to_json())
  assert {'python', 'jax', 'jaxlib', 'numpy'} <= set(record['versions'])
  search = spaces.make('darts', **tiny_runs.tiny('SPEC'))
  deploy = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  assert record['hashes'] == {
    'search_spec': search.spec_hash(),
    'deploy_spec': deploy.spec_hash(),
    'latency_table': table_lib.load(table).table_hash(),
  }


def test_every_figure_is_that_of_its_spec(finished, table):
  """Latency, MACs and params are those of the deployed network, not of the
  one that was searched.
  """
  record = _record(finished[0])
  genotype = Genotype.from_dict(record['genotype'])
  deploy = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  derived = discretize.discretize(deploy, genotype)
  figures = record['deploy']
  assert record['space'] == 'darts' == genotype.space
  assert figures['device'] == 'toy'
  assert figures['spec_hash'] == deploy.spec_hash()
  assert figures['latency_table_hash'] == table_lib.load(table).table_hash()
  assert figures['macs'] == cost.total(derived, cost.macs)
  assert figures['params'] == cost.total(derived, cost.params)
  searched = discretize.discretize(
    spaces.make('darts', **tiny_runs.tiny('SPEC')), genotype
  )
  assert figures['macs'] > 1.5 * cost.total(searched, cost.macs)
  np.testing.assert_allclose(
    figures['predicted_ms'], _sum_of_entries(table, deploy, genotype), rtol=1e-6
  )


def test_the_record_agrees_with_the_last_row_and_the_checkpoint(finished):
  """The genotype is what the alphas of the last checkpoint say."""
  record, rows = _record(finished[0]), tiny_runs.rows(finished[0])
  state = tiny_runs.last_state(finished[0])
  spec = spaces.make('darts', **tiny_runs.tiny('SPEC'))
  genotype = discretize.derive(spec, {'reduce': state["['alphas']['reduce']"]})
  assert record['genotype'] == genotype.to_dict()
  assert record['search']['num_steps'] == rows[-1]['step'] == 16
  assert record['search']['val_loss'] == rows[-1]['val_loss']
  assert record['deploy']['expected_ms_at_start'] == rows[0]['expected_ms']
  assert record['deploy']['expected_ms_at_end'] == rows[-1]['expected_ms']
  assert 0 <= record['search']['supernet_val_accuracy'] <= 1
  alphas = state["['alphas']['reduce']"]
  gates = np.exp(alphas) / np.exp(alphas).sum(-1, keepdims=True)
  np.testing.assert_allclose(rows[-1]['gates/reduce'], gates, rtol=1e-5)


def test_expected_latency_is_that_of_the_gates(finished, table):
  """The last row's lies between those of its gates before and after, where an
  op counts by its gate among the ops that may win.
  """
  row = tiny_runs.rows(finished[0])[-1]
  deploy = spaces.make('darts', **tiny_runs.tiny('DEPLOY'))
  group = deploy.groups()['reduce']
  entries = table_lib.load(table).entries
  sites = {s.row: s for s in deploy.sites() if s.group}
  fixed = sum(
    entries[s.key(s.ops[0])].value_ms for s in deploy.sites() if not s.group
  )
  # Gates of a row are those after its steps, its expectation is their mean.
  before = tiny_runs.rows(finished[0])[-2]
  low, high = sorted(
    _expectation(r['gates/reduce'], group, sites, entries, fixed)
    for r in (before, row)
  )
  assert low - 1e-4 <= row['expected_ms'] <= high + 1e-4


def _expectation(gates, group, sites, entries, fixed):
  """Mean ms of ops drawn by the gates, where none may not win."""
  total = fixed
  for number in range(len(group.edges)):
    p = np.array(gates[number])
    ms = np.array([entries[sites[number].key(o)].value_ms for o in group.ops])
    allowed = np.array([o != 'none' for o in group.ops])
    total += (p * ms * allowed).sum() / (p * allowed).sum()
  return total


def _check_png(path):
  """A picture with something on it."""
  image = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert('L'))
  assert min(image.shape) > 300
  assert image.std() > 5


def _tags(workdir):
  """Tags of scalars with their steps, over all event files."""
  found = {}
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      for value in event.summary.value:
        found.setdefault(value.tag, []).append(event.step)
      data = data[16 + size :]
  return found


def test_results_are_pictures_and_curves_too(finished, retrained):
  """search.png and retrain.png are pictures; TensorBoard has each row."""
  _check_png(finished[0] / 'search.png')
  _check_png(retrained[0] / 'retrain.png')
  for workdir, tags in (
    (finished[0], {'train_loss', 'val_loss', 'expected_ms', 'gate_entropy'}),
    (retrained[0], {'train_loss', 'train_accuracy', 'learning_rate'}),
  ):
    steps = [row['step'] for row in tiny_runs.rows(workdir)]
    found = _tags(workdir)
    assert tags <= set(found)
    assert all(found[tag] == steps for tag in tags)


def test_the_summary_has_the_figures_of_the_record(finished):
  """What a person reads is what the file says."""
  record, out = _record(finished[0]), finished[1].out
  assert record['text'] in out
  assert 'on toy' in out
  assert f'{record["deploy"]["predicted_ms"]:.2f} ms' in out
  assert f'{record["deploy"]["macs"] / 1e6:.2f} M' in out
  accuracy = 100 * record['search']['supernet_val_accuracy']
  assert f'{accuracy:.1f} % on the validation half' in out


def test_a_dearer_latency_finds_a_faster_network(nursery, command, tmp_path):
  """With everything else equal, the multiplier alone makes it faster."""
  found = {}
  for multiplier in (0.0, 20.0):
    workdir = tmp_path / str(multiplier)
    result = nursery.run(
      *command(
        workdir,
        **{
          'objective.multiplier': multiplier,
          'relaxation.name': 'softmax',
          'search.num_steps': 40,
          'search.log_every_steps': 10,
          'search.checkpoint_every_steps': 40,
        },
      )
    )
    assert result.code == 0, result.err
    found[multiplier] = _record(workdir)['deploy']
  free, dear = found[0.0], found[20.0]
  assert dear['predicted_ms'] < free['predicted_ms'] - 0.5
  assert dear['expected_ms_at_end'] < free['expected_ms_at_end'] - 0.5
  # Nothing on an edge is quicker than what a dear search ends with.
  assert dear['predicted_ms'] <= dear['random_ms']['p5'] + 1e-6


def test_a_training_reports_the_deployed_figures_of_its_search(
  finished, retrained
):
  """The same genotype has the same latency, MACs and params as there."""
  search, training = (
    _record(finished[0]),
    _record(retrained[0], 'retrain.json'),
  )
  assert training['genotype'] == search['genotype']
  for name in (
    'spec',
    'spec_hash',
    'device',
    'latency_table_hash',
    'predicted_ms',
    'macs',
    'params',
  ):
    assert training['deploy'][name] == search['deploy'][name], name
  trained = training['trained']
  genotype = Genotype.from_dict(training['genotype'])
  spec = discretize.discretize(
    spaces.make('darts', **tiny_runs.tiny('SPEC')), genotype
  )
  assert trained['macs'] == cost.total(spec, cost.macs)
  state = tiny_runs.last_state(retrained[0])
  size = sum(
    v.size
    for k, v in state.items()
    if 'variables' in str(k) and "['params']" in str(k)
  )
  assert trained['params'] == size


def test_a_training_learns(retrained):
  """Loss falls over the epochs, and the test set is not left to chance."""
  rows = tiny_runs.rows(retrained[0])
  assert [r['step'] for r in rows] == [44, 88, 132, 176]
  assert rows[-1]['train_loss'] < rows[0]['train_loss'] - 0.1
  record = _record(retrained[0], 'retrain.json')
  assert record['trained']['test_accuracy'] > 0.2  # chance is 0.1


@pytest.fixture(scope='module')
def inherited(nursery, command, tmp_path_factory):
  """A longer search, and short trainings with and without its params."""
  folder = tmp_path_factory.mktemp('inherited')
  search = folder / 'search'
  result = nursery.run(
    *command(
      search,
      **{
        'relaxation.name': 'softmax',
        'objective.multiplier': 0.0,
        'search.batch_size': 64,
        'search.num_steps': 240,
        'search.log_every_steps': 40,
        'search.checkpoint_every_steps': 240,
        'params_optimizer.learning_rate': 0.1,
      },
    )
  )
  assert result.code == 0, result.err
  runs = {}
  for inherit in (True, False):
    workdir = folder / f'retrain_{inherit}'
    result = nursery.run(
      *command(
        workdir,
        **{
          'job': 'retrain',
          'relaxation.name': 'softmax',
          'retrain.search_workdir': search,
          'retrain.inherit': inherit,
          'retrain.num_epochs': 1,
          'retrain.ema_decay': 0.0,
          'params_optimizer.learning_rate': 0.1,
          # So that what was taken can still be seen at the end.
          'retrain.optimizer.learning_rate': 0.0,
          'retrain.optimizer.weight_decay': 0.0,
        },
      )
    )
    assert result.code == 0, result.err
    runs[inherit] = workdir, result
  return search, runs


def test_params_of_the_supernet_are_taken_to_the_bit(inherited):
  """All that it has are equal; only affine batch norms are fresh."""
  search, runs = inherited
  source = tiny_runs.last_state(search)
  state = tiny_runs.last_state(runs[True][0])
  fresh = tiny_runs.last_state(runs[False][0])
  taken, missing = [], []
  for name, value in state.items():
    if not str(name).startswith("['variables']['params']"):
      continue
    theirs = name.removeprefix("['variables']")
    if theirs not in source:
      missing.append(name)
      continue
    taken.append(name)
    np.testing.assert_array_equal(value, source[theirs], name, strict=True)
  assert len(taken) >= 4
  kernels = [n for n in taken if 'kernel' in n]
  assert any((state[n] != fresh[n]).any() for n in kernels)
  assert all('BatchNorm' in n or 'bn' in n.lower() for n in missing), missing
  said = f'fresh are {len(missing)} arrays'
  assert said in runs[True][1].out


def test_inherited_params_start_ahead_of_fresh_ones(inherited):
  """Without a single update the loss is lower than at random params."""
  runs = inherited[1]
  with_, without = (tiny_runs.rows(runs[k][0])[0] for k in (True, False))
  assert with_['train_loss'] < without['train_loss'] - 0.1
  assert with_['train_accuracy'] > without['train_accuracy'] + 0.05
  record = _record(runs[True][0], 'retrain.json')['trained']
  assert record['inherited'] is True
  assert 'Trained from inherited params' in runs[True][1].out


def test_params_of_a_fused_supernet_are_taken_as_well(
  nursery, command, tmp_path
):
  """A GPU stacks them, the machine that trains on need not."""
  search, trained = tmp_path / 'search', tmp_path / 'trained'
  result = nursery.run(*command(search, **{'network.evaluation': 'fused'}))
  assert result.code == 0, result.err
  assert 'network.evaluation' not in result.out  # the next job knows it
  settings = {
    'job': 'retrain',
    'retrain.search_workdir': search,
    'retrain.inherit': True,
    'retrain.num_epochs': 1,
  }
  result = nursery.run(*command(trained, **settings))
  assert result.code == 0, result.err
  # Affine batch norms of cells, which supernets lack; all else was found.
  own = [
    name
    for name in tiny_runs.last_state(trained)
    if name.startswith("['variables']['params']['cell_") and "['scale']" in name
  ]
  assert own
  assert f'fresh are {2 * len(own)} arrays' in result.out


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'size', 'channels'), [('fashion_mnist', 28, 1), ('cifar10', 32, 3)]
)
def test_real_images_resident_or_streamed_are_the_same_search(
  monkeypatch, tmp_path, name, size, channels
):
  """Where the images live does not change one bit of the alphas."""
  if not (_TFDS / name).is_dir():
    pytest.skip(f'{name} is not prepared in ../shared/data/tfds')
  dataset = sources.load(name, 'train', str(_TFDS))
  # Reading takes most of the time, and the rest goes with the size.
  small = dataset.take(np.arange(0, dataset.num_examples, 20))
  monkeypatch.setattr(sources, 'load', lambda *unused: small)
  monkeypatch.chdir(tiny_runs.ROOT)
  table = tmp_path / 'toy.json'
  tiny_runs.write_table(table, image_size=size, image_channels=channels)
  states = []
  for resident in ('true', 'false'):
    config = tiny_runs.tiny('get_config')()
    config.update_from_flattened_dict(
      {
        'num_devices': 1,
        'latency.table': str(table),
        'data.name': name,
        'data.resident': resident,
        'data.augment.flip': True,
        'search.num_steps': 4,
      }
    )
    config.space.deploy.update(image_size=size, image_channels=channels)
    search_job.run(config, str(tmp_path / resident))
    assert _record(tmp_path / resident)['search']['data'] == name
    states.append(tiny_runs.last_state(tmp_path / resident))
  assert states[0].keys() == states[1].keys()
  for key, value in states[0].items():
    np.testing.assert_array_equal(states[1][key], value, key)
  alphas = states[0]["['alphas']['reduce']"]
  assert np.abs(alphas).max() > 0.1  # they moved


def test_streaming_is_asked_for_on_the_command_line(
  nursery, command, finished, tmp_path
):
  """--config.data.resident=false gives the search of resident images."""
  workdir = tmp_path / 'run'
  result = nursery.run(*command(workdir, **{'data.resident': 'false'}))
  assert result.code == 0, result.err
  wanted, state = map(tiny_runs.last_state, (finished[0], workdir))
  for key, value in wanted.items():
    np.testing.assert_array_equal(state[key], value, key)
