import json

import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.latency import measurements
from hwdarts_jax.spaces import discretize, nasbench201
from hwdarts_jax.spaces.spec import Genotype

A = '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|'
B = A.replace('nor_conv_1x1', 'avg_pool_3x3')
HEADER = 'genotype,latency_ms\n'


@pytest.fixture
def spec():
  return spaces.make('nasbench201')


@pytest.fixture
def file(tmp_path):
  """Writes a file and returns its path."""

  def write(content):
    path = tmp_path / 'm.csv'
    if isinstance(content, str):
      content = content.encode()
    path.write_bytes(content)
    return path

  return write


def _is(one_hot, row, spec, text):
  want = discretize.one_hot(spec, nasbench201.from_arch_string(text))
  return np.array_equal(one_hot['cell'][row], want['cell'])


GOOD = f'genotype,latency_ms\n{A},1.5\n{B},2e1\n'


@pytest.mark.parametrize(
  'content',
  [
    GOOD,
    GOOD.rstrip('\n'),
    GOOD.replace('\n', '\r\n'),
    GOOD.replace('\n', '\r'),
    '\ufeff' + GOOD,
    '\n' + GOOD.replace('\n', '\n\n  \n'),
    f'latency_ms,genotype\n1.5,{A}\n20,{B}\n',
    f'n, genotype , latency_ms,note\n1,{A}, 1.5 ,"a, b"\n2, {B},20.0,\n',
    f'"genotype","latency_ms"\n"{A}","1.5"\n"{B}","20"\n',
  ],
)
def test_files_of_all_usual_kinds_say_the_same(file, spec, content):
  read = measurements.read(file(content), spec)
  np.testing.assert_array_equal(read.latency_ms, [1.5, 20])
  assert _is(read.one_hot, 0, spec, A) and _is(read.one_hot, 1, spec, B)


