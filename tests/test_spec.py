import collections
import contextlib
import copy
import dataclasses
import importlib
import inspect
import json

import hypothesis
from hypothesis import strategies as st
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.spaces import nasbench201
from hwdarts_jax.spaces.spec import (
  CellSpec,
  EdgeSpec,
  Genotype,
  IMAGE,
  NetworkSpec,
  Site,
)

every_space = pytest.mark.parametrize('name', spaces.names())


@every_space
@hypothesis.given(data=st.data())
def test_spec_survives_json(name, data):
  spec = data.draw(space_strategies.network_specs(name))
  again = NetworkSpec.from_json(spec.to_json())
  assert again == spec
  assert hash(again) == hash(spec)
  assert again.spec_hash() == spec.spec_hash()


@every_space
@hypothesis.given(data=st.data())
def test_sites_visit_every_edge_once(name, data):
  spec = data.draw(space_strategies.network_specs(name))
  sites = spec.sites()
  assert [s.path for s in sites] == [
    f'{c.name}/{e.name}' for c in spec.all_cells for e in c.edges
  ]
  assert len({s.path for s in sites}) == len(sites)
  assert sites[0].in_shape == spec.input_shape
  assert sites[-1].out_shape == (1, 1, spec.num_classes)


@every_space
def test_a_space_has_a_choice_and_names_itself(name):
  spec = spaces.make(name)
  assert spec.space == name
  assert not spec.is_discrete
  rows = {(s.group, s.row) for s in spec.sites() if len(s.ops) > 1}
  assert rows == {
    (g, r) for g, group in spec.groups().items() for r in range(group.shape[0])
  }


@pytest.mark.parametrize('name', ['', 'spec', 'discretize', 'DARTS', None])
def test_unknown_space_is_named(name):
  with pytest.raises(ValueError, match='space.name'):
    spaces.make(name)


@every_space
def test_unknown_setting_is_named(name):
  with pytest.raises(ValueError, match='typo'):
    spaces.make(name, typo=1)


@every_space
@pytest.mark.parametrize('value', [0, -1, 1.5, 4.0, '4', None])
@pytest.mark.parametrize('setting', ['features', 'num_classes', 'image_size'])
def test_wrong_setting_is_refused_also_after_an_equal_one(name, setting, value):
  module = importlib.import_module(f'hwdarts_jax.spaces.{name}')
  if setting not in inspect.signature(module.make).parameters:
    pytest.skip(f'{name} has no such setting')
  with contextlib.suppress(ValueError):
    spaces.make(name, **{setting: 4})  # 4.0 == 4 may not find a cached answer
  with pytest.raises(ValueError):
    spaces.make(name, **{setting: value})


def _hash_with(spec, **changes):
  """Hash of a spec with fields changed, whether or not it is valid."""
  changed = copy.copy(spec)
  for field, value in changes.items():
    object.__setattr__(changed, field, value)
  return changed.spec_hash()


def test_spec_hash_depends_on_every_field():
  spec = spaces.make('darts', num_cells=2)
  cell, edge = spec.cells[0], spec.cells[0].edges[-1]
  hashes = [spec.spec_hash()]
  for field in dataclasses.fields(spec):
    hashes.append(_hash_with(spec, **{field.name: 'changed'}))
  for field in dataclasses.fields(CellSpec):
    changed = copy.copy(cell)
    object.__setattr__(changed, field.name, 'changed')
    hashes.append(_hash_with(spec, cells=(changed, *spec.cells[1:])))
  for field in dataclasses.fields(EdgeSpec):
    changed_edge = copy.copy(edge)
    object.__setattr__(changed_edge, field.name, 'changed')
    changed = copy.copy(cell)
    object.__setattr__(changed, 'edges', (*cell.edges[:-1], changed_edge))
    hashes.append(_hash_with(spec, cells=(changed, *spec.cells[1:])))
  assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
  'name, expected', [('darts', '67d7b3b057c9'), ('nasbench201', '88430612ce67')]
)
def test_spec_hash_is_what_stored_results_carry(name, expected):
  assert spaces.make(name).spec_hash() == expected


_sites = st.builds(
  Site,
  path=st.sampled_from(['a/0_to_1', 'b/0_to_1']),
  ops=st.just(('p', 'q')),
  in_shape=st.tuples(*[st.sampled_from([1, 11, 111])] * 3),
  features=st.sampled_from([1, 11]),
  stride=st.sampled_from([1, 2]),
  group=st.sampled_from([None, 'g']),
  row=st.sampled_from([None, 0, 1]),
  pool_bn=st.booleans(),
)


