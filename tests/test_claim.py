"""What two populations say of two devices, where the answer is known."""

import json
import math

import benchmark_tools
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.mobile import from_arch_string

claim = benchmark_tools.load('claim')

SETTINGS = {
  'num_stages': 1,
  'num_blocks': 3,
  'num_classes': 10,
  'image_size': 8,
  'stem_stride': 1,
  'fused': True,
}
THIN = 'mb_conv_7x7_e3_se,mb_conv_3x3_e6,mb_conv_5x5_e3'
DENSE = 'fused_conv_3x3_e4,skip_connect,skip_connect'


def test_traits_are_those_that_names_say():
  thin = claim.traits(from_arch_string(THIN))
  assert thin['depth'] == 3
  assert thin['mean expansion'] == 4
  assert thin['dense blocks, %'] == 0
  assert thin['mean kernel'] == 5
  for kernel in (3, 5, 7):
    assert thin[f'{kernel}x{kernel} kernels, %'] == pytest.approx(100 / 3)
  assert thin['squeeze-excite, %'] == pytest.approx(100 / 3)
  dense = claim.traits(from_arch_string(DENSE))
  assert dense['depth'] == 1
  assert dense['dense blocks, %'] == 100
  assert math.isnan(dense['mean kernel'])


def test_every_block_of_the_space_is_known():
  for activations in ('relu', 'hswish'):
    spec = spaces.make('mobile', **SETTINGS, activations=activations)
    for group in spec.groups().values():
      assert set(group.ops) <= {*claim.BLOCKS, 'skip_connect'}


def test_an_interval_is_that_of_student():
  """Of 1, 2, 3 with 2 degrees of freedom: 4.303 / sqrt(3)."""
  mean, width = claim.interval([1.0, 2.0, 3.0, math.nan])
  assert mean == 2
  assert width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def _write(folder, by_target, quantiles=None):
  members = [
    {'target_ms': ms, 'genotype': from_arch_string(text).to_dict()}
    for ms, texts in by_target.items()
    for text in texts
  ]
  content = {'space': 'mobile', 'deploy': {'spec': SETTINGS}}
  folder.mkdir()
  (folder / 'front.json').write_text(json.dumps(content | {'members': members}))
  if quantiles:
    (folder / claim.QUANTILES).write_text(json.dumps(quantiles))
  return folder


def test_devices_are_compared_at_equal_places_not_at_equal_times(tmp_path):
  slow = _write(
    tmp_path / 'slow', {8.0: [THIN] * 3, 4.0: [DENSE] * 3}, {'0.5': 8.0}
  )
  fast = _write(
    tmp_path / 'fast', {0.8: [DENSE] * 3, 0.1: [THIN] * 3}, {'0.5': 0.8}
  )
  runs = {'slow': claim.by_place(slow), 'fast': claim.by_place(fast)}
  records = {r['trait']: r for r in claim.compare(runs)}
  assert records['depth']['devices'] == {'slow': (3.0, 0.0), 'fast': (1.0, 0.0)}
  assert records['depth']['differs']
  assert not records['mean expansion']['differs']  # 4 on both
  text = claim.describe([*records.values()])
  assert '| 0.5 | depth | 3 ± 0 | 1 ± 0 | yes |' in text
  assert '| 0.5 | mean kernel | 5 ± 0 | - | no |' in text


def test_without_quantiles_targets_are_compared_by_rank(tmp_path):
  run = _write(tmp_path / 'run', {8.0: [THIN], 4.0: [DENSE]})
  places = claim.by_place(run)
  assert [len(m) for m in places.values()] == [1, 1]
  assert places['target 0'][0]['target_ms'] == 4.0
  with pytest.raises(ValueError, match='not finished'):
    claim.by_place(tmp_path / 'none')


def test_pairs_show_what_macs_do_not():
  """On this device 7x7 takes ten times as long, whatever its MACs."""
  spec = spaces.make('mobile', **SETTINGS)
  entries = {
    site.key(op): table_lib.Entry(
      10.0 if '7x7' in op else 1.0, None, None, None
    )
    for site in spec.sites()
    for op in site.ops
  }
  table = table_lib.LatencyTable(
    device='toy', kind='estimated', source={'what': 'toy'}, entries=entries
  )
  pairs = claim.kernel_pairs(spec, {'toy': table})
  assert len(pairs) == 2 * 2 * 6  # places, larger kernels, other settings
  for pair in pairs:
    assert pair['ms']['toy'] == (10 if pair['kernel'] == 7 else 1)
    assert 1 < pair['macs'] < 2
  assert '| 7x7 | 6 |' in claim.describe_pairs(pairs)


def test_genotypes_of_members_are_of_the_space():
  spec = spaces.make('mobile', **SETTINGS)
  for text in (THIN, DENSE):
    discretize.discretize(spec, from_arch_string(text))


def test_a_table_alone_tells_what_kernels_cost():
  """The shipped table of a CPU: 7x7 costs far more time than MACs say."""
  records, pairs = claim.judge({}, {'host_cpu': 'host_cpu.mobile_cifar10'})
  large = [p for p in pairs if p['kernel'] == 7]
  assert not records and len(large) == len(pairs) / 2
  assert all(p['ms']['host_cpu'] > 2 * p['macs'] for p in large)


def test_nothing_to_compare_is_refused():
  with pytest.raises(ValueError, match='two populations'):
    claim.judge({}, {})
