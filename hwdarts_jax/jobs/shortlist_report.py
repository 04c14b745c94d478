"""What a finished shortlist says: records on disk and a text on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from hwdarts_jax import spaces
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common, genotype_files, pareto_report, summary
from hwdarts_jax.jobs.shortlist_candidates import Candidate, Target
from hwdarts_jax.runtime import workdir as workdir_lib

RESULT = 'shortlist.json'
_OF_DEPLOYED = 'predicted_ms', 'measured_ms', 'bounds', 'macs', 'params'


def write(
  path: epath.Path, shortlist: Any, accuracies: Mapping[str, float]
) -> None:
  """Writes what was chosen, and shortlist.json last.

  Args:
    path: the workdir.
    shortlist: a `shortlist.Shortlist`.
    accuracies: of all candidates, by their keys.
  """
  content = record(shortlist, accuracies)
  found = chosen(content)
  if len(found) == 1:
    workdir_lib.write_json_atomic(path / genotype_files.GENOTYPE, found[0])
  else:
    (path / pareto_report.MEMBERS).mkdir(exist_ok=True)
    for i, member in enumerate(found):
      workdir_lib.write_json_atomic(pareto_report.member_path(path, i), member)
  workdir_lib.write_json_atomic(path / RESULT, content)


def record(shortlist: Any, accuracies: Mapping[str, float]) -> dict[str, Any]:
  """The content of shortlist.json; see `write`."""
  config, deploy = shortlist.config, shortlist.specs.deploy
  latency = shortlist.latency
  return {
    'space': deploy.space,
    'seed': config.seed,
    'deploy': genotype_files.deploy_record(
      config.space.deploy, deploy, latency
    ),
    'trained': shortlist.pool.settings,
    'measured': {
      'networks': len(shortlist.measured_ms),
      'failed': sum(ms is None for ms in shortlist.measured_ms.values()),
      'allowed': config.shortlist.max_measured,
    },
    'targets': [
      {'candidates': _candidates(shortlist, target, found, accuracies)}
      for target, found in zip(
        shortlist.targets, shortlist.candidates, strict=True
      )
    ],
  }


def _candidates(
  shortlist: Any,
  target: Target,
  found: list[Candidate],
  accuracies: Mapping[str, float],
) -> list[dict[str, Any]]:
  """The candidates of a target, in the order of the search."""
  # The first of equals: the most probable.
  best = max(found, key=lambda c: accuracies[c.key])
  return [
    {
      'genotype': c.genotype.to_dict(),
      'text': spaces.to_text(c.genotype),
      'network': c.key,
      'score': c.score,
      'val_accuracy': accuracies[c.key],
      'is_chosen': c is best,
      'predicted_ms': shortlist.latency.of(shortlist.specs.deploy, c.genotype),
      'measured_ms': shortlist.measured_ms.get(c.genotype),
      'bounds': {
        b.name: _bound(b, c, shortlist.measured_ms.get(c.genotype))
        for b in target.bounds
      },
      **common.costs(shortlist.specs.deploy, c.genotype),
    }
    for c in found
  ]


def _bound(
  bound: bounds_lib.Bound, candidate: Candidate, ms: float | None
) -> dict[str, Any]:
  """What is known of a bound and an architecture; see `bounds.record`."""
  value = bound.budget.of(candidate.genotype)
  if ms is None or bound.name != bounds_lib.LATENCY:
    is_feasible = bool(value <= bound.aim)
  else:
    is_feasible = bool(ms <= bound.target)
  return {
    'unit': bound.budget.unit,
    'target': bound.target,
    'margin': bound.margin,
    'aim': bound.aim,
    'predicted': value,
    'is_feasible': is_feasible,
    'feasible_range': [bound.budget.range.low, bound.budget.range.high],
  }


def chosen(content: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The genotype that was chosen for each target, as `of_candidate` has it."""
  found = []
  for target in content['targets']:
    (best,) = (c for c in target['candidates'] if c['is_chosen'])
    found.append(of_candidate(content, target, best))
  return found


def of_candidate(
  content: Mapping[str, Any],
  target: Mapping[str, Any],
  candidate: Mapping[str, Any],
) -> dict[str, Any]:
  """The file of a genotype, as other jobs read it.

  Args:
    content: of shortlist.json.
    target: one of its targets.
    candidate: one of the candidates for that.
  """
  first = target['candidates'][0]
  return {
    'space': content['space'],
    'genotype': candidate['genotype'],
    'text': candidate['text'],
    'seed': content['seed'],
    'deploy': content['deploy'] | {k: candidate[k] for k in _OF_DEPLOYED},
    'shortlist': {
      'size': len(target['candidates']),
      'val_accuracy': candidate['val_accuracy'],
      'val_accuracy_of_first': first['val_accuracy'],
      'is_first': candidate is first,
      'trained': content['trained'],
    },
  }


def of(path: epath.Path) -> str:
  """The summary of a finished shortlist, read from its workdir."""
  content = workdir_lib.read_json(path / RESULT)
  device, several = content['deploy']['device'], len(content['targets']) > 1
  lines = []
  for i, target in enumerate(content['targets']):
    lines += ['', *_target_lines(target, device, i if several else None)]
  command = (
    summary.retrain_member_command(path)
    if several
    else summary.retrain_command(path)
  )
  made = 'members/' if several else genotype_files.GENOTYPE
  return '\n'.join(
    [
      *lines,
      'Accuracies are those of small, briefly trained networks: they say which '
      'is better, not how good it is.',
      f'Everything is in {path}: {made}, {RESULT}, pool.json, chunks/, '
      'config.json',
      f'Next, train {"a" if several else "the"} chosen one:',
      f'  {command}',
    ]
  )


def _target_lines(
  target: Mapping[str, Any], device: str, number: int | None
) -> list[str]:
  """What is told of one target."""
  candidates = target['candidates']
  file = '' if number is None else f' (members/{number:02d}.json)'
  lines = [
    f'{len(candidates)} candidates on {device}, {asked(target)}{file}; '
    '* is chosen:',
    '   val accuracy  predicted ms  measured ms  log prob  architecture',
  ]
  for c in sorted(candidates, key=lambda c: -c['val_accuracy']):
    lines.append(
      f'{"*" if c["is_chosen"] else " "}  {100 * c["val_accuracy"]:>10.2f} %  '
      f'{c["predicted_ms"]:>12.2f}  {_ms(c["measured_ms"]):>11}  '
      f'{c["score"]:>8.2f}  {c["text"]}'
    )
  return lines


def _ms(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'


def asked(target: Mapping[str, Any]) -> str:
  """The bounds of a target, in words."""
  bounds = target['candidates'][0]['bounds']
  return (
    ', '.join(
      f'{name} of at most {b["target"]:.4g} {b["unit"]}'
      for name, b in bounds.items()
    )
    or 'no bound'
  )
