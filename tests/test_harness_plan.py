"""What is measured: all keys that a search looks up, and networks of chance."""

import numpy as np
import pytest

from configs import common
from hwdarts_jax import spaces
from hwdarts_jax.harness import plan
from hwdarts_jax.latency import liveness
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize


def _sums_up(spec):
  """Sites of cells in which edges meet."""
  cells = {
    c.name
    for c in spec.all_cells
    if len({e.dst for e in c.edges}) < len(c.edges)
  }
  return [s for s in spec.sites() if s.path.split('/')[0] in cells]


def _keys(spec):
  return {s.key(op) for s in spec.sites() for op in s.ops}


@pytest.mark.parametrize('space', spaces.names())
def test_the_plan_has_every_key_of_the_deployed_networks(space):
  settings = common.DEPLOY_SPECS[space]
  made = plan.make(space, settings, networks=0)
  assert set(made.ops) == _keys(spaces.make(space, **settings))
  summed = {s.out_shape for s in _sums_up(made.spec) if s.group}
  assert len(made.sums) == len(summed)
  assert all(site.key(op) == key for key, (site, op) in made.ops.items())


@pytest.mark.parametrize('space', spaces.names())
def test_networks_are_different_connected_and_of_the_space(space):
  spec = spaces.make(space, **common.DEPLOY_SPECS[space])
  found = plan.random_networks(spec, 40, seed=0)
  assert len({g.to_json() for g in found}) == 40
  hots = [discretize.one_hot(spec, g) for g in found]  # checks the genotypes
  stacked = {n: np.stack([h[n] for h in hots]) for n in hots[0]}
  assert liveness.is_connected(spec, stacked).all()
  # More of the same seed begin alike; another seed has others.
  assert plan.random_networks(spec, 70, seed=0)[:40] == found
  assert not set(plan.random_networks(spec, 40, seed=1)) & set(found)


def test_every_op_that_may_win_is_equally_likely():
  spec = spaces.make('darts', **common.DEPLOY_SPECS['darts'])
  found = plan.random_networks(spec, 200, seed=0)
  chosen = [c.op for g in found for cs in g.cells.values() for c in cs]
  counts = {op: chosen.count(op) for op in set(chosen)}
  assert set(counts) == set(spec.groups()['normal'].ops) - {'none'}
  expected = len(chosen) / 7
  # Five standard deviations.
  assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5


def test_ranges_make_a_table_serve_other_sizes_and_widths():
  settings = {'features': 16, 'num_cells': 1, 'image_size': 32}
  made = plan.make('nasbench201', settings, 2, (24,), (0.5, 2))
  for size in (24, 32):
    for features in (8, 16, 32):
      other = {**settings, 'image_size': size, 'features': features}
      assert _keys(spaces.make('nasbench201', **other)) <= set(made.ops)
  other = {**settings, 'image_size': 40}
  assert not _keys(spaces.make('nasbench201', **other)) <= set(made.ops)
  # Whole networks are of the spec itself.
  assert made.spec == spaces.make('nasbench201', **settings)


def test_numbers_are_lists_or_ranges():
  assert plan.numbers('', '--widths', whole=False) == ()
  assert plan.numbers('24,40', '--resolutions', whole=True) == (24, 40)
  assert plan.numbers('24:40:8', '--resolutions', whole=True) == (24, 32, 40)
  assert plan.numbers('0.1:0.3:0.1', '--widths', whole=False) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
  'text', ['x', '24:32', '-1', '0', '1:2:0', 'inf', 'nan', '24.5', '1:inf:1']
)
def test_other_texts_are_refused_by_name(text):
  with pytest.raises(UserError, match='--resolutions is'):
    plan.numbers(text, '--resolutions', whole=True)


def test_a_space_with_fewer_networks_says_how_many():
  settings = {'features': 4, 'num_cells': 1, 'num_nodes': 1, 'image_size': 8}
  with pytest.raises(UserError, match='only 49 different networks'):
    plan.make('darts', settings, networks=50)
  assert len(plan.make('darts', settings, networks=49).networks) == 49


def test_bad_settings_name_the_section():
  with pytest.raises(UserError, match=r'config\.space\.deploy'):
    plan.make('nasbench201', {'feature': 4}, networks=1)
  with pytest.raises(UserError, match='--widths varies .features.'):
    plan.make('nasbench201', {'num_cells': 1}, 1, widths=(2,))


def test_plans_are_told_apart():
  settings = {'features': 4, 'num_cells': 1, 'image_size': 8}
  digests = {
    plan.make('nasbench201', settings, 3).digest(),
    plan.make('nasbench201', settings, 4).digest(),
    plan.make('nasbench201', settings, 3, seed=1).digest(),
    plan.make('nasbench201', settings, 3, widths=(2,)).digest(),
  }
  assert len(digests) == 4
  again = plan.make('nasbench201', settings, 3).digest()
  assert again in digests


def test_more_readings_take_longer():
  made = plan.make('nasbench201', {'num_cells': 1}, 5)
  models = len(made.ops) + len(made.sums) + 5
  few, many = (plan.expected_minutes(made, 0.1, n) for n in (3, 7))
  assert many - few == pytest.approx(4 * models * 0.1 / 60)
  for key in made.ops:
    assert key in plan.describe(made)