@hypothesis.given(_sites, _sites, *[st.sampled_from(['p', 'q', 'p_1'])] * 2)
def test_keys_are_equal_where_costs_are(site_1, site_2, op_1, op_2):
  def determines_cost(s):
    return s.in_shape, s.features, s.stride, s.pool_bn

  same = determines_cost(site_1) == determines_cost(site_2) and op_1 == op_2
  assert (site_1.key(op_1) == site_2.key(op_2)) == same


def test_nasbench201_has_the_skeleton_of_the_benchmark():
  spec = spaces.make('nasbench201')
  searched = [c for c in spec.cells if c.group]
  assert len(spec.stem) == 1
  assert [c.features for c in searched] == [16] * 5 + [32] * 5 + [64] * 5
  fixed = [(i, c.features) for i, c in enumerate(spec.cells) if not c.group]
  assert fixed == [(5, 32), (11, 64)]
  assert {s.in_shape for s in spec.sites() if s.group} == {
    (32, 32, 16),
    (16, 16, 32),
    (8, 8, 64),
  }
  assert spec.groups()['cell'].shape == (6, 5)
  assert spec.excluded == ()


@pytest.mark.parametrize(
  'num_cells, reductions', [(8, [2, 5]), (20, [6, 13]), (3, [1, 2])]
)
def test_darts_reduces_at_thirds(num_cells, reductions):
  spec = spaces.make('darts', num_cells=num_cells)
  groups = [c.group for c in spec.cells]
  assert [i for i, g in enumerate(groups) if g == 'reduce'] == reductions
  assert [s.in_shape for s in spec.sites()][-2][:2] == (8, 8)


def test_darts_has_the_cells_of_the_paper():
  spec = spaces.make('darts')
  sites = collections.Counter(
    s.path.split('/')[0] for s in spec.sites() if len(s.ops) > 1
  )
  assert set(sites.values()) == {14}
  assert len(sites) == 8
  assert {g: s.shape for g, s in spec.groups().items()} == {
    'normal': (14, 8),
    'reduce': (14, 8),
  }
  assert [c.features for c in spec.cells] == [16] * 2 + [32] * 3 + [64] * 3
  # A cell concatenates four nodes; the one after it reads all of them.
  shapes = {s.path: s.in_shape for s in spec.sites()}
  assert shapes['pool/0_to_1'] == (8, 8, 256)
  assert shapes['cell_0/-1_to_1'] == (32, 32, 48)


def test_darts_searches_and_deploys_the_same_groups():
  search = spaces.make('darts')
  deploy = spaces.make('darts', features=36, num_cells=20, pool_bn=False)
  assert search.groups() == deploy.groups()
  assert search.spec_hash() != deploy.spec_hash()


def test_nasbench201_searches_and_deploys_the_same_groups():
  search = spaces.make('nasbench201', num_cells=1, features=8)
  assert search.groups() == spaces.make('nasbench201').groups()


def _small(name):
  return spaces.make(name, num_cells=1)


@pytest.mark.parametrize('name', ['darts', 'nasbench201'])
@hypothesis.settings(max_examples=300)
@hypothesis.given(data=st.data())
def test_damaged_spec_is_refused_or_means_something(name, data):
  good = _small(name)
  damaged = data.draw(space_strategies.mutated(good.to_dict()))
  try:
    spec = NetworkSpec.from_dict(damaged)
  except ValueError as e:
    assert str(e)
    return
  assert NetworkSpec.from_json(spec.to_json()) == spec
  assert (spec.spec_hash() == good.spec_hash()) == (spec == good)


@pytest.mark.parametrize('kind', [NetworkSpec, Genotype])
@hypothesis.given(text=st.text() | space_strategies.JSON.map(json.dumps))
def test_text_that_is_no_record_is_refused(kind, text):
  with pytest.raises(ValueError):
    kind.from_json(text)


@pytest.mark.parametrize('text', ['[' * 100_000, '', b'\xff', None, 1])
@pytest.mark.parametrize('kind', [NetworkSpec, Genotype])
def test_text_that_is_no_json_is_refused(kind, text):
  with pytest.raises(ValueError, match='not JSON'):
    kind.from_json(text)


def _network(*cells, **kwargs):
  head = (
    CellSpec(
      'head',
      ((0, cells[-1].name),),
      (EdgeSpec(0, 1, ('global_avg_pool',), None, 4),),
      (1,),
      2,
    ),
  )
  return NetworkSpec('test', (4, 4, 3), (), cells, head, 2, **kwargs)


def _cell(*edges, name='c', inputs=((0, IMAGE),), outputs=(1,), **kwargs):
  return CellSpec(name, inputs, edges, outputs, 2, **kwargs)


def test_smallest_network_is_accepted():
  spec = _network(_cell(EdgeSpec(0, 1, ('p', 'q'), 0), group='g'))
  assert spec.groups()['g'].edges == ((0, 1),)


