import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.spaces import darts
from hwdarts_jax.spaces.discretize import derive, discretize, one_hot
from hwdarts_jax.spaces.spec import Genotype

every_space = pytest.mark.parametrize('name', spaces.names())

# The published result of the second-order search, nodes 2 to 5 in order.
DARTS_V2 = Genotype.from_dict(
  {
    'space': 'darts',
    'cells': {
      'normal': [
        ['sep_conv_3x3', 0, 2],
        ['sep_conv_3x3', 1, 2],
        ['sep_conv_3x3', 0, 3],
        ['sep_conv_3x3', 1, 3],
        ['sep_conv_3x3', 1, 4],
        ['skip_connect', 0, 4],
        ['skip_connect', 0, 5],
        ['dil_conv_3x3', 2, 5],
      ],
      'reduce': [
        ['max_pool_3x3', 0, 2],
        ['max_pool_3x3', 1, 2],
        ['skip_connect', 2, 3],
        ['max_pool_3x3', 1, 3],
        ['max_pool_3x3', 0, 4],
        ['skip_connect', 2, 4],
        ['skip_connect', 2, 5],
        ['max_pool_3x3', 1, 5],
      ],
    },
  }
)


def _alphas(data, spec):
  """Logits that are whole numbers, so that sums of them are exact."""
  whole = st.integers(-9, 9).map(float)
  return {
    name: data.draw(hnp.arrays(np.float32, group.shape, elements=whole))
    for name, group in spec.groups().items()
  }


@every_space
@hypothesis.given(data=st.data())
def test_genotype_survives_json(name, data):
  genotype = data.draw(space_strategies.genotypes(spaces.make(name)))
  again = Genotype.from_json(genotype.to_json())
  assert again == genotype
  assert hash(again) == hash(genotype)


@every_space
@hypothesis.given(data=st.data())
def test_derive_reads_a_genotype_off_its_one_hot_alphas(name, data):
  spec = spaces.make(name)
  genotype = data.draw(space_strategies.genotypes(spec))
  gates = one_hot(spec, genotype)
  assert {g: v.shape for g, v in gates.items()} == {
    g: s.shape for g, s in spec.groups().items()
  }
  alphas = {g: 10 * v for g, v in gates.items()}
  assert derive(spec, alphas) == genotype


@every_space
@hypothesis.given(data=st.data())
def test_derived_genotype_belongs_to_the_space(name, data):
  spec = spaces.make(name)
  alphas = _alphas(data, spec)
  genotype = derive(spec, alphas)
  assert discretize(spec, genotype).is_discrete
  ops = {c.op for choices in genotype.cells.values() for c in choices}
  assert not ops & set(spec.excluded)
  shifted = {g: a + np.arange(len(a))[:, None] for g, a in alphas.items()}
  assert derive(spec, shifted) == genotype


@every_space
@hypothesis.given(data=st.data())
def test_discrete_spec_is_the_part_of_the_space_that_was_chosen(name, data):
  spec = spaces.make(name)
  genotype = data.draw(space_strategies.genotypes(spec))
  discrete = discretize(spec, genotype)
  assert discrete.is_discrete
  assert discretize(discrete, derive(discrete, {})) == discrete
  before = {s.path: s for s in spec.sites()}
  cells = {c.name: c for c in spec.all_cells}
  chosen = {g: {(s, d): o for o, s, d in c} for g, c in genotype.cells.items()}
  for site in discrete.sites():
    old = before.pop(site.path)
    assert set(site.ops) <= set(old.ops)
    assert (site.in_shape, site.out_shape) == (old.in_shape, old.out_shape)
    assert (site.group, site.row) == (old.group, old.row)
    if len(old.ops) > 1:
      edge = spec.groups()[site.group].edges[site.row]
      assert site.ops == (chosen[site.group][edge],)
  for path, dropped in before.items():
    assert cells[path.split('/')[0]].keep is not None
    edge = spec.groups()[dropped.group].edges[dropped.row]
    assert edge not in chosen[dropped.group]


