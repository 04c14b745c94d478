'use strict';
// Wires the page: tabs, theme, edges, members, sorting, copying.
{
  const $ = (selector, inside = document) => inside.querySelector(selector);
  const $$ = (selector, inside = document) =>
    [...inside.querySelectorAll(selector)];

  const startTabs = () => {
    const tabs = $$('[role=tab]');
    const open = (tab, focus) => {
      for (const other of tabs) {
        const here = other === tab;
        other.setAttribute('aria-selected', String(here));
        other.tabIndex = here ? 0 : -1;
        $(`#${other.getAttribute('aria-controls')}`).hidden = !here;
      }
      if (focus) tab.focus();
      tab.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    };
    tabs.forEach((tab, i) => {
      tab.addEventListener('click', () => open(tab, false));
      tab.addEventListener('keydown', (event) => {
        const moves = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: -1 };
        if (event.key in moves) {
          event.preventDefault();
          open(tabs.at(moves[event.key] % tabs.length), true);
        }
      });
    });
    open(tabs[0], false);
    return (name) => open($(`#tab-${name}`), true);
  };

  const startTheme = () => {
    const root = document.documentElement;
    const button = $('#theme');
    const dark = () => (root.dataset.theme
      ? root.dataset.theme === 'dark'
      : window.matchMedia('(prefers-color-scheme: dark)').matches);
    const label = () => {
      button.textContent = dark() ? 'Light' : 'Dark';
      button.setAttribute('aria-label',
        `Switch to ${dark() ? 'light' : 'dark'} colours`);
    };
    button.addEventListener('click', () => {
      root.dataset.theme = dark() ? 'light' : 'dark';
      label();
    });
    label();
  };

  // The edge that was chosen; undefined where the architecture drops it.
  const chosen = (facts, group, row) => facts.kinds
    .find((k) => k.group === group).edges.find((e) => e.row === row);

  const edgeLines = (facts, group, row) => {
    const { gates } = facts;
    const found = gates.groups.find((g) => g.name === group);
    const edge = found.edges[row];
    const kept = chosen(facts, group, row);
    return found.ops.map((op, i) => ({
      label: op, color: Report.color(op, found.zeros[i]),
      strong: Boolean(kept) && op === kept.op,
      dash: i > 9 ? '5 3' : null,
      points: gates.steps.map((s, t) => [s, edge.gates[i][t]]),
    }));
  };

  // The same range for all edges, so that they can be compared.
  const gatesRange = (gates) => {
    const most = Math.max(...gates.groups.flatMap((g) => g.edges.flatMap(
      (e) => e.gates.flat())));
    return [0, Math.min(1, Math.ceil(most * 10 + 0.2) / 10)];
  };

  // Everything of one architecture; returns what shows an edge of it.
  const startArchitecture = (facts, root) => {
    const graphs = new Map();
    const detail = $('.detail', root);
    const pick = (group, row) => {
      graphs.forEach((mark, g) => mark(g === group ? row : null));
      $$('tr[data-edge]', root).forEach((tr) => tr.setAttribute(
        'aria-selected', String(tr.dataset.edge === `${group}/${row}`)));
      const edge = chosen(facts, group, row);
      const { src, dst } = edge
        || facts.gates.groups.find((g) => g.name === group).edges[row];
      const title = `${group} ${src}\u2192${dst}`;
      const plot = Report.node('div', { class: 'plot' });
      let what = 'dropped';
      if (edge) {
        what = edge.ms === null ? edge.op
          : `${edge.op} \u00b7 ${Report.figure(edge.ms)} ms`;
      }
      const parts = [Report.node('div', { class: 'head' }, [
        Report.node('h3', {}, title),
        Report.node('span', { class: 'mono' }, what)])];
      if (!facts.gates) {
        parts.push(Report.node('p', { class: 'lead' },
          'The gates of this edge over time are not known.'));
        detail.replaceChildren(...parts);
        return;
      }
      const lines = edgeLines(facts, group, row);
      const items = lines.map((l) => [l.label, l.color, Boolean(l.dash)]);
      detail.replaceChildren(...parts, Report.legend(items), plot);
      Report.lineChart(plot, { title: `Gates of ${title}`, lines, height: 250,
        range: gatesRange(facts.gates) });
    };
    const strip = $('.strip', root);
    const what = Report.strip(strip, facts.strip, (group) => {
      const kind = facts.kinds.find((k) => k.group === group);
      pick(group, kind.edges.find((e) => e.row !== null).row);
    });
    $('.strip-what', root).textContent = what;
    facts.kinds.forEach((kind, i) => {
      graphs.set(kind.group, Report.graph($$('.graph', root)[i], kind, pick));
    });
    $$('tr[data-edge]', root).forEach((tr) => tr.addEventListener('click',
      () => {
        const [group, row] = tr.dataset.edge.split('/');
        pick(group, Number(row));
      }));
    const first = facts.kinds[0];
    if (first) pick(first.group, first.edges.find((e) => e.row !== null).row);
    return pick;
  };

  const startGates = (facts, root, onPick) => {
    const place = $('.gates', root);
    if (!place || !facts.gates) return;
    const range = gatesRange(facts.gates);
    for (const group of facts.gates.groups) {
      group.edges.forEach((edge, row) => {
        const lines = edgeLines(facts, group.name, row);
        const best = lines.find((l) => l.strong)
          || { label: 'dropped', color: 'var(--muted)' };
        const title = group.edges.length > 1
          ? `${group.name} ${edge.src}\u2192${edge.dst}` : group.name;
        const plot = Report.node('div', { class: 'plot' });
        const label = Report.node('span', { class: 'mono' }, best.label);
        label.style.color = best.color;
        const card = Report.node('div', { class: 'card', tabindex: 0,
          role: 'button', 'aria-label': `${title}: ${best.label}` }, [
          Report.node('div', { class: 'head' },
            [Report.node('h3', {}, title), label]), plot]);
        const go = () => onPick(group.name, row);
        card.addEventListener('click', go);
        card.addEventListener('keydown', (e) => e.key === 'Enter' && go());
        place.append(card);
        Report.lineChart(plot, { title, lines, small: true, range });
      });
    }
    const ops = [...new Map(facts.gates.groups.flatMap((g) => g.ops.map(
      (op, i) => [op, Report.color(op, g.zeros[i])])))];
    place.before(Report.legend(ops));
  };

  const startSorting = () => $$('table.sortable').forEach((table) => {
    const heads = $$('th', table);
    heads.forEach((head, column) => {
      const button = $('button', head);
      if (!button) return;
      button.addEventListener('click', () => {
        const up = head.getAttribute('aria-sort') === 'descending';
        heads.forEach((h) => h.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
        const value = (tr) => Number(tr.cells[column].dataset.value ?? -1);
        const rows = $$('tbody tr', table).sort((a, b) =>
          (up ? 1 : -1) * (value(a) - value(b)));
        $('tbody', table).append(...rows);
      });
    });
  });

  const startCopying = () => $$('.command').forEach((command) => {
    const button = $('.button', command);
    button.addEventListener('click', async () => {
      const pre = $('pre', command);
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = 'Copied';
      } catch {
        window.getSelection().selectAllChildren(pre);
        button.textContent = 'Selected';
      }
      setTimeout(() => { button.textContent = 'Copy'; }, 1600);
    });
  });

  const startFront = (data, showMember) => {
    const plot = $('#front-plot');
    if (!plot || !data.front.kinds || !data.front.kinds.length) return;
    const change = Report.front(plot, data.front, showMember);
    $$('[data-kind]').forEach((button) => button.addEventListener('click',
      () => {
        $$('[data-kind]').forEach((b) => b.setAttribute('aria-pressed',
          String(b === button)));
        change(button.dataset.kind);
      }));
  };

  const start = () => {
    const data = JSON.parse($('#data').textContent);
    Report.data = data;
    // Colours go by the order of ops in the space, not by what was chosen.
    for (const { gates } of data.architectures) {
      for (const g of gates ? gates.groups : []) {
        g.ops.forEach((op, i) => Report.color(op, g.zeros[i]));
      }
    }
    const open = startTabs();
    startTheme();
    startSorting();
    startCopying();
    const roots = $$('[data-architecture]');
    const started = new Set();
    const select = $('#member');
    const show = (number) => {
      roots.forEach((root) => {
        root.hidden = Number(root.dataset.architecture) !== number;
        if (root.hidden || started.has(root)) return;
        started.add(root);
        const facts = data.architectures[number];
        if (root.classList.contains('drawing')) {
          root.pick = startArchitecture(facts, root);
        } else {
          startGates(facts, root, (group, row) => {
            open('architecture');
            roots[number].pick(group, row);
          });
        }
      });
      if (select) select.value = String(number);
    };
    if (select) {
      select.addEventListener('change', () => show(Number(select.value)));
    }
    if (roots.length) show(0);
    for (const [name, panels] of Object.entries(data.curves)) {
      const place = $(`#curves-${name}`);
      if (place) place.append(...panels.map(Report.panel));
    }
    if (data.quality.points && data.quality.points.length) {
      Report.quality($('#quality-plot'), data.quality.points);
    }
    startFront(data, (number) => {
      show(number);
      open('architecture');
    });
  };
  start();
}
