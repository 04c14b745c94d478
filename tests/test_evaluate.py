"""The job evaluate tells what the benchmark says, and of what cell."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from hwdarts_jax import front, oracle
from hwdarts_jax.jobs import common
from hwdarts_jax.latency import budgets, corner
from hwdarts_jax.spaces import darts, discretize, nasbench201

FOUND = nasbench201.from_arch_string(
  '|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|'
  '+|skip_connect~0|none~1|nor_conv_3x3~2|'
)
NOTHING = nasbench201.from_arch_string(
  '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'
)


def run(nursery, workdir, config='configs/raspberry_pi4.py', **overrides):
  flags = [f'--config.{k}={v}' for k, v in overrides.items()]
  return nursery.run(
    f'--config={config}',
    '--config.job=evaluate',
    f'--workdir={workdir}',
    *flags,
  )


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Files of genotypes, and the workdir of a search that found `FOUND`."""
  folder = tmp_path_factory.mktemp('genotypes')
  spec = darts.make(num_cells=3)
  alphas = {g: np.zeros(s.shape) for g, s in spec.groups().items()}
  found = {
    'found': FOUND,
    'nothing': NOTHING,
    'darts': discretize.derive(spec, alphas),
  }
  for name, genotype in found.items():
    (folder / f'{name}.json').write_text(genotype.to_json())
  search = folder / 'search'
  search.mkdir()
  (search / 'genotype.json').write_text(
    json.dumps({'genotype': NOTHING.to_dict()})
  )
  gates = np.random.default_rng(0).dirichlet(np.ones(5), 6)
  row = {'step': 1, 'gates/cell': gates.tolist()}
  (search / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  return folder, gates


@pytest.fixture(scope='module')
def evaluated(nursery, files, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('evaluate') / 'run'
  result = run(
    nursery,
    workdir,
    **{
      'evaluate.genotype': files[0] / 'found.json',
      'evaluate.budget_ms': 20.0,
    },
  )
  assert result.code == 0, result.err
  return workdir, result


def test_every_figure_is_that_of_the_oracle(evaluated):
  record = json.loads((evaluated[0] / 'evaluate.json').read_text())
  judged, device = record['judged'], 'raspberry_pi4_cpu'
  assert record['genotype'] == judged['genotype'] == FOUND.to_dict()
  assert judged['is_what_was_found'] and judged['device'] == device
  own_ms = oracle.latency(FOUND, device)
  assert judged['latency_ms'] == own_ms == record['latency_ms'][device]
  assert set(record['latency_ms']) == set(oracle.devices())
  for dataset in oracle.DATASETS:
    verdict = oracle.judge(FOUND, dataset, device, own_ms)
    within = judged['within_own_latency'][dataset]
    assert record['accuracy'][dataset] == verdict.accuracy
    assert within['regret'] == verdict.regret > 0
    assert within['rank'] == verdict.rank
    assert record['rank'][dataset] == oracle.judge(FOUND, dataset).rank
    place = judged['front'][dataset]
    cells = front.of(dataset, device)
    assert place['num_on_front'] == len(cells)
    as_good = [
      c for c in cells if oracle.accuracies(dataset)[c] >= verdict.accuracy
    ]
    fastest = min(oracle.latencies(device)[as_good])
    assert place['fastest_as_accurate_ms'] == fastest < own_ms
    by_macs = record['references'][dataset]['best by MACs']
    assert by_macs['accuracy'] >= verdict.accuracy


def test_a_budget_that_is_violated_is_called_a_failure(evaluated):
  """The cell takes 50 ms of the 20 that it may."""
  record = json.loads((evaluated[0] / 'evaluate.json').read_text())
  budget = record['judged']['within_budget']
  assert budget['budget_ms'] == 20 < record['judged']['latency_ms']
  for dataset in oracle.DATASETS:
    assert budget[dataset]['meets_budget'] is False
    assert budget[dataset]['regret'] is None
  assert evaluated[1].out.count('FAILED: too slow') == len(oracle.DATASETS)


def test_the_picture_shows_what_lies_about_the_front(evaluated):
  data = (evaluated[0] / 'evaluate.png').read_bytes()
  image = np.asarray(Image.open(io.BytesIO(data)).convert('L'))
  assert min(image.shape) > 300
  assert image.std() > 5


def test_a_cell_that_was_not_measured_is_judged_by_its_search(
  nursery, files, tmp_path
):
  """By the most probable of the 1,999 cells, and the record says so."""
  folder, gates = files
  settings = {'evaluate.search_workdir': folder / 'search'}
  result = run(nursery, tmp_path / 'run', 'configs/pixel4.py', **settings)
  assert result.code == 0, result.err
  record = json.loads((tmp_path / 'run' / 'evaluate.json').read_text())
  want = oracle.project(oracle.log_probabilities(gates), 'pixel4_cpu')
  assert record['genotype'] == NOTHING.to_dict()
  assert record['judged']['genotype'] == want.to_dict()
  assert not record['judged']['is_what_was_found']
  assert record['latency_ms']['pixel4_cpu'] is None
  assert record['rank'] is None
  assert 'most probable' in result.out


def _bounded(folder, genotype, gates, device, name='latency_ms', **bound):
  """The workdir of a search that found a cell within a target."""
  folder.mkdir()
  deploy = {
    'spec_hash': nasbench201.make().spec_hash(),
    'device': device,
    'latency_table': f'{device}.nasbench201',
    'bounds': {name: bound},
  }
  content = {'genotype': genotype.to_dict(), 'deploy': deploy}
  (folder / 'genotype.json').write_text(json.dumps(content))
  row = {'step': 1, 'gates/cell': np.asarray(gates).tolist()}
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  return folder


def test_a_search_with_a_target_is_judged_within_it(nursery, tmp_path):
  """Unless another budget is given, or another device judges."""
  device, ms = 'raspberry_pi4_cpu', oracle.latency(FOUND, 'raspberry_pi4_cpu')
  gates = np.full((6, 5), 0.2)
  search = _bounded(
    tmp_path / 'search', FOUND, gates, device, target=ms - 1, aim=ms - 2
  )
  for name, settings, want in (
    ('own', {}, (ms - 1, 'the target of the search')),
    ('given', {'evaluate.budget_ms': 60.0}, (60.0, 'evaluate.budget_ms')),
    ('other', {'evaluate.device': 'jetson_nano_gpu_fp16'}, None),
  ):
    path = tmp_path / name
    found = {'evaluate.search_workdir': search}
    result = run(nursery, path, **found, **settings)
    assert result.code == 0, result.err
    record = json.loads((path / 'evaluate.json').read_text())
    budget = record['judged']['within_budget']
    if want is None:
      assert budget is None
      continue
    assert (budget['budget_ms'], budget['source']) == want
    meets = oracle.judge(FOUND, 'cifar10', device, want[0]).meets_budget
    assert budget['cifar10']['meets_budget'] is meets is (name == 'given')
    assert f'{want[0]:g} ms, {want[1]}' in result.out


def test_an_unmeasured_cell_is_judged_by_one_predicted_within_the_target(
  nursery, tmp_path
):
  """The most probable of all is predicted beyond it."""
  device, spec = 'pixel4_cpu', nasbench201.make()
  gates = np.random.default_rng(1).dirichlet(np.ones(5), 6)
  scores = oracle.log_probabilities(gates)
  free = oracle.project(scores, device)
  table = {'table': f'{device}.nasbench201', 'predictor': '', 'rows': 0}
  model = common.load_latency(table)(spec)
  predicted = np.asarray(model.predict(corner.corners(spec)))
  aim = 0.8 * float(predicted[oracle.index(free)])
  allowed = oracle.candidates(device) & (predicted <= aim)
  want = np.where(allowed, scores, -np.inf).argmax()
  search = _bounded(
    tmp_path / 'search', NOTHING, gates, device, target=1.1 * aim, aim=aim
  )
  settings = {'evaluate.search_workdir': search}
  result = run(nursery, tmp_path / 'run', 'configs/pixel4.py', **settings)
  assert result.code == 0, result.err
  record = json.loads((tmp_path / 'run' / 'evaluate.json').read_text())
  assert oracle.index(free) != want
  assert record['judged']['genotype'] == oracle.genotype(int(want)).to_dict()
  assert 'most probable, of those within its bounds' in result.out


def test_a_memory_budget_is_no_latency_but_chooses_too(nursery, tmp_path):
  """Also for another device than that of the search."""
  spec, other = nasbench201.make(), 'intel_ncs2'
  one_hot = corner.corners(spec)
  memory = budgets.make('peak_memory_mb', spec).costs(one_hot)
  measured = memory[oracle.candidates(other)]
  dearest = int(np.flatnonzero(memory == measured.max())[0])
  gates = 0.04 + 0.8 * one_hot[nasbench201.GROUP][dearest]
  scores = oracle.log_probabilities(gates)
  aim = float(measured.min() + measured.max()) / 2
  assert aim < memory[oracle.index(oracle.project(scores, other))]
  search = _bounded(
    tmp_path / 'search',
    NOTHING,
    gates,
    'pixel4_cpu',
    'peak_memory_mb',
    target=aim,
    aim=aim,
  )
  path = tmp_path / 'run'
  flags = {'evaluate.search_workdir': search, 'evaluate.device': other}
  result = run(nursery, path, **flags)
  assert result.code == 0, result.err
  judged = json.loads((path / 'evaluate.json').read_text())['judged']
  want = oracle.candidates(other) & (memory <= aim)
  want = int(np.where(want, scores, -np.inf).argmax())
  assert judged['genotype'] == oracle.genotype(want).to_dict()
  assert judged['within_budget'] is None
  assert judged['bounds_of_search'] == {'peak_memory_mb': aim}


def test_a_target_that_no_measured_cell_meets_is_refused(nursery, tmp_path):
  search = _bounded(
    tmp_path / 'search',
    FOUND,
    np.full((6, 5), 0.2),
    'raspberry_pi4_cpu',
    target=0.5,
    aim=0.5,
  )
  settings = {'evaluate.search_workdir': search}
  result = run(nursery, tmp_path / 'run', **settings)
  assert result.code == 2
  for word in ('0.5', '2.529', 'target of the search', 'evaluate.budget_ms'):
    assert word in result.err


@pytest.mark.parametrize(
  ('config', 'overrides', 'words'),
  [
    ('pixel4.py', {}, ['evaluate.search_workdir', 'evaluate.genotype']),
    (
      'pixel4.py',
      {'evaluate.genotype': 'nothing'},
      ['no path from input to output'],
    ),
    (
      'pixel4.py',
      {'evaluate.genotype': 'found', 'evaluate.device': 'intel_ncs3'},
      ['evaluate.device', 'intel_ncs3', 'intel_ncs2'],
    ),
    (
      'host_cpu.py',
      {'evaluate.genotype': 'found'},
      ['latency.table', 'host_cpu', 'evaluate.device', 'pixel4_cpu'],
    ),
    (
      'host_cpu.py:space=darts',
      {'evaluate.genotype': 'darts'},
      ['space.name', 'darts', 'nasbench201', 'retrain'],
    ),
    ('pixel4.py', {'evaluate.genotype': 'darts'}, ['darts.json', 'belong']),
    (
      'raspberry_pi4.py',
      {'evaluate.genotype': 'found', 'evaluate.budget_ms': 0.5},
      ['budget_ms is 0.5', 'fastest', '2.529'],
    ),
    (
      'pixel4.py',
      {'evaluate.genotype': 'found', 'evaluate.budget_ms': -1.0},
      ['evaluate.budget_ms', '-1.0', 'at least 0'],
    ),
  ],
)
def test_what_cannot_be_judged_is_refused_with_a_way_out(
  nursery, files, tmp_path, config, overrides, words
):
  if 'evaluate.genotype' in overrides:
    path = files[0] / f'{overrides["evaluate.genotype"]}.json'
    overrides = overrides | {'evaluate.genotype': path}
  result = run(nursery, tmp_path / 'run', f'configs/{config}', **overrides)
  assert result.code == 2
  for word in words:
    assert word in result.err
  assert not (tmp_path / 'run').exists()


def test_an_unmeasured_cell_of_a_file_is_refused_with_two_ways_out(
  nursery, tmp_path
):
  absent = np.isnan(oracle.latencies('pixel4_cpu')) & oracle.load().connected
  path = tmp_path / 'absent.json'
  path.write_text(oracle.genotype(int(np.flatnonzero(absent)[0])).to_json())
  settings = {'evaluate.genotype': path}
  result = run(nursery, tmp_path / 'run', 'configs/pixel4.py', **settings)
  assert result.code == 2
  for word in ('not measured', '1999', 'evaluate.device', 'search_workdir'):
    assert word in result.err
