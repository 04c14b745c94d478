"""Picture of accuracy against latency: `evaluate.png`, `front.png`."""

from __future__ import annotations

from collections.abc import Sequence
import io
from typing import NamedTuple

from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
import numpy as np

from hwdarts_jax.runtime import workdir as workdir_lib

_DPI = 110
_SIZE = (9.0, 5.6)  # inches
_GREY = '#9aa0a6'
_COLORS = ('#e45756', '#4c78a8', '#f58518', '#54a24b', '#b279a2')
_MARKERS = ('*', 's', 'D', '^', 'v')
_ABOVE = 0.25  # of the front's span of accuracies, that is drawn below it


class Points(NamedTuple):
  """Networks that are drawn alike.

  Attributes:
    label: in the legend.
    ms: latency of each.
    accuracy: of each, in per cent.
  """

  label: str
  ms: Sequence[float] | np.ndarray
  accuracy: Sequence[float] | np.ndarray


def plot_front(
  everything: Points,
  front: Points,
  named: Sequence[Points],
  path: epath.PathLike,
  title: str,
  budget_ms: float | None = None,
  labels: tuple[str, str] = ('measured latency (ms)', 'test accuracy (%)'),
) -> None:
  """Draws networks, the true front of them, and those that are named.

  What lies far below the front is left out, and what is named never is.

  Args:
    everything: all networks.
    front: those that no other one beats, from the fastest on.
    named: at most five, of which the first is in front.
    path: PNG to write, whole or not at all.
    title: of the figure.
    budget_ms: a line, if there is a budget.
    labels: of both axes.
  """
  figure = Figure(figsize=_SIZE, dpi=_DPI, layout='constrained')
  axes = figure.subplots()
  _draw(axes, everything, front, named)
  if budget_ms:
    axes.axvline(
      budget_ms, color=_COLORS[0], linestyle='--', linewidth=1, label='budget'
    )
  _set_limits(axes, everything, front, named)
  axes.set_xlabel(labels[0])
  axes.set_ylabel(labels[1])
  axes.set_title(title, loc='left', fontsize=11, fontweight='bold')
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(color='#e8eaed', linewidth=0.6)
  axes.set_axisbelow(True)
  axes.legend(fontsize=8, frameon=False, loc='lower right')
  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer)
  workdir_lib.write_bytes_atomic(path, buffer.getvalue())


def _draw(
  axes: Axes, everything: Points, front: Points, named: Sequence[Points]
) -> None:
  axes.scatter(
    everything.ms,
    everything.accuracy,
    s=4,
    color=_GREY,
    alpha=0.4,
    lw=0,
    label=everything.label,
  )
  axes.step(
    front.ms,
    front.accuracy,
    where='post',
    color='black',
    linewidth=1.2,
    marker='.',
    zorder=2.5,
    label=front.label,
  )
  for i, points in reversed(list(enumerate(named))):
    axes.scatter(
      points.ms,
      points.accuracy,
      s=240 if i == 0 else 60,
      marker=_MARKERS[i],
      color=_COLORS[i],
      edgecolor='white',
      linewidth=0.8,
      zorder=4 if i == 0 else 3,
      label=points.label,
    )


def _set_limits(
  axes: Axes, everything: Points, front: Points, named: Sequence[Points]
) -> None:
  shown = np.concatenate([front.accuracy, *(p.accuracy for p in named)])
  # From the middle of the front on: its beginning may be far below.
  low = min(np.median(front.accuracy), shown[len(front.accuracy) :].min())
  room = _ABOVE * (shown.max() - low) + 0.05
  axes.set_ylim(low - room, shown.max() + room)
  axes.set_xscale('log')
  times = np.concatenate([np.asarray(everything.ms), *(p.ms for p in named)])
  in_sight = np.asarray(everything.ms)[
    np.asarray(everything.accuracy) >= low - room
  ]
  left = min(in_sight.min(), *(np.min(p.ms) for p in named))
  axes.set_xlim(0.9 * left, 1.1 * times.max())
  few = times.max() / left > 30
  subs = (1.0,) if few else (1.0, 2.0, 5.0)
  axes.xaxis.set_major_locator(LogLocator(subs=subs))
  axes.xaxis.set_major_formatter(ScalarFormatter())
  axes.xaxis.set_minor_formatter(NullFormatter())
