"""Searched networks against published ones, from a table to a verdict."""

import json
import math

from absl import flags
import benchmark_tools
import numpy as np
import pytest
import tiny_runs

from benchmarks import frontier_judge, frontier_state
from hwdarts_jax import spaces
from hwdarts_jax.spaces import references

frontier = benchmark_tools.load('frontier')

CHOICES = {
  'features': 4,
  'num_blocks': 1,
  'num_stages': 1,
  'kernels': '3',
  'expansions': '3',
  'squeeze_excite': False,
  'fused': True,
}
DEPLOY = CHOICES | {
  'num_classes': 10,
  'image_size': 8,
  'image_channels': 1,
  'stem_stride': 1,
}
SETTINGS = {
  **{f'space.search.{k}': v for k, v in CHOICES.items()},
  'space.search.stem_stride': 1,
  **{f'space.deploy.{k}': v for k, v in DEPLOY.items()},
  'network.bn_groups': 1,
  'search.batch_size': 8,
  'search.num_steps': 4,
  'search.log_every_steps': 4,
  'search.checkpoint_every_steps': 4,
  'search.eval_every_steps': 0,
  'search.eval_batch_size': 16,
  'population.members_per_step': 2,
  'retrain.num_epochs': 1,
  'retrain.batch_size': 64,
}


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A comparison with one tiny network that stands for a published one."""
  row = references._Row(3, 1, 8, False, 'relu', 2)
  tiny = references._Model(8, 'relu', (row,), (8, 0))
  monkeypatch.setitem(references.MODELS, 'tiny', tiny)
  tiny_runs.write_entries(  # dense convolutions are slow
    tmp_path / 'toy.json', spaces.make('mobile', **DEPLOY), lambda i, _: 1.0 + i
  )
  with benchmark_tools.own_flags('frontier'):
    flags.FLAGS(
      [
        'test',
        '--step=judge',
        f'--state={tmp_path / "state"}',
        '--config=configs/host_cpu.py:space=mobile,runlocal',
        '--references=tiny',
        '--device=toy',
        f'--table={tmp_path / "toy.json"}',
        '--seeds=2',
        '--trainings=2',
        '--quantiles=0.6',
        '--ahead=1',
        *(f'--set={k}={v}' for k, v in SETTINGS.items()),
      ]
    )
    yield frontier.state()


def test_from_a_table_to_a_verdict(own, capsys):
  """All steps, on a made-up device; what is trained is not trained again."""
  measured = {'networks': {'tiny': {'ms': 8.0}}}
  own.write(frontier_state.LATENCY, 'toy', measured)
  frontier.search(own)
  (found,) = own.found().values()
  assert found['predicted_ms'] <= found['target_ms'] == 0.95 * 8
  front = json.loads((own.folder / 'search/toy/front.json').read_text())
  same = [m for m in front['members'] if m['target_ms'] == found['target_ms']]
  assert len(same) == 2 < len(front['members'])
  assert found['supernet_val_accuracy'] == max(
    m['supernet_val_accuracy'] for m in same
  )
  frontier.retrain(own)
  accuracies = own.accuracies()
  assert set(accuracies) == {'tiny', 'toy_0'}
  assert all(set(of_seeds) == {0, 1} for of_seeds in accuracies.values())
  record = json.loads((own.folder / 'trained/toy_0.1.json').read_text())
  assert record['images'] == 1437 // 64 * 64
  assert record['macs'] == pytest.approx(found['macs'])
  frontier.retrain(own)
  assert 'images/s' in (text := capsys.readouterr().out)
  assert text.count('images/s') == 4
  measured['networks']['toy_0'] = {'ms': 4.0}
  own.write(frontier_state.LATENCY, 'toy', measured)
  verdict = frontier.judge(own)['toy']['verdicts'][0]
  assert verdict['at_its_latency']['speedup'] == 2
  assert (own.folder / 'toy.png').read_bytes().startswith(b'\x89PNG')


def test_nothing_is_begun_that_would_last_too_long(own, capsys):
  frontier.flags.FLAGS.limit_s = 1.0
  frontier.retrain(own)
  assert not own.accuracies()
  assert 'Some is left to train' in capsys.readouterr().out


def test_published_networks_are_trained_as_found_ones_are(own):
  """The same data, recipe and evaluation, at the same resolution and stem."""
  own.write(frontier_state.NETWORKS, 'toy_0', {})
  theirs, ours = (frontier.training(own, n) for n in ('tiny', 'toy_0'))
  for section in ('data', 'network', 'retrain'):
    mine = ours[section].to_dict() | {'genotype': ''}
    assert theirs[section].to_dict() | {'genotype': ''} == mine
  assert theirs.space.deploy.width == 0.25
  assert own.spec('tiny').input_shape == (8, 8, 1)


def test_members_can_take_equal_turns(own):
  """Two seeds: of 3 + 2 targets there are 10 members, which 4 divides not."""
  assert frontier.filled([1.0, 2.0, 8.0], 2, 2) == [1.0, 2.0, 8.0]
  assert frontier.filled([1.0, 2.0, 8.0], 2, 4) == [1.0, 2.0, 4.0, 8.0]
  assert frontier.filled([1.0], 2, 4) == [1.0, 1.2]


def _judge(ms, accuracies):
  judged = frontier_judge.judge(
    ['ref'], [n for n in ms if n != 'ref'], ms, accuracies
  )
  return judged, judged['verdicts'][0]


def test_a_difference_counts_beyond_its_interval_only():
  """Two seeds of two networks: t of 2 degrees of freedom is 4.303."""
  ms = {'ref': 2.0, 'mine': 1.0}
  accuracies = {'ref': {0: 90.0, 1: 91.0}, 'mine': {0: 93.0, 1: 94.0}}
  judged, verdict = _judge(ms, accuracies)
  std = math.sqrt((0.5 + 0.5) / 2)
  assert judged['seed_std'] == pytest.approx(std)
  at = verdict['at_its_latency']
  assert at['accuracy_difference'] == pytest.approx(3.0)
  assert at['half_width'] == pytest.approx(4.303 * std, rel=1e-3)
  assert not at['is_more_accurate']
  accuracies['mine'] = {0: 93.1, 1: 94.1}
  assert _judge(ms, accuracies)[1]['at_its_latency']['is_more_accurate']


def test_networks_are_compared_at_equal_latency_and_at_equal_accuracy():
  """The slowest that is no slower, and the fastest that is no worse."""
  ms = {'ref': 2.0, 'slow': 2.5, 'near': 1.9, 'fast': 1.0, 'poor': 0.5}
  mean = {'ref': 90, 'slow': 95, 'near': 92, 'fast': 91, 'poor': 80}
  accuracies = {n: {0: a - 0.1, 1: a + 0.1} for n, a in mean.items()}
  judged, verdict = _judge(ms, accuracies)
  assert verdict['at_its_latency']['name'] == 'near'
  assert verdict['at_its_accuracy']['name'] == 'fast'
  assert verdict['at_its_accuracy']['speedup'] == 2
  text = frontier_judge.table('toy', judged)
  assert '| ref | near | +2.00 ±' in text
  assert '| fast | 2.00x | no |' in text


def test_a_reference_that_is_beaten_by_nobody_says_so():
  ms = {'ref': 1.0, 'mine': 2.0}
  accuracies = {'ref': {0: 90.0, 1: 91.0}, 'mine': {0: 50.0, 1: 51.0}}
  judged, verdict = _judge(ms, accuracies)
  assert verdict['at_its_latency'] is verdict['at_its_accuracy'] is None
  assert 'none is as fast' in frontier_judge.table('toy', judged)


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Of 400 comparisons of equal networks about 5 % are called different."""
  rng = np.random.default_rng(0)
  wrong = 0
  for _ in range(400):
    accuracies = {
      n: dict(enumerate(rng.normal(90, 0.3, 3))) for n in ('ref', 'a', 'b')
    }
    ms = {'ref': 2.0, 'a': 1.0, 'b': 9.0}
    at = _judge(ms, accuracies)[1]['at_its_latency']
    wrong += at['is_more_accurate'] or at['is_less_accurate']
  assert 8 <= wrong <= 34
