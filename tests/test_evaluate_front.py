"""What the benchmark says of all members of a job pareto."""

import json

import numpy as np
import pytest

from hwdarts_jax import front, oracle

DEVICE = 'pixel4_cpu'  # that measured 1,999 cells


@pytest.fixture
def evaluate(nursery, tmp_path):
  """Judges members given as (cell, target in ms, gates)."""

  def judge(*members):
    source, workdir = tmp_path / 'pareto', tmp_path / 'run'
    source.mkdir()
    content = [
      {
        'target_ms': ms,
        'aim_ms': ms,
        'genotype': oracle.genotype(int(cell)).to_dict(),
      }
      for cell, ms, _ in members
    ]
    deploy = {'latency_table': f'{DEVICE}.nasbench201'}
    (source / 'front.json').write_text(
      json.dumps({'deploy': deploy, 'members': content})
    )
    gates = [np.asarray(g).tolist() for *_, g in members]
    row = {'step': 1, 'gates/cell': gates}
    (source / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
    result = nursery.run(
      '--config=configs/pixel4.py',
      '--config.job=evaluate',
      f'--config.evaluate.search_workdir={source}',
      f'--workdir={workdir}',
    )
    assert result.code == 0, result.err
    return json.loads((workdir / 'evaluate.json').read_text()), result.out

  return judge


def _uniform():
  return np.full((6, 5), 0.2)


def _ms(cell):
  return float(oracle.latencies(DEVICE)[cell])


def test_members_on_the_true_front_reach_it_whole(evaluate):
  cells = front.of('cifar10', DEVICE)
  record, out = evaluate(*((c, _ms(c), _uniform()) for c in cells))
  assert record['hypervolume']['cifar10'] == pytest.approx(1)
  for member, cell in zip(record['members'], cells, strict=True):
    assert member['is_what_was_found'] and member['meets_target']
    assert member['regret']['cifar10'] == 0
    assert member['latency_ms'] == _ms(cell)
  assert 'cifar10 100.0 %' in out


def test_a_member_slower_than_its_target_is_a_failure(evaluate):
  *_, fast, slow = front.of('cifar10', DEVICE)
  record, out = evaluate((slow, _ms(fast), _uniform()))
  (member,) = record['members']
  assert not member['meets_target']
  assert member['regret']['cifar10'] is None
  assert 'FAILED' in out


def test_what_was_not_measured_is_judged_by_what_the_member_holds_next(
  evaluate,
):
  ms = oracle.latencies(DEVICE)
  absent = np.flatnonzero(np.isnan(ms) & oracle.load().connected)[0]
  wanted = int(front.of('cifar10', DEVICE)[2])
  gates = 0.01 + np.eye(5)[oracle.load().ops[wanted]]
  gates /= gates.sum(-1, keepdims=True)
  # Room for what the predictor is off by.
  record, _ = evaluate((absent, 1.1 * _ms(wanted), gates))
  (member,) = record['members']
  assert not member['is_what_was_found']
  assert member['genotype'] == oracle.genotype(wanted).to_dict()


def test_a_target_that_no_measured_cell_meets_is_said_and_judges_nothing(
  evaluate,
):
  best = int(front.of('cifar10', DEVICE)[0])
  record, out = evaluate((best, 0.5, _uniform()), (best, 99.0, _uniform()))
  assert record['members'][0]['genotype'] is None
  assert record['members'][1]['regret']['cifar10'] > 0
  assert 'no cell within it was measured' in out
