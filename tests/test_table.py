"""Latency tables: what is shipped is right, and what is wrong is refused."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from table_cases import HASH, random_genotype, small_table, SPEC

from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.latency import table_files
from hwdarts_jax.latency.table import Entry, LatencyTable, NetworkRow, Series
from hwdarts_jax.spaces import darts, discretize, nasbench201

ROOT = pathlib.Path(__file__).parents[1]
RAW = ROOT.parent / 'shared' / 'data' / 'nasbench201'
# Any space will do where whole networks are listed one by one.
OTHER = darts.make(num_cells=3)
MEDIANS = {
  'pixel4_cpu': (1999, 13.0858),
  'jetson_nano_gpu_fp16': (15284, 5.27143),
  'jetson_nano_gpu_fp32': (15284, 14.4585),
  'raspberry_pi4_cpu': (15625, 25.6801),
  'intel_ncs2': (1999, 4.822),
  'snapdragon855_hexagon690_int8': (15284, 2.702),
}

finite = st.floats(0, 1e6)
count = st.none() | st.integers(1, 10**6)
entries = st.builds(
  Entry, finite, count, count, st.none() | finite, st.booleans()
)
facts = st.none() | st.text(max_size=8)
tables = st.builds(
  LatencyTable,
  device=st.text(min_size=1, max_size=8),
  kind=st.sampled_from(table_lib.KINDS),
  source=st.dictionaries(st.text(max_size=5), facts | finite, max_size=3),
  soc=facts,
  affinity=facts,
  threads=count,
  date=st.none() | st.dates().map(str),
  notes=st.lists(st.text(max_size=8), max_size=2).map(tuple),
  entries=st.dictionaries(st.text(min_size=1), entries, max_size=4),
)


def full_entries(spec, value=1.5):
  return {
    s.key(op): Entry(value, 60, 5, 0.01) for s in spec.sites() for op in s.ops
  }


@pytest.mark.parametrize('name', table_lib.available())
def test_shipped_table_keeps_the_contract(name):
  table = table_lib.load(name)
  device, _, space = name.rpartition('.')
  assert device == table.device
  # What follows is of the space: its form for the images of a data set.
  assert space == table.space or space.startswith(f'{table.space}_')
  assert table.entries or table.networks or table.series
  assert table.source and table.notes
  if table.series is not None:
    assert table.network_ms.min() > 0
    if 'median_ms' in table.source:
      median = float(f'{np.median(table.network_ms):.6g}')
      assert median == pytest.approx(table.source['median_ms'], rel=1e-6)
      assert len(table.network_ms) == table.source['count']
  if table.kind == 'published':
    assert {'repository', 'commit', 'sha256', 'licence'} <= set(table.source)


def test_nasbench201_series_are_all_shipped_and_small():
  names = table_lib.available('nasbench201')
  assert len(names) >= 21
  folder = ROOT / 'latency_tables'
  sizes = [(folder / f'{n}.json.gz').stat().st_size for n in names]
  assert sum(sizes) < 1.5e6
  assert table_lib.available('no_such_space') == ()


@pytest.mark.parametrize('device', MEDIANS)
def test_target_devices_have_the_recorded_medians(device):
  table = table_lib.load(device)
  size, median = MEDIANS[device]
  table.check_covers(SPEC)
  assert table.kind == 'published' and table.spec_hash == HASH
  assert len(table.network_ms) == size
  assert np.median(table.network_ms) == pytest.approx(median, rel=1e-5)


def test_what_no_source_states_is_null():
  table = table_lib.load('raspberry_pi4_cpu')
  unknown = ('runtime', 'runtime_version', 'delegate', 'threads', 'affinity')
  assert all(getattr(table, n) is None for n in (*unknown, 'dtype', 'date'))
  assert table.series.repeats is None and table.series.spread_ms is None
  assert any('believed' in n for n in table.notes)


def test_the_stand_in_is_called_one():
  names = table_lib.available()
  assert not any('exynos' in n for n in names)
  table = table_lib.load('snapdragon855_hexagon690_int8')
  assert table.soc == 'Qualcomm Snapdragon 855'
  assert any(n.startswith('STAND-IN') for n in table.notes)


@pytest.mark.parametrize('device', ['1080ti_1', 'intel_ncs2', 'pixel3'])
def test_series_agree_with_a_decoding_in_plain_python(device):
  path = ROOT / 'latency_tables' / f'{device}.nasbench201.json.gz'
  series = json.loads(gzip.decompress(path.read_bytes()))['series']
  cells = [(i, v) for i, v in enumerate(series['value_ms']) if v is not None]
  table = table_lib.load(path)
  assert table.network_ms.tolist() == [v for _, v in cells]
  genotypes, ms = table.measured_networks(SPEC)
  gates, gates_ms = table.networks_one_hot(SPEC)
  np.testing.assert_array_equal(ms, table.network_ms)
  np.testing.assert_array_equal(gates_ms, table.network_ms)
  for row in range(0, len(cells), 397):
    number, _ = cells[row]
    ops = [number // 5**k % 5 for k in (5, 4, 3, 2, 1, 0)]
    assert table.network_ops[row].tolist() == ops
    found = {(c.src, c.dst): c.op for c in genotypes[row].cells['cell']}
    want = {
      tuple(e): series['ops'][o]
      for e, o in zip(series['edges'], ops, strict=True)
    }
    assert found == want
    np.testing.assert_array_equal(
      gates['cell'][row], discretize.one_hot(SPEC, genotypes[row])['cell']
    )


@pytest.mark.skipif(
  not RAW.is_dir(), reason='the published data are not beside the checkout'
)
def test_series_are_exactly_the_published_ones():
  with gzip.open(RAW / 'accuracy.csv.gz', 'rt') as f:
    archs = [line.split(',')[1] for line in f][1:]
  cells = {
    g: i for i, g in enumerate(table_lib.decode('nasbench201', np.arange(5**6)))
  }
  order = [cells[nasbench201.from_arch_string(a)] for a in archs]
  paths = sorted((RAW / 'latency').glob('*.json'))
  assert {p.stem for p in paths} == {
    n.removesuffix('.nasbench201')
    for n in table_lib.available('nasbench201')
    if table_lib.load(n).kind == 'published'
  }
  for path in paths:
    values = json.loads(path.read_text())['latency_ms']
    shipped = table_lib.load(path.stem).series.value_ms
    assert [shipped[i] for i in order] == values, path.stem


@given(table=tables, suffix=st.sampled_from(['.json', '.json.gz']))
@settings(max_examples=40)
def test_saved_table_loads_equal(tmp_path_factory, table, suffix):
  path = tmp_path_factory.mktemp('tables') / f'table{suffix}'
  table_lib.save(table, path)
  loaded = table_lib.load(path)
  assert loaded == table
  assert loaded.table_hash() == table.table_hash()
  assert hash(loaded) == hash(table)


@pytest.mark.parametrize('suffix', ['.json', '.json.gz'])
def test_same_table_makes_same_bytes_and_no_litter(tmp_path, suffix):
  rows = tuple(
    NetworkRow(random_genotype(OTHER, i), 1.0 + i, 60, 0.1, OTHER.spec_hash())
    for i in range(3)
  )
  entries = {'b': Entry(2.0, 1, 1, 0.0), 'a': Entry(1, None, None, None, True)}
  first = small_table(entries=entries, networks=rows)
  second = small_table(entries=dict(reversed(entries.items())), networks=rows)
  for name, table in (('x', first), ('y', second)):
    table_lib.save(table, tmp_path / 'new' / f'{name}{suffix}')
  files = sorted((tmp_path / 'new').iterdir())
  assert [f.name for f in files] == [f'x{suffix}', f'y{suffix}']
  assert files[0].read_bytes() == files[1].read_bytes()
  assert table_lib.load(files[0]) == first == second


def test_numbers_that_are_equal_hash_alike():
  whole = small_table(entries={'a': Entry(5, 1, 1, 0)})
  real = small_table(entries={'a': Entry(np.float64(5.0), 1, 1, 0.0)})
  assert whole == real and whole.table_hash() == real.table_hash()
  other = small_table(entries={'a': Entry(5.5, 1, 1, 0.0)})
  assert other.table_hash() != whole.table_hash()


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'table.json'
  table_lib.save(small_table(), path)
  before = path.read_bytes()
  monkeypatch.setattr(table_files, 'MAX_BYTES', 10)
  with pytest.raises(ValueError, match='the most that a table'):
    table_lib.save(small_table(device='other'), path)
  assert path.read_bytes() == before
  with pytest.raises(ValueError, match='ends in one of'):
    table_lib.save(small_table(), tmp_path / 'table.pkl')
  assert [p.name for p in tmp_path.iterdir()] == ['table.json']


def test_unknown_key_names_itself_the_device_and_the_command():
  table = small_table(entries={'a': Entry(1.0, 1, 1, 0.0)})
  assert table.lookup('a').value_ms == 1.0
  with pytest.raises(ValueError) as e:
    table.lookup('nor_conv_3x3/32x32x16/16/s1')
  for text in ("'nor_conv_3x3/32x32x16/16/s1'", "'bench'", '--runner=...'):
    assert text in str(e.value)
  assert 'python -m hwdarts_jax.harness --config=' in str(e.value)


def test_entries_of_all_sites_cover_a_spec_and_its_networks():
  entries = full_entries(SPEC)
  table = small_table(entries=entries)
  table.check_covers(SPEC)
  network = discretize.discretize(SPEC, random_genotype(SPEC, 0))
  table.check_covers(network)
  key = sorted(entries)[7]
  del entries[key]
  table = small_table(entries=entries)
  assert table.missing_keys(SPEC) == (key,)
  with pytest.raises(ValueError, match='1 entries are missing') as e:
    table.check_covers(SPEC)
  assert repr(key) in str(e.value) and HASH in str(e.value)
  assert table_lib.MEASURE_COMMAND in str(e.value)


def test_networks_of_another_spec_do_not_cover():
  table = table_lib.load('pixel4_cpu')
  wider = nasbench201.make(features=32)
  assert table.has_networks(SPEC) and not table.has_networks(wider)
  with pytest.raises(ValueError, match=f"'pixel4_cpu'.*{HASH}"):
    table.check_covers(wider)
  for read in (table.measured_networks, table.networks_one_hot):
    with pytest.raises(ValueError, match='has no whole networks.*--runner'):
      read(wider)


def test_networks_listed_one_by_one_and_a_series_are_read_together():
  genotypes = tuple(random_genotype(SPEC, i) for i in range(3))
  rows = tuple(
    NetworkRow(g, 10.0 + i, 60, 0.1, HASH) for i, g in enumerate(genotypes)
  )
  stray = NetworkRow(random_genotype(OTHER, 0), 9.0, 1, 0.1, OTHER.spec_hash())
  values = [None] * 5**6
  values[3] = 7.0
  table = small_table(
    space='nasbench201',
    spec_hash=HASH,
    networks=(*rows, stray),
    series=Series(tuple(values)),
  )
  found, ms = table.measured_networks(SPEC)
  assert ms.tolist() == [7.0, 10.0, 11.0, 12.0] and found[1:] == genotypes
  gates, gates_ms = table.networks_one_hot(SPEC)
  assert gates['cell'].shape == (4, 6, 5) and gates['cell'].dtype == np.float32
  np.testing.assert_array_equal(gates_ms, ms)
  for row, genotype in zip(gates['cell'], found, strict=True):
    np.testing.assert_array_equal(
      row, discretize.one_hot(SPEC, genotype)['cell']
    )
  others, _ = table.networks_one_hot(OTHER)
  assert {g: v.shape[0] for g, v in others.items()} == dict.fromkeys(
    OTHER.groups(), 1
  )


def test_device_with_tables_of_two_spaces_needs_the_space(
  tmp_path, monkeypatch
):
  for space in ('mobile', 'darts'):
    table_lib.save(
      small_table(space=space), tmp_path / 'latency_tables' / f'b.{space}.json'
    )
  shipped = {
    p.name.removesuffix('.json'): p
    for p in (tmp_path / 'latency_tables').iterdir()
  }
  monkeypatch.setattr(table_files, '_shipped', lambda: shipped)
  with pytest.raises(ValueError, match=r"more than one.*'b\.darts'"):
    table_lib.load('b')
  assert table_lib.load('b.mobile').space == 'mobile'


def test_tables_are_found_without_a_checkout(tmp_path):
  """A copy of the package alone, as a wheel installs it, has its tables."""
  package = pathlib.Path(table_files.__file__).parents[1]
  shutil.copytree(
    package,
    tmp_path / 'hwdarts_jax',
    ignore=shutil.ignore_patterns('__pycache__'),
  )
  code = 'from hwdarts_jax.latency import table; print(*table.available())'
  names = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  assert names == list(table_lib.available())
  assert 'pixel4_cpu.nasbench201' in names


def test_arrays_are_read_only():
  table = table_lib.load('intel_ncs2')
  for array in (table.series_ms, table.network_ms, table.network_ops):
    with pytest.raises(ValueError, match='read-only'):
      array[0] = 0
