"""Search under a latency budget by turns of measuring and brief trainings.

    python -m benchmarks.rounds --plan --plan_file=rounds.npz
    python -m benchmarks.rounds --simulate=0.4 --plan_file=rounds.npz
    python -m benchmarks.rounds --train --plan_file=rounds.npz --npz=cifar.npz
    python -m benchmarks.rounds --judge --plan_file=rounds.npz

NAS-Bench-201, with the devices, budgets and seeds of
`benchmarks.search_quality`. Of the rows that a predictor may see there (the
same, drawn by seed) `--random` are kept; the rest is an allowance for
candidates that are measured before they are trained, all budgets of a device
together. In each round the candidates of the highest expected gain are measured
(`rounds_play.measure`), then the best of those that fit are trained briefly,
and a Gaussian process learns from all trainings which networks are good. A
training serves all devices, seeds and budgets. The answer to a budget was
trained and measured within it, so none exceeds its budget.

`--plan` fits the predictors. `--train` goes on where it was stopped, stops by
itself before `--limit_s`, and writes the answers after each round; flags of
trainings are those of `benchmarks.shortlist_train`. Small networks leave a GPU
idle, so that several processes are faster: start the same command with `--of=3`
and each `--rank`. `--simulate` takes the mean
true accuracy of equal networks plus noise, in points, instead of trainings.
`--judge` reads true accuracies, after all that, and prints the mean regret.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import json
import math
import pathlib
import time
from typing import Any

from absl import app, flags
import numpy as np

from benchmarks import rounds_play, search_quality, shortlist_train
from hwdarts_jax import oracle

_PLAN = flags.DEFINE_bool('plan', False, 'Fit the predictors.')
_PLAN_FILE = flags.DEFINE_string('plan_file', 'rounds.npz', 'Of predictions.')
_RANDOM = flags.DEFINE_integer('random', 700, 'Rows for the predictor.')
_SIMULATE = flags.DEFINE_list('simulate', [], 'Points of noise, of each run.')
_REPEATS = flags.DEFINE_integer('repeats', 4, 'Simulations of each noise.')
_TRAIN = flags.DEFINE_bool('train', False, 'Measure, train and choose.')
_JUDGE = flags.DEFINE_bool('judge', False, 'Print the regrets.')
_FIRST = flags.DEFINE_integer('first', 64, 'Networks of the first round.')
_EACH = flags.DEFINE_integer('each', 24, 'Networks of every other round.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Of measuring and training.')
_ONCE = flags.DEFINE_integer(
  'measured_at_once', 5, 'Candidates of a budget and a round.'
)
_ALSO = flags.DEFINE_string(
  'also', '', 'File of cells, a JSON list, that are trained first in any case.'
)
_OF = flags.DEFINE_integer('of', 1, 'Processes that train together.')
_RANK = flags.DEFINE_integer('rank', 0, 'Which of them this one is, from 0.')
_POLL_S = 0.3


def plan() -> None:
  """Writes the latencies that predictors fitted to random rows expect."""
  found: dict[str, np.ndarray] = {}
  for device in flags.FLAGS.devices:
    for seed in range(flags.FLAGS.seeds):
      rows = kept_rows(device, seed)
      name = f'{device}/{seed}'
      ms = search_quality.predicted_ms(device, seed, rows)
      found[f'{name}/ms'], found[f'{name}/rows'] = ms.astype(np.float32), rows
    shortlist_train.say(f'{device}: done')
  found['in_all'] = np.array(flags.FLAGS.rows)
  with open(_PLAN_FILE.value, 'wb') as f:
    np.savez_compressed(f, **found)


def kept_rows(device: str, seed: int) -> np.ndarray:
  """The rows of `search_quality.drawn_rows` that remain, i64[random]."""
  rows = search_quality.drawn_rows(device, seed)
  rng = np.random.default_rng([7, seed])
  return np.sort(rng.permutation(rows)[: _RANDOM.value])


def load_draws() -> list[rounds_play.Draw]:
  """The draws of a plan, before anything is measured."""
  with np.load(_PLAN_FILE.value) as plan:
    arrays = dict(plan)
  draws = []
  for name in [k.removesuffix('/ms') for k in arrays if k.endswith('/ms')]:
    device, seed = name.split('/')
    ms = oracle.latencies(device)[oracle.candidates(device)]
    rows = arrays[f'{name}/rows']
    known = np.zeros(oracle.NUM_CELLS, bool)
    known[rows] = True
    predicted = np.maximum(arrays[f'{name}/ms'].astype(float), 0.1 * ms.min())
    draws.append(
      rounds_play.Draw(
        device=device,
        seed=int(seed),
        budgets={
          q: float(np.quantile(ms, q))
          for q in map(float, flags.FLAGS.quantiles)
        },
        predicted=np.log(predicted),
        allowance=int(arrays['in_all']) - len(rows),
        known=known,
      )
    )
  return draws


def play(results: dict[str, Any], train) -> None:
  """Goes on with the rounds of `results`, which holds all that is known.

  Args:
    results: changed in place: 'accuracy' by network, and 'rounds'.
    train: keys of networks -> whether all of them were trained, which it adds
      to `results`.
  """
  draws, done = load_draws(), results.setdefault('rounds', [])
  for draw in draws if done else ():
    draw.take(done[-1]['measured'][draw.name])
  accuracy = results['accuracy']
  while len(done) < _ROUNDS.value:
    values = rounds_play.surrogate(accuracy)
    for draw in draws:
      rounds_play.measure(draw, values, _ONCE.value)
    size = _EACH.value if accuracy else _FIRST.value
    todo = rounds_play.propose(draws, values, accuracy, size)
    before = len(accuracy)
    is_complete = train(todo)
    same = done and done[-1]['measured'] == {d.name: d.measured for d in draws}
    if len(accuracy) == before and (same or not is_complete):
      return  # nothing is left, or no time
    values = rounds_play.surrogate(accuracy)
    done.append(
      {
        'trained': len(accuracy),
        'measured': {d.name: list(d.measured) for d in draws},
        'answers': rounds_play.answers(draws, values, accuracy),
      }
    )
    if not is_complete:
      return


def simulate(noise: float, repeat: int) -> dict[str, Any]:
  """Plays with true accuracies and noise instead of trainings."""
  known = rounds_play.space()
  truth = oracle.accuracies('cifar10')
  counts = np.bincount(known.network[oracle.load().connected])
  sums = np.bincount(known.network, np.where(oracle.load().connected, truth, 0))
  mean = sums / np.maximum(np.resize(counts, len(sums)), 1)
  rng = np.random.default_rng([repeat, 5])
  noisy = mean + noise * rng.standard_normal(len(mean))
  place = {key: i for i, key in enumerate(known.keys)}
  results: dict[str, Any] = {'accuracy': {}}

  def train(todo):
    for key in todo:
      results['accuracy'][key] = float(noisy[place[key]]) / 100
    return True

  play(results, train)
  return results


def train_rounds(results: dict[str, Any]) -> None:
  """Plays with trainings."""
  known = rounds_play.space()
  cell = dict(zip(known.keys, known.cell.tolist(), strict=True))
  prepare = functools.cache(shortlist_train.prepare)
  others = also(known)

  def train(todo):
    wanted = [*(k for k in others if k not in results['accuracy']), *todo]
    members = [{'key': k, 'cell': cell[k]} for k in dict.fromkeys(wanted)]
    if not members:  # nor is anything compiled
      return True
    if _OF.value == 1:
      return shortlist_train.train_all(prepare(), members, results)
    return _train_share(prepare(), members, results)

  play(results, train)
  if not _RANK.value:
    shortlist_train.save(results)


def also(known: rounds_play.Space) -> list[str]:
  """Keys of the networks of --also."""
  if not _ALSO.value:
    return []
  cells = json.loads(pathlib.Path(_ALSO.value).read_text())
  return [known.keys[known.network[c]] for c in cells]


def _train_share(setup, members, results: dict[str, Any]) -> bool:
  """Trains what falls to this process, and waits for what falls to others.

  Each process has a file of its trainings, and all play the same rounds.

  Args:
    setup: what trainings need.
    members: keys and cells, the same in all processes.
    results: changed in place, as if this process had trained all of them.

  Returns:
    Whether all are trained.
  """
  suffixes = [f'.{rank}' for rank in range(_OF.value)]
  keys = [m['key'] for m in members]

  def of_all() -> dict[str, float]:
    parts = [shortlist_train.load_results(True, s) for s in suffixes]
    return {k: v for part in parts for k, v in part['accuracy'].items()}

  share = set(keys[_RANK.value :: _OF.value]) - set(of_all())
  own = shortlist_train.load_results(True, suffixes[_RANK.value])
  shortlist_train.train_all(
    setup, [m for m in members if m['key'] in share], own, suffixes[_RANK.value]
  )
  while True:
    is_late, found = shortlist_train.is_late(), of_all()
    if is_late or all(k in found for k in keys):
      break
    time.sleep(_POLL_S)
  # In one order: sums of the surrogate are the same to the last bit.
  results['accuracy'] |= {k: found[k] for k in keys if k in found}
  return all(k in found for k in keys)


def judge(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Regrets after each round, as `search_quality.describe_budgets` reads.

  Raises:
    ValueError: there was none.
  """
  if not results.get('rounds'):
    raise ValueError('no round was finished: go on with --train.')
  draws, records = load_draws(), []
  for number, round_ in enumerate(results['rounds']):
    measured = [len(cells) for cells in round_['measured'].values()]
    method = (
      f'round {number + 1}: {round_["trained"]} networks trained, '
      f'{np.mean(measured):.0f} candidates measured'
    )
    for draw, quantile, budget in rounds_play.cases(draws):
      cell = round_['answers'].get(f'{draw.name}/{quantile}')
      regret = math.nan if cell is None else _regret(cell, draw.device, budget)
      records.append(
        {
          'device': draw.device,
          'quantile': quantile,
          'method': method,
          'regret': None if math.isnan(regret) else regret,
          'is_projected': False,
        }
      )
  return records


