"""A report says what the files of a run say, of every space and job."""

import html
import json
import re
import shlex

import numpy as np
import pytest
import report_runs
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import report, report_front, report_read, summary
from hwdarts_jax.latency import cost
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.report import page
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype

SPACES = sorted(report_runs.DEPLOY)


def _collect(folder, *others):
  return report.collect(
    report_read.read(folder), report_front.compared([*map(str, others)])
  )


def _data(text):
  """What the script of a page reads."""
  found = re.search(r'<script type="application/json" id="data">(.*?)<', text)
  return json.loads(found[1])


def _stats(text):
  """The figures under the headline, by label, as they are printed."""
  pattern = r'<dt>([^<]*)</dt>\s*<dd class="value">([^<]*)(?:<span>([^<]*))?'
  return {k: (v, u) for k, v, u in re.findall(pattern, text)}


@pytest.fixture(scope='module')
def searches(tmp_path_factory):
  """For each space the workdir of a finished search and its record."""
  folder = tmp_path_factory.mktemp('searches')
  return {
    space: (folder / space, report_runs.write_search(folder / space, space))
    for space in SPACES
  }


def test_a_real_search_and_training_are_reported_by_the_command(
  nursery, finished, retrained, tmp_path
):
  workdir, trained = finished[0], retrained[0]
  # The command that the search itself has printed.
  lines = [
    shlex.split(x) for x in finished[1].out.splitlines() if '=report' in x
  ]
  (args,) = (words[words.index('hwdarts_jax.main') + 1 :] for words in lines)
  result = nursery.run(*args, f'--compare={trained}')
  assert result.code == 0, result.err
  text = (workdir / 'report.html').read_text()
  record = json.loads((workdir / 'genotype.json').read_text())
  learned = json.loads((trained / 'retrain.json').read_text())
  ms = record['deploy']['predicted_ms']
  assert _stats(text)['predicted'] == (page.figure(ms), 'ms')
  assert f'{ms:.2f} ms predicted on toy' in text
  assert str(workdir / 'report.html') in result.out
  data = _data(text)
  rows = tiny_runs.rows(workdir)
  (one,) = data['architectures']
  assert one['text'] == record['text']
  assert one['gates']['steps'] == [r['step'] for r in rows]
  for group in one['gates']['groups']:
    for row, edge in enumerate(group['edges']):
      want = [r[f'gates/{group["name"]}'][row] for r in rows]
      np.testing.assert_allclose(edge['gates'], np.transpose(want), rtol=1e-4)
  drawn = {p['name']: p for p in data['curves']['search']}
  (line, _) = drawn['loss']['lines']
  want = [(r['step'], r['train_loss']) for r in rows]
  np.testing.assert_allclose(line['points'], want, rtol=1e-4)
  (point,) = data['front']['points']
  accuracy = 100 * learned['trained']['test_accuracy_of_average']
  assert point['accuracy']['retrained'] == pytest.approx(accuracy)
  assert _stats(text)['test accuracy'] == (page.figure(accuracy), '%')
  figures = {p.stem for p in (workdir / 'figures').glob('*.svg')}
  assert {'gates', 'search_loss', 'milliseconds'} <= figures
  assert figures == {p.stem for p in (workdir / 'figures').glob('*.png')}
  # The page is no part of the run, which is finished as before.
  assert nursery.run(*_command_of(workdir)).code == 0


def _command_of(workdir):
  config = json.loads((workdir / 'config.json').read_text())['config']
  return [
    f'--config={config["source"]}',
    f'--workdir={workdir}',
    f'--config.latency.table={config["latency"]["table"]}',
  ]


@pytest.mark.parametrize('space', SPACES)
def test_every_space_is_drawn_with_the_ops_and_costs_of_its_network(
  searches, space
):
  folder, record = searches[space]
  content = _collect(folder)
  (one,) = content['architectures']
  spec = spaces.make(space, **record['deploy']['spec'])
  genotype = Genotype.from_dict(record['genotype'])
  network = discretize.discretize(spec, genotype)
  assert [c['name'] for c in one['strip']] == [
    c.name for c in network.all_cells
  ]
  for unit in ('macs', 'params'):
    assert sum(c[unit] for c in one['strip']) == record['deploy'][unit]
    assert sum(p[unit] for p in one['parts']) == record['deploy'][unit]
  table = table_lib.load(record['deploy']['latency_table'])
  of_entries = cost.of_entries(spec, table).of(
    discretize.one_hot(spec, genotype)
  )
  assert one['how'] == 'entries'
  assert sum(c['ms'] for c in one['strip']) == pytest.approx(of_entries)
  assert sum(p['ms'] for p in one['parts']) == pytest.approx(of_entries)
  assert sum(p['share'] for p in one['parts']) == pytest.approx(1)
  for kind in one['kinds']:
    drawn = {(e['op'], e['src'], e['dst']) for e in kind['edges'] if e['group']}
    assert drawn == {tuple(c) for c in genotype.cells[kind['group']]}
    last = {n['id']: n['layer'] for n in kind['nodes']}
    assert all(last[e['src']] < last[e['dst']] for e in kind['edges'])


