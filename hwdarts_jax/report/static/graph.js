'use strict';
// A cell as a graph. It runs from left to right, or down where that is too long.
{
  const NARROW = 560;
  const LETTER = 7.1; // width of a letter of a label

  const place = (kind, width) => {
    const down = width < NARROW || needed(kind) > width;
    const layers = new Map();
    for (const n of kind.nodes) {
      layers.set(n.layer, [...(layers.get(n.layer) || []), n]);
    }
    const depth = Math.max(...layers.keys());
    const most = Math.max(...[...layers.values()].map((l) => l.length));
    const bow = Math.max(...kind.edges.map((e) => span(kind, e)));
    const named = width >= NARROW || (most === 1 && bow === 1);
    const across = down ? width
      : Math.max(170, 90 * most, 64 * (bow - 1) + 150);
    const step = most === 1 && bow === 1 ? 56 : named ? 88 : 78;
    const along = down ? step * depth + 60 : width;
    const margin = down ? 30 : 52;
    const spots = new Map();
    layers.forEach((nodes, layer) => nodes.forEach((n, i) => {
      const a = margin + (depth ? layer / depth : 0) * (along - 2 * margin);
      const room = Math.min(across * 0.8,
        (down && named ? 260 : 120) * nodes.length);
      const b = across / 2 + ((i + 0.5) / nodes.length - 0.5) * room;
      spots.set(n.id, { a, b });
    }));
    return { down, named, spots, across, along };
  };

  // The width that labels need in a row, with the nodes between them.
  const needed = (kind) => {
    const wide = Math.max(...kind.edges.filter((e) => e.group).map((e) =>
      (e.op.length + 2) * LETTER + 48));
    return wide * Math.max(...kind.nodes.map((n) => n.layer)) + 100;
  };

  const span = (kind, edge) => {
    const layer = (id) => kind.nodes.find((n) => n.id === id).layer;
    return layer(edge.dst) - layer(edge.src);
  };

  // Control points of an edge; long ones keep clear of the nodes between.
  const curve = (kind, edge, { spots, across, down, named }) => {
    const [p, q] = [spots.get(edge.src), spots.get(edge.dst)];
    const long = span(kind, edge) - 1;
    const middle = across / 2;
    const sources = kind.nodes.filter((n) => n.layer
      === kind.nodes.find((m) => m.id === edge.src).layer);
    const order = kind.nodes.findIndex((n) => n.id === edge.src);
    let side = Math.sign((p.b + q.b) / 2 - middle);
    if (sources.length === 1 || !side) side = order % 2 ? 1 : -1;
    const far = down && named ? 60 + 66 * long : 34 + 42 * long;
    const shift = long > 0 ? side * Math.min(far, across / 2 - 18) * 1.33 : 0;
    const pull = (q.a - p.a) * 0.32;
    return [p, { a: p.a + pull, b: p.b + shift }, { a: q.a - pull,
      b: q.b + shift }, q];
  };

  const at = (c, t) => {
    const w = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
    return { a: c.reduce((s, p, i) => s + w[i] * p.a, 0),
      b: c.reduce((s, p, i) => s + w[i] * p.b, 0) };
  };

  Report.graph = (element, kind, onPick) => {
    const chosen = kind.edges.filter((e) => e.op && e.group);
    const most = Math.max(...kind.edges.map((e) => e.ms || 0)) || 1;
    let picked = null;
    const paint = (width) => {
      const layout = place(kind, width);
      const { down, named } = layout;
      const [w, h] = down ? [layout.across, layout.along]
        : [layout.along, layout.across];
      const xy = (p) => (down ? [p.b, p.a] : [p.a, p.b]);
      const svg = Report.svg('svg', { viewBox: `0 0 ${w} ${h}`, height: h,
        role: 'group', 'aria-label': `Graph of a ${kind.group} cell` });
      const boxes = kind.nodes.map((n) => [...xy(layout.spots.get(n.id)),
        wide(n), 26]);
      const labels = [];
      const reach = [...layout.spots.values()].map((p) => p.b);
      kind.edges.forEach((edge) => {
        const c = curve(kind, edge, layout);
        for (const t of [0.25, 0.5, 0.75]) reach.push(at(c, t).b);
        const d = `M${xy(c[0])}C${c.slice(1).map(xy).join(' ')}`;
        const line = Report.svg('path', { class: 'line', d,
          stroke: edge.op ? Report.color(edge.op, edge.zero) : 'var(--axis)',
          'stroke-width': edge.zero || !edge.op ? 1.2
            : 1.6 + 3.4 * ((edge.ms || 0) / most),
          'stroke-dasharray': edge.zero ? '3 5' : null });
        const number = chosen.indexOf(edge) + 1;
        if (!number) { // never a choice: its name comes with the pointer
          if (edge.op) line.append(Report.svg('title', {}, edge.op));
          line.setAttribute('stroke', 'var(--axis)');
          svg.append(line);
          return;
        }
        const text = named ? `${number} ${edge.op}` : String(number);
        const size = [text.length * LETTER + 14, 22];
        const spot = free(c, xy, size, boxes, [w, h]);
        const attributes = { class: 'edge', tabindex: 0, role: 'button',
          'aria-pressed': 'false', 'data-row': edge.row,
          'aria-label': `edge ${number}, ${edge.src} to ${edge.dst}: `
            + `${edge.op}${edge.ms === null ? ''
              : `, ${Report.figure(edge.ms)} ms`}` };
        const label = Report.svg('g', attributes, [
          Report.svg('rect', { class: 'pill', x: spot[0] - size[0] / 2,
            y: spot[1] - 11, width: size[0], height: 22, rx: 11 }),
          Report.svg('text', { class: 'pill-text mono', x: spot[0],
            y: spot[1] + 4, 'text-anchor': 'middle' }, text)]);
        svg.append(line);
        labels.push(label);
        listen(label, edge, number);
      });
      kind.nodes.forEach((n) => svg.append(dot(n, layout, xy, w)));
      svg.append(...labels);
      if (!down) { // no more room than the curves take
        const top = Math.min(...reach) - 24;
        const tall = Math.max(...reach) + 24 - top;
        svg.setAttribute('viewBox', `0 ${top} ${w} ${tall}`);
        svg.setAttribute('height', tall);
      }
      element.append(svg);
      mark();
    };
    const listen = (label, edge, number) => {
      const rows = [['op', edge.op], ...(edge.ms === null ? []
        : [['time', `${Report.figure(edge.ms)} ms`]])];
      label.addEventListener('pointerenter', (event) => Report.tip.show(
        event.clientX, event.clientY,
        `${number}: ${kind.group} ${edge.src}\u2192${edge.dst}`, rows));
      label.addEventListener('pointerleave', () => Report.tip.hide());
      label.addEventListener('click', () => onPick(kind.group, edge.row));
      label.addEventListener('keydown', (event) => {
        if (event.key === 'Enter' || event.key === ' ') {
          event.preventDefault();
          onPick(kind.group, edge.row);
        }
      });
    };
    const mark = () => element.querySelectorAll('.edge[data-row]').forEach(
      (e) => e.setAttribute('aria-pressed',
        String(picked !== null && e.dataset.row === String(picked))));
    Report.draw(element, paint);
    return (row) => {
      picked = row;
      mark();
    };
  };

  const wide = (n) => Math.max(26, n.name.length * 6.6 + 14);

  // A place on the curve where a label covers no other one.
  const free = (c, xy, size, boxes, [w, h]) => {
    const hits = (b) => boxes.filter((o) =>
      Math.abs(o[0] - b[0]) < (o[2] + b[2]) / 2 + 3
      && Math.abs(o[1] - b[1]) < (o[3] + b[3]) / 2 + 3).length;
    const inside = ([x, y]) => [
      Math.min(Math.max(x, size[0] / 2 + 1), w - size[0] / 2 - 1),
      Math.min(Math.max(y, 12), h - 12)];
    let best = null;
    for (const t of [0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73]) {
      for (const dy of [0, -13, 13, -26, 26]) {
        const [x, y] = inside(xy(at(c, t)));
        const box = [...inside([x, y + dy]), ...size];
        const bad = hits(box) * 10 + Math.abs(t - 0.5) + Math.abs(dy) / 26;
        if (!best || bad < best[0]) best = [bad, box];
      }
    }
    boxes.push(best[1]);
    return best[1];
  };

  const dot = (n, { spots, down }, xy, w) => {
    const [x, y] = xy(spots.get(n.id));
    const size = wide(n);
    const left = Math.min(Math.max(x - size / 2, 1), w - size - 1);
    return Report.svg('g', { class: `node ${n.role}` }, [
      Report.svg('rect', { x: left, y: y - 13, width: size, height: 26,
        rx: down || size > 30 ? 8 : 13 }),
      Report.svg('text', { x: left + size / 2, y: y + 4,
        'text-anchor': 'middle' }, n.name)]);
  };
}
