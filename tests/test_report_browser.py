"""The page in a real browser: it works, fits a phone, and loads nothing."""

import importlib.util
import shutil

import pytest
import report_runs

from hwdarts_jax.jobs import report, report_front, report_read
from hwdarts_jax.report import page as page_lib

_BROWSERS = ('chromium-headless-shell', 'chromium', 'google-chrome')
_FOUND = next(filter(None, map(shutil.which, _BROWSERS)), None)
_HAS_PLAYWRIGHT = importlib.util.find_spec('playwright') is not None
pytestmark = pytest.mark.skipif(
  not (_FOUND and _HAS_PLAYWRIGHT),
  reason=f'no browser: needs playwright (the extra `browser`) and one of '
  f'{_BROWSERS} on the path',
)
DESK, PHONE = (1240, 900), (390, 844)
TABS = ('architecture', 'search', 'latency', 'front', 'run')
NASTY = '</script><script>window.hit=1</script><img src=x onerror=window.hit=1>'


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
  """Paths of pages: of spaces, a population, a shortlist, a hostile name."""
  folder = tmp_path_factory.mktemp('pages')
  for space in report_runs.DEPLOY:
    report_runs.write_search(folder / space, space, num_networks=40)
  report_runs.write_pareto(folder / 'pareto')
  for name, has_rounds in (('shortlist', False), ('rounds', True)):
    report_runs.write_shortlist(
      folder / name, folder / 'darts', [9.0], has_rounds=has_rounds
    )
  report_runs.write_search(folder / 'nasty', data=NASTY)
  found = {}
  for name in (*report_runs.DEPLOY, 'pareto', 'shortlist', 'rounds', 'nasty'):
    others = ['darts'] if name == 'pareto' else []
    content = report.collect(
      report_read.read(folder / name),
      report_front.compared([str(folder / o) for o in others]),
    )
    found[name] = folder / f'{name}.html'
    found[name].write_text(page_lib.render(content))
  return found


@pytest.fixture(scope='module')
def browser():
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=_FOUND, args=['--no-sandbox']
    )
    yield browser
    browser.close()


@pytest.fixture
def visit(browser, pages):
  """Opens a page; at the end it must have made no noise."""
  contexts, noise = [], []

  def visit(name, size=DESK, scheme='light'):
    context = browser.new_context(
      viewport=dict(zip(('width', 'height'), size, strict=True)),
      color_scheme=scheme,
    )
    contexts.append(context)
    page = context.new_page()
    page.on('console', lambda m: noise.append(f'console: {m.text}'))
    page.on('pageerror', lambda e: noise.append(f'error: {e}'))
    page.on(
      'request',
      lambda r: r.url.startswith(('file:', 'data:')) or noise.append(r.url),
    )
    page.goto(pages[name].as_uri())
    return page

  yield visit
  for context in contexts:
    context.close()
  assert not noise, noise


def _settle(page):
  """Waits until drawings that depend on widths are there."""
  page.evaluate('new Promise((r) => setTimeout(r, 60))')


@pytest.mark.parametrize(
  'name', [*report_runs.DEPLOY, 'pareto', 'shortlist', 'rounds']
)
@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_every_section_fits_the_screen(visit, name, size):
  page = visit(name, size)
  for tab in TABS:
    page.click(f'#tab-{tab}')
    _settle(page)
    wide = page.evaluate('document.documentElement.scrollWidth')
    assert wide <= size[0], (tab, wide)
    shown = page.locator('[role=tabpanel]:visible')
    assert shown.count() == 1
    assert shown.get_attribute('id') == f'panel-{tab}'


def test_tabs_are_walked_by_arrow_keys(visit):
  page = visit('darts')
  page.focus('#tab-architecture')
  for tab in (*TABS[1:], TABS[0]):
    page.keyboard.press('ArrowRight')
    assert page.evaluate('document.activeElement.id') == f'tab-{tab}'
    assert page.locator(f'#panel-{tab}').is_visible()
  page.keyboard.press('End')
  assert page.locator('#panel-run').is_visible()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_theme_follows_the_system_and_then_the_button(visit, scheme):
  page = visit('darts', scheme=scheme)

  def brightness():
    color = page.evaluate('getComputedStyle(document.body).backgroundColor')
    return sum(int(n) for n in color[4:-1].split(','))

  before = brightness()
  assert (before > 380) == (scheme == 'light')
  page.click('#theme')
  assert (brightness() > 380) != (scheme == 'light')
  page.click('#theme')
  assert brightness() == before


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out_from_its_ground(visit, scheme):
  """4.5 to 1 (WCAG 2.1, 1.4.3), of all colours that text has."""
  page = visit('darts', scheme=scheme)
  ratios = page.evaluate("""() => {
    const light = (name) => {
      const probe = document.createElement('i');
      probe.style.color = `var(--${name})`;
      document.body.append(probe);
      const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
      probe.remove();
      const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92
        : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = ['ink', 'muted', 'accent',
      ...[...Array(10).keys()].map((i) => `op${i}`)];
    const pairs = texts.flatMap((t) => [[t, 'bg'], [t, 'card']]);
    pairs.push(['warn', 'warn-bg'], ['ink', 'warn-bg'], ['muted', 'sunk'],
      ['on-accent', 'accent']);
    return pairs.map(([a, b]) => {
      const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
      return [a, b, (x + 0.05) / (y + 0.05)];
    });
  }""")
  assert not [r for r in ratios if r[2] < 4.5]


