"""The oracle says what NAS-Bench-201 and the devices were published to do."""

import csv
import gzip
import json
import pathlib
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from hwdarts_jax import oracle
from hwdarts_jax.spaces import darts, discretize, nasbench201

ROOT = pathlib.Path(__file__).parents[1]
RAW = ROOT.parent / 'shared' / 'data' / 'nasbench201'
needs_raw = pytest.mark.skipif(
  not RAW.is_dir(), reason='the published data are not beside the checkout'
)
cells = st.integers(0, oracle.NUM_CELLS - 1)


def arch(text):
  return nasbench201.from_arch_string(text)


NOTHING = arch('|none~0|+|none~0|none~1|+|none~0|none~1|none~2|')


@pytest.mark.parametrize(
  ('dataset', 'accuracy', 'official'),
  [
    ('cifar10', 94.3733, 6111),
    ('cifar100', 73.5133, 9930),
    ('imagenet16_120', 47.3111, 857),
  ],
)
def test_best_cells_are_the_published_ones(dataset, accuracy, official):
  best = oracle.best(dataset)
  assert best.accuracy == accuracy == oracle.accuracies(dataset).max()
  cell = oracle.index(best.genotype)
  assert oracle.load().official_index[cell] == official
  assert best.latency_ms is None
  assert oracle.accuracy(best.genotype, dataset) == accuracy


def test_first_cells_of_the_benchmark():
  first = arch(
    '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|'
    '+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|'
  )
  assert [oracle.accuracy(first, d) for d in oracle.DATASETS] == [
    85.8633,
    52.9133,
    26.6333,
  ]
  assert oracle.latency(first, 'raspberry_pi4_cpu') == 10.482
  assert oracle.load().official_index[oracle.index(first)] == 0


@given(cell=cells)
def test_numbers_and_arch_strings_round_trip(cell):
  genotype = oracle.genotype(cell)
  assert oracle.index(genotype) == cell
  text = nasbench201.to_arch_string(genotype)
  assert nasbench201.from_arch_string(text) == genotype
  columns = [
    nasbench201.OPS.index(c.op) for c in genotype.cells[nasbench201.GROUP]
  ]
  assert oracle.load().ops[cell].tolist() == columns
  assert cell == sum(
    o * 5**k for o, k in zip(columns, range(5, -1, -1), strict=True)
  )
  discretize.discretize(nasbench201.make(num_cells=1), genotype)


def test_the_order_of_edges_in_a_genotype_does_not_matter():
  genotype = oracle.genotype(1234)
  ((group, choices),) = genotype.cells.items()
  shuffled = type(genotype)(genotype.space, {group: choices[::-1]})
  assert oracle.index(shuffled) == 1234


@given(cell=cells)
def test_connected_means_a_path(cell):
  edges = {
    (c.src, c.dst)
    for c in oracle.genotype(cell).cells[nasbench201.GROUP]
    if c.op != 'none'
  }
  paths = ([0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3])
  whole = any(set(zip(p, p[1:], strict=False)) <= edges for p in paths)
  assert bool(oracle.connected(cell)) == whole


def test_341_cells_are_disconnected():
  everything = np.arange(oracle.NUM_CELLS)
  assert (~oracle.connected(everything)).sum() == 341
  assert not oracle.connected(oracle.index(NOTHING))
  assert oracle.connected(everything.reshape(5, -1)).shape == (5, 3125)


@needs_raw
def test_disconnected_cells_are_the_published_ones():
  want = json.loads((RAW / 'disconnected_341.json').read_text())['indices']
  benchmark = oracle.load()
  assert sorted(benchmark.official_index[~benchmark.connected]) == want


@needs_raw
def test_accuracies_are_exactly_the_published_ones():
  with gzip.open(RAW / 'accuracy.csv.gz', 'rt') as f:
    rows = list(csv.DictReader(f))
  order = np.array([oracle.index(arch(r['arch'])) for r in rows])
  official = oracle.load().official_index[order]
  assert official.tolist() == [int(r['index']) for r in rows]
  for dataset in oracle.DATASETS:
    want = [float(r[f'{dataset}_test']) for r in rows]
    assert oracle.accuracies(dataset)[order].tolist() == want