def test_the_same_files_give_the_same_page(searches):
  folder, _ = searches['darts']
  content = _collect(folder)
  assert page.render(content) == page.render(_collect(folder))


def test_held_out_networks_are_those_of_the_errors_that_are_told(tmp_path):
  record = report_runs.write_search(
    tmp_path / 'run', 'darts', num_networks=40, seed=3
  )
  quality = _collect(tmp_path / 'run')['quality']
  told = record['deploy']['predictor']['held_out']
  assert quality['held_out'] == told
  measured, predicted = np.array(quality['points']).T
  error = 100 * np.abs(predicted / measured - 1)
  assert error.mean() == pytest.approx(told['mape_percent'], rel=1e-3)


def test_commands_are_those_of_the_run_whatever_lines_they_take(searches):
  folder, _ = searches['darts']
  told = {c['title']: c['text'] for c in _collect(folder)['commands']}
  one_line = {k: v.replace('\\\n', ' ') for k, v in told.items()}
  train = shlex.split(one_line['Train it'])
  assert train == shlex.split(
    summary.retrain_command(report_read.read(folder).path)
  )
  lines = told['Train it'].split('\n')
  flags = [shlex.split(line.removesuffix('\\')) for line in lines[1:]]
  assert flags and all(f[0].startswith('--') and len(f) == 1 for f in flags)
  config = report_read.read(folder).config
  assert shlex.split(one_line['Measure the device']) == shlex.split(
    config['latency']['measure']
  )


def test_what_is_missing_is_left_out_with_a_sentence(searches):
  text = page.render(_collect(searches['mobile'][0]))
  for sentence in ('was not exported', 'It was not trained yet', 'kept none'):
    assert sentence in text
  assert 'NAS-Bench-201 the grey dots' not in text


def test_a_table_that_is_gone_costs_the_milliseconds_not_the_page(tmp_path):
  report_runs.write_search(tmp_path / 'run')
  (table,) = tmp_path.glob('*.json')
  table.unlink()
  content = _collect(tmp_path / 'run')
  assert any('cannot be read any more' in w for w in content['warnings'])
  (one,) = content['architectures']
  assert one['how'] == 'unknown'
  assert all(p['ms'] is None for p in one['parts'])
  page.render(content)


def test_a_table_that_has_changed_since_is_not_used(tmp_path):
  record = report_runs.write_search(tmp_path / 'run')
  spec = spaces.make('darts', **record['deploy']['spec'])
  (table,) = tmp_path.glob('*.json')
  report_runs.write_table(table, spec, num_networks=1)
  content = _collect(tmp_path / 'run')
  assert any('is not what it was' in w for w in content['warnings'])


def test_an_unfinished_run_shows_its_curves_and_says_so(tmp_path):
  report_runs.write_search(tmp_path / 'run')
  (tmp_path / 'run' / 'genotype.json').unlink()
  content = _collect(tmp_path / 'run')
  assert 'not finished; its metrics end at step 300' in content['headline']
  assert content['curves']['search']
  assert 'no architecture to draw' in page.render(content)


def test_an_evaluation_alone_has_nothing_to_draw(tmp_path):
  """It leads to its search; without that, a message says what is needed."""
  report_runs.write_search(tmp_path / 'search')
  folder = tmp_path / 'evaluate'
  folder.mkdir()
  own = {'job': 'evaluate', 'evaluate': {'search_workdir': 'runs/search'}}
  (folder / 'config.json').write_text(json.dumps({'config': own}))
  (folder / 'evaluate.json').write_text('{}')
  content = _collect(folder)
  assert content['architectures'][0]['kinds']
  (tmp_path / 'search').rename(tmp_path / 'moved')
  with pytest.raises(workdir_lib.UserError, match='is not there'):
    _collect(folder)


