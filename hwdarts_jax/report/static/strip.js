'use strict';
// The whole network, a bar a cell: its milliseconds, or else its MACs.
Report.strip = (element, cells, onPick) => {
  const inMs = cells.every((c) => c.ms !== null);
  const value = (c) => (inMs ? c.ms : c.macs);
  const most = Math.max(...cells.map(value)) || 1;
  const total = cells.reduce((sum, c) => sum + value(c), 0) || 1;
  const told = (c) => (inMs ? `${Report.figure(c.ms)} ms`
    : `${Report.million(c.macs)} MACs`);
  Report.draw(element, (width) => {
    const [height, foot] = [122, 24];
    const svg = Report.svg('svg', { viewBox: `0 0 ${width} ${height}`, height,
      role: 'group', 'aria-label': `The ${cells.length} cells of the network` });
    const step = width / cells.length;
    const gap = Math.min(3, step * 0.2);
    let shape = '';
    cells.forEach((cell, i) => {
      const tall = Math.max((value(cell) / most) * (height - foot - 8), 2);
      const rows = [
        ...(cell.op ? [['op', cell.op]] : []),
        ...(cell.group ? [['kind', cell.group]] : []),
        ['writes', cell.shape.join('\u00d7')],
        ...(cell.ms === null ? [] : [['time', `${Report.figure(cell.ms)} ms`]]),
        ['MACs', Report.million(cell.macs)],
        ['params', Report.million(cell.params)],
        ['share', `${((100 * value(cell)) / total).toFixed(1)} %`]];
      const bar = Report.svg('g', { class: cell.group ? 'cell' : 'cell fixed',
        tabindex: 0, role: 'button',
        'aria-label': `${cell.name}: ${told(cell)}` }, [
        Report.svg('rect', { x: i * step, width: step, y: 0, height,
          style: 'opacity:0' }),
        Report.svg('rect', { x: i * step + gap / 2, width: step - gap,
          y: height - foot - tall, height: tall, rx: 1.5 })]);
      const show = () => {
        const box = bar.getBoundingClientRect();
        Report.tip.show(box.left + box.width / 2, box.top + 20, cell.name,
          rows);
      };
      for (const on of ['pointerenter', 'focus']) {
        bar.addEventListener(on, show);
      }
      for (const off of ['pointerleave', 'blur']) {
        bar.addEventListener(off, () => Report.tip.hide());
      }
      const pick = () => cell.group && onPick(cell.group);
      bar.addEventListener('click', pick);
      bar.addEventListener('keydown', (e) => e.key === 'Enter' && pick());
      svg.append(bar);
      const here = cell.shape.join('\u00d7');
      if (here !== shape) {
        const room = cells.slice(i).findIndex((c) =>
          c.shape.join('\u00d7') !== here);
        const span = (room < 0 ? cells.length - i : room) * step;
        if (span > here.length * 7.4 + 12) {
          svg.append(Report.svg('text', { x: i * step + gap / 2,
            y: height - foot + 17 }, here));
        }
        svg.append(Report.svg('line', { class: 'axis-line',
          x1: i * step + gap / 2, x2: i * step + span - gap / 2,
          y1: height - foot + 3, y2: height - foot + 3 }));
        shape = here;
      }
    });
    element.append(svg);
  });
  return inMs ? 'milliseconds' : 'multiply-accumulates';
};
