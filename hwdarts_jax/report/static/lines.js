'use strict';
// Curves over steps. Hover or the arrow keys tell the values of a step.
{
  const STYLES = { a: ['var(--op0)'], b: ['var(--op1)'],
    target: ['var(--muted)', '5 4'] };

  Report.styleOf = (line, i) => (line.color ? [line.color, line.dash]
    : STYLES[line.style] || [`var(--op${(i + 2) % 10})`]);

  const path = (points, sx, sy) => {
    let text = '';
    let pen = 'M';
    for (const [x, y] of points) {
      if (y === null) {
        pen = 'M';
      } else {
        text += `${pen}${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`;
        pen = 'L';
      }
    }
    return text;
  };

  const nearest = (points, step) => points.reduce((best, p) =>
    (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));

  Report.lineChart = (element, options) => {
    const { lines, unit = '', small = false, title } = options;
    const all = lines.flatMap((l) => l.points);
    const steps = [...new Set(all.map((p) => p[0]))].sort((a, b) => a - b);
    const label = `${title}: ${lines.map((l) => {
      const known = l.points.filter((p) => p[1] !== null);
      const last = known[known.length - 1];
      return `${l.label} ends at ${Report.figure(last[1])} ${unit}`;
    }).join('; ')}`;

    const paint = (width) => {
      const span = steps.length > 1 ? [steps[0], steps[steps.length - 1]]
        : [steps[0] - 1, steps[0] + 1];
      const plot = Report.axes(element, width, {
        height: options.height || (small ? 96 : 230), small, label,
        x: { domain: span, label: 'step' },
        y: { domain: options.range
          || Report.extent(all.map((p) => p[1])) },
      });
      lines.forEach((line, i) => {
        const [stroke, dash] = Report.styleOf(line, i);
        const d = path(line.points, plot.sx, plot.sy);
        plot.svg.append(Report.svg('path', { class: 'line', d, stroke,
          'stroke-dasharray': dash, 'stroke-width': line.strong ? 2.6 : null,
        }));
        if (line.points.length === 1) {
          plot.svg.append(Report.svg('circle', { r: 3, fill: stroke,
            cx: plot.sx(line.points[0][0]), cy: plot.sy(line.points[0][1]) }));
        }
      });
      watch(plot);
    };

    const watch = ({ svg, sx, box }) => {
      const cursor = Report.svg('line', { class: 'cursor', y1: box.top,
        y2: box.bottom, visibility: 'hidden' });
      svg.append(cursor);
      let at = steps.length - 1;
      const show = (i, event) => {
        at = Math.min(Math.max(i, 0), steps.length - 1);
        const step = steps[at];
        const frame = svg.getBoundingClientRect();
        const x = sx(step);
        cursor.setAttribute('x1', x);
        cursor.setAttribute('x2', x);
        cursor.setAttribute('visibility', 'visible');
        const rows = lines.map((l) => [l.label || title,
          `${Report.figure(nearest(l.points, step)[1])} ${unit}`]);
        Report.tip.show(frame.left + x, event ? event.clientY
          : frame.top + 40, `step ${Report.figure(step)}`, rows);
      };
      const hide = () => {
        cursor.setAttribute('visibility', 'hidden');
        Report.tip.hide();
      };
      svg.addEventListener('pointermove', (event) => {
        const x = event.clientX - svg.getBoundingClientRect().left;
        let best = 0;
        steps.forEach((s, i) => {
          if (Math.abs(sx(s) - x) < Math.abs(sx(steps[best]) - x)) best = i;
        });
        show(best, event);
      });
      svg.addEventListener('pointerleave', hide);
      if (small) return;
      svg.setAttribute('tabindex', 0);
      svg.addEventListener('blur', hide);
      svg.addEventListener('keydown', (event) => {
        const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 };
        if (event.key === 'Escape') hide();
        if (event.key in moves) {
          event.preventDefault();
          show(at + moves[event.key]);
        }
      });
    };
    return Report.draw(element, paint);
  };

  // A card with a title, a legend and a chart.
  Report.panel = (panel) => {
    const plot = Report.node('div', { class: 'plot' });
    const title = Report.node('div', { class: 'head' }, [
      Report.node('h3', {}, panel.title),
      Report.node('span', { class: 'unit' }, panel.unit),
    ]);
    const named = panel.lines.filter((l) => l.label);
    const items = named.map((l) => {
      const [color, dash] = Report.styleOf(l, panel.lines.indexOf(l));
      return [l.label, color, Boolean(dash)];
    });
    const card = Report.node('div', { class: 'card' }, [title,
      ...(named.length > 1 ? [Report.legend(items)] : []), plot]);
    Report.lineChart(plot, panel);
    return card;
  };
}
