"""The jobs as functions, and the example that calls them."""

import ast
import json
import re
import runpy

import pytest
import tflite_extra
import tiny_runs

import hwdarts_jax as hw
from hwdarts_jax.runtime.workdir import UserError

_EXAMPLE = tiny_runs.ROOT / 'examples' / 'search_in_python.py'
_CELL = re.compile(r'^# %%.*\n', re.M)


@pytest.fixture
def here(monkeypatch):
  """Configs are named from the root."""
  monkeypatch.chdir(tiny_runs.ROOT)


def _overrides(table):
  return {
    'num_devices': 1,
    'latency.table': str(table),
    'retrain.num_epochs': 1,
    'export.num_samples': 16,
    'export.num_images': 16,
    'export.runner': '',
  }


def test_a_call_finds_what_the_command_finds(here, finished, table, tmp_path):
  """The same settings are the same search; a second call changes nothing."""
  config = hw.load_config(
    tiny_runs.CONFIG, {'num_devices': 1, 'latency.table': str(table)}
  )
  found = hw.search(config, tmp_path / 'run')
  record = json.loads((finished[0] / 'genotype.json').read_text())
  assert found.record == record
  assert found.predicted_ms == record['deploy']['predicted_ms']
  assert found.genotype.to_dict() == record['genotype']
  written = (tmp_path / 'run' / 'genotype.json').stat().st_mtime_ns
  assert hw.search(config, tmp_path / 'run') == found
  assert (tmp_path / 'run' / 'genotype.json').stat().st_mtime_ns == written
  assert config.job == 'search' and not config.retrain.search_workdir


def test_the_example_runs_cell_by_cell(here, table, tmp_path, capsys):
  """As in a notebook: each cell by itself, on the names of those before it."""
  tflite_extra.skip_without()
  cells = _CELL.split(_EXAMPLE.read_text())[1:]
  code = [c for c in cells if ast.parse(c).body]
  names = {}
  for cell in code:
    if 'SOURCE =' in cell:
      cell = cell.replace(
        "'configs/pixel4.py:runlocal'", repr(tiny_runs.CONFIG)
      )
      cell = cell.replace(
        'OVERRIDES: dict = {}', f'OVERRIDES = {_overrides(table)}'
      )
      cell = cell.replace("'runs/example'", repr(str(tmp_path)))
    # A file of our own, run as Python runs it.
    path = tmp_path / 'cell.py'
    path.write_text(cell)
    names = runpy.run_path(str(path), init_globals=names)
  assert names['trained'].genotype == names['found'].genotype
  assert names['trained'].test_accuracy > 0.05
  printed = capsys.readouterr().out
  for path in names['exported'].files.values():
    assert path.exists() and str(path) in printed
  assert (tmp_path / 'exported' / 'network_int8.tflite').stat().st_size > 100


def test_the_example_is_a_notebook():
  """Cells of text are comments only, and every other cell is code."""
  cells = _CELL.split(_EXAMPLE.read_text())
  marks = _CELL.findall(_EXAMPLE.read_text())
  assert len(marks) >= 8
  for mark, cell in zip(marks, cells[1:], strict=True):
    assert bool(ast.parse(cell).body) != ('[markdown]' in mark)


@pytest.mark.parametrize(
  ('source', 'overrides', 'words'),
  [
    ('configs/pixel9.py', {}, ['configs/pixel9.py', 'not a file']),
    ('configs/pixel4.py', {'search.num_step': 1}, ['num_step']),
    ('configs/pixel4.py', {'search.num_steps': 'many'}, ['int', 'str']),
  ],
)
def test_a_config_that_cannot_be_is_named(here, source, overrides, words):
  """As on the command line."""
  with pytest.raises(UserError) as error:
    hw.load_config(source, overrides)
  assert all(w in str(error.value) for w in words), error.value


def test_a_search_that_is_stopped_says_so(here, table, tmp_path, monkeypatch):
  """Instead of returning half a result."""
  from hwdarts_jax.jobs import search

  monkeypatch.setattr(search, 'run', lambda config, workdir: None)
  config = hw.load_config(tiny_runs.CONFIG, {'latency.table': str(table)})
  with pytest.raises(UserError, match='stopped before its end'):
    hw.search(config, tmp_path / 'run')
