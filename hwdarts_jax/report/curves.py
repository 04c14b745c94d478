"""What is drawn of the rows of metrics: curves, and the gates of every edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from hwdarts_jax.models import op as op_lib
from hwdarts_jax.spaces.spec import GroupSpec, NetworkSpec

Rows = Sequence[Mapping[str, Any]]
MAX_POINTS = 240  # of a line; more cannot be seen
_DIGITS = 5


class Line(NamedTuple):
  """A line of a panel: the key of the rows, its label and its style."""

  key: str
  label: str
  style: str


class Panel(NamedTuple):
  """A panel; keys that end in a star stand for all that begin like them."""

  name: str
  title: str
  unit: str
  lines: tuple[Line, ...]


SEARCH = (
  Panel(
    'loss',
    'Loss',
    '',
    (Line('train_loss', 'train', 'a'), Line('val_loss', 'validation', 'b')),
  ),
  Panel(
    'accuracy',
    'Accuracy',
    '%',
    (
      Line('train_accuracy', 'train', 'a'),
      Line('val_accuracy', 'validation', 'b'),
    ),
  ),
  Panel(
    'latency',
    'Expected latency',
    'ms',
    (
      Line('expected_ms', 'of the mixture', 'a'),
      Line('expected/latency_ms', 'held to the target', 'b'),
      Line('target_ms', 'target', 'target'),
    ),
  ),
  Panel(
    'entropy',
    'Gate entropy',
    'nats',
    (Line('gate_entropy', 'mean', 'a'), Line('gate_entropy/*', '', '')),
  ),
)
DIAGNOSTICS = (
  Panel(
    'mass',
    'Mass of ops that do nothing',
    '%',
    (
      Line('skip_mass', 'copy their input', 'a'),
      Line('zero_mass', 'no connection', 'b'),
    ),
  ),
  Panel(
    'eigenvalue',
    'Top eigenvalue of the Hessian',
    '',
    (Line('top_eigenvalue', '', 'a'),),
  ),
  Panel('multiplier', 'Multipliers', '', (Line('multiplier/*', '', ''),)),
  Panel(
    'gradient',
    'Norms of the gradients',
    '',
    (
      Line('grad_norm', 'of params', 'a'),
      Line('hypergrad_norm', 'of alphas', 'b'),
    ),
  ),
)
RETRAIN = (
  *SEARCH[:2],
  Panel('rate', 'Learning rate', '', (Line('learning_rate', '', 'a'),)),
)
PARETO = (
  *SEARCH[:2],
  Panel('latency', 'Expected latency', 'ms', (Line('member_ms', '', ''),)),
  SEARCH[3],
)


def thin(count: int, most: int = MAX_POINTS) -> list[int]:
  """Indices of at most `most` of `count` rows, first and last kept."""
  picked = np.linspace(0, count - 1, min(count, most))
  return picked.round().astype(int).tolist()


def short(value: Any) -> float | None:
  """A number in five digits, which is what a page needs; None if not finite."""
  number = float(value)
  return float(f'{number:.{_DIGITS}g}') if math.isfinite(number) else None


def panels(rows: Rows, wanted: Sequence[Panel]) -> list[dict[str, Any]]:
  """The panels that have anything to show, as JSON.

  Shares of one come as per cent where the panel says so.
  """
  found = []
  for panel in wanted:
    scale = 100.0 if panel.unit == '%' else 1.0
    lines = [
      {'label': label, 'style': style, 'points': points}
      for label, style, values in _lines(panel, rows)
      if (points := _points(values, scale))
    ]
    if lines:
      found.append(
        {
          'name': panel.name,
          'title': panel.title,
          'unit': panel.unit,
          'lines': lines,
        }
      )
  return found


def _lines(panel: Panel, rows: Rows):
  """Yields (label, style, [(step, value)]) of the keys of a panel."""
  for line in panel.lines:
    if line.key.endswith('*'):
      prefix = line.key[:-1]
      keys = dict.fromkeys(k for r in rows for k in r if k.startswith(prefix))
      for key in keys:
        yield key.removeprefix(prefix), '', _values(rows, key)
      continue
    values = _values(rows, line.key)
    if values and isinstance(values[0][1], list):
      for i in range(len(values[0][1])):
        yield f'member {i:02d}', '', [(s, v[i]) for s, v in values]
    else:
      yield line.label, line.style, values


def _values(rows: Rows, key: str) -> list[tuple[int, Any]]:
  return [(int(r['step']), r[key]) for r in rows if key in r]


def _points(values: Sequence[tuple[int, Any]], scale: float):
  picked = [values[i] for i in thin(len(values))] if values else []
  points = [[step, short(scale * value)] for step, value in picked]
  return points if any(v is not None for _, v in points) else []


def gates(
  rows: Rows, spec: NetworkSpec, most: int = MAX_POINTS
) -> dict[str, Any] | None:
  """The gates of every edge over time, None where no row has any.

  Args:
    rows: of the metrics of a single search.
    spec: the space.
    most: points of a line.

  Returns:
    `steps`, and for each group its name, ops, which of them connect nothing,
    and edges with src, dst and gates [O][T].
  """
  groups = spec.groups()
  rows = [r for r in rows if all(_fits(r, g, s) for g, s in groups.items())]
  if not rows or not groups:
    return None
  rows = [rows[i] for i in thin(len(rows), most)]
  found = []
  for name, group in groups.items():
    values = np.array([r[f'gates/{name}'] for r in rows], np.float64)
    found.append(
      {
        'name': name,
        'ops': list(group.ops),
        'zeros': [op_lib.is_zero(op) for op in group.ops],
        'edges': [
          {
            'src': src,
            'dst': dst,
            'gates': [
              [short(v) or 0.0 for v in values[:, row, op]]
              for op in range(len(group.ops))
            ],
          }
          for row, (src, dst) in enumerate(group.edges)
        ],
      }
    )
  return {'steps': [int(r['step']) for r in rows], 'groups': found}


def _fits(row: Mapping[str, Any], name: str, group: GroupSpec) -> bool:
  """Whether a row has the gates of a single search of this group."""
  try:
    return np.shape(row.get(f'gates/{name}', ())) == group.shape
  except ValueError:  # ragged
    return False
