"""The mobile space, and published networks made of the same blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost
from hwdarts_jax.models import network, ops
from hwdarts_jax.spaces import blocks, discretize, mobile, references

# Parameters at 1,000 classes as published, and as torchvision counts them;
# multiply-accumulates as published.
_PUBLISHED = {
  'mobilenet_v3_large': (5_483_032, 219e6),
  'mobilenet_v3_small': (2_542_856, 56e6),
  'efficientnet_b0': (5_288_548, 390e6),
  'mobilenet_v2': (3_504_872, 300e6),
}


@pytest.mark.parametrize('model', sorted(references.MODELS))
def test_references_have_the_published_params_and_macs(model):
  """Params to the last; MACs of convolutions and dense layers within 2 %."""
  spec = spaces.make('references', model=model)
  params, macs = _PUBLISHED[model]
  made = jax.eval_shape(
    lambda key: network.init(network.Network(spec), key), jax.random.key(0)
  )
  count = sum(int(np.prod(v.shape)) for v in jax.tree.leaves(made['params']))
  assert count == cost.total(spec, cost.params) == params
  assert cost.total(spec, cost.macs) == pytest.approx(macs, rel=0.02)


def test_references_are_no_space_to_search():
  assert 'references' not in spaces.names()
  assert 'references' in spaces.makers()
  assert spaces.make('references').is_discrete


def test_reference_can_be_made_for_small_images_and_other_widths():
  spec = spaces.make(
    'references', width=0.5, image_size=32, stem_stride=1, num_classes=10
  )
  sizes = [site.in_shape[0] for site in spec.sites()]
  assert sizes[0] == 32 and sizes[-4] == 2
  assert cost.total(spec, cost.params) < 5_483_032 / 3


@pytest.mark.parametrize(
  'setting, value',
  [('model', 'resnet'), ('width', 0), ('width', '1'), ('stem_stride', 0)],
)
def test_reference_that_does_not_exist_is_refused(setting, value):
  with pytest.raises(ValueError, match=f'{setting} is {value!r}'):
    spaces.make('references', **{setting: value})


def test_mobile_has_twenty_blocks_of_eighteen_candidates():
  spec = spaces.make('mobile')
  searched = [s for s in spec.sites() if len(s.ops) > 1]
  assert len(searched) == 20
  skippable = [s for s in searched if mobile.SKIP in s.ops]
  assert len(skippable) == 15
  for site in searched:
    assert len(site.ops) == 18 + (mobile.SKIP in site.ops)
  for site in skippable:  # where nothing changes
    assert site.in_shape == site.out_shape
  assert [s.out_shape for s in searched[::4]] == [
    (56, 56, 24),
    (28, 28, 40),
    (14, 14, 80),
    (14, 14, 112),
    (7, 7, 160),
  ]


def test_stem_and_head_of_the_space_are_those_of_mobilenet_v3():
  """Also the blocks that both have cost the same."""
  ours = {s.path: s for s in spaces.make('mobile').sites()}
  theirs = {s.path: s for s in spaces.make('references').sites()}
  for path in ('stem/0_to_1', 'head_dense/0_to_1', 'classifier/0_to_1'):
    assert ours[path].key(ours[path].ops[0]) == theirs[path].key(
      theirs[path].ops[0]
    )
  shared = {s.key(op) for s in ours.values() for op in s.ops} & {
    s.key(op) for s in theirs.values() for op in s.ops
  }
  assert len([key for key in shared if key.startswith('mb_conv')]) >= 6


def test_activation_follows_the_stage_and_is_in_the_key():
  """Keys of what has another latency differ."""
  mixed = spaces.make('mobile')
  relu = spaces.make('mobile', activations='relu')
  keys, relu_keys = (
    {(s.path, s.key(op)) for s in spec.sites() for op in s.ops}
    for spec in (mixed, relu)
  )
  both = {path.split('/')[0] for path, _ in keys & relu_keys}
  assert {'stage_1_first', 'stage_2_rest', 'block'} <= both
  changed = {path.split('/')[0] for path, _ in keys - relu_keys}
  assert {'stem', 'stage_3_first', 'stage_5_rest', 'head_conv'} <= changed
  assert not any('hswish' in key for _, key in relu_keys)


def test_fused_blocks_are_added_where_they_are_wanted():
  plain, fused = (spaces.make('mobile', fused=f) for f in (False, True))
  for name, group in fused.groups().items():
    extra = set(group.ops) - set(plain.groups()[name].ops)
    assert sorted(op.split('_hswish')[0] for op in extra) == [
      'fused_conv_3x3_e2',
      'fused_conv_3x3_e4',
    ]


@pytest.mark.parametrize(
  'features, want',
  [
    (16, [24, 40, 80, 112, 160]),
    (12, [24, 32, 64, 88, 120]),
    (8, [16, 24, 40, 56, 80]),
  ],
)
def test_widths_are_those_of_the_published_multipliers(features, want):
  """As `_make_divisible` of MobileNetV3 makes them."""
  spec = spaces.make('mobile', features=features)
  assert [c.features for c in spec.cells[::2]] == want


def test_specs_of_all_sizes_share_their_alphas():
  """So that a small supernet can be searched for a large network."""
  large = spaces.make('mobile')
  small = spaces.make(
    'mobile', features=4, image_size=8, stem_stride=1, num_classes=10
  )
  assert small.groups() == large.groups()


@pytest.mark.parametrize(
  'setting, value',
  [
    ('kernels', '9'),
    ('kernels', ''),
    ('kernels', (3,)),
    ('expansions', '3,3'),
    ('num_stages', 6),
    ('num_blocks', 0),
    ('stem_stride', 0),
    ('activations', 'silu'),
    ('activations', 'relu,relu'),
    ('activations', None),
  ],
)
def test_setting_that_cannot_be_is_named(setting, value):
  with pytest.raises(ValueError, match=f'^{setting} is '):
    spaces.make('mobile', **{setting: value})


def _genotype(*stages):
  return mobile.from_arch_string('|'.join(','.join(s) for s in stages))


def test_arch_string_reads_stage_by_stage():
  text = 'mb_conv_3x3_e3,skip_connect|mb_conv_5x5_e6_se,mb_conv_7x7_e4'
  genotype = mobile.from_arch_string(text)
  assert genotype.cells['stage_2_first'] == (('mb_conv_5x5_e6_se', 0, 1),)
  assert genotype.cells['stage_1_rest'] == (('skip_connect', 0, 1),)
  assert mobile.to_arch_string(genotype) == text
  one = mobile.from_arch_string('mb_conv_3x3_e3')
  assert mobile.to_arch_string(one) == 'mb_conv_3x3_e3'
  for wrong in ('', 'a,,b', 'a||b', 'a b'):
    with pytest.raises(ValueError, match='arch string'):
      mobile.from_arch_string(wrong)


def test_skipped_block_costs_nothing():
  spec = spaces.make('mobile', num_stages=1, num_blocks=3)
  op = 'mb_conv_3x3_e3'
  deep, shallow = (
    discretize.discretize(spec, _genotype((op, *rest)))
    for rest in ((op, op), ('skip_connect', 'skip_connect'))
  )
  block = cost.params(deep.sites()[3], op)
  assert block > 0
  assert cost.total(deep, cost.params) == (
    cost.total(shallow, cost.params) + 2 * block
  )


def _cell(op, stride=1, features=4):
  """A derived cell of one block, which was searched."""
  spec = spaces.make(
    'mobile', features=4, num_stages=1, num_blocks=2, image_size=8
  )
  cell = spec.cells[1]
  edge = dataclasses.replace(cell.edges[0], ops=(op,), stride=stride)
  cell = dataclasses.replace(cell, edges=(edge,), features=features)
  return network.Cell(cell, ops.Context(affine=False))


def test_drop_path_drops_the_branch_of_a_block_and_keeps_its_input():
  """An example is its input plus 0 or 1 / keep times what the block adds."""
  cell = _cell('mb_conv_3x3_e3')
  x = jax.random.normal(jax.random.key(0), (64, 2, 2, 4))
  inputs = {0: x}
  variables = cell.init(jax.random.key(1), inputs, None, False, 0.0)
  run = functools.partial(cell.apply, variables, inputs, None, True)
  whole, _ = run(0.0, mutable=['batch_stats'])
  y, _ = run(
    0.25, rngs={'drop_path': jax.random.key(2)}, mutable=['batch_stats']
  )
  factor = np.asarray((y - x) / (whole - x))
  kept = np.abs(factor[:, :1, :1, :1]) > 0.5
  np.testing.assert_allclose(
    factor, np.broadcast_to(kept / 0.75, factor.shape), atol=1e-3
  )
  assert 0 < kept.sum() < 64


@pytest.mark.parametrize('stride, features', [(2, 4), (1, 8)])
def test_drop_path_never_drops_a_block_that_all_goes_through(stride, features):
  cell = _cell('mb_conv_3x3_e3', stride, features)
  inputs = {0: jax.random.normal(jax.random.key(0), (4, 4, 4, 4))}
  variables = cell.init(jax.random.key(1), inputs, None, False, 0.0)
  run = functools.partial(cell.apply, variables, inputs, None, True)
  rngs = {'drop_path': jax.random.key(2)}
  dropped, _ = run(0.9, rngs=rngs, mutable=['batch_stats'])
  whole, _ = run(0.0, mutable=['batch_stats'])
  np.testing.assert_array_equal(dropped, whole)


def test_block_adds_its_input_where_shapes_agree():
  """At initial params of zero in the projection, a block is the identity."""
  x = jnp.ones((2, 4, 4, 4)) * jnp.arange(4.0).reshape(1, 1, 1, 4)
  for name in (blocks.MBConv(5, 4, True).name, blocks.FusedConv(2).name):
    op = ops.get(name)(4)
    variables = op.init(jax.random.key(0), x, train=False)
    params = dict(variables['params'])
    params['Conv_1'] = jax.tree.map(jnp.zeros_like, params['Conv_1'])
    y = op.apply({**variables, 'params': params}, x, train=False)
    np.testing.assert_allclose(y, x, atol=1e-6)
