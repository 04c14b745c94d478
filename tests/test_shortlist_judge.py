"""What shortlists of the benchmark are worth, where the verdict is known."""

from absl import flags
import numpy as np

from benchmarks import shortlist_judge
from hwdarts_jax import oracle
from hwdarts_jax.latency import sameness
from hwdarts_jax.spaces import nasbench201

DEVICE = 'intel_ncs2'


def _described(accuracy_of):
  """Table rows by method, of one budget and accuracies by true ones."""
  flags.FLAGS(['test', f'--devices={DEVICE}'])
  budget = float(np.median(oracle.latencies(DEVICE)[oracle.candidates(DEVICE)]))
  truth = oracle.accuracies('cifar10')
  within = np.flatnonzero(oracle.candidates(DEVICE, budget))
  order = within[np.argsort(-truth[within], kind='stable')]
  cells = [int(order[i]) for i in (300, 0, 100)]
  keys = sameness.keys(nasbench201.make(), [oracle.genotype(c) for c in cells])
  known = [*zip(keys, cells, strict=True)]
  case = {
    'device': DEVICE,
    'budget_ms': budget,
    'scored': cells,
    'random': cells[:1],
  }
  plan = {
    'cases': [case, {'device': '', 'scored': cells}],
    'members': [
      {'key': k, 'cell': c} for k, c in zip(keys, cells, strict=True)
    ],
    'size': 3,
    'score': 'chance',
  }
  accuracy = {k: accuracy_of(truth[c]) for k, c in known}
  text = shortlist_judge.describe(plan, {'settings': {}, 'accuracy': accuracy})
  return {
    line.split(' | ')[0].removeprefix('| '): float(line.split(' | ')[1])
    for line in text.splitlines()
    if line.startswith(('| scored', '| random'))
  }


def test_trainings_that_tell_the_truth_leave_no_regret():
  found = _described(lambda true: true / 100)
  assert found['scored, the best trained'] == 0
  assert found['scored, the first'] == found['random, the first'] > 0


def test_trainings_that_mislead_leave_the_regret_of_what_they_chose():
  found = _described(lambda true: 1 - true / 100)
  assert found['scored, the best trained'] == found['scored, the first']
  assert found['scored, the best in truth'] == 0