def _regret(cell: int, device: str, budget_ms: float) -> float:
  verdict = oracle.judge(oracle.genotype(cell), 'cifar10', device, budget_ms)
  return math.nan if verdict.regret is None else verdict.regret


def describe_quantiles(records: list[dict[str, Any]]) -> str:
  """Mean regret of the last method by quantile."""
  last = [r for r in records if r['method'] == records[-1]['method']]
  parts = []
  for quantile in dict.fromkeys(r['quantile'] for r in last):
    own = [r['regret'] for r in last if r['quantile'] == quantile]
    met = [r for r in own if r is not None]
    parts.append(f'{quantile:g}: {np.mean(met):.2f}' if met else 'none met')
  return 'By quantile of the budget, ' + ', '.join(parts)


def main(argv: list[str]) -> None:
  """Does what the flags ask for."""
  del argv
  if _PLAN.value:
    plan()
  for noise in map(float, _SIMULATE.value):
    records = []
    for repeat in range(_REPEATS.value):
      records += judge(simulate(noise, repeat))
    # Rounds of repeats differ a little in what they measure.
    for record in records:
      record['method'] = record['method'].partition(',')[0]
    print(f'Simulated, noise of {noise:g} points, mean regret in points:')
    print(search_quality.describe_budgets(records))
    print(describe_quantiles(records), flush=True)
  if _TRAIN.value:
    train_rounds(shortlist_train.load_results(is_continued=True))
  if _JUDGE.value:
    results = shortlist_train.load_results(is_continued=False)
    records = judge(results)
    print(f'Trained with {results["settings"]}; mean regret in points:')
    print(search_quality.describe_budgets(records))
    print(describe_quantiles(records))


if __name__ == '__main__':
  app.run(main)
