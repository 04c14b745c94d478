"""Pictures of a run: `search.png` and `retrain.png`.

Figures are made without pyplot, so that nothing is global, and drawn by Agg.
Numbers of a panel that no row has leave the panel out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
from typing import Any, NamedTuple

from etils import epath
import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
import numpy as np

from hwdarts_jax.runtime import workdir as workdir_lib

_COLUMNS = 7  # small panels in a row: DARTS's 14 edges fill two
_MAX_POINTS = 400  # of a line; more cannot be seen
_DPI = 110
# Inches.
_WIDTH = 15.0
_MARGIN = 0.6
_HEAD = 0.85
_SUMMARY_HEIGHT = 2.3
_EDGE_HEIGHT = 1.05
_GAP = 0.45  # between neighbours
_ROW_GAP = 0.62  # between rows: room for titles and ticks
_MAX_ENTROPIES = 8  # groups with a line of their own
_LEGEND_LINE = 0.25
_MAX_POINTS = 400  # of a line; more cannot be seen
_DPI = 110
_GREY = '#9aa0a6'


class _Panel(NamedTuple):
  """A panel of rows: its title and the (key, label, style) of its lines."""

  title: str
  lines: tuple[tuple[str, str, dict[str, Any]], ...]


_TRAIN = {'color': '#4c78a8'}
_VAL = {'color': '#f58518'}
_TARGET = {'color': _GREY, 'linestyle': '--'}
_SUMMARY = (
  _Panel('loss', (('train_loss', 'train', _TRAIN), ('val_loss', 'val', _VAL))),
  _Panel(
    'accuracy',
    (('train_accuracy', 'train', _TRAIN), ('val_accuracy', 'val', _VAL)),
  ),
  _Panel(
    'expected latency (ms)',
    (
      ('expected_ms', 'expected', {'color': '#54a24b'}),
      ('expected/latency_ms', 'sharpened', {'color': '#1b7837'}),
      ('target_ms', 'target', _TARGET),
    ),
  ),
  _Panel(
    'gate entropy (nats)', (('gate_entropy', 'mean', {'color': '#b279a2'}),)
  ),
)
_RETRAIN = (
  *_SUMMARY[:2],
  _Panel('learning rate', (('learning_rate', '', {'color': _GREY}),)),
)


class _Edge(NamedTuple):
  """A small panel: its title, its ops and its gates [T, O]."""

  title: str
  ops: tuple[str, ...]
  gates: np.ndarray


def plot_search(
  rows: Sequence[Mapping[str, Any]],
  gates_history: Mapping[str, np.ndarray],
  ops: Mapping[str, Sequence[str]],
  edges: Mapping[str, Sequence[tuple[int, int]]],
  steps: Sequence[int],
  path: epath.PathLike,
  title: str,
) -> None:
  """Draws a search: its curves, and the gates of every edge over time.

  Args:
    rows: of `metrics.read`, with any of the keys train_loss, val_loss,
      train_accuracy, val_accuracy (shares of one), expected_ms, target_ms,
      expected/latency_ms (what a bound of the latency holds) and
      gate_entropy (nats). Keys `gate_entropy/<group>` add a line each.
    gates_history: f32[T, E, O] of each group.
    ops: names of the O columns of each group.
    edges: pairs (src, dst) of the E rows of each group.
    steps: the T steps of `gates_history`.
    path: PNG to write, whole or not at all.
    title: of the figure.

  Raises:
    ValueError: shapes disagree; the message names the group.
  """
  panels = _edge_panels(gates_history, ops, edges, len(steps))
  names = list(dict.fromkeys(o for row in panels for e in row for o in e.ops))
  sheet = _Sheet(title, len(panels), -(-len(names) // _legend_columns(names)))
  _draw_summary(sheet, _with_groups(rows), rows)
  styles = dict(zip(names, _op_styles(names), strict=True))
  for i, row in enumerate(panels):
    for j, edge in enumerate(row):
      axes = sheet.edge_axes(i, j)
      _draw_edge(axes, edge, np.asarray(steps), styles)
      axes.tick_params(labelleft=j == 0)
  if names:
    sheet.figure.legend(
      [Line2D([], [], **(styles[n] | {'linewidth': 2.5})) for n in names],
      names,
      loc='lower center',
      ncols=_legend_columns(names),
      frameon=False,
      fontsize=9,
    )
  sheet.save(path)


def plot_retrain(
  rows: Sequence[Mapping[str, Any]], path: epath.PathLike, title: str
) -> None:
  """Draws the curves of a training from scratch.

  Args:
    rows: of `metrics.read`, with any of the keys train_loss, val_loss,
      train_accuracy, val_accuracy and learning_rate.
    path: PNG to write, whole or not at all.
    title: of the figure.
  """
  sheet = _Sheet(title, num_edge_rows=0, num_legend_rows=0)
  _draw_summary(sheet, _RETRAIN, rows)
  sheet.save(path)


class _Sheet:
  """A figure with its rows of panels, laid out in inches from the top."""

  def __init__(self, title: str, num_edge_rows: int, num_legend_rows: int):
    self._height = (
      _HEAD
      + _SUMMARY_HEIGHT
      + num_edge_rows * (_ROW_GAP + _EDGE_HEIGHT)
      + _MARGIN
      + num_legend_rows * _LEGEND_LINE
    )
    self.figure = Figure(figsize=(_WIDTH, self._height), dpi=_DPI)
    self.figure.text(
      _MARGIN / _WIDTH,
      1 - 0.32 / self._height,
      title,
      fontsize=14,
      fontweight='bold',
      va='center',
    )

  def summary_axes(self, column: int, columns: int) -> Axes:
    """Axes number `column` of the first row."""
    return self._axes(_HEAD, _SUMMARY_HEIGHT, column, columns, _GAP)

  def edge_axes(self, row: int, column: int) -> Axes:
    """Axes of a small panel."""
    top = _HEAD + _SUMMARY_HEIGHT + _ROW_GAP
    top += row * (_ROW_GAP + _EDGE_HEIGHT)
    return self._axes(top, _EDGE_HEIGHT, column, _COLUMNS, _GAP / 2)

  def save(self, path: epath.PathLike) -> None:
    """Writes the PNG, whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(self.figure).print_png(buffer)
    workdir_lib.write_bytes_atomic(path, buffer.getvalue())

  def _axes(
    self, top: float, height: float, column: int, columns: int, gap: float
  ) -> Axes:
    width = (_WIDTH - 2 * _MARGIN - (columns - 1) * gap) / columns
    left = _MARGIN + column * (width + gap)
    axes = self.figure.add_axes(
      (
        left / _WIDTH,
        1 - (top + height) / self._height,
        width / _WIDTH,
        height / self._height,
      )
    )
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(_GREY)
    axes.tick_params(labelsize=8, color=_GREY)
    axes.grid(color='#e8eaed', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis='x', style='plain', useOffset=False)
    return axes