def test_darts_keeps_two_edges_a_node():
  spec = spaces.make('darts')
  rng = np.random.default_rng(0)
  alphas = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
  for choices in derive(spec, alphas).cells.values():
    assert [c.dst for c in choices] == [2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize('none_logit, kept', [(10, [0, 1]), (12, [1, 2])])
def test_strength_of_an_edge_counts_none(none_logit, kept):
  spec = spaces.make('darts')
  alphas = {g: np.zeros(s.shape) for g, s in spec.groups().items()}
  rows = {e: r for r, e in enumerate(spec.groups()['normal'].edges)}
  column = darts.OPS.index
  alphas['normal'][rows[0, 3], column('none')] = none_logit
  alphas['normal'][rows[0, 3], column('sep_conv_3x3')] = 9.9
  # Gates of sep_conv_3x3: 0.47 or 0.11; of skip_connect: 0.28 and 0.18.
  alphas['normal'][rows[1, 3], column('skip_connect')] = 1
  alphas['normal'][rows[2, 3], column('skip_connect')] = 0.45
  found = [c for c in derive(spec, alphas).cells['normal'] if c.dst == 3]
  assert [c.src for c in found] == kept
  ops = {0: 'sep_conv_3x3', 1: 'skip_connect', 2: 'skip_connect'}
  assert [c.op for c in found] == [ops[src] for src in kept]


def test_nasbench201_may_choose_none():
  spec = spaces.make('nasbench201')
  alphas = {'cell': np.zeros((6, 5))}
  alphas['cell'][:, 0] = 1
  assert {c.op for c in derive(spec, alphas).cells['cell']} == {'none'}


@pytest.mark.parametrize(
  'alphas',
  [
    {},
    {'cell': np.zeros((5, 6))},
    {'cell': np.zeros((6, 5)), 'more': np.zeros((6, 5))},
    {'cell': np.full((6, 5), np.nan)},
    {'cell': np.full((6, 5), np.inf)},
  ],
)
def test_wrong_alphas_are_refused(alphas):
  with pytest.raises(ValueError, match='alphas'):
    derive(spaces.make('nasbench201'), alphas)


@pytest.mark.parametrize(
  'settings', [{}, {'features': 36, 'num_cells': 20, 'pool_bn': False}]
)
def test_published_darts_genotype_is_accepted(settings):
  spec = spaces.make('darts', **settings)
  discrete = discretize(spec, DARTS_V2)
  cell = next(c for c in discrete.cells if c.group == 'normal')
  searched = [e for e in cell.edges if e.row is not None]
  assert len(searched) == 8
  assert searched[-1].ops == ('dil_conv_3x3',)
  assert derive(
    spec, {g: 10 * v for g, v in one_hot(spec, DARTS_V2).items()}
  ) == Genotype(
    'darts',
    {
      g: tuple(sorted(c, key=lambda c: (c.dst, c.src)))
      for g, c in DARTS_V2.cells.items()
    },
  )


def _changed(**cells):
  return Genotype('darts', {**DARTS_V2.cells, **cells})


NORMAL = DARTS_V2.cells['normal']


@pytest.mark.parametrize(
  'genotype, message',
  [
    (Genotype('nasbench201', DARTS_V2.cells), "space 'nasbench201'"),
    (Genotype('darts', {'normal': NORMAL}), r"groups \['normal'\]"),
    (_changed(extra=()), 'extra'),
    (
      _changed(normal=(NORMAL[0]._replace(op='conv_9x9'), *NORMAL[1:])),
      r"cells\['normal'\] has op 'conv_9x9'",
    ),
    (
      _changed(normal=(NORMAL[0]._replace(op='none'), *NORMAL[1:])),
      r"cells\['normal'\] has op 'none'",
    ),
    (
      _changed(normal=(NORMAL[0]._replace(src=4), *NORMAL[1:])),
      r"cells\['normal'\] has edge 4->2",
    ),
    (
      _changed(normal=(NORMAL[1], *NORMAL[1:])),
      r"cells\['normal'\] names an edge twice",
    ),
    (_changed(reduce=NORMAL[1:]), r"cells\['reduce'\] has 1 edges into node 2"),
    (
      _changed(normal=(*NORMAL, NORMAL[0]._replace(src=2, dst=3))),
      r"cells\['normal'\] has 3 edges into node 3",
    ),
  ],
)
@pytest.mark.parametrize('use', [discretize, one_hot])
def test_wrong_genotype_is_refused_by_name(use, genotype, message):
  with pytest.raises(ValueError, match=message):
    use(spaces.make('darts'), genotype)


@hypothesis.settings(max_examples=300)
@hypothesis.given(data=space_strategies.mutated(DARTS_V2.to_dict()))
def test_damaged_genotype_is_refused_or_means_something(data):
  spec = spaces.make('darts')
  try:
    genotype = Genotype.from_dict(data)
    discrete = discretize(spec, genotype)
  except ValueError as e:
    assert 'genotype' in str(e)
    return
  assert discrete.is_discrete
  assert Genotype.from_json(genotype.to_json()) == genotype
