"""What does a brief training of a few single cells add to a search?

    python -m benchmarks.shortlist --plan --score=macs --plan_file=plan.json
    python -m benchmarks.shortlist --train --plan_file=plan.json --npz=cifar.npz
    python -m benchmarks.shortlist --judge --plan_file=plan.json

NAS-Bench-201, with the devices, budgets, predictors and judge of
`benchmarks.search_quality`. `--plan` makes the shortlists: for each budget the
cells of the highest score that are predicted within it, and for comparison the
same number at random. `--score=macs` scores a cell by its MACs, of ops that are
on a path from input to output; any other value is the pattern of workdirs whose
mean gates are the score. `--train` trains every network of them once, on half
of the train split, and takes its accuracy on the other half; it goes on where
it was stopped, and stops by itself before `--limit_s`. `--judge` prints what
the best of each shortlist is worth; it alone reads true accuracies.
"""

from __future__ import annotations

import glob
import json
import pathlib
from typing import Any

from absl import app, flags
import numpy as np

from benchmarks import search_quality, shortlist_judge, shortlist_train
from hwdarts_jax import oracle
from hwdarts_jax.latency import cost, liveness, sameness
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.spaces import nasbench201

_PLAN = flags.DEFINE_bool('plan', False, 'Make the shortlists.')
_TRAIN = flags.DEFINE_bool('train', False, 'Train what is not trained yet.')
_JUDGE = flags.DEFINE_bool('judge', False, 'Print what they are worth.')
_PLAN_FILE = flags.DEFINE_string('plan_file', 'shortlist_plan.json', 'Which.')
_SCORE = flags.DEFINE_string('score', 'macs', 'Or a pattern of workdirs.')
_SIZE = flags.DEFINE_integer('size', 16, 'Networks of each shortlist.')


def scores() -> np.ndarray:
  """The score of all cells, f64[15625].

  Raises:
    ValueError: there is no workdir.
  """
  if _SCORE.value == 'macs':
    spec = nasbench201.make()
    paid = liveness.paid_ops(spec, corners(spec), 'compiled')
    macs = cost.tabulate(spec, cost.macs, 'macs').per_op
    total = sum(np.einsum('neo,eo->n', paid[g], macs[g]) for g in paid)
    return np.asarray(total, np.float64)
  paths = sorted(glob.glob(_SCORE.value))
  if not paths:
    raise ValueError(f'--score={_SCORE.value}: there is no such folder.')
  each = [
    gates for p in paths for gates in search_quality.last_gates(pathlib.Path(p))
  ]
  return oracle.log_probabilities(np.mean(each, 0))


def plan() -> dict[str, Any]:
  """Shortlists of all cases, and what to train for them, in this order."""
  keys = np.array(
    sameness.keys(
      nasbench201.make(), [oracle.genotype(i) for i in range(oracle.NUM_CELLS)]
    )
  )
  connected = oracle.load().connected
  rng = np.random.default_rng(0)
  ties, chance = (rng.random(oracle.NUM_CELLS) for _ in range(2))
  values = scores()
  order = np.lexsort((ties, -values))
  cases = [{'device': '', 'scored': _best(order, connected, keys)}]
  for device in flags.FLAGS.devices:
    measured = oracle.candidates(device)
    known = oracle.latencies(device)[measured]
    for seed in range(flags.FLAGS.seeds):
      ms = search_quality.predicted_ms(device, seed)
      for quantile in map(float, flags.FLAGS.quantiles):
        budget = float(np.quantile(known, quantile))
        within = measured & (ms <= budget / (1 + flags.FLAGS.margin))
        cases.append(
          {
            'device': device,
            'seed': seed,
            'quantile': quantile,
            'budget_ms': budget,
            'scored': _best(order, within, keys),
            'random': _best(np.argsort(chance), within, keys),
          }
        )
      shortlist_train.say(f'{device}, rows of seed {seed}: done')
  return {
    'score': _SCORE.value,
    'size': _SIZE.value,
    'cases': cases,
    'members': _union(cases, keys),
  }


def _best(order: np.ndarray, allowed: np.ndarray, keys: np.ndarray):
  """Cells of the first networks in an order, of those that are allowed."""
  found: dict[str, int] = {}
  for cell in order[allowed[order]]:
    found.setdefault(str(keys[cell]), int(cell))
    if len(found) == _SIZE.value:
      break
  return list(found.values())


def _union(cases, keys) -> list[dict[str, Any]]:
  """What to train: the first of all shortlists, then the second, and so on."""
  found: dict[str, int] = {}
  for kind in ('scored', 'random'):
    for rank in range(_SIZE.value):
      for case in cases:
        if rank < len(case.get(kind, ())):
          cell = case[kind][rank]
          found.setdefault(str(keys[cell]), cell)
    shortlist_train.say(f'{len(found)} networks with those that are {kind}')
  return [{'key': key, 'cell': cell} for key, cell in found.items()]


def main(argv: list[str]) -> None:
  """Does what the flags ask for."""
  del argv
  path = pathlib.Path(_PLAN_FILE.value)
  if _PLAN.value:
    path.write_text(json.dumps(plan()))
  results = shortlist_train.load_results(is_continued=not _JUDGE.value)
  if shortlist_train.TIME.value or _TRAIN.value:
    setup = shortlist_train.prepare()
  if _TRAIN.value:
    wanted = json.loads(path.read_text())['members']
    known = results['accuracy']
    shortlist_train.train_all(
      setup, [m for m in wanted if m['key'] not in known], results
    )
  if _JUDGE.value:
    print(shortlist_judge.describe(json.loads(path.read_text()), results))


if __name__ == '__main__':
  app.run(main)