@pytest.mark.parametrize('name', spaces.names())
def test_genotypes_of_every_space_come_back_from_a_cell(file, name):
  """As JSON, and in the form in which a search prints them."""
  spec = spaces.make(name)
  rng = np.random.default_rng(0)
  genotypes = [
    discretize.derive(
      spec, {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
    )
    for _ in range(4)
  ]
  for to_text in (Genotype.to_json, spaces.to_text):
    texts = [to_text(g) for g in genotypes]
    assert [spaces.from_text(name, t) for t in texts] == genotypes
    path = file(
      measurements.to_csv({'genotype': texts, 'latency_ms': range(4)})
    )
    read = measurements.read_genotypes(path, spec)
    assert list(read.texts) == texts
    for i, genotype in enumerate(genotypes):
      for group, want in discretize.one_hot(spec, genotype).items():
        np.testing.assert_array_equal(read.one_hot[group][i], want)


def test_the_record_of_a_search_is_a_genotype():
  genotype = nasbench201.from_arch_string(A)
  record = json.dumps({'genotype': genotype.to_dict(), 'seed': 0})
  assert spaces.from_text('nasbench201', record) == genotype


def test_the_same_measurement_twice_counts_once(file, spec):
  """Also where the same cell is written in another way."""
  choices = nasbench201.from_arch_string(A).to_dict()
  choices['cells']['cell'].reverse()
  cell = json.dumps(choices).replace('"', '""')
  path = file(f'{HEADER}{A},1.5\n{B},2\n{A},1.50\n"{cell}",1.5\n')
  np.testing.assert_array_equal(
    measurements.read(path, spec).latency_ms, [1.5, 2]
  )


def test_architectures_to_predict_keep_order_and_repetition(file, spec):
  read = measurements.read_genotypes(file(f'genotype\n{B}\n{A}\n{B}\n'), spec)
  assert read.texts == (B, A, B)
  assert [_is(read.one_hot, i, spec, B) for i in range(3)] == [
    True,
    False,
    True,
  ]


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('', ['m.csv is empty', 'genotype and latency_ms']),
    ('\n\n', ['m.csv is empty']),
    (f'{A},1\n', ["no column 'genotype'", "no column 'latency_ms'"]),
    (f'genotype,ms\n{A},1\n', ["no column 'latency_ms'", 'ms']),
    (f'genotype;latency_ms\n{A};1\n', ['genotype;latency_ms', 'commas']),
    (f'{HEADER.strip()},genotype\n{A},1,{A}\n', ['genotype', 'more than once']),
    (HEADER + f'{A},1\nabc,2\n', ['row 2 (line 3)', 'abc', '|op~0|']),
    (
      HEADER + f'{A},1\n\n{A.replace("1x1", "7x7")},2\n',
      ['row 2 (line 4)', 'nor_conv_7x7', 'nor_conv_3x3'],
    ),
    (HEADER + ',2\n', ['row 1 (line 2)', "''"]),
    (HEADER + '"{""space"": ""darts""}",2\n', ['row 1', 'space', 'cells']),
    (
      HEADER + '"{""space"": ""darts"", ""cells"": {}}",2\n',
      ['row 1', 'darts', 'nasbench201'],
    ),
    (
      HEADER + '{"space": "x", "cells": {}},2\n',
      ['row 1', '3 cells', 'quotes'],
    ),
    (HEADER + '"{""space"": ",2\n', ['row 1', 'JSON']),
    (HEADER + f'{A},-1\n', ['row 1 (line 2)', "'-1'", 'above 0']),
    (HEADER + f'{A},0\n', ['row 1 (line 2)', "'0'", 'above 0']),
    (HEADER + f'{A},nan\n', ['row 1 (line 2)', "'nan'", 'number']),
    (HEADER + f'{A},inf\n', ['row 1 (line 2)', "'inf'", 'number']),
    (HEADER + f'{A},1e999\n', ['row 1 (line 2)', "'1e999'", 'number']),
    (HEADER + f'{B},1\n{A},fast\n', ['row 2 (line 3)', "'fast'", 'number']),
    (HEADER + f'{A},\n', ['row 1 (line 2)', "''", 'number']),
    (HEADER + f'{A},5 ms\n', ['row 1', "'5 ms'", 'milliseconds']),
    (HEADER + f'{A},"5,3"\n', ['row 1', "'5,3'", 'decimal point']),
    (HEADER + f'{A},5_3\n', ['row 1', "'5_3'", 'number']),
    (HEADER + f'{A},1e300\n', ['row 1', "'1e300'", '1e+09']),
    (HEADER + f'{A}\n', ['row 1 (line 2)', '1 cells', 'header has 2']),
    (HEADER + f'{A},1,2\n', ['row 1 (line 2)', '3 cells', 'header has 2']),
    (HEADER + f'"{A},1\n', ['line 2', 'not CSV']),
    (
      HEADER + f'{A},1\n{B},4\n{A},1.1\n',
      ['row 3 (line 4)', '1.1', '1 for', 'row 1 (line 2)', 'median'],
    ),
    ('genotype,latency_ms\n€,1\n'.encode('cp1252'), ['UTF-8', 'byte 20']),
    (GOOD.encode('utf-16'), ['m.csv', 'UTF-8']),
    (GOOD.encode('utf-16-le'), ['m.csv', 'UTF-8']),
  ],
)
def test_a_bad_file_is_one_sentence(file, spec, content, words):
  """It names the file, the row where there is one, and what must be there."""
  with pytest.raises(ValueError, match='m.csv') as error:
    measurements.read(file(content), spec)
  message = str(error.value)
  assert all(w in message for w in words), message
  assert message.endswith('.') and '\n' not in message


def test_a_file_that_is_not_there_is_named_with_its_field(spec, tmp_path):
  for path in (tmp_path / 'none.csv', tmp_path):
    with pytest.raises(ValueError, match=r'measurements is .*cannot be read'):
      measurements.read(path, spec)
    with pytest.raises(ValueError, match=r'predict is .*cannot be read'):
      measurements.read_genotypes(path, spec)


def test_nothing_to_predict_is_an_error(file, spec):
  with pytest.raises(ValueError, match='no rows'):
    measurements.read_genotypes(file('genotype\n'), spec)


def test_rows_in_cells_of_several_lines_are_counted_by_the_file(file, spec):
  """The line in a message is where the row begins."""
  cell = json.dumps(nasbench201.from_arch_string(A).to_dict(), indent=1)
  quoted = '"' + cell.replace('"', '""') + '"'
  lines = cell.count('\n')
  path = file(f'{HEADER}{quoted},1\n{B},x\n')
  with pytest.raises(ValueError, match=rf'row 2 \(line {3 + lines}\)'):
    measurements.read(path, spec)


def test_numbers_come_back_from_csv_as_they_were():
  text = measurements.to_csv({'genotype': [A, 'x, y'], 'ms': [1 / 3, 12345.6]})
  assert text == f'genotype,ms\n{A},0.3333333\n"x, y",12345.6\n'