def test_warnings_tell_what_a_reader_must_know(tmp_path):
  folder = tmp_path / 'run'
  record = report_runs.write_search(folder)
  bound = {
    'unit': 'ms', 'target': 1.0, 'margin': 0.0, 'aim': 1.0, 'predicted': 9.0,
    'is_feasible': False, 'was_projected': False, 'feasible_range': [0.5, 9.0],
    'expected_at_end': 2.0, 'multiplier_at_end': 0.1,
  }  # fmt: skip
  record['deploy']['bounds'] = {'latency_ms': bound}
  record['deploy']['expected_ms_at_end'] = 2 * record['deploy']['predicted_ms']
  (folder / 'genotype.json').write_text(json.dumps(record))
  rows = tiny_runs.rows(folder)
  rows[-1]['skip_mass'] = 0.9
  text = ''.join(json.dumps(r) + '\n' for r in rows)
  (folder / 'metrics.jsonl').write_text(text)
  content = _collect(folder)
  said = '\n'.join(content['warnings'])
  for words in ('NOT MET', '90 % of the mass', 'had not settled', 'held-out'):
    assert words in said
  assert 'MISSES the target of 1 ms' in content['headline']


def test_edges_that_are_all_but_undecided_are_named(tmp_path):
  """Of those that are kept; what a dropped edge holds changes nothing."""
  folder = tmp_path / 'run'
  report_runs.write_search(folder)
  rows = tiny_runs.rows(folder)
  (one,) = _collect(folder)['architectures']
  kept = {e['row'] for e in one['kinds'][0]['edges'] if e['group']}
  gates = np.array(rows[-1]['gates/normal'])
  closest = min(kept)
  gates[closest] = 0.0
  gates[closest, :3] = 0.3, 0.32, 0.38 - 0.04
  rows[-1]['gates/normal'] = gates.tolist()
  text = ''.join(json.dumps(r) + '\n' for r in rows)
  (folder / 'metrics.jsonl').write_text(text)
  (said,) = (w for w in _collect(folder)['warnings'] if 'within 5' in w)
  (src, dst), *_ = (
    (e['src'], e['dst'])
    for e in one['kinds'][0]['edges']
    if e['row'] == closest
  )
  assert said.startswith('On 1 of 8 edges')
  assert f'(normal {src}\N{RIGHTWARDS ARROW}{dst})' in said


def test_a_run_that_goes_on_may_be_looked_at(tmp_path):
  """It holds its workdir, and nothing of it is touched."""
  folder = tmp_path / 'run'
  report_runs.write_search(folder)
  with workdir_lib.lock(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    report.run(None, str(folder))
    after = {p.name: p for p in folder.iterdir()}
    assert all(after[name].read_bytes() == b for name, b in before.items())
  assert after.keys() - before.keys() == {'report.html', 'figures'}


def test_a_network_that_was_measured_itself_shows_that(tmp_path):
  folder = tmp_path / 'run'
  record = report_runs.write_search(folder, num_networks=40)
  table = table_lib.load(record['deploy']['latency_table'])
  row = table.networks[7]
  record['genotype'] = row.genotype.to_dict()
  (folder / 'genotype.json').write_text(json.dumps(record))
  stats = {s['label']: s for s in _collect(folder)['stats']}
  assert stats['measured']['value'] == row.value_ms
  assert 'toy' in stats['measured']['note']


def test_members_of_a_population_are_drawn_each_with_its_gates(tmp_path):
  record = report_runs.write_pareto(tmp_path / 'run')
  content = _collect(tmp_path / 'run')
  rows = tiny_runs.rows(tmp_path / 'run')
  for i, (one, member) in enumerate(
    zip(content['architectures'], record['members'], strict=True)
  ):
    assert one['predicted_ms'] == member['predicted_ms']
    group = one['gates']['groups'][0]
    want = rows[-1][f'gates/{group["name"]}'][i]
    got = [[g[-1] for g in e['gates']] for e in group['edges']]
    np.testing.assert_allclose(got, want, rtol=1e-4)
  (kind,) = content['front']['kinds']
  points = content['front']['points']
  for i in kind['front']:
    assert not any(
      p['ms'] <= points[i]['ms']
      and p['accuracy']['shared'] > points[i]['accuracy']['shared']
      for p in points
    )


def test_runs_of_a_folder_are_compared_but_not_those_of_other_devices(tmp_path):
  report_runs.write_search(tmp_path / 'own')
  for seed in (1, 2):
    report_runs.write_search(tmp_path / 'all' / str(seed), seed=seed)
  report_runs.write_search(tmp_path / 'all' / 'other', device='other')
  front = _collect(tmp_path / 'own', tmp_path / 'all')['front']
  assert {p['name'] for p in front['points']} == {'own', '1', '2'}
  assert front['others'] == 1
  assert [p['own'] for p in front['points']] == [True, False, False]


NASTY = '<script>alert(1)</script>"\'&</script><img src=x onerror=alert(2)>'


def test_names_that_users_give_are_text_and_never_markup(tmp_path):
  report_runs.write_search(tmp_path / 'run', data=NASTY)
  text = page.render(_collect(tmp_path / 'run'))
  assert '<script>alert' not in text
  assert '<img' not in text
  assert html.escape('<script>alert(1)</script>') in text
