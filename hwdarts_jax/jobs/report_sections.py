"""The content of a report, as JSON: what `report/page.py` draws.

A section that a run has nothing for is `{'missing': why}`.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from hwdarts_jax import oracle
from hwdarts_jax.jobs import report_shortlist, summary
from hwdarts_jax.jobs.report_architecture import (
  Facts,
  Latency,
  predicted_ms,
  Subject,
)
from hwdarts_jax.jobs.report_read import Family, Run
from hwdarts_jax.report import curves

Content = dict[str, Any]
_COLUMNS = 72  # of a command that stays on one line
_MAX_SCATTER = 1500  # held-out networks that are drawn


def content(
  own: Run,
  family: Family,
  about: Subject,
  known: Latency,
  architectures: list[Facts],
  front: Facts,
  warnings: list[str],
) -> Content:
  """All sections of a run that has found something."""
  data = own.config.get('data', {}).get('name', 'unknown data')
  return _frame(own, family) | {
    'title': f'{about.spec.space} for {about.deploy["device"]}',
    'headline': headline(family, about, data),
    'stats': _stats(family, about, architectures),
    'warnings': warnings,
    'architectures': architectures,
    'quality': _quality(about, known),
    'measured': _measured(family),
    'front': front,
    'shortlist': report_shortlist.section(family),
    'device': _device(about, known),
  }


def unfinished(own: Run, family: Family) -> Content:
  """The sections of a run that has found nothing yet: its curves."""
  name = own.config.get('space', {}).get('name', 'a space')
  step = own.rows[-1]['step'] if own.rows else 0
  why = 'The run is not finished: no architecture was derived yet.'
  missing = {'missing': why}
  return _frame(own, family) | {
    'title': f'{name}: {own.job}, not finished',
    'headline': f'This {own.job} is not finished; its metrics end at step '
    f'{step}. The same command goes on from there.',
    'stats': [],
    'warnings': [],
    'architectures': [],
    'quality': missing,
    'measured': missing,
    'front': missing,
    'shortlist': None,
    'device': missing,
  }


def _frame(own: Run, family: Family) -> Content:
  """What needs no architecture: curves, commands, where all comes from."""
  return {
    'curves': _curves(family),
    'commands': _commands(own, family),
    'runs': [
      {
        'job': job,
        'path': os.fspath(run.path),
        'own': run is own,
        'versions': run.versions,
        'hashes': run.hashes,
        'seed': run.config.get('seed'),
        'source': run.config.get('source', ''),
        'changed': _changed(run),
        'config': run.config,
      }
      for job, run in family.items()
    ],
  }


def _changed(run: Run) -> list[tuple[str, Any]]:
  """Settings that are not those of the config file, by dotted name."""
  try:
    return sorted(summary.overrides(run.config).items())
  except Exception:  # config files are programs, and this one may be gone
    return []


def headline(family: Family, about: Subject, data: str) -> str:
  """One sentence: what was found, how fast it is, whether that is enough."""
  device = about.deploy['device']
  count = len(about.found)
  chosen = report_shortlist.record(family) is not None
  if chosen and count > 1:
    return report_shortlist.headline(about.found, device, data)
  if 'pareto' in family and count > 1:
    times = [m['predicted_ms'] for m in about.found]
    on_front = sum(m['is_on_front'] for m in about.found)
    return (
      f'{count} architectures on one set of params, {min(times):.2f} to '
      f'{max(times):.2f} ms on {device}; {on_front} on their front.'
    )
  ms = predicted_ms(about)
  if ms is None:
    return f'An architecture for {data}, for no device in particular.'
  what, how = 'An architecture', 'predicted'
  if chosen:
    size = about.found[0]['shortlist']['size']
    what = f'The most accurate of {size} candidates'
  if about.deploy.get('measured_ms'):
    ms, how = about.deploy['measured_ms'], 'measured'
  text = f'{what} for {data} with {ms:.2f} ms {how} on {device}'
  bound = _bound(about)
  if bound is None:
    return f'{text}.'
  if bound['is_feasible']:
    return f'{text}, within the target of {bound["target"]:g} ms.'
  return f'{text}, which MISSES the target of {bound["target"]:g} ms.'


def _bound(about: Subject) -> Facts | None:
  return (about.deploy.get('bounds') or {}).get('latency_ms')


def _stats(
  family: Family, about: Subject, architectures: list[Facts]
) -> list[Facts]:
  """The figures of the headline: label, value, unit, and a note."""
  chosen = report_shortlist.record(family) is not None
  if len(about.found) > 1:
    return (
      report_shortlist.stats(family, about.found)
      if chosen
      else _stats_of_many(about)
    )
  (record,), (drawn,) = about.found, architectures
  deploy = record.get('deploy', {})
  found = []
  ms = drawn['predicted_ms']
  if ms is not None:
    slower = deploy.get('slower_random_percent')
    note = f'{slower:.0f} % of random ones are slower' if slower else ''
    found.append(_stat('predicted', ms, 'ms', note))
  if drawn['measured_ms'] is not None:
    note = f'this very network, on {about.deploy["device"]}'
    found.append(_stat('measured', drawn['measured_ms'], 'ms', note))
  bound = _bound(about)
  if bound is not None:
    margin = 100 * bound['margin']
    note = (
      f'with a margin of {margin:.1f}\N{NO-BREAK SPACE}%'
      if margin
      else 'no margin'
    )
    found.append(_stat('target', bound['target'], 'ms', note))
  found += _accuracies(family, record)
  if chosen:
    found += report_shortlist.stats(family, about.found)
  costs = deploy or record
  for key, unit in (('macs', 'M MACs'), ('params', 'M params')):
    if key in costs:
      note = 'as deployed'
      found.append(_stat(unit[2:], costs[key] / 1e6, unit[:1], note))
  return found


def _stats_of_many(about: Subject) -> list[Facts]:
  best = max(about.found, key=lambda m: m['supernet_val_accuracy'])
  fastest = min(about.found, key=lambda m: m['predicted_ms'])
  return [
    _stat('members', len(about.found), '', 'on one set of params'),
    _stat(
      'best accuracy',
      100 * best['supernet_val_accuracy'],
      '%',
      f'by shared params, {best["predicted_ms"]:.2f} ms',
    ),
    _stat(
      'fastest',
      fastest['predicted_ms'],
      'ms',
      f'{100 * fastest["supernet_val_accuracy"]:.1f} % by shared params',
    ),
  ]


def _accuracies(family: Family, record: Facts) -> list[Facts]:
  found = []
  trained = family.get('retrain')
  if trained is not None and trained.result is not None:
    part = trained.result['trained']
    value = 100 * part['test_accuracy_of_average']
    note = f'{part["data"]}, {part["num_epochs"]} epochs, {part["role"]} spec'
    found.append(_stat('test accuracy', value, '%', note))
  if 'search' in record:
    value = 100 * record['search']['supernet_val_accuracy']
    note = f'{record["search"]["data"]}, validation half'
    found.append(_stat('supernet', value, '%', note))
  return found


def _stat(label: str, value: float, unit: str, note: str) -> Facts:
  return {'label': label, 'value': value, 'unit': unit, 'note': note}


def _curves(family: Family) -> Facts:
  """Panels of each job that has rows."""
  search = family.get('search')
  pareto, trained = family.get('pareto'), family.get('retrain')
  found = {}
  if search is not None:
    found['search'] = curves.panels(search.rows, curves.SEARCH)
    found['diagnostics'] = curves.panels(search.rows, curves.DIAGNOSTICS)
  if pareto is not None:
    found['search'] = curves.panels(pareto.rows, curves.PARETO)
    found['diagnostics'] = curves.panels(pareto.rows, curves.DIAGNOSTICS)
  if trained is not None:
    found['retrain'] = curves.panels(trained.rows, curves.RETRAIN)
  return {name: panels for name, panels in found.items() if panels}


def _quality(about: Subject, known: Latency) -> Facts:
  """How well the predictor does on networks that it has not seen."""
  card = about.deploy.get('predictor')
  if card is None and known.model is not None:
    card = known.model.card
  if card is None:
    return {'missing': known.why or 'The record says nothing of a predictor.'}
  if card.get('held_out') is None:
    return {
      'missing': f'The predictor ({card["model"]}) was made of {card["rows"]} '
      'whole networks and kept none back, so nothing says how well it does.'
    }
  rows = None if known.model is None else known.model.held_out
  points = (
    []
    if rows is None
    else [
      [float(f'{x:.5g}'), float(f'{y:.5g}')]
      for x, y in zip(rows.measured_ms, rows.predicted_ms, strict=True)
    ][:_MAX_SCATTER]
  )
  return {'card': card, 'held_out': card['held_out'], 'points': points}


def _measured(family: Family) -> Facts:
  """What an export has measured, and the files that it wrote."""
  export = family.get('export')
  if export is None or export.result is None:
    return {
      'missing': 'The network was not exported, so no file of it was measured: '
      'train it, export it, and make the report again.'
    }
  record = export.result
  times = [
    {
      'runner': runner,
      'device': measured['device'].get('soc') or 'unknown',
      'network': network,
      'dtype': dtype,
      'ms': None if value is None else value.get('ms'),
    }
    for runner, measured in record['measured'].items()
    for network, by_dtype in measured['networks'].items()
    for dtype, value in by_dtype.items()
  ]
  return {
    'files': [
      {'name': name} | {k: v for k, v in found.items() if k != 'name'}
      for name, found in record['files'].items()
    ],
    'times': times,
    'jax_accuracy': record['checked']['jax_accuracy'],
    'test_images': record['checked']['test_images'],
    'predicted': record['predicted'],
  }


def _device(about: Subject, known: Latency) -> Facts:
  """Where the milliseconds come from."""
  table = known.table
  found = {
    'name': about.deploy['device'],
    'source': about.deploy.get('latency_table')
    or about.deploy.get('latency_predictor', ''),
  }
  if table is None:
    return found
  facts = {
    'kind': table.kind,
    'chip': table.soc,
    'runtime': ' '.join(filter(None, (table.runtime, table.runtime_version))),
    'delegate': table.delegate,
    'threads': table.threads,
    'number format': table.dtype,
    'measured on': table.date,
  }
  told = {k: v for k, v in facts.items() if v}
  origin = {k: str(v) for k, v in table.source.items()}
  return found | {'facts': told, 'origin': origin, 'notes': list(table.notes)}


def _commands(own: Run, family: Family) -> list[Facts]:
  """What one may do next, with the settings of the run."""
  search, pareto = family.get('search'), family.get('pareto')
  trained, found = family.get('retrain'), []
  chosen = report_shortlist.record(family)
  if chosen is not None:
    path, several = family['shortlist'].path, len(chosen['targets']) > 1
    found.append(
      ('Train a chosen one', summary.retrain_member_command(path))
      if several
      else ('Train it', summary.retrain_command(path))
    )
  elif search is not None and search.result is not None:
    found.append(('Train it', summary.retrain_command(search.path)))
  elif pareto is not None and pareto.result is not None:
    found.append(
      ('Train a member', summary.retrain_member_command(pareto.path))
    )
  if trained is not None and trained.result is not None:
    found.append(('Export it', summary.export_command(trained.path)))
  measure = own.config.get('latency', {}).get('measure')
  if measure:
    found.append(('Measure the device', measure))
  started = search or pareto
  if started is not None and started.config['space']['name'] == oracle.SPACE:
    found.append(
      ('What NAS-Bench-201 knows of it', summary.evaluate_command(started.path))
    )
  folder = shlex.quote(os.fspath(own.path))
  found += [
    ('Watch the metrics', f'tensorboard --logdir {folder}'),
    (
      'This report, beside other runs',
      summary.report_command(
        own.path, '--compare=OTHER_WORKDIR,A_FOLDER_OF_WORKDIRS'
      ),
    ),
  ]
  return [{'title': title, 'text': _folded(text)} for title, text in found]


def _folded(text: str) -> str:
  """A long command with a line for each flag, as a shell takes it."""
  if len(text) <= _COLUMNS:
    return text
  lines: list[list[str]] = [[]]
  for word in shlex.split(text):
    if word.startswith('--'):
      lines.append([])
    lines[-1].append(word)
  return ' \\\n  '.join(shlex.join(line) for line in lines)