def _with_groups(rows: Sequence[Mapping[str, Any]]) -> tuple[_Panel, ...]:
  """The panels of a search, with a line for the gate entropy of each group."""
  prefix = 'gate_entropy/'
  keys = list(dict.fromkeys(k for r in rows for k in r if k.startswith(prefix)))
  colors = matplotlib.color_sequences['Set2']
  lines = tuple(
    (k, k.removeprefix(prefix), {'color': colors[i % len(colors)]})
    for i, k in enumerate(keys[:_MAX_ENTROPIES])
  )
  *others, entropy = _SUMMARY
  return (*others, entropy._replace(lines=entropy.lines + lines))


def _draw_summary(
  sheet: _Sheet, panels: Sequence[_Panel], rows: Sequence[Mapping[str, Any]]
) -> None:
  curves = [(p.title, _curves(p, rows)) for p in panels]
  curves = [(title, lines) for title, lines in curves if lines]
  for i, (title, lines) in enumerate(curves):
    axes = sheet.summary_axes(i, len(curves))
    for steps, values, label, style in lines:
      marker = 'o' if len(steps) == 1 else None
      axes.plot(
        steps, values, label=label, linewidth=1.6, marker=marker, **style
      )
    axes.set_title(title, fontsize=10, loc='left')
    axes.set_xlabel('step', fontsize=8, color='#5f6368', labelpad=1)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(lines) > 1:
      axes.legend(fontsize=8, frameon=False)


