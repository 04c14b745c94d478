"""Whether found networks beat published ones, on a device, beyond chance.

Differences of accuracy have a 95 % interval over seeds: Student's t with the
standard deviation of all networks that were trained more than once, pooled, as
three seeds of one network say little of it.

At a reference's latency the slowest found network that is no slower than it is
compared; at its accuracy the fastest one whose mean accuracy is no lower. Both
are chosen without regard to how large the difference is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from hwdarts_jax.runtime import front_plot

Accuracies = Mapping[str, Mapping[int, float]]  # network -> seed -> per cent
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Pooled:
  """The spread over seeds of all networks together.

  Attributes:
    std: standard deviation of one training; nan if none was repeated.
    freedom: degrees of freedom.
  """

  std: float
  freedom: int

  def half_width(self, *counts: int) -> float:
    """Of the interval of a mean, or of a difference of two, in points."""
    if self.freedom < 1:
      return math.inf
    t = float(stats.t.ppf(0.5 + _LEVEL / 2, self.freedom))
    return t * self.std * math.sqrt(sum(1 / n for n in counts))


def pooled(accuracies: Accuracies) -> Pooled:
  """Pools the spread of all networks."""
  repeated = [list(a.values()) for a in accuracies.values() if len(a) > 1]
  freedom = sum(len(a) - 1 for a in repeated)
  squares = sum(float(np.var(a)) * len(a) for a in repeated)
  return Pooled(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def judge(
  references: Sequence[str],
  found: Sequence[str],
  ms: Mapping[str, float],
  accuracies: Accuracies,
) -> dict[str, Any]:
  """Compares on one device.

  Args:
    references: published networks.
    found: networks that were searched for this device.
    ms: measured latency.
    accuracies: of the trainings; networks without any are left out.

  Returns:
    JSON-able: `networks`, a record each from the fastest on, and `verdicts`, a
    record for each reference.
  """
  spread = pooled(accuracies)
  known = [n for n in (*references, *found) if n in ms and accuracies.get(n)]
  networks = {
    n: {
      'name': n,
      'is_reference': n in references,
      'ms': ms[n],
      'accuracy': float(np.mean(list(accuracies[n].values()))),
      'half_width': spread.half_width(len(accuracies[n])),
      'seeds': len(accuracies[n]),
    }
    for n in sorted(known, key=lambda n: ms[n])
  }
  ours = [networks[n] for n in found if n in networks]
  return {
    'seed_std': spread.std,
    'freedom': spread.freedom,
    'networks': list(networks.values()),
    'verdicts': [
      _verdict(networks[r], ours, spread) for r in references if r in networks
    ],
  }


def _verdict(
  reference: Mapping[str, Any], ours: list[dict[str, Any]], spread: Pooled
) -> dict[str, Any]:
  """A reference, and what of ours is to be compared with it."""
  fast = [n for n in ours if n['ms'] <= reference['ms']]
  good = [n for n in ours if n['accuracy'] >= reference['accuracy']]
  pairs = {
    'at_its_latency': max(fast, key=lambda n: n['ms'], default=None),
    'at_its_accuracy': min(good, key=lambda n: n['ms'], default=None),
  }
  return {'reference': reference['name']} | {
    place: None if one is None else _compared(reference, one, spread)
    for place, one in pairs.items()
  }


def _compared(
  reference: Mapping[str, Any], found: Mapping[str, Any], spread: Pooled
) -> dict[str, Any]:
  """How a found network differs from a reference."""
  difference = found['accuracy'] - reference['accuracy']
  width = spread.half_width(found['seeds'], reference['seeds'])
  return {
    'name': found['name'],
    'accuracy_difference': difference,
    'half_width': width,
    'speedup': reference['ms'] / found['ms'],
    'is_more_accurate': difference > width,
    'is_less_accurate': difference < -width,
  }


def table(device: str, judged: Mapping[str, Any]) -> str:
  """Both tables of a device, in Markdown."""
  lines = [f'| {device} | ms | test accuracy | seeds |', '|---|---|---|---|']
  for n in judged['networks']:
    name = f'**{n["name"]}**' if n['is_reference'] else n['name']
    lines.append(
      f'| {name} | {n["ms"]:.4g} | {n["accuracy"]:.2f}'
      f'{_width(n["half_width"])} | {n["seeds"]} |'
    )
  lines += [
    '',
    '| reference | at its latency | more accurate by | beyond the interval '
    '| at its accuracy | faster by | less accurate beyond the interval |',
    '|---|---|---|---|---|---|---|',
  ]
  for v in judged['verdicts']:
    at, to = v['at_its_latency'], v['at_its_accuracy']
    cells = ['none is as fast', '-', '-']
    if at:
      cells = [at['name'], _points(at), _yes(at['is_more_accurate'])]
    more = ['none is as accurate', '-', '-']
    if to:
      more = [to['name'], f'{to["speedup"]:.2f}x', _yes(to['is_less_accurate'])]
    lines.append(f'| {" | ".join([v["reference"], *cells, *more])} |')
  return '\n'.join(lines)


def _points(found: Mapping[str, Any]) -> str:
  return f'{found["accuracy_difference"]:+.2f}{_width(found["half_width"])}'


def _width(half_width: float) -> str:
  """Nothing where no training was repeated."""
  return f' ± {half_width:.2f}' if math.isfinite(half_width) else ''


def _yes(value: bool) -> str:
  return 'yes' if value else 'no'


def draw(device: str, judged: Mapping[str, Any], path: pathlib.Path) -> None:
  """Draws accuracy against measured latency."""
  ours = [n for n in judged['networks'] if not n['is_reference']]
  theirs = [n for n in judged['networks'] if n['is_reference']]

  def points(label: str, some: Sequence[Mapping[str, Any]]):
    return front_plot.Points(
      label, [n['ms'] for n in some], [n['accuracy'] for n in some]
    )

  best, front = -math.inf, []
  for n in ours:
    if n['accuracy'] > best:
      front.append(n)
      best = n['accuracy']
  front_plot.plot_front(
    points('all', judged['networks']),
    points('front of what was found', front),
    [points('found', ours), points('published networks', theirs)],
    path,
    f'{device}: retrained alike, measured',
  )
