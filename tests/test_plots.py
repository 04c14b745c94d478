"""Pictures are drawn for every kind of space, from whatever rows there are."""

import numpy as np
from PIL import Image
import pytest

from hwdarts_jax.runtime import plots

ROWS = [
  {'step': s, 'train_loss': 1 / (s + 1), 'val_loss': float('nan'),
   'expected_ms': 4.0, 'gate_entropy/normal': 0.5}
  for s in range(3)
]  # fmt: skip
DARTS_EDGES = [(s, d) for d in range(2, 6) for s in range(d)]


def _search(path, groups, ops, edges, num_steps, rows=ROWS):
  rng = np.random.default_rng(0)
  shape = (num_steps, len(edges), len(ops))
  plots.plot_search(
    rows,
    {g: rng.dirichlet(np.ones(shape[2]), shape[:2]) for g in groups},
    dict.fromkeys(groups, ops),
    dict.fromkeys(groups, edges),
    range(num_steps),
    path,
    'a title',
  )
  with Image.open(path) as image:
    image.load()
    return image.size


def test_more_edges_make_a_higher_picture(tmp_path):
  path = tmp_path / 'search.png'
  ops = ['none', 'skip_connect', 'sep_conv_3x3']
  small = _search(path, ['cell'], ops, DARTS_EDGES[:6], 3)
  large = _search(path, ['normal', 'reduce'], ops, DARTS_EDGES, 3)
  assert large[0] == small[0]
  assert large[1] > 1.5 * small[1]
  assert [p.name for p in tmp_path.iterdir()] == ['search.png']


def test_groups_of_one_edge_share_rows(tmp_path):
  path = tmp_path / 'search.png'
  ops = [f'mb_conv_{i}' for i in range(19)]
  blocks = [f'block{i}' for i in range(7)]
  seven = _search(path, blocks, ops, [(0, 1)], 2)
  assert seven == _search(path, blocks[:1], ops, [(0, 1)], 2)


@pytest.mark.parametrize('num_steps', [0, 1, 1000])
@pytest.mark.parametrize('rows', [[], ROWS[:1]])
def test_a_search_can_be_drawn_at_any_time(tmp_path, num_steps, rows):
  ops = ['none', 'skip_connect']
  _search(tmp_path / 'a.png', ['cell'], ops, [(0, 1)], num_steps, rows)


def test_a_picture_shows_what_it_is_given(tmp_path):
  ops = ['none', 'skip_connect']
  for name, rows in (('a', ROWS), ('b', ROWS[:2])):
    _search(tmp_path / name, ['cell'], ops, [(0, 1)], 2, rows)
  assert (tmp_path / 'a').read_bytes() != (tmp_path / 'b').read_bytes()


def test_gates_of_another_shape_are_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match=r"gates_history\['cell'\] has shape"):
    plots.plot_search(
      [], {'cell': np.ones((2, 1, 3))}, {'cell': ['a', 'b']},
      {'cell': [(0, 1)]}, [0, 1], tmp_path / 'a.png', '',
    )  # fmt: skip


def test_a_retrain_is_drawn(tmp_path):
  plots.plot_retrain(ROWS, tmp_path / 'retrain.png', 'a title')
  with Image.open(tmp_path / 'retrain.png') as image:
    assert image.size[0] > image.size[1]