def _curves(
  panel: _Panel, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], list[float], str, dict[str, Any]]]:
  """(steps, values, label, style) of the lines that some row has."""
  result = []
  for key, label, style in panel.lines:
    points = [(r['step'], float(r[key])) for r in rows if key in r]
    points = [points[i] for i in _thin(len(points))]
    if points and np.isfinite([v for _, v in points]).any():
      steps, values = zip(*points, strict=True)
      result.append((list(steps), list(values), label, style))
  return result


def _edge_panels(
  gates_history: Mapping[str, np.ndarray],
  ops: Mapping[str, Sequence[str]],
  edges: Mapping[str, Sequence[tuple[int, int]]],
  num_steps: int,
) -> list[list[_Edge]]:
  """Rows of small panels; a group of more than three edges starts a row."""
  rows: list[list[_Edge]] = []
  for group, history in gates_history.items():
    gates = np.asarray(history, np.float32)
    want = (num_steps, len(edges[group]), len(ops[group]))
    if gates.shape != want:
      raise ValueError(
        f'gates_history[{group!r}] has shape {gates.shape}; it must be {want}, '
        'as many as there are steps, edges and ops.'
      )
    if len(edges[group]) > 3 or not rows:
      rows.append([])
    for i, (src, dst) in enumerate(edges[group]):
      if len(rows[-1]) == _COLUMNS:
        rows.append([])
      name = f'{group} {src}\N{RIGHTWARDS ARROW}{dst}'
      name = group if len(edges[group]) == 1 else name
      rows[-1].append(_Edge(name, tuple(ops[group]), gates[:, i]))
  return [r for r in rows if r]


def _thin(count: int) -> np.ndarray:
  """Indices of at most `_MAX_POINTS` of `count` points, first and last kept."""
  picked = np.linspace(0, count - 1, min(count, _MAX_POINTS))
  return picked.round().astype(int)


def _legend_columns(names: Sequence[str]) -> int:
  """As many columns as fit for the longest name."""
  width = 0.75 + 0.085 * max(map(len, names), default=1)
  return max(min(len(names), int(_WIDTH / width)), 1)


def _op_styles(names: Sequence[str]) -> list[dict[str, Any]]:
  """A style a name: 'none' is grey, dashes tell the second ten apart."""
  colors = matplotlib.color_sequences['tab10']
  colors = colors[:7] + colors[8:]  # without the grey
  styles: list[dict[str, Any]] = []
  used = 0
  for name in names:
    if name == 'none':
      styles.append({'color': _GREY})
      continue
    dash = ('-', '--', ':', '-.')[used // len(colors) % 4]
    styles.append({'color': colors[used % len(colors)], 'linestyle': dash})
    used += 1
  return styles


def _draw_edge(
  axes: Axes,
  edge: _Edge,
  steps: np.ndarray,
  styles: Mapping[str, Mapping[str, Any]],
) -> None:
  """One line an op; the op that leads at the end is named and thicker."""
  axes.set_ylim(-0.03, 1.03)
  axes.set_yticks([0, 0.5, 1])
  axes.margins(x=0.01)
  axes.tick_params(labelsize=7, length=2)
  axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
  axes.set_title(edge.title, fontsize=8, loc='left', pad=3)
  if not len(steps):
    return
  thin = _thin(len(steps))
  marker = 'o' if len(steps) == 1 else None
  last = edge.gates[-1]
  best = int(np.argmax(np.where(np.isfinite(last), last, -1)))
  for i, op in enumerate(edge.ops):
    width, order = (2.2, 3) if i == best else (1.0, 2)
    axes.plot(
      steps[thin],
      edge.gates[thin, i],
      linewidth=width,
      zorder=order,
      marker=marker,
      markersize=3,
      **styles[op],
    )
  room = 28 - len(edge.title)  # letters beside the title
  axes.set_title(
    edge.ops[best],
    fontsize=8 if len(edge.ops[best]) <= room else 6.5,
    loc='right',
    pad=3,
    color=styles[edge.ops[best]]['color'],
    fontweight='bold',
  )
