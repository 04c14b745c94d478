"""Picture of predictions beside measurements: `predictor.png`."""

from __future__ import annotations

from collections.abc import Mapping
import io

from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
import numpy as np

from hwdarts_jax.runtime import workdir as workdir_lib

_DPI = 110
_SIDE = 4.6  # inches of a panel
_COLORS = ('#4c78a8', '#e45756', '#f58518', '#54a24b')
_GREY = '#9aa0a6'


def plot_predictions(
  measured_ms: np.ndarray,
  predicted_ms: Mapping[str, np.ndarray],
  path: epath.PathLike,
  title: str,
  std_ms: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Draws a panel for each model, all on the same logarithmic axes.

  Args:
    measured_ms: f[N], positive.
    predicted_ms: f[N] of each model, by the title of its panel. What is not
      positive is drawn on the lower edge.
    path: PNG to write, whole or not at all.
    title: of the figure.
    std_ms: standard deviations f[N] of those models that know them.
  """
  figure = Figure(
    figsize=(_SIDE * len(predicted_ms) + 0.4, _SIDE + 0.7),
    dpi=_DPI,
    layout='constrained',
  )
  figure.suptitle(title, fontsize=12, fontweight='bold')
  panels = figure.subplots(1, len(predicted_ms), squeeze=False)[0]
  low, high = measured_ms.min() / 1.3, measured_ms.max() * 1.3
  for axes, color, (name, ms) in zip(
    panels, _COLORS, predicted_ms.items(), strict=False
  ):
    _draw_diagonal(axes, low, high)
    shown = np.clip(ms, low, high)
    if std_ms and name in std_ms:
      axes.errorbar(
        measured_ms,
        shown,
        std_ms[name],
        fmt='none',
        ecolor=color,
        elinewidth=0.8,
        alpha=0.4,
      )
    size = 14 if len(ms) < 200 else 5
    axes.scatter(measured_ms, shown, s=size, color=color, alpha=0.6, lw=0)
    error = 100 * np.abs(ms / measured_ms - 1)
    axes.set_title(
      f'{name}: {(error <= 10).mean():.1%} within 10 %', fontsize=10, loc='left'
    )
  panels[0].set_ylabel('predicted (ms)')
  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer)
  workdir_lib.write_bytes_atomic(path, buffer.getvalue())


def _draw_diagonal(axes: Axes, low: float, high: float) -> None:
  """Sets up logarithmic axes, with the band of errors of at most 10 %."""
  line = np.array([low, high])
  axes.fill_between(line, 0.9 * line, 1.1 * line, color=_GREY, alpha=0.2, lw=0)
  axes.plot(line, line, color=_GREY, linewidth=1)
  for axis in (axes.xaxis, axes.yaxis):
    axis.axes.set_xscale('log')
    axis.axes.set_yscale('log')
  few = high / low > 30
  for axis in (axes.xaxis, axes.yaxis):
    subs = (1.0,) if few else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
  axes.set(xlim=(low, high), ylim=(low, high), xlabel='measured (ms)')
  axes.spines[['top', 'right']].set_visible(False)
