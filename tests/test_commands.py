"""Workdirs that are not touched, and commands that are printed."""

import json
import shlex

from test_main import _check_message
import tiny_runs

from hwdarts_jax.jobs import summary


def _contents(folder):
  return {
    str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
    for p in sorted(folder.rglob('*'))
    if p.is_file() and p.name != '.lock'
  }


def test_a_workdir_of_other_settings_is_not_touched(nursery, command, finished):
  """The message names the field that differs, both values, and the way out."""
  before = _contents(finished[0])
  result = nursery.run(*command(finished[0], **{'objective.multiplier': 0.75}))
  _check_message(result, 'objective.multiplier', '0.2', '0.75', '--workdir')
  assert _contents(finished[0]) == before


def test_a_workdir_of_another_table_is_not_touched(
  nursery, command, table, finished, tmp_path
):
  """A table that changed under its name is noticed by its hash."""
  text = table.read_text()
  before = _contents(finished[0])
  try:
    table.write_text(text.replace('0.1', '0.2'))
    result = nursery.run(*command(finished[0]))
  finally:
    table.write_text(text)
  _check_message(result, 'latency_table', '--workdir')
  assert _contents(finished[0]) == before


def test_a_folder_with_files_of_somebody_is_not_touched(
  nursery, command, tmp_path
):
  """A foreign folder is refused and keeps exactly what it had."""
  (tmp_path / 'thesis.tex').write_text('mine')
  before = _contents(tmp_path)
  _check_message(nursery.run(*command(tmp_path)), 'thesis.tex', '--workdir')
  assert _contents(tmp_path) == before
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_workdir_that_is_a_file_is_not_touched(nursery, command, tmp_path):
  """A path that cannot be a folder is one message."""
  (tmp_path / 'file').write_text('mine')
  _check_message(nursery.run(*command(tmp_path / 'file')), 'file', '--workdir')
  assert (tmp_path / 'file').read_text() == 'mine'


def test_python_m_behaves_like_the_forks(command, tmp_path):
  """The messages reach a shell the same way."""
  result = tiny_runs.Shell(
    *command(tmp_path / 'run', **{'hypergrad.name': 'exact'})
  ).wait()
  _check_message(result, 'hypergrad.name', 'unrolled')


def test_the_printed_command_trains_the_genotype(nursery, finished, tmp_path):
  """It works as it stands, also when the search had overrides."""
  line = next(x for x in finished[1].out.splitlines() if 'retrain' in x)
  args = shlex.split(line)
  # What the data set filled in is not repeated.
  assert 'image_size' not in line
  assert args[0].endswith('python') and args[1:3] == ['-m', 'hwdarts_jax.main']
  result = nursery.run(
    *args[3:], f'--workdir={tmp_path / "run"}', '--config.retrain.num_epochs=1'
  )
  assert result.code == 0, result.err
  found = json.loads((finished[0] / 'genotype.json').read_text())
  trained = json.loads((tmp_path / 'run' / 'retrain.json').read_text())
  assert trained['genotype'] == found['genotype']
  assert trained['deploy']['predicted_ms'] == found['deploy']['predicted_ms']


def test_the_deploy_network_is_trained_on_the_images_that_there_are(
  nursery, finished, tmp_path
):
  """Depth and width are kept; its latency is still that of its own input."""
  line = next(x for x in finished[1].out.splitlines() if 'retrain' in x)
  result = nursery.run(
    *shlex.split(line)[3:],
    f'--workdir={tmp_path / "run"}',
    '--config.retrain.num_epochs=1',
    '--config.retrain.spec=deploy',
    '--config.data.image_size=6',
    '--config.space.search.image_size=6',
  )
  assert result.code == 0, result.err
  record = json.loads((tmp_path / 'run' / 'retrain.json').read_text())
  trained, deploy = record['trained'], record['deploy']
  assert trained['spec']['image_size'] == 6 != deploy['spec']['image_size']
  assert trained['spec']['features'] == deploy['spec']['features']
  assert trained['macs'] < deploy['macs']


def test_the_printed_command_repeats_sections_with_more_fields(
  nursery, monkeypatch, tmp_path
):
  """What the config file lacks is given as the whole section again."""
  monkeypatch.chdir(tiny_runs.ROOT)
  # As in the process that was started with this config.
  monkeypatch.setattr(summary.command, 'is_trusted_config', lambda name: True)
  config = tiny_runs.tiny('get_config')().to_dict()
  config['hypergrad'] = {'name': 'neumann', 'num_terms': 2}
  config['regularizers'] = {'beta_decay': {'scale': 5.0}}
  config['seed'] = 5
  search = tmp_path / 'a search'
  search.mkdir()
  (search / 'config.json').write_text(json.dumps({'config': config}))
  line = summary.retrain_command(search)
  args = shlex.split(line)[3:]
  assert '--config.seed=5' in args and 'num_terms' in line
  assert "--config.regularizers={'beta_decay': {'scale': 5.0}}" in args
  assert len(args) == 6, args
  # All is understood: what is missing is the search.
  result = nursery.run(*args, f'--workdir={tmp_path / "run"}')
  _check_message(result, 'a search/genotype.json', 'does not exist')
