"""Rounds of measuring and training, played with accuracies that are known."""

from absl import flags
import numpy as np
import pytest

from benchmarks import rounds, rounds_play, shortlist_train
from hwdarts_jax import oracle

DEVICE = 'intel_ncs2'
ROWS, IN_ALL = 60, 120


@pytest.fixture(name='plan')
def _plan(tmp_path):
  """Predictions of one device that err by a tenth, to the file of the flag."""
  rng = np.random.default_rng(0)
  possible = oracle.candidates(DEVICE)
  true = oracle.latencies(DEVICE)
  off = np.exp(0.1 * rng.standard_normal(len(true)))
  ms = np.where(possible, true, np.median(true[possible])) * off
  path = tmp_path / 'plan.npz'
  np.savez(
    path,
    **{
      f'{DEVICE}/0/ms': ms,
      f'{DEVICE}/0/rows': rng.choice(np.flatnonzero(possible), ROWS, False),
      'in_all': IN_ALL,
    },
  )
  # More might be measured in all rounds than is allowed.
  flags.FLAGS(
    [
      'test',
      f'--plan_file={path}',
      '--quantiles=0.1,0.5,0.9',
      '--first=24',
      '--each=8',
      '--rounds=5',
      '--measured_at_once=5',
    ]
  )
  yield
  for name in ('plan_file', 'quantiles', 'first', 'each', 'rounds'):
    flags.FLAGS[name].unparse()
  flags.FLAGS['measured_at_once'].unparse()


def _regrets(results):
  found = {}
  for record in rounds.judge(results):
    found.setdefault(record['method'], []).append(record['regret'])
  return list(found.values())


def test_answers_were_measured_within_budgets_and_trained(plan):
  results = rounds.simulate(0.4, 0)
  (draw,) = rounds.load_draws()
  for round_ in results['rounds']:
    measured = round_['measured'][draw.name]
    assert len(set(measured)) == len(measured) <= IN_ALL - ROWS
    seen = draw.known.copy()
    seen[measured] = True
    for _, quantile, budget in rounds_play.cases([draw]):
      cell = round_['answers'][f'{draw.name}/{quantile}']
      assert seen[cell]
      assert oracle.latencies(DEVICE)[cell] <= budget
      known = rounds_play.space()
      assert known.keys[known.network[cell]] in results['accuracy']


def test_trainings_that_tell_the_truth_leave_little_regret(plan):
  first, *_, last = _regrets(rounds.simulate(0.0, 0))
  assert np.mean(last) < 0.2 < np.mean(first)


def test_stopped_rounds_go_on_as_if_they_had_not_been(plan):
  whole = rounds.simulate(0.4, 1)
  flags.FLAGS.rounds = 2
  part = rounds.simulate(0.4, 1)
  assert len(part['rounds']) == 2
  flags.FLAGS.rounds = 5

  def train(todo):
    for key in todo:
      part['accuracy'][key] = whole['accuracy'][key]
    return True

  rounds.play(part, train)
  assert part == whole


def test_no_time_left_changes_nothing(plan):
  whole = rounds.simulate(0.4, 1)
  flags.FLAGS.rounds = 9
  before = len(whole['rounds'])
  rounds.play(whole, lambda todo: False)
  assert len(whole['rounds']) == before


def test_results_without_a_round_are_no_figure(plan):
  with pytest.raises(ValueError, match='no round'):
    rounds.judge({'accuracy': {'cell: x0': 0.5}})


def test_noise_is_smoothed_by_networks_alike():
  known = rounds_play.space()
  truth = oracle.accuracies('cifar10')[known.cell]
  rng = np.random.default_rng(0)
  good = np.flatnonzero(truth > 91)
  some = rng.choice(good, 200, replace=False)
  noisy = truth[some] + 0.8 * rng.standard_normal(len(some))
  keys = [known.keys[i] for i in some]
  values = rounds_play.surrogate(dict(zip(keys, noisy / 100, strict=True)))
  error = np.std(values[some] - truth[some])
  assert error < 0.85 * np.std(noisy - truth[some])


def test_what_is_trained_serves_other_rows_without_further_trainings(plan):
  known = rounds.simulate(0.0, 0)
  flags.FLAGS.each = 0
  other = {'accuracy': dict(known['accuracy'])}
  rounds.play(other, lambda todo: not todo)
  assert other['accuracy'] == known['accuracy']
  assert np.mean(_regrets(other)[-1]) < np.mean(_regrets(known)[0])


def test_processes_that_train_together_know_what_each_of_them_trained(
  tmp_path, monkeypatch
):
  """Two share five networks; the other one has trained its two already."""
  flags.FLAGS(
    ['test', f'--results={tmp_path / "r.json"}', '--of=2', '--rank=0']
  )
  asked = []

  def train_all(setup, todo, results, suffix):
    del setup
    asked.extend(m['key'] for m in todo)
    results['accuracy'] |= {m['key']: 0.5 for m in todo}
    shortlist_train.save(results, suffix)
    return True

  monkeypatch.setattr(shortlist_train, 'train_all', train_all)
  other = shortlist_train.load_results(is_continued=True)
  shortlist_train.save(other | {'accuracy': {'b': 0.1, 'd': 0.2}}, '.1')
  results = {'accuracy': {'z': 0.9}}
  members = [{'key': k, 'cell': 0} for k in 'abcde']
  assert rounds._train_share(None, members, results)
  assert asked == ['a', 'c', 'e']
  assert list(results['accuracy'].items()) == [
    ('z', 0.9), ('a', 0.5), ('b', 0.1), ('c', 0.5), ('d', 0.2), ('e', 0.5)
  ]  # fmt: skip
  asked.clear()  # a second start has nothing left to train
  assert rounds._train_share(None, members, {'accuracy': {}})
  assert not asked
  for name in ('results', 'of', 'rank'):
    flags.FLAGS[name].unparse()


def test_a_subsampled_image_has_the_means_of_its_squares():
  images = np.zeros((60, 4, 4, 1), np.uint8)
  images[0, :2, 2:, 0] = [[10, 20], [30, 41]]
  found = shortlist_train._means(images, 2)
  np.testing.assert_array_equal(found[0, ..., 0], [[0, 25], [0, 0]])
  assert not found[1:].any()