def test_an_edge_is_chosen_in_the_graph_and_in_the_table(visit):
  page = visit('darts')
  edges = page.locator('.graph').first.locator('.edge[data-row]')
  edges.nth(1).click()
  assert edges.nth(1).get_attribute('aria-pressed') == 'true'
  assert edges.nth(0).get_attribute('aria-pressed') == 'false'
  said = edges.nth(1).get_attribute('aria-label')
  assert page.locator('.detail .mono').inner_text().split()[0] in said
  row = page.locator('tr[aria-selected=true]')
  assert row.count() == 1
  assert row.get_attribute('data-edge').endswith(
    '/' + edges.nth(1).get_attribute('data-row')
  )
  other = page.locator('tr[data-edge^="reduce"] button').first
  other.focus()
  page.keyboard.press('Enter')
  assert page.locator('.detail h3').inner_text().startswith('reduce')
  assert edges.nth(1).get_attribute('aria-pressed') == 'false'


def test_a_small_panel_of_gates_leads_to_its_edge(visit):
  page = visit('nasbench201')
  page.click('#tab-search')
  panel = page.locator('.gates .card').nth(4)
  title = panel.locator('h3').inner_text()
  panel.click()
  assert page.locator('#panel-architecture').is_visible()
  assert page.locator('.detail h3').inner_text() == title


def test_curves_tell_their_values_to_pointer_and_keys(visit):
  page = visit('darts')
  page.click('#tab-search')
  _settle(page)
  chart = page.locator('#curves-search svg').first
  chart.hover()
  tip = page.locator('.tip')
  assert 'train' in tip.inner_text() and 'validation' in tip.inner_text()
  chart.focus()
  page.keyboard.press('End')
  assert 'step 300' in tip.inner_text()
  assert tip.inner_text().split()[-4:] == ['train', '1', 'validation', '1.10']
  page.keyboard.press('ArrowLeft')
  assert 'step 290' in tip.inner_text()
  page.keyboard.press('Escape')
  assert not tip.is_visible()


def test_points_of_the_front_tell_their_details(visit):
  page = visit('pareto')
  page.click('#tab-front')
  _settle(page)
  dots = page.locator('#front-plot .dot')
  assert dots.count() == 3
  dots.nth(2).hover()
  text = page.locator('.tip').inner_text()
  assert 'pareto 02' in text and '75 %' in text
  dots.nth(2).focus()
  page.keyboard.press('Enter')
  assert page.locator('#panel-architecture').is_visible()
  assert page.locator('#member').input_value() == '2'
  page.locator('#member').select_option('0')
  assert (
    page.locator('.drawing:visible').get_attribute('data-architecture') == '0'
  )
  page.click('#tab-front')
  page.locator('[data-kind=supernet]').click()
  assert dots.count() == 1


def test_the_chosen_candidate_stands_out_and_leads_to_its_drawing(visit):
  page = visit('shortlist')
  page.click('#tab-front')
  _settle(page)
  rows = page.locator('table.candidates tbody tr')
  assert rows.count() == 4
  assert (
    page.locator('table.candidates tr.chosen').inner_text().startswith('chosen')
  )
  assert page.locator('#front-plot').get_by_text('target 9 ms').is_visible()
  page.get_by_role('button', name='predicted, ms').first.click()
  shown = rows.locator('td:nth-child(3)').evaluate_all(
    '(cells) => cells.map((c) => Number(c.dataset.value))'
  )
  assert shown == sorted(shown, reverse=True)
  dots = page.locator('#front-plot .dot')
  assert dots.count() == 4
  dots.nth(2).focus()  # one that was not chosen has no drawing
  assert 'candidate' in page.locator('.tip').inner_text()
  page.keyboard.press('Enter')
  assert page.locator('#panel-front').is_visible()
  dots.nth(0).focus()
  page.keyboard.press('Enter')
  assert page.locator('#panel-architecture').is_visible()


def test_tables_are_sorted_by_a_click(visit):
  page = visit('mobile')
  head = page.get_by_role('button', name='ms', exact=True).first
  head.click()
  shown = page.locator('.drawing td:nth-child(6)').evaluate_all(
    '(cells) => cells.map((c) => Number(c.dataset.value))'
  )
  assert shown == sorted(shown, reverse=True)
  assert len(set(shown)) > 3


def test_held_out_networks_are_told_one_by_one(visit):
  page = visit('darts')
  page.click('#tab-latency')
  _settle(page)
  page.locator('#quality-plot svg').scroll_into_view_if_needed()
  start = page.evaluate("""() => {
    const d = document.querySelector('#quality-plot path[stroke-linecap]')
      .getAttribute('d');
    const box = document.querySelector('#quality-plot svg')
      .getBoundingClientRect();
    const [x, y] = d.slice(1).split('h')[0].split(' ').map(Number);
    return [box.left + x, box.top + y];
  }""")
  page.mouse.move(*start)
  assert 'predicted' in page.locator('.tip').inner_text()


def test_a_command_is_copied(visit):
  page = visit('darts')
  page.click('#tab-run')
  button = page.locator('.command .button').first
  button.click()
  page.wait_for_function(
    '["Copied", "Selected"].includes('
    'document.querySelector(".command .button").textContent)'
  )


def test_a_hostile_name_is_shown_and_does_not_run(visit):
  page = visit('nasty')
  for tab in TABS:
    page.click(f'#tab-{tab}')
  assert NASTY in page.locator('h1').inner_text()
  assert page.evaluate('window.hit') is None


def test_an_edge_that_was_dropped_can_be_looked_at_too(visit):
  page = visit('darts')
  page.click('#tab-search')
  card = page.locator('.gates .card', has_text='dropped').first
  title = card.locator('h3').inner_text()
  card.click()
  assert page.locator('.detail h3').inner_text() == title
  assert page.locator('.detail .mono').inner_text() == 'dropped'
  assert page.locator('.edge[aria-pressed=true]').count() == 0
