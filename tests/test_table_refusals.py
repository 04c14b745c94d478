"""What is wrong with a latency table is refused with its place."""

import dataclasses
import gzip
import json
import math

import pytest
from table_cases import HASH, random_genotype, small_table, SPEC

from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.latency import table_files
from hwdarts_jax.latency.table import Entry, NetworkRow, Series


def write_json(path, data):
  path.write_text(json.dumps(data))
  return path


@pytest.mark.parametrize(
  'value', [-1, -1e-9, math.nan, math.inf, None, '1.5', True, [1], 10**400]
)
def test_bad_latencies_are_refused_with_their_place(value):
  bad = {'x/1x1x1/1/s1': Entry(value, 1, 1, 0.0)}
  with pytest.raises(ValueError, match=r"entries\['x/1x1x1/1/s1'\]\.value_ms"):
    small_table(entries=bad)
  row = NetworkRow(random_genotype(SPEC, 0), value, 1, 0.0, HASH)
  good = dataclasses.replace(row, value_ms=1.0)
  with pytest.raises(ValueError, match=r'networks\[1\]\.value_ms'):
    small_table(networks=(good, row))
  if value is not None:
    values = [1.0] * 5**6
    values[17] = value
    with pytest.raises(ValueError, match=r'series\.value_ms\[17\]'):
      small_table(
        space='nasbench201', spec_hash=HASH, series=Series(tuple(values))
      )


@pytest.mark.parametrize(
  ('entry', 'place'),
  [
    (Entry(1.0, 0, 1, 0.0), 'repeats'),
    (Entry(1.0, 1.5, 1, 0.0), 'repeats'),
    (Entry(1.0, 1, True, 0.0), 'rounds'),
    (Entry(1.0, 1, 1, -0.1), 'spread_ms'),
    (Entry(1.0, 1, 1, math.nan), 'spread_ms'),
    (Entry(1.0, 1, 1, 0.0, 'no'), 'noisy'),
  ],
)
def test_bad_entries_are_refused_with_their_place(entry, place):
  with pytest.raises(ValueError, match=rf"entries\['k'\]\.{place} is"):
    small_table(entries={'k': entry})


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('device', ''),
    ('kind', 'guessed'),
    ('unit', 's'),
    ('source', {'x': math.nan}),
    ('source', ['x']),
    ('soc', 5),
    ('threads', 0),
    ('threads', True),
    ('date', 'yesterday'),
    ('space', None),
    ('spec_hash', 'xyz'),
    ('notes', ('fine', 3)),
    ('entries', []),
    ('entries', {'': Entry(1.0, 1, 1, 0.0)}),
    ('networks', []),
    ('schema', 2),
  ],
)
def test_bad_facts_are_refused_with_their_name(field, value):
  with pytest.raises(ValueError, match=f'^{field}'):
    small_table(**{field: value})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'series': Series((1.0,))}, 'length of series'),
    ({'series': Series((None,) * 5**6)}, 'all null'),
    ({'spec_hash': None}, 'spec_hash'),
    ({'space': 'darts'}, 'space of a series'),
  ],
)
def test_bad_series_are_refused(change, message):
  whole = {
    'space': 'nasbench201',
    'spec_hash': HASH,
    'series': Series((1.0,) * 5**6),
  }
  small_table(**whole)
  with pytest.raises(ValueError, match=message):
    small_table(**{**whole, **change})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'schema': 2}, 'schema is 2; it must be 1'),
    ({'schema': None}, 'schema is None'),
    ({'colour': 'red'}, "unknown fields.*'colour'"),
    ({'entries': []}, 'entries is'),
    ({'entries': {'k': 1.0}}, r"entries\['k'\] is 1.0"),
    ({'entries': {'k': {'value_ms': 1}}}, r"entries\['k'\] lacks"),
    ({'networks': {}}, 'networks is'),
    ({'networks': [{'value_ms': 1}]}, r'networks\[0\] lacks'),
    ({'notes': 'text'}, 'notes is'),
    ({'series': []}, 'space of a series'),
    ({'space': 'nasbench201', 'series': []}, 'series is'),
    ({'space': 'nasbench201', 'series': {'ops': ['none']}}, 'series.edges'),
  ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, change, message):
  data = {**small_table().to_dict(), **change}
  path = write_json(tmp_path / 'bad.json', data)
  with pytest.raises(ValueError, match=f'bad.json: .*{message}'):
    table_lib.load(path)


def test_missing_field_is_refused(tmp_path):
  data = small_table().to_dict()
  del data['threads']
  path = write_json(tmp_path / 'bad.json', data)
  with pytest.raises(ValueError, match=r"lacks the fields \['threads'\]"):
    table_lib.load(path)


def test_bad_genotype_is_refused_with_its_place(tmp_path):
  row = NetworkRow(random_genotype(SPEC, 0), 1.0, 1, 0.0, HASH)
  data = small_table(networks=(row,)).to_dict()
  data['networks'][0]['genotype'] = {'space': 3}
  path = write_json(tmp_path / 'bad.json', data)
  with pytest.raises(ValueError, match=r'networks\[0\]: genotype'):
    table_lib.load(path)


@pytest.mark.parametrize(
  'text',
  [
    '',
    'nonsense',
    '[1]',
    '"x"',
    '[' * 100_000,
    '\xff',
    '{"a": 1',
    '{"schema": 1, "schema": 1}',
  ],
)
def test_text_that_is_no_table_is_refused(tmp_path, text):
  path = tmp_path / 'bad.json'
  path.write_bytes(text.encode('latin-1'))
  with pytest.raises(ValueError, match=r'bad\.json'):
    table_lib.load(path)


def test_damaged_gzip_is_refused(tmp_path):
  table = small_table(
    entries={f'op_{i}': Entry(i / 7, 60, 5, 0.01) for i in range(50)}
  )
  path = tmp_path / 'table.json.gz'
  table_lib.save(table, path)
  good = path.read_bytes()
  for size in (0, 1, 9, len(good) // 2, len(good) - 1):
    path.write_bytes(good[:size])
    with pytest.raises(ValueError, match=r'table\.json\.gz'):
      table_lib.load(path)
  for bit in range(0, 8 * len(good), 13):
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(bad))
    if 32 <= bit < 80:  # time and system of writing mean nothing
      assert table_lib.load(path) == table
    else:
      with pytest.raises(ValueError, match=r'table\.json\.gz'):
        table_lib.load(path)


def test_file_that_would_unpack_to_too_much_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(table_files, 'MAX_BYTES', 2**20)
  path = tmp_path / 'bomb.json.gz'
  path.write_bytes(gzip.compress(b' ' * 2**21))
  with pytest.raises(ValueError, match='more than 1 MiB'):
    table_lib.load(path)
  path = tmp_path / 'big.json'
  path.write_bytes(b' ' * (2**20 + 1))
  with pytest.raises(ValueError, match='more than 1 MiB'):
    table_lib.load(path)


def test_unknown_device_lists_the_known_ones():
  with pytest.raises(ValueError) as e:
    table_lib.load('pixel_4')
  assert "'pixel_4'" in str(e.value) and 'pixel4_cpu' in str(e.value)
  assert table_lib.load('pixel4_cpu') == table_lib.load(
    'pixel4_cpu.nasbench201'
  )


def test_missing_or_foreign_path_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError):
    table_lib.load(tmp_path / 'none.json')
  with pytest.raises(ValueError, match='ends in one of'):
    table_lib.load(tmp_path / 'table.yaml')
