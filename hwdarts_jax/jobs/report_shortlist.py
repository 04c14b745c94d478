"""What a report says of a shortlist: its candidates, and what was chosen."""

from __future__ import annotations

from typing import Any

from hwdarts_jax.jobs import shortlist_report
from hwdarts_jax.jobs.report_architecture import Facts, Subject
from hwdarts_jax.jobs.report_read import Family

_CLOSE = 0.005  # lead in validation accuracy that is next to none


def record(family: Family) -> Facts | None:
  """The content of shortlist.json, if a finished one is in the family."""
  run = family.get('shortlist')
  return None if run is None else run.result


def section(family: Family) -> Facts | None:
  """The candidates of each target, the most accurate first.

  Returns:
    None where the run is no shortlist and came of none.
  """
  content = record(family)
  if content is None:
    return None
  training = content['trained']['training']
  return {
    'epochs': training['num_epochs'],
    'rounds': content.get('rounds'),
    'networks': len(
      {c['network'] for t in content['targets'] for c in t['candidates']}
    ),
    'targets': [
      {
        'asked': shortlist_report.asked(target),
        'progress': _progress(content, target),
        'candidates': [
          candidate | {'place': place}
          for place, candidate in sorted(
            enumerate(target['candidates'], start=1),
            key=lambda c: (-shortlist_report.judged(c[1]), c[0]),
          )
        ],
      }
      for target in content['targets']
    ],
  }


def _progress(content: Facts, target: Facts) -> list[Facts]:
  """The best that each round had for a target, by what is known at the end."""
  found = []
  for number in range(len(content.get('rounds', ()))):
    known = [c for c in target['candidates'] if c['round'] <= number + 1]
    new = sum(c['round'] == number + 1 for c in known)
    if known:
      best = max(known, key=shortlist_report.judged)
      found.append({'round': number + 1, 'new': new, 'best': best})
  return found


def candidates(family: Family, about: Subject) -> tuple[Subject, list[str]]:
  """All candidates as a subject, and what each is called beside the run."""
  content = record(family)
  if content is None:
    return about._replace(found=[]), []
  found, names = [], []
  several = len(content['targets']) > 1
  for i, target in enumerate(content['targets']):
    of_target = f' of {i:02d}' if several else ''
    for place, candidate in enumerate(target['candidates'], start=1):
      found.append(shortlist_report.of_candidate(content, target, candidate))
      names.append(f'candidate {place}{of_target}')
  return about._replace(found=found), names


def headline(found: list[Facts], device: str, data: str) -> str:
  """One sentence of several targets; of one see `report_sections`."""
  times = [r['deploy']['predicted_ms'] for r in found]
  return (
    f'{len(found)} architectures for {data}, {min(times):.2f} to '
    f'{max(times):.2f} ms on {device}: of the candidates for each target the '
    'one that was most accurate after a brief training.'
  )


def stats(family: Family, found: list[Facts]) -> list[Facts]:
  """The figures under the headline, of one target or of several."""
  shown = section(family)
  assert shown is not None
  epochs = shown['epochs']
  brief = f'{epochs} {"epoch" if epochs == 1 else "epochs"}, smaller network'
  if len(found) > 1:
    return [
      _stat('targets', len(found), '', 'each with a choice of its own'),
      _stat('candidates', shown['networks'], '', f'trained: {brief}'),
    ]
  (one,) = found
  name = 'smoothed_accuracy'
  if name not in one['shortlist']:
    name = 'val_accuracy'
  best, first = (100 * one['shortlist'][k] for k in (name, f'{name}_of_first'))
  gain = 'the most probable one itself'
  if not one['shortlist']['is_first']:
    gain = f'{best - first:+.1f} points over the most probable one'
  return [
    _stat('brief training', best, '%', f'validation half, {brief}'),
    _stat('candidates', one['shortlist']['size'], '', gain),
  ]


def _stat(label: str, value: float, unit: str, note: str) -> dict[str, Any]:
  return {'label': label, 'value': value, 'unit': unit, 'note': note}


def warnings(content: Facts) -> list[str]:
  """Choices that could as well have been others."""
  close = 0
  for target in content['targets']:
    values = sorted(map(shortlist_report.judged, target['candidates']))
    close += len(values) > 1 and values[-1] - values[-2] < _CLOSE
  if not close:
    return []
  return [
    f'For {close} of {len(content["targets"])} targets the two best candidates '
    f'are within {100 * _CLOSE:g} points of each other: another seed may '
    'choose otherwise.'
  ]