@needs_raw
def test_shared_cells_are_those_of_the_pixel_4():
  want = json.loads((RAW / 'shared_1999.json').read_text())['indices']
  measured = np.isfinite(oracle.latencies('pixel4_cpu'))
  assert sorted(oracle.load().official_index[measured]) == want
  assert oracle.load().connected[measured].all()


@pytest.mark.parametrize('device', ['pixel4_cpu', 'raspberry_pi4_cpu'])
def test_best_within_a_budget_is_the_best_of_a_plain_scan(device):
  ms = oracle.latencies(device)
  budget = float(np.nanquantile(ms, 0.3))
  best = oracle.best('cifar100', device, budget)
  scan = max(
    a
    for a, t, c in zip(
      oracle.accuracies('cifar100'), ms, oracle.load().connected, strict=True
    )
    if c and t <= budget
  )
  assert best.accuracy == scan == oracle.accuracy(best.genotype, 'cifar100')
  assert best.latency_ms == oracle.latency(best.genotype, device) <= budget
  assert oracle.best('cifar100', device).accuracy >= best.accuracy


def test_budget_that_no_network_meets_is_refused():
  # Disconnected cells need 0.01 ms there, but they are no networks.
  with pytest.raises(ValueError, match=r'budget_ms is 1\.0.*fastest.*2\.529'):
    oracle.best('cifar10', 'raspberry_pi4_cpu', 1.0)
  with pytest.raises(ValueError, match='there is no device'):
    oracle.best('cifar10', budget_ms=1.0)
  with pytest.raises(ValueError, match='budget_ms is nan'):
    oracle.best('cifar10', 'pixel4_cpu', float('nan'))


def test_cell_that_was_not_measured_is_refused():
  with pytest.raises(ValueError, match="not measured on 'pixel4_cpu'.*1999"):
    oracle.latency(NOTHING, 'pixel4_cpu')


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="dataset is 'mnist'.*cifar100"):
    oracle.accuracy(NOTHING, 'mnist')
  with pytest.raises(ValueError, match="'pixel_4.nasbench201'.*pixel4_cpu"):
    oracle.latency(NOTHING, 'pixel_4')
  assert 'pixel4_cpu' in oracle.devices()
  assert 'host_cpu' not in oracle.devices()  # a sample is no series


@pytest.mark.parametrize('cell', [-1, oracle.NUM_CELLS, 1.0, True])
def test_numbers_of_no_cell_are_refused(cell):
  with pytest.raises(ValueError, match='index is'):
    oracle.genotype(cell)
  with pytest.raises(ValueError, match='index is'):
    oracle.connected(cell)


def test_genotypes_of_no_cell_are_refused():
  ((group, choices),) = NOTHING.cells.items()
  make = type(NOTHING)
  spec = darts.make(num_cells=3)
  alphas = {g: np.zeros(s.shape) for g, s in spec.groups().items()}
  for genotype in (
    discretize.derive(spec, alphas),
    make('darts', NOTHING.cells),
    make(NOTHING.space, {group: choices[1:]}),
    make(NOTHING.space, {group: (*choices, choices[0])}),
    make(NOTHING.space, {group: (choices[0]._replace(op='x'), *choices[1:])}),
  ):
    with pytest.raises(ValueError, match="not a cell of 'nasbench201'"):
      oracle.index(genotype)


def test_arrays_are_read_only():
  benchmark = oracle.load()
  arrays = (*benchmark.accuracy.values(), *benchmark[1:])
  for array in (*arrays, oracle.latencies('pixel3')):
    with pytest.raises(ValueError, match='read-only'):
      array[0] = 0


def test_oracle_needs_no_jax():
  code = (
    'import sys; from hwdarts_jax import oracle; oracle.load(); '
    'print([m for m in ("jax", "flax") if m in sys.modules])'
  )
  found = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT)
  assert found.strip() == b'[]'
