'use strict';
// Points: predictions beside measurements, and accuracy against latency.
{
  const cloud = (svg, pairs, sx, sy, attributes) => {
    const d = pairs.map(([x, y]) =>
      `M${sx(x).toFixed(1)} ${sy(y).toFixed(1)}h0`).join('');
    svg.append(Report.svg('path', { d, 'stroke-linecap': 'round',
      fill: 'none', ...attributes }));
  };

  // What is predicted beside what was measured, on the same logarithmic axes.
  Report.quality = (element, points) => {
    const low = Math.min(...points.flat()) / 1.08;
    const high = Math.max(...points.flat()) * 1.08;
    Report.draw(element, (width) => {
      const side = Math.min(width, 640);
      const axis = { domain: [low, high], log: true };
      const { svg, sx, sy } = Report.axes(element, side, {
        height: side * 0.72, x: { ...axis, label: 'measured, ms' },
        y: { ...axis, label: 'predicted, ms' },
        label: `${points.length} held-out networks, predicted beside measured`,
      });
      svg.style.maxWidth = `${side}px`;
      const band = [[low, 0.9], [high, 0.9], [high, 1.1], [low, 1.1]]
        .map(([v, f]) => [sx(v), sy(v * f)].join(' '));
      svg.append(
        Report.svg('clipPath', { id: 'inside' }, Report.svg('rect', {
          x: sx(low), y: sy(high), width: sx(high) - sx(low),
          height: sy(low) - sy(high) })),
        Report.svg('path', { d: `M${band.join('L')}Z`, fill: 'var(--accent)',
          opacity: 0.12, 'clip-path': 'url(#inside)' }),
        Report.svg('line', { class: 'axis-line', x1: sx(low), y1: sy(low),
          x2: sx(high), y2: sy(high) }));
      cloud(svg, points, sx, sy, { stroke: 'var(--accent)',
        'stroke-width': 5, opacity: 0.65 });
      svg.addEventListener('pointermove', (event) => {
        const box = svg.getBoundingClientRect();
        const x = event.clientX - box.left;
        const y = event.clientY - box.top;
        const far = (p) => Math.hypot(sx(p[0]) - x, sy(p[1]) - y);
        const best = points.reduce((a, b) => (far(b) < far(a) ? b : a));
        if (far(best) > 14) return Report.tip.hide();
        const error = 100 * (best[1] / best[0] - 1);
        return Report.tip.show(event.clientX, event.clientY,
          'A held-out network', [
            ['measured', `${Report.figure(best[0])} ms`],
            ['predicted', `${Report.figure(best[1])} ms`],
            ['error', `${error.toFixed(1)} %`]]);
      });
      svg.addEventListener('pointerleave', () => Report.tip.hide());
    });
  };

  const details = (point, kind) => {
    const rows = [
      [kind.title.replace(/ \(%\)$/, ''),
        `${Report.figure(point.accuracy[kind.key])} %`],
      ['predicted', `${Report.figure(point.ms)} ms`]];
    if (point.target_ms !== null) {
      rows.push(['target', `${Report.figure(point.target_ms)} ms`]);
    }
    if (point.macs) rows.push(['MACs', Report.million(point.macs)]);
    if (point.params) rows.push(['params', Report.million(point.params)]);
    rows.push([point.text]);
    return rows;
  };

  const staircase = (pairs, sx, sy) => pairs.map(([x, y], i) => (i
    ? `H${sx(x).toFixed(1)}V${sy(y).toFixed(1)}`
    : `M${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`)).join('');

  // Accuracy against latency of one kind of accuracy.
  Report.front = (element, front, onPick) => {
    let kind = front.kinds[0];
    const paint = (width) => {
      const shown = front.points.filter((p) => kind.key in p.accuracy);
      const back = kind.key === 'truth' ? front.background : null;
      const xs = shown.map((p) => p.ms);
      const ys = shown.map((p) => p.accuracy[kind.key]);
      const [low, top] = Report.extent(back
        ? [...ys, ...back.front.slice(Math.floor(back.front.length / 3))
          .map((p) => p[1])] : ys, 0.12);
      const room = Math.max(0, 2 - (top - low)) / 2; // at least two points
      const seen = back ? back.cells.filter((p) => p[1] >= low) : [];
      const all = [...xs, ...seen.map((p) => p[0])];
      const far = all.length > 1 ? 1.12 : 1.5;
      const wide = [Math.min(...all) / far, Math.max(...all) * far];
      const { svg, sx, sy, box } = Report.axes(element, width, {
        height: Math.min(430, Math.max(300, width * 0.55)),
        x: { domain: wide, log: true, label: back
          ? 'ms: found, predicted; cells, measured' : 'predicted, ms' },
        y: { domain: [low - room, Math.min(top + room, 100.5)],
          label: 'accuracy, %' },
        label: `${kind.title} against latency of ${shown.length} `
          + 'architectures; the table below has them all',
      });
      if (back) {
        const inside = (p) => p[1] >= low && p[0] >= wide[0];
        cloud(svg, seen, sx, sy, { stroke: 'var(--none)', opacity: 0.35,
          'stroke-width': 2.6 });
        svg.append(Report.svg('path', { class: 'line', stroke: 'var(--muted)',
          d: staircase(back.front.filter(inside), sx, sy) }));
      }
      const best = kind.front.map((i) => front.points[i]);
      if (best.length > 1) {
        svg.append(Report.svg('path', { class: 'line', stroke: 'var(--accent)',
          'stroke-dasharray': '2 4', d: staircase(best.map((p) => [p.ms,
            p.accuracy[kind.key]]), sx, sy) }));
      }
      const targets = new Set(shown.filter((p) => p.own)
        .map((p) => p.target_ms));
      for (const target of targets) {
        if (target && (shown.length < 6 || targets.size < 4)
          && target > wide[0] && target < wide[1]) {
          svg.append(
            Report.svg('line', { class: 'cursor', x1: sx(target),
              x2: sx(target), y1: box.top, y2: box.bottom }),
            Report.svg('text', { x: sx(target) - 6, y: box.bottom - 8,
              'text-anchor': 'end' }, `target ${Report.figure(target)} ms`));
        }
      }
      shown.forEach((point) => svg.append(dot(point, sx, sy)));
    };
    const dot = (point, sx, sy) => {
      const value = point.accuracy[kind.key];
      const rows = details(point, kind);
      const found = Report.svg('circle', {
        class: 'dot', cx: sx(point.ms), cy: sy(value),
        r: point.own ? 7 : 5.5, tabindex: 0, role: 'button',
        fill: point.own ? 'var(--accent)' : 'var(--op1)',
        stroke: 'var(--card)', 'stroke-width': 1.5,
        'aria-label': `${point.name}: ${rows.map((r) => r.join(' '))
          .join(', ')}`,
      });
      const show = () => {
        const box = found.getBoundingClientRect();
        Report.tip.show(box.left + box.width / 2, box.top, point.name, rows);
      };
      for (const on of ['pointerenter', 'focus']) {
        found.addEventListener(on, show);
      }
      for (const off of ['pointerleave', 'blur']) {
        found.addEventListener(off, () => Report.tip.hide());
      }
      const pick = () => point.own && onPick(point.number);
      found.addEventListener('click', pick);
      found.addEventListener('keydown', (event) => {
        if (event.key === 'Enter') pick();
        if (event.key === 'Escape') Report.tip.hide();
      });
      return found;
    };
    const again = Report.draw(element, paint);
    return (key) => {
      kind = front.kinds.find((k) => k.key === key);
      again();
    };
  };
}
