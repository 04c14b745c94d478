"""What the best of shortlists are worth, by the true accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import search_quality
from hwdarts_jax import oracle
from hwdarts_jax.latency import sameness
from hwdarts_jax.spaces import nasbench201

_KINDS = ('scored', 'random')
_GOOD = 90.0  # per cent: how cells below are ranked matters to nobody


def describe(plan: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  """Tables of regret under budgets, of accuracy without, and of the noise.

  Args:
    plan: of `shortlist.plan`.
    results: of its trainings.
  """
  trained = {
    m['cell']: results['accuracy'][m['key']]
    for m in plan['members']
    if m['key'] in results['accuracy']
  }
  known = _by_cell(plan, results)
  records, free = [], []
  for case in plan['cases']:
    if not case['device']:
      free.append(_free(case, known))
    else:
      records += _records(case, known)
  complete = sum(m['key'] in results['accuracy'] for m in plan['members'])
  return '\n'.join(
    [
      f'{complete} of {len(plan["members"])} networks of shortlists of '
      f'{plan["size"]} by {plan["score"]}; {results["settings"]}',
      _noise(trained),
      *free,
      'Mean regret in points:',
      search_quality.describe_budgets(records),
    ]
  )


def _by_cell(plan, results) -> dict[int, float]:
  """Accuracies of all cells of the shortlists whose network was trained."""
  cells = sorted(
    {c for case in plan['cases'] for k in _KINDS for c in case.get(k, ())}
  )
  keys = sameness.keys(
    nasbench201.make(), [oracle.genotype(cell) for cell in cells]
  )
  return {
    cell: results['accuracy'][key]
    for cell, key in zip(cells, keys, strict=True)
    if key in results['accuracy']
  }


def _noise(trained: Mapping[int, float]) -> str:
  """How well brief trainings rank cells."""
  truth = oracle.accuracies('cifar10')
  cells = np.array(sorted(trained), int)
  good = cells[truth[cells] > _GOOD]
  lines = []
  for name, some in (('all', cells), (f'above {_GOOD:g}', good)):
    if len(some) < 5:
      continue
    x = 100 * np.array([trained[c] for c in some])
    line = np.polyfit(x, truth[some], 1)
    error = truth[some] - np.polyval(line, x)
    lines.append(
      f'{name}: {len(some)} networks, Spearman '
      f'{stats.spearmanr(x, truth[some])[0]:.3f}, true accuracy is '
      f'{line[0]:.2f} of theirs with a spread of {error.std():.2f} points'
    )
  return '\n'.join(lines)


def _free(case, known) -> str:
  """The accuracy that is found without a budget."""
  truth = oracle.accuracies('cifar10')
  chosen = _choose(case['scored'], known)
  best = max(truth[c] for c in case['scored'])
  return (
    f'without a budget: {truth[case["scored"][0]]:.2f} by score alone, '
    f'{truth[chosen]:.2f} by the shortlist, {best:.2f} is in it'
  )


def _choose(cells: Sequence[int], known: Mapping[int, float]) -> int:
  """The cell of the highest trained accuracy; the first if none was trained."""
  return max(cells, key=lambda c: known.get(c, -1.0))


def _records(case, known) -> list[dict[str, Any]]:
  """Regrets of one case, as `search_quality.describe_budgets` reads them."""
  truth = oracle.accuracies('cifar10')
  found = {}
  for kind in _KINDS:
    cells = case[kind]
    if not cells:
      continue
    found[f'{kind}, the first'] = cells[0]
    found[f'{kind}, the best trained'] = _choose(cells, known)
    found[f'{kind}, the best in truth'] = max(cells, key=lambda c: truth[c])
  records = []
  for method, cell in found.items():
    verdict = oracle.judge(
      oracle.genotype(cell), 'cifar10', case['device'], case['budget_ms']
    )
    records.append(
      {
        'device': case['device'],
        'method': method,
        'regret': verdict.regret,
        'is_projected': False,
      }
    )
  return records
