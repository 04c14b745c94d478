"""What a reader of a report should be warned of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections

from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import diagnose, report_shortlist, shortlist_report
from hwdarts_jax.jobs.report_architecture import Facts, Latency
from hwdarts_jax.jobs.report_read import Family, RESULTS, Run

_FAR = 0.2  # share by which the mixture may be off the derived architecture
_CLOSE = 0.05  # lead of a gate that is next to none
_FEW_PERCENT = 95.0  # answers of a file that are as those of JAX
_SHOWN = 4


def warnings(
  family: Family, known: Latency, architectures: Sequence[Facts]
) -> list[str]:
  """Sentences, the most serious first; none if there is nothing to say."""
  found: list[str] = []
  for job, run in family.items():
    if run.result is None:
      found.append(_unfinished(job, run))
  search, chosen = family.get('search'), report_shortlist.record(family)
  if search is not None:
    found += _of_rows(search)
    if search.result is not None and chosen is None:
      found += _of_search(search.result)
  if chosen is not None:
    found += report_shortlist.warnings(chosen)
    for record in shortlist_report.chosen(chosen):
      told = _of_predicted(record['deploy'])
      found += [t for t in told if t not in found]
  pareto = family.get('pareto')
  if pareto is not None and pareto.result is not None and chosen is None:
    found += _of_members(pareto.result['members'])
  if len(architectures) == 1 and chosen is None:
    found += _undecided(architectures[0])
  if known.table is not None and known.table.kind == 'estimated':
    found.append(
      f'The latencies of {known.table.device} are estimated, not measured.'
    )
  if known.why:
    found.append(known.why)
  export = family.get('export')
  if export is not None and export.result is not None:
    found += _of_export(export.result)
  return found


def _unfinished(job: str, run: Run) -> str:
  step = run.rows[-1]['step'] if run.rows else 0
  steps = run.config.get('search', {}).get('num_steps')
  far = f'{step} of {steps}' if job in ('search', 'pareto') else f'{step}'
  told = f'The {job} in {run.path} is not finished (there is no {RESULTS[job]})'
  if job == 'shortlist':  # whose metrics are those of its chunks
    return f'{told}. The same command goes on.'
  return (
    f'{told}: its metrics end at step {far}. The same command goes on from '
    'there.'
  )


def _of_rows(search: Run) -> list[str]:
  """What the search printed on its way, found again in its metrics."""
  config = ml_collections.ConfigDict(search.config)
  if 'diagnostics' not in config or not search.rows:
    return []
  return list(diagnose.all_complaints(config, search.rows).values())


def _of_search(record: Facts) -> list[str]:
  deploy, found = record['deploy'], []
  for name, bound in (deploy.get('bounds') or {}).items():
    if not bound['is_feasible']:
      found += [line.strip() for line in bounds_lib.lines(name, bound)[:1]]
  stop = record['search'].get('early_stop_step')
  if stop is not None:
    found.append(f'The search ended early, with the alphas of step {stop}.')
  predicted, expected = deploy['predicted_ms'], deploy['expected_ms_at_end']
  if abs(predicted / expected - 1) > _FAR:
    found.append(
      f'The mixture of ops was expected at {expected:.2f} ms, the architecture '
      f'derived from it is predicted at {predicted:.2f} ms: the gates had not '
      'settled, so what was traded was not what came out.'
    )
  return found + _of_predicted(deploy)


def _of_predicted(deploy: Facts) -> list[str]:
  """How far the predicted latency of an architecture can be trusted."""
  predicted, card, found = deploy['predicted_ms'], deploy['predictor'], []
  if card.get('measured_ms'):
    low, high = card['measured_ms']
    if not low <= predicted <= high:
      found.append(
        f'The predicted {predicted:.2f} ms are extrapolated: measured networks '
        f'take {low:.2f} to {high:.2f} ms.'
      )
  if card.get('held_out') is None:
    found.append(
      f'The predictor ({card["model"]}) has no held-out error: nothing says '
      'how far its milliseconds can be trusted.'
    )
  return found


def _of_members(members: Sequence[Facts]) -> list[str]:
  failed = [i for i, m in enumerate(members) if not m['is_feasible']]
  if not failed:
    return []
  return [f'{len(failed)} of {len(members)} members miss their target.']


def _undecided(architecture: Facts) -> list[str]:
  """Edges where the leading ops have nearly the same gate."""
  gates: dict[str, Any] | None = architecture['gates']
  if gates is None:
    return []
  kept = {
    (e['group'], e['src'], e['dst'])
    for kind in architecture['kinds']
    for e in kind['edges']
  }
  close, total = [], 0
  for group in gates['groups']:
    for edge in group['edges']:
      if (group['name'], edge['src'], edge['dst']) not in kept:
        continue
      last = sorted((g[-1] for g in edge['gates']), reverse=True)
      total += 1
      if len(last) > 1 and last[0] - last[1] < _CLOSE:
        close.append(f'{group["name"]} {edge["src"]}\u2192{edge["dst"]}')
  if not close:
    return []
  more = f' and {len(close) - _SHOWN} more' if len(close) > _SHOWN else ''
  return [
    f'On {len(close)} of {total} edges the two leading ops are within '
    f'{100 * _CLOSE:.0f} points of each other at the end '
    f'({", ".join(close[:_SHOWN])}{more}): another seed may choose otherwise.'
  ]


def _of_export(record: Facts) -> list[str]:
  return [
    f'{name} answers like JAX on {100 * found["top1_agreement"]:.1f} % of the '
    'test images only.'
    for name, found in record['files'].items()
    if 100 * found['top1_agreement'] < _FEW_PERCENT
  ]
