"""The pictures of a report for papers: PNG and SVG, one a panel.

They are drawn from the very content of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import functools
import io
import itertools
from typing import Any, cast

from etils import epath
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from hwdarts_jax.runtime import workdir as workdir_lib

_SIZE = (3.5, 2.5)  # inches: a column of a paper
_DPI = 200
_COLUMNS = 4  # of small panels
_COLORS = ('#1f5fa8', '#b3500c', '#1d7a46', '#8a3f98', '#a3242b', '#7a5a00')
_GREY = '#86827a'
_STYLES: dict[str, dict[str, Any]] = {
  'a': {'color': _COLORS[0]},
  'b': {'color': _COLORS[1]},
  'target': {'color': _GREY, 'linestyle': '--'},
}
_SETTINGS = {
  'font.size': 8,
  'axes.titlesize': 7,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'lines.linewidth': 1.2,
  'legend.frameon': False,
  'legend.fontsize': 7,
  'svg.fonttype': 'none',  # text stays text
  'svg.hashsalt': 'hwdarts_jax',  # the same content, the same file
}
_BOTH = {'png': {'Software': None}, 'svg': {'Date': None}}


Content = Mapping[str, Any]
Draw = Callable[[Figure], None]


def write(content: Content, folder: epath.Path) -> str:
  """Writes all pictures into a folder; returns their names, for the screen.

  Args:
    content: of `jobs/report_sections.py`.
    folder: made where it is missing.
  """
  folder.mkdir(parents=True, exist_ok=True)
  names = []
  with matplotlib.rc_context(cast(Any, _SETTINGS)):
    for name, draw in _pictures(content):
      figure = Figure(figsize=_SIZE, layout='constrained')
      draw(figure)
      for kind, metadata in _BOTH.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
        workdir_lib.write_bytes_atomic(
          folder / f'{name}.{kind}', buffer.getvalue()
        )
      names.append(name)
  return f'{folder}/{{{",".join(names)}}}.{{png,svg}}'


def _pictures(content: Content) -> Iterator[tuple[str, Draw]]:
  """Yields the name of a picture and what draws it."""
  for job, panels in content['curves'].items():
    for panel in panels:
      yield f'{job}_{panel["name"]}', functools.partial(_curves, panel)
  many = len(content['architectures']) > 1
  for i, one in enumerate(content['architectures']):
    if one['gates'] is not None and not many:
      yield 'gates', functools.partial(_gates, one['gates'])
    if one['how'] != 'unknown':
      name = f'milliseconds_{i:02d}' if many else 'milliseconds'
      yield name, functools.partial(_milliseconds, one)
  if content['quality'].get('points'):
    yield 'predictor', functools.partial(_quality, content['quality'])
  front = content['front']
  for kind in front.get('kinds', ()):
    yield f'front_{kind["key"]}', functools.partial(_front, front, kind)


def _curves(panel: Content, figure: Figure) -> None:
  axes = figure.subplots()
  for i, line in enumerate(panel['lines']):
    points = [p for p in line['points'] if p[1] is not None]
    style = _STYLES.get(line['style'], {'color': _COLORS[(i + 2) % 6]})
    axes.plot(*zip(*points, strict=True), label=line['label'], **style)
  unit = f' ({panel["unit"]})' if panel['unit'] else ''
  axes.set(xlabel='step', ylabel=f'{panel["title"].lower()}{unit}')
  if 1 < len(panel['lines']) <= 8:
    axes.legend()


def _gates(gates: Content, figure: Figure) -> None:
  """A small panel for each edge, all on the same axes."""
  edges = [(g, e) for g in gates['groups'] for e in g['edges']]
  ops = {
    op: z for g, _ in edges for op, z in zip(g['ops'], g['zeros'], strict=True)
  }
  tab = itertools.cycle(matplotlib.color_sequences['tab10'])
  colors = {op: _GREY if is_zero else next(tab) for op, is_zero in ops.items()}
  rows, lines = -(-len(edges) // _COLUMNS), -(-len(ops) // _COLUMNS)
  figure.set_size_inches(7.2, 1.5 * rows + 0.16 * lines + 0.3)
  grid = figure.subplots(
    rows, _COLUMNS, sharex=True, sharey=True, squeeze=False
  )
  panels = list(grid.flat)
  for axes, (group, edge) in zip(panels, edges, strict=False):
    for op, values in zip(group['ops'], edge['gates'], strict=True):
      axes.plot(gates['steps'], values, color=colors[op], linewidth=0.8)
    axes.set_title(f'{group["name"]} {edge["src"]}\u2192{edge["dst"]}')
  for axes in panels[len(edges) :]:
    axes.set_visible(False)
  figure.legend(
    [Line2D([], [], color=c) for c in colors.values()],
    list(colors),
    loc='outside lower center',
    ncols=_COLUMNS,
  )


def _milliseconds(one: Content, figure: Figure) -> None:
  axes = figure.subplots()
  parts = [(f'{p["name"]}: {p["op"]}', p['ms'] or 0.0) for p in one['parts']]
  if one['how'] == 'shapley':
    parts = [p for p in parts if not p[0].startswith('not searched')]
    parts.append(('all else', one['rest_ms']))
  parts = sorted(parts, key=lambda p: p[1])[-12:]
  axes.barh([p[0] for p in parts], [p[1] for p in parts], color=_COLORS[0])
  axes.tick_params(axis='y', labelsize=6, length=0)
  axes.set_xlabel('ms')


def _quality(quality: Content, figure: Figure) -> None:
  axes = figure.subplots()
  measured, predicted = zip(*quality['points'], strict=True)
  ends = [min(measured + predicted) / 1.1, max(measured + predicted) * 1.1]
  low, high = ([f * v for v in ends] for f in (0.9, 1.1))
  axes.fill_between(ends, low, high, color=_GREY, alpha=0.2, lw=0)
  axes.plot(ends, ends, color=_GREY, lw=0.8)
  axes.scatter(measured, predicted, s=5, color=_COLORS[0], alpha=0.6, lw=0)
  axes.set(xlim=ends, ylim=ends, xscale='log', yscale='log')
  axes.set(xlabel='measured (ms)', ylabel='predicted (ms)')
  _count_axes(axes, ends)


def _front(front: Content, kind: Content, figure: Figure) -> None:
  axes = figure.subplots()
  key = kind['key']
  shown = [p for p in front['points'] if key in p['accuracy']]
  best = [front['points'][i] for i in kind['front']]
  back = front['background'] if key == 'truth' else None
  times = [p['ms'] for p in shown]
  values = [p['accuracy'][key] for p in shown]
  if back is not None:
    cells_ms, cells = zip(*back['cells'], strict=True)
    axes.scatter(cells_ms, cells, s=2, color=_GREY, lw=0)
    axes.step(*zip(*back['front'], strict=True), where='post', color='black')
    times += [p[0] for p in back['cells']]
    axes.set_ylim(bottom=min(values) - 2)
  axes.step(
    [p['ms'] for p in best],
    [p['accuracy'][key] for p in best],
    where='post',
    color=_COLORS[1],
    linestyle=':',
  )
  axes.scatter(
    [p['ms'] for p in shown],
    [p['accuracy'][key] for p in shown],
    s=22,
    color=[_COLORS[0] if p['own'] else _COLORS[1] for p in shown],
    edgecolor='white',
    zorder=3,
  )
  axes.set_xscale('log')
  axes.set(xlabel='latency (ms)', ylabel=kind['title'])
  axes.yaxis.label.set_fontsize(6)
  _count_axes(axes, [min(times), max(times)], both=False)


def _count_axes(axes: Axes, ends: list[float], both: bool = True) -> None:
  """Plain numbers on logarithmic axes."""
  subs = (1.0,) if ends[1] / ends[0] > 30 else (1.0, 2.0, 5.0)
  for axis in (axes.xaxis, axes.yaxis) if both else (axes.xaxis,):
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
