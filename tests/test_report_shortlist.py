"""A report of a shortlist says what was to choose from, and what was chosen."""

import json

import pytest
import report_runs

from hwdarts_jax.jobs import report, report_front, report_read
from hwdarts_jax.report import page


def _collect(folder, *others):
  return report.collect(
    report_read.read(folder), report_front.compared([*map(str, others)])
  )


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A search, shortlists of it for one and for two targets, by name."""
  folder = tmp_path_factory.mktemp('shortlists')
  found = report_runs.write_search(folder / 'search', 'nasbench201')
  ms = found['deploy']['predicted_ms']
  one = report_runs.write_shortlist(folder / 'one', folder / 'search', [ms])
  two = report_runs.write_shortlist(
    folder / 'two', folder / 'search', [0.9 * ms, 1.1 * ms]
  )
  return folder, {'search': found, 'one': one, 'two': two}


def test_the_page_is_about_the_chosen_architecture(made):
  folder, records = made
  content = _collect(folder / 'one')
  (target,) = records['one']['targets']
  (best,) = (c for c in target['candidates'] if c['is_chosen'])
  assert best is not target['candidates'][0]
  (one,) = content['architectures']
  assert (one['text'], one['predicted_ms']) == (
    best['text'],
    best['predicted_ms'],
  )
  limit = best['bounds']['latency_ms']['target']
  assert content['headline'] == (
    f'The most accurate of 4 candidates for digits with '
    f'{best["predicted_ms"]:.2f} ms predicted on toy, within the target of '
    f'{limit:g} ms.'
  )
  stats = {s['label']: s for s in content['stats']}
  assert stats['target']['value'] == limit
  assert stats['brief training']['value'] == 100 * best['val_accuracy']
  gain = 100 * (best['val_accuracy'] - target['candidates'][0]['val_accuracy'])
  assert stats['candidates']['note'].startswith(f'{gain:+.1f} points')
  # Its gates are those of the search that it was taken from.
  assert (
    one['gates'] == _collect(folder / 'search')['architectures'][0]['gates']
  )


def test_all_candidates_are_told_with_accuracy_latency_and_budget(made):
  folder, records = made
  content = _collect(folder / 'two')
  text = page.render(content)
  for target, shown in zip(
    records['two']['targets'], content['shortlist']['targets'], strict=True
  ):
    limit = target['candidates'][0]['bounds']['latency_ms']['target']
    assert shown['asked'] == f'latency_ms of at most {limit:.4g} ms'
    assert shown['asked'] in text
    told = [c['val_accuracy'] for c in shown['candidates']]
    assert told == sorted(told, reverse=True)
    assert [c['is_chosen'] for c in shown['candidates']] == [
      True, *[False] * (len(told) - 1)
    ]  # fmt: skip
    for candidate in shown['candidates']:
      assert target['candidates'][candidate['place'] - 1].items() <= (
        candidate.items()
      )
  points = {p['text']: p for p in content['front']['points']}
  candidates = [c for t in records['two']['targets'] for c in t['candidates']]
  assert set(points) == {c['text'] for c in candidates}
  for candidate in candidates:
    point = points[candidate['text']]
    assert point['ms'] == candidate['predicted_ms']
    assert point['accuracy']['brief'] == 100 * candidate['val_accuracy']
  # Those of this run that can be looked at are the chosen ones.
  chosen = {c['text'] for c in candidates if c['is_chosen']}
  assert {t for t, p in points.items() if p['own']} == chosen
  assert [a['text'] for a in content['architectures']] == [
    next(c['text'] for c in t['candidates'] if c['is_chosen'])
    for t in records['two']['targets']
  ]


def test_what_was_measured_counts_and_not_what_was_predicted(made, tmp_path):
  folder, records = made
  (target,) = records['one']['targets']
  limit = target['candidates'][0]['bounds']['latency_ms']['target']
  record = report_runs.write_shortlist(
    tmp_path / 'run', folder / 'search', [limit], slower=1.5
  )
  candidates = record['targets'][0]['candidates']
  (best,) = (c for c in candidates if c['is_chosen'])
  ms = best['measured_ms']
  assert ms == pytest.approx(1.5 * best['predicted_ms']) and ms > limit
  content = _collect(tmp_path / 'run')
  assert f'{ms:.2f} ms measured on toy, which MISSES' in content['headline']
  stats = {s['label']: s['value'] for s in content['stats']}
  assert (stats['measured'], stats['predicted']) == (ms, best['predicted_ms'])
  text = page.render(content)
  for candidate in candidates:
    shown = page.figure(candidate['measured_ms'])
    assert f'data-value="{candidate["measured_ms"]}">{shown}<' in text


def test_what_comes_next_is_to_train_what_was_chosen(made):
  folder = made[0]
  for name, wanted in (
    ('one', f'--config.retrain.search_workdir={folder / "one"}'),
    ('two', f'--config.retrain.genotype={folder / "two"}/members/00.json'),
  ):
    commands = {
      c['title']: c['text'] for c in _collect(folder / name)['commands']
    }
    (train,) = (t for title, t in commands.items() if title.startswith('Train'))
    assert wanted in train


def test_a_search_is_not_taken_for_its_shortlist_nor_the_other_way(made):
  """Each page has its own architecture; beside each other both are points."""
  folder, records = made
  alone = _collect(folder / 'search')
  assert alone['shortlist'] is None
  assert alone['architectures'][0]['text'] == records['search']['text']
  both = _collect(folder / 'search', folder / 'one')['front']['points']
  assert [p['name'] for p in both if p['own']] == ['search']
  assert sum(p['name'].startswith('one') for p in both) == 4
  assert [run['job'] for run in _collect(folder / 'one')['runs']] == [
    'shortlist', 'search'
  ]  # fmt: skip


def test_a_choice_that_is_next_to_none_is_a_warning(made, tmp_path):
  folder, records = made
  assert not any('two best' in w for w in _collect(folder / 'one')['warnings'])
  record = json.loads(json.dumps(records['one']))
  for candidate in record['targets'][0]['candidates']:
    candidate['val_accuracy'] = 0.75
  config = (folder / 'one' / 'config.json').read_text()
  (tmp_path / 'config.json').write_text(config)
  unfinished = _collect(tmp_path)
  assert any('no shortlist.json' in w for w in unfinished['warnings'])
  assert unfinished['shortlist'] is None
  (tmp_path / 'shortlist.json').write_text(json.dumps(record))
  warnings = _collect(tmp_path)['warnings']
  assert any('For 1 of 1 targets the two best' in w for w in warnings)


def test_rounds_are_told_with_what_each_found_and_what_chose(made, tmp_path):
  """The noise of a training is not what decides, and the page says so."""
  folder, records = made
  ms = records['search']['deploy']['predicted_ms']
  record = report_runs.write_shortlist(
    tmp_path / 'run', folder / 'search', [ms], has_rounds=True
  )
  (target,) = record['targets']
  first, *others = target['candidates']
  assert first['is_chosen'] and first['round'] == 1
  assert first['val_accuracy'] < min(c['val_accuracy'] for c in others)
  content = _collect(tmp_path / 'run')
  (shown,) = content['shortlist']['targets']
  told = [c['smoothed_accuracy'] for c in shown['candidates']]
  assert told == sorted(told, reverse=True)
  assert [(p['round'], p['new']) for p in shown['progress']] == [(1, 1), (2, 3)]
  text = page.render(content)
  assert 'in 2 rounds of 1, 3' in text
  for candidate in target['candidates']:
    value = candidate['smoothed_accuracy']
    figure = page.figure(100 * value)
    assert f'data-value="{value}">{figure}<' in text
  assert 'after round' not in page.render(_collect(folder / 'one'))
