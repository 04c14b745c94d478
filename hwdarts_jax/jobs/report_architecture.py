"""What a report says of an architecture: figures, drawing, milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, genotype_files, shortlist_report
from hwdarts_jax.jobs.report_read import Family
from hwdarts_jax.latency.table import LatencyTable
from hwdarts_jax.report import costs, curves, graph
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

Facts = dict[str, Any]
_MEMBER_POINTS = 60  # of the gates of each of many members


class Subject(NamedTuple):
  """What a report is about: a space, a device and architectures.

  Attributes:
    spec: the deployed space.
    deploy: what the record of the run says of it.
    found: records of the architectures: one, or those of a population or of the
      targets of a shortlist.
  """

  spec: NetworkSpec
  deploy: Facts
  found: list[Facts]


class Latency(NamedTuple):
  """What is known of the device now.

  Attributes:
    model: the predictor, made again; None if that is not possible.
    table: of the device, None if it cannot be read or was not used.
    why: what is missing, a sentence; empty if nothing is.
  """

  model: common.LatencyModel | None
  table: LatencyTable | None
  why: str


def subject(family: Family) -> Subject | None:
  """The subject of a family of runs, None if none of them has found any.

  Raises:
    ValueError: a record is none of this project.
  """
  for job in ('shortlist', 'pareto', 'search', 'retrain', 'export'):
    run = family.get(job)
    if run is None or run.result is None:
      continue
    record = run.result
    deploy = record['predicted'] if job == 'export' else record['deploy']
    spec = spaces.make(run.config['space']['name'], **deploy['spec'])
    found = record['members'] if job == 'pareto' else [record]
    if job == 'shortlist':
      found = shortlist_report.chosen(record)
      deploy = found[0]['deploy'] if len(found) == 1 else deploy
    return Subject(spec, deploy, found)
  return None


def latency(about: Subject) -> Latency:
  """Makes the predictor again, if what it was made from is still as it was."""
  section = genotype_files.latency_section(about.deploy)
  name = section['table'] or section['predictor']
  if not name:
    return Latency(None, None, 'It was trained for no device in particular.')
  try:
    model = common.load_latency(section)(about.spec)
    table = (
      common.load_table(section['table'], 'latency.table')
      if section['table']
      else None
    )
  except (ValueError, OSError) as e:
    return Latency(None, None, f'The latencies cannot be read any more: {e}')
  for key, value in model.source.items():
    if key.endswith('_hash') and value != about.deploy.get(key):
      return Latency(
        None,
        None,
        f'{name} is not what it was when the run was made: its hash was '
        f'{about.deploy.get(key)} and is {value}.',
      )
  return Latency(model, table, '')


def rows(family: Family, number: int) -> curves.Rows:
  """The metrics of the search of an architecture, as if it were alone.

  None of a shortlist of a population, which takes means of its members.
  """
  search, pareto = family.get('search'), family.get('pareto')
  shortlist = family.get('shortlist')
  if pareto is None:
    return [] if search is None else search.rows
  if shortlist is not None and shortlist.result is not None:
    return []
  return [_of_member(r, number) for r in pareto.rows]


def architecture(
  about: Subject, number: int, known: Latency, rows: curves.Rows
) -> Facts:
  """All that is drawn and told of one architecture.

  Args:
    about: the subject.
    number: of the architecture in it.
    known: of the device.
    rows: of the metrics of its search; see `rows`.
  """
  record = about.found[number]
  genotype = Genotype.from_dict(record['genotype'])
  predict = None if known.model is None else known.model.predict
  split = costs.of(about.spec, genotype, predict, known.table)
  network = discretize.discretize(about.spec, genotype)
  many = len(about.found) > 1
  return {
    'name': f'member {number:02d}' if many else 'the architecture found',
    'text': record['text'],
    'predicted_ms': predicted_ms(about, number),
    'measured_ms': record.get('deploy', {}).get('measured_ms')
    or measured_ms(about.spec, genotype, known.table),
    'how': split.how,
    'parts': [_part(p, split.total_ms) for p in split.parts],
    'rest_ms': split.rest_ms,
    'total_ms': split.total_ms,
    'strip': graph.strip(network, costs.sites_ms(network, known.table)),
    'kinds': graph.kinds(about.spec, genotype, split.parts),
    'gates': curves.gates(
      rows, about.spec, _MEMBER_POINTS if many else curves.MAX_POINTS
    ),
  }


def predicted_ms(about: Subject, number: int = 0) -> float | None:
  """What the run itself predicted of an architecture, on the device."""
  record = about.found[number]
  if 'predicted' in record:  # of an export
    spoken = record['predicted']['ms']
    return spoken.get('deploy', spoken.get('trained'))
  deploy = record.get('deploy', record)
  return deploy['predicted_ms']


def measured_ms(
  spec: NetworkSpec, genotype: Genotype, table: LatencyTable | None
) -> float | None:
  """What the table of the device has of this very network, in ms."""
  if table is None or not table.has_networks(spec):
    return None
  gates, ms = table.networks_one_hot(spec)
  want = discretize.one_hot(spec, genotype)
  same = np.ones(len(ms), bool)
  for name, value in want.items():
    same &= (gates[name] == value).all((1, 2))
  return float(ms[same][0]) if same.any() else None


def _part(part: costs.Part, total_ms: float | None) -> Facts:
  known = part.ms is not None and total_ms
  return part._asdict() | {
    'name': part_name(part),
    'share': part.ms / total_ms if known else None,  # type: ignore[operator]
  }


def part_name(part: costs.Part) -> str:
  """Where it is, in words."""
  if part.edge is None:
    return 'not searched'
  return f'{part.group} {part.edge[0]}\N{RIGHTWARDS ARROW}{part.edge[1]}'


def _of_member(row: Mapping[str, Any], number: int) -> Facts:
  """A row of a population as one of a single search of this member."""
  return {
    k: v[number]
    if k.startswith('gates/') and isinstance(v, list) and number < len(v)
    else v
    for k, v in row.items()
  }
