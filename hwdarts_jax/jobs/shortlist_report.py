"""What a finished shortlist says: records on disk and a text on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from hwdarts_jax import spaces
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common, genotype_files, pareto_report, summary
from hwdarts_jax.jobs.shortlist_candidates import Candidate, Target
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces.spec import Genotype

RESULT = 'shortlist.json'
_SMOOTHED = (
  'Smoothed ones are what all these trainings say of a network together; the '
  'best of them is chosen.',
)
_OF_DEPLOYED = 'predicted_ms', 'measured_ms', 'bounds', 'macs', 'params'


class Rounds(NamedTuple):
  """What several rounds add to what was found.

  Attributes:
    smoothed: accuracies without the noise of a training, by the keys of
      candidates.
    first: the round that trained each, from 1; 0: another shortlist did.
    sizes: networks of each round.
  """

  smoothed: Mapping[str, float]
  first: Mapping[str, int]
  sizes: list[int]


class Found(NamedTuple):
  """What there is to choose from.

  Attributes:
    candidates: of each target, the most probable first.
    accuracies: of all candidates, by their keys.
    measured_ms: of what was measured, None of those that failed.
    rounds: None where there was one.
  """

  candidates: list[list[Candidate]]
  accuracies: Mapping[str, float]
  measured_ms: Mapping[Genotype, float | None]
  rounds: Rounds | None = None


def write(path: epath.Path, shortlist: Any, found: Found) -> None:
  """Writes what was chosen, and shortlist.json last.

  Args:
    path: the workdir.
    shortlist: a `shortlist.Shortlist`.
    found: what there is to choose from.
  """
  content = record(shortlist, found)
  members = chosen(content)
  if len(members) == 1:
    workdir_lib.write_json_atomic(path / genotype_files.GENOTYPE, members[0])
  else:
    (path / pareto_report.MEMBERS).mkdir(exist_ok=True)
    for i, member in enumerate(members):
      workdir_lib.write_json_atomic(pareto_report.member_path(path, i), member)
  workdir_lib.write_json_atomic(path / RESULT, content)


def record(shortlist: Any, found: Found) -> dict[str, Any]:
  """The content of shortlist.json; see `write`."""
  config, deploy = shortlist.config, shortlist.specs.deploy
  latency, ms = shortlist.latency, found.measured_ms
  rounds = {} if found.rounds is None else {'rounds': found.rounds.sizes}
  return {
    'space': deploy.space,
    'seed': config.seed,
    'deploy': genotype_files.deploy_record(
      config.space.deploy, deploy, latency
    ),
    'trained': shortlist.pool.settings,
    'measured': {
      'networks': len(ms),
      'failed': sum(value is None for value in ms.values()),
      'allowed': config.shortlist.max_measured,
    },
    **rounds,
    'targets': [
      {'candidates': _candidates(shortlist, target, some, found)}
      for target, some in zip(shortlist.targets, found.candidates, strict=True)
    ],
  }


def _candidates(
  shortlist: Any, target: Target, some: list[Candidate], found: Found
) -> list[dict[str, Any]]:
  """The candidates of a target, in the order of the search."""
  values = found.rounds.smoothed if found.rounds else found.accuracies
  # The first of equals: the most probable.
  best = max(some, key=lambda c: values[c.key])
  return [
    {
      'genotype': c.genotype.to_dict(),
      'text': spaces.to_text(c.genotype),
      'network': c.key,
      'score': c.score,
      'val_accuracy': found.accuracies[c.key],
      **_of_rounds(found.rounds, c.key),
      'is_chosen': c is best,
      'predicted_ms': shortlist.latency.of(shortlist.specs.deploy, c.genotype),
      'measured_ms': found.measured_ms.get(c.genotype),
      'bounds': {
        b.name: _bound(b, c, found.measured_ms.get(c.genotype))
        for b in target.bounds
      },
      **common.costs(shortlist.specs.deploy, c.genotype),
    }
    for c in some
  ]


def _of_rounds(rounds: Rounds | None, key: str) -> dict[str, Any]:
  """What rounds add to a candidate."""
  if rounds is None:
    return {}
  return {'smoothed_accuracy': rounds.smoothed[key], 'round': rounds.first[key]}


def judged(candidate: Mapping[str, Any]) -> float:
  """The accuracy by which candidates are chosen."""
  return candidate.get('smoothed_accuracy', candidate['val_accuracy'])


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
      **_smoothed(content, first, candidate),
    },
  }


def _smoothed(content, first, candidate) -> dict[str, Any]:
  """What rounds add to the file of a genotype."""
  if 'rounds' not in content:
    return {}
  return {
    'rounds': content['rounds'],
    'round': candidate['round'],
    'smoothed_accuracy': candidate['smoothed_accuracy'],
    'smoothed_accuracy_of_first': first['smoothed_accuracy'],
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
      *(_SMOOTHED if 'rounds' in content else ()),
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
  has_rounds = 'round' in candidates[0]
  more = '      smoothed  round' if has_rounds else ''
  lines = [
    f'{len(candidates)} candidates on {device}, {asked(target)}{file}; '
    '* is chosen:',
    f'   val accuracy{more}  predicted ms  measured ms  log prob  architecture',
  ]
  for c in sorted(candidates, key=lambda c: -judged(c)):
    if has_rounds:
      more = f'  {100 * c["smoothed_accuracy"]:>10.2f} %  {_round(c):>5}'
    lines.append(
      f'{"*" if c["is_chosen"] else " "}  {100 * c["val_accuracy"]:>10.2f} %'
      f'{more}  '
      f'{c["predicted_ms"]:>12.2f}  {_ms(c["measured_ms"]):>11}  '
      f'{c["score"]:>8.2f}  {c["text"]}'
    )
  return lines


def _round(candidate: Mapping[str, Any]) -> str:
  return str(candidate['round'] or 'pool')


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