@pytest.mark.parametrize(
  'field, make',
  [
    ('inputs', lambda: _network(_cell(inputs=((0, 'later'),)))),
    ('inputs', lambda: _network(_cell(inputs=((0, IMAGE), (0, IMAGE))))),
    ('name', lambda: _network(*[_cell(EdgeSpec(0, 1, ('p',)))] * 2)),
    ('name', lambda: _cell(name='a/b')),
    ('src', lambda: _network(_cell(EdgeSpec(5, 1, ('p',))))),
    (
      '1_to_0.dst',
      lambda: _network(_cell(EdgeSpec(0, 1, ('p',)), EdgeSpec(1, 0, ('p',)))),
    ),
    (
      '5_to_2.dst',
      lambda: _network(
        _cell(
          EdgeSpec(0, 2, ('p',)),
          EdgeSpec(2, 1, ('p',)),
          EdgeSpec(5, 2, ('p',)),
          inputs=((0, IMAGE), (5, IMAGE)),
        )
      ),
    ),
    ('c/0_to_1', lambda: _network(_cell(*[EdgeSpec(0, 1, ('p',))] * 2))),
    (
      'c/0_to_1',
      lambda: _network(
        _cell(
          EdgeSpec(0, 2, ('p',)),
          EdgeSpec(2, 1, ('p',), None, 2),
          EdgeSpec(0, 1, ('p',)),
        )
      ),
    ),
    ('c/0_to_1', lambda: _network(_cell(EdgeSpec(0, 1, ('p', 'q'))))),
    ('outputs', lambda: _network(_cell(EdgeSpec(0, 1, ('p',)), outputs=()))),
    ('outputs', lambda: _network(_cell(EdgeSpec(0, 1, ('p',)), outputs=(9,)))),
    ('ops', lambda: EdgeSpec(0, 1, ())),
    ('ops', lambda: EdgeSpec(0, 1, ('p', 'p'))),
    ('ops', lambda: EdgeSpec(0, 1, 'p')),
    ('stride', lambda: EdgeSpec(0, 1, ('p',), None, 0)),
    ('row', lambda: EdgeSpec(0, 1, ('p',), -1)),
    ('keep', lambda: _cell(keep=0)),
    ('combine', lambda: _cell(combine='product')),
    (
      'rows of group',
      lambda: _network(_cell(EdgeSpec(0, 1, ('p', 'q'), 1), group='g')),
    ),
    (
      'ops of group',
      lambda: _network(
        _cell(
          EdgeSpec(0, 1, ('p', 'q'), 0),
          EdgeSpec(0, 2, ('p', 'r'), 1),
          group='g',
        )
      ),
    ),
    (
      'edges of group',
      lambda: _network(
        _cell(EdgeSpec(0, 1, ('p', 'q'), 0), group='g', name='a'),
        _cell(EdgeSpec(0, 1, ('p', 'q'), 1), group='g'),
      ),
    ),
    (
      'keep of group',
      lambda: _network(
        _cell(EdgeSpec(0, 1, ('p', 'q'), 0), group='g', name='a', keep=1),
        _cell(EdgeSpec(0, 1, ('p', 'q'), 0), group='g'),
      ),
    ),
    (
      'excluded',
      lambda: _network(
        _cell(EdgeSpec(0, 1, ('p', 'q'), 0), group='g'), excluded=('p', 'q')
      ),
    ),
    ('at least one cell', lambda: NetworkSpec('t', (1, 1, 1), (), (), (), 2)),
  ],
)
def test_graph_that_does_not_hold_together_is_refused(field, make):
  with pytest.raises(ValueError, match=field):
    make()


_ARCH = '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|none~2|'


def test_arch_string_names_its_edges():
  genotype = nasbench201.from_arch_string(_ARCH)
  assert genotype.cells['cell'][:3] == (
    ('nor_conv_3x3', 0, 1),
    ('none', 0, 2),
    ('skip_connect', 1, 2),
  )
  assert nasbench201.to_arch_string(genotype) == _ARCH


@hypothesis.given(genotype=space_strategies.genotypes(_small('nasbench201')))
def test_arch_string_round_trip(genotype):
  text = nasbench201.to_arch_string(genotype)
  assert nasbench201.from_arch_string(text) == genotype


@pytest.mark.parametrize(
  'text',
  [
    '',
    _ARCH[1:],
    _ARCH[:-1],
    _ARCH + '+|none~0|none~1|none~2|none~3|',
    _ARCH.replace('~1', '~0'),
    _ARCH.replace('~1', '~²'),
    _ARCH.replace('none', 'zero'),
  ],
)
def test_wrong_arch_string_is_refused(text):
  with pytest.raises(ValueError, match='arch string'):
    nasbench201.from_arch_string(text)
