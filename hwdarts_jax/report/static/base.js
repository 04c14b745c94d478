'use strict';
// Helpers of all drawings. Text is only ever set as text, never as HTML.
const Report = { data: null };

Report.node = (name, attributes = {}, children = [], space = null) => {
  const found = space
    ? document.createElementNS(space, name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) found.setAttribute(key, value);
  }
  for (const child of [].concat(children)) found.append(child);
  return found;
};
Report.svg = (name, attributes, children) =>
  Report.node(name, attributes, children, 'http://www.w3.org/2000/svg');

Report.figure = (value) => {
  if (value === null || value === undefined) return '\u2013';
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) {
    return value.toLocaleString('en-US');
  }
  if (size < 0.1) return String(Number(value.toPrecision(2)));
  const digits = size < 1 ? 3 : size < 100 ? 2 : 1;
  return value.toLocaleString('en-US', {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  });
};
Report.million = (value) => `${Report.figure(value / 1e6)} M`;

// Numbers that people count in, about `count` of them between low and high.
Report.ticks = (low, high, count) => {
  if (high <= low) return [low];
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((s) => s * power >= 0.7 * rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9;
    i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
};
Report.logTicks = (low, high) => {
  const found = [];
  const few = high / low > 30 ? [1] : [1, 2, 5];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p += 1) {
    for (const m of few) {
      const value = Number((m * 10 ** p).toPrecision(12));
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found.length > 2 ? found : Report.ticks(low, high, 5);
};

Report.extent = (values, room = 0.05) => {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  let low = Math.min(...known);
  let high = Math.max(...known);
  if (!known.length) [low, high] = [0, 1];
  const span = high - low || Math.abs(high) || 1;
  return [low - room * span, high + room * span];
};

Report.scale = (domain, range, log = false) => {
  const f = log ? Math.log : (v) => v;
  const [a, b] = domain.map(f);
  const to = (v) => range[0] + ((f(v) - a) / (b - a)) * (range[1] - range[0]);
  to.domain = domain;
  return to;
};

Report.tip = {
  box: null,
  show(x, y, title, rows = []) {
    this.box = this.box || document.querySelector('.tip');
    const lines = rows.map(([label, value]) => Report.node(
      'span', { class: 'row' },
      value === undefined ? [label] : [
        Report.node('span', {}, label), Report.node('span', {}, value),
      ]));
    this.box.replaceChildren(Report.node('b', {}, title), ...lines);
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = Math.min(Math.max(x + 14, 8), window.innerWidth - width - 8);
    const above = y - height - 14;
    this.box.style.left = `${Math.max(left, 8)}px`;
    this.box.style.top = `${above < 8 ? y + 18 : above}px`;
  },
  hide() {
    if (this.box) this.box.hidden = true;
  },
};

// Draws whenever the width of an element changes; hidden ones wait.
Report.draw = (element, paint) => {
  let last = 0;
  const observer = new ResizeObserver(() => {
    const width = Math.floor(element.clientWidth);
    if (width > 0 && width !== last) {
      last = width;
      element.replaceChildren();
      paint(width);
    }
  });
  observer.observe(element);
  return () => {
    last = Math.floor(element.clientWidth);
    element.replaceChildren();
    if (last > 0) paint(last);
  };
};

// Axes of a plot. Returns its svg, both scales, and the area inside.
Report.axes = (element, width, options) => {
  const { height, x, y, label } = options;
  const left = options.small ? 30 : 46;
  const bottom = options.small ? 20 : 38;
  const top = y.label ? 24 : 8;
  const box = { left, right: width - 8, top, bottom: height - bottom };
  const svg = Report.svg('svg', {
    viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': label,
  });
  const sx = Report.scale(x.domain, [box.left, box.right], x.log);
  const sy = Report.scale(y.domain, [box.bottom, box.top], y.log);
  const across = Math.max(2, Math.floor((box.right - box.left) / 80));
  const up = Math.max(2, Math.floor((box.bottom - box.top) / 34));
  const tx = x.log ? Report.logTicks(...x.domain)
    : Report.ticks(...x.domain, across);
  const ty = y.log ? Report.logTicks(...y.domain)
    : Report.ticks(...y.domain, up);
  for (const value of ty) {
    svg.append(
      Report.svg('line', { class: 'grid-line', x1: box.left, x2: box.right,
        y1: sy(value), y2: sy(value) }),
      Report.svg('text', { x: box.left - 7, y: sy(value) + 4,
        'text-anchor': 'end' }, Report.short(value)));
  }
  let free = -Infinity; // where the next number may begin
  for (const value of tx) {
    const half = Report.short(value).length * 3.5;
    if (sx(value) - half < free) continue;
    free = sx(value) + half + 8;
    svg.append(Report.svg('text', { x: sx(value), y: box.bottom + 16,
      'text-anchor': 'middle' }, Report.short(value)));
  }
  svg.append(Report.svg('line', { class: 'axis-line', x1: box.left,
    x2: box.right, y1: box.bottom, y2: box.bottom }));
  if (y.label) svg.append(Report.svg('text', { x: 0, y: 10 }, y.label));
  if (!options.small) {
    svg.append(Report.svg('text', { x: box.right, y: height - 4,
      'text-anchor': 'end' }, x.label));
  }
  element.append(svg);
  return { svg, sx, sy, box };
};
Report.short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return String(Number(value.toPrecision(4)));
};

// One colour an op, the same everywhere; ops that connect nothing are grey.
Report.colors = new Map();
Report.color = (op, zero = false) => {
  if (zero) return 'var(--none)';
  if (!Report.colors.has(op)) {
    Report.colors.set(op, `var(--op${Report.colors.size % 10})`);
  }
  return Report.colors.get(op);
};
Report.legend = (items) => Report.node('ul', { class: 'legend' },
  items.map(([label, color, dashed]) => {
    const mark = Report.node('i');
    mark.style.borderColor = color;
    if (dashed) mark.style.borderTopStyle = 'dashed';
    return Report.node('li', {}, [mark, label]);
  }));
