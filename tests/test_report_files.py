"""Files of a run that are damaged, or in a bucket, and commands gone wrong."""

import json

import fake_bucket
import hypothesis
from hypothesis import strategies as st
import pytest
import report_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import report, report_architecture, report_sections
from hwdarts_jax.runtime import workdir as workdir_lib


def test_a_run_in_a_bucket_is_reported_there(monkeypatch, tmp_path):
  root = tmp_path / 'objects'
  fake_bucket.install(monkeypatch, root)
  report_runs.write_search(root / 'bucket' / 'runs' / 'one', seed=1)
  report_runs.write_search(root / 'bucket' / 'runs' / 'two', seed=2)
  report.run(None, 'gs://bucket/runs/one', ['gs://bucket/runs'])
  folder = root / 'bucket' / 'runs' / 'one'
  text = (folder / 'report.html').read_text()
  assert 'gs://bucket/runs/one' in text
  assert '"name":"two"' in text
  assert (folder / 'figures' / 'gates.svg').read_bytes().startswith(b'<?xml')


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('genotype.json', '{"space": ', ['genotype.json', 'damaged']),
    ('genotype.json', '[1]', ['genotype.json', 'no JSON object']),
    ('genotype.json', '{"deploy": 3}', ['cannot be read']),
    ('config.json', '{"config": 3}', ['config.json', 'damaged']),
    ('config.json', '{"config": {"job": "describe"}}', ["'describe'"]),
  ],
)
def test_damaged_files_are_named(tmp_path, name, content, words):
  report_runs.write_search(tmp_path / 'run')
  (tmp_path / 'run' / name).write_text(content)
  with pytest.raises(workdir_lib.UserError) as error:
    report.run(None, str(tmp_path / 'run'))
  for word in words:
    assert word in str(error.value)
  assert not (tmp_path / 'run' / 'report.html').exists()


def _places(record, path=()):
  """Paths of all values of nested JSON."""
  inner = record.items() if isinstance(record, dict) else enumerate(record)
  for key, value in inner:
    yield (*path, key)
    if isinstance(value, dict | list):
      yield from _places(value, (*path, key))


@hypothesis.settings(
  max_examples=25,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_a_record_with_any_value_changed_is_shown_or_refused(
  mutable, monkeypatch, data
):
  """A page or a message, and never a traceback."""
  folder, texts = mutable
  monkeypatch.setattr(report.figures, 'write', lambda *_: '')
  name = data.draw(st.sampled_from(sorted(texts)))
  record = json.loads(texts[name])
  *path, last = data.draw(st.sampled_from(sorted(_places(record), key=str)))
  inner = record
  for key in path:
    inner = inner[key]
  values = [None, True, -1, 0, 1e400, 10**40, '', '<b>', [], {}, [1], {'a': 1}]
  inner[last] = data.draw(st.sampled_from(values))
  (folder / name).write_text(json.dumps(record))
  try:
    report.run(None, str(folder))
  except workdir_lib.UserError:
    pass
  finally:
    (folder / name).write_text(texts[name])


@pytest.fixture(scope='module')
def mutable(tmp_path_factory):
  """A workdir and the JSON files of it that a test changes."""
  folder = tmp_path_factory.mktemp('mutable') / 'run'
  report_runs.write_search(folder)
  names = ('genotype.json', 'config.json')
  return folder, {n: (folder / n).read_text() for n in names}


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--config.job=report'], ['--workdir is missing']),
    (['--config.job=report', '--workdir=configs'], ['no config.json']),
    (
      ['--config=configs/pixel4.py', '--compare=runs'],
      ['--compare', '--config.job=report'],
    ),
  ],
)
def test_commands_that_cannot_be_are_one_message(nursery, args, words):
  result = nursery.run(*args)
  assert result.code == 2
  assert 'Traceback' not in result.err
  assert all(word in result.err for word in words), result.err


def test_a_network_for_no_device_is_headed_so():
  """Published networks are trained without any latency."""
  deploy = {'device': None, 'predicted_ms': None}
  about = report_architecture.Subject(
    spaces.make('references'), deploy, [{'deploy': deploy}]
  )
  assert report_sections.headline({}, about, 'digits') == (
    'An architecture for digits, for no device in particular.'
  )
  assert report_architecture.latency(about) == (
    None,
    None,
    'It was trained for no device in particular.',
  )
