"""What a search says of itself, when it warns, and how it ends early."""

import json
import types

import ml_collections
import numpy as np
import pytest
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import diagnose
from hwdarts_jax.spaces import discretize

_OFTEN = {
  'relaxation.name': 'softmax',
  'diagnostics.every_steps': 2,
  'diagnostics.window': 1,
  'diagnostics.from_step': 0,
  'diagnostics.num_products': 4,
}


@pytest.fixture(scope='module')
def watched(nursery, command, tmp_path_factory):
  """A search that measures often and minds every growth, but goes on."""
  workdir = tmp_path_factory.mktemp('watched') / 'run'
  overrides = _OFTEN | {'diagnostics.eigenvalue_factor': 1.000001}
  result = nursery.run(*command(workdir, **overrides))
  assert result.code == 0, result.err
  return workdir, result


@pytest.fixture(scope='module')
def stopped(nursery, command, tmp_path_factory):
  """The same search, which may end early, and its flags."""
  workdir = tmp_path_factory.mktemp('stopped') / 'run'
  overrides = _OFTEN | {
    'diagnostics.eigenvalue_factor': 1.000001,
    'diagnostics.early_stop': True,
  }
  flags = command(workdir, **overrides)
  result = nursery.run(*flags)
  assert result.code == 0, result.err
  return workdir, result, flags


def test_every_row_says_where_the_mass_is(finished):
  """Of the gates in the same row; the edges of this cell shrink its input, so
  that there is no copy, and pooling and zero are no copies.
  """
  rows = tiny_runs.rows(finished[0])
  ops = spaces.make('darts', **tiny_runs.tiny('SPEC')).groups()['reduce'].ops
  for row in rows:
    gates = np.array(row['gates/reduce'])
    assert row['skip_mass'] == 0
    np.testing.assert_allclose(
      row['zero_mass'], gates[:, ops.index('none')].mean(), rtol=1e-5
    )
    entropies = -(gates * np.log(gates)).sum(-1)
    np.testing.assert_allclose(
      row['gate_entropies/reduce'], entropies, rtol=1e-4
    )
    assert 'top_eigenvalue' not in row


def test_watching_changes_nothing_and_says_its_price(watched, stopped):
  """Both runs are the same until one of them ends."""
  rows, early = (tiny_runs.rows(run[0]) for run in (watched, stopped))
  assert len(early) < len(rows)
  for row, same in zip(rows, early, strict=False):
    for key in row.keys() - {'diagnostics_percent'}:
      assert row[key] == same[key], key
  measured = [r['top_eigenvalue'] for r in rows]
  assert len(set(measured)) == len(measured) and min(measured) > -1e-3
  assert all(0 < r['diagnostics_percent'] <= 100 for r in rows)
  # Tiny steps are cheaper than tiny measurements, and that is said once.
  assert watched[1].out.count('diagnostics.every_steps makes it less') == 1


def test_doubled_mass_on_copies_is_warned_of_once(capsys, tmp_path):
  """Against the first row, also if that was written before a resume."""
  spec = spaces.make('nasbench201', features=2, num_cells=1)
  copies = [op == 'skip_connect' for op in spec.groups()['cell'].ops]

  def probabilities(share):
    row = np.where(copies, share, (1 - share) / 4)
    return {'cell': np.tile(row, (6, 1))}

  search = types.SimpleNamespace(
    specs=types.SimpleNamespace(search=spec),
    problem=types.SimpleNamespace(probabilities=probabilities),
    config=ml_collections.ConfigDict(
      {
        'search': {'num_steps': 1000},
        'diagnostics': {'every_steps': 0, 'skip_factor': 2.0},
      }
    ),
  )
  (tmp_path / 'metrics.jsonl').write_text('{"step": 10, "skip_mass": 0.2}\n')
  diagnosis = diagnose.Diagnosis(search, tmp_path)
  diagnosis.row(0.39, 20)
  assert not capsys.readouterr().out
  row = diagnosis.row(0.5, 30)
  np.testing.assert_allclose(row['skip_mass'], 0.5)
  told = capsys.readouterr().out
  assert 'At step 30' in told and '50 %' in told and '20 %' in told
  assert '--config.search.warmup_steps=100' in told
  diagnosis.row(0.9, 40)
  assert not capsys.readouterr().out


def test_growth_is_warned_of_once_with_the_ways_out(watched):
  out = watched[1].out
  assert out.count('Warning: At step') == 1
  for way in ('beta_decay', 'dirichlet', 'auxiliary_skip', 'early_stop=true'):
    assert way in out


def test_an_early_stop_returns_what_was_before_the_growth(stopped):
  workdir, result, _ = stopped
  rows = tiny_runs.rows(workdir)
  record = json.loads((workdir / 'genotype.json').read_text())
  step = record['search']['early_stop_step']
  assert rows[-1]['early_stop_step'] == step < rows[-1]['step'] < 16
  assert f'with the alphas of step {step}' in result.out
  before = next(r for r in rows if r['step'] == step)
  assert before['top_eigenvalue'] < rows[-1]['top_eigenvalue']
  spec = spaces.make('darts', **tiny_runs.tiny('SPEC'))
  gates = np.array(before['gates/reduce'])
  genotype = discretize.derive(spec, {'reduce': np.log(gates)})
  assert record['genotype'] == genotype.to_dict()
  assert tiny_runs.last_state(workdir)['checkpoint'] == rows[-1]['step']


def test_a_run_killed_after_its_early_stop_does_not_go_on(nursery, stopped):
  """Without its summary it writes only that, the same as before."""
  workdir, _, flags = stopped
  rows = tiny_runs.rows(workdir)
  record = (workdir / 'genotype.json').read_text()
  (workdir / 'genotype.json').unlink()
  result = nursery.run(*flags)
  assert result.code == 0, result.err
  assert tiny_runs.rows(workdir) == rows
  assert (workdir / 'genotype.json').read_text() == record


def test_perturbation_reads_the_genotype_from_the_supernet(
  nursery, command, tmp_path
):
  """All parts together: the regularizers, the warm-up and the auxiliary skip
  of a search whose architecture is what its supernet would miss.
  """
  result = nursery.run(
    *command(
      tmp_path / 'run',
      **{
        'search.num_steps': 4,
        'search.selection': 'perturbation',
        'search.eval_batch_size': 1,  # fewer than there are batch groups
        'search.auxiliary_skip': 1.0,
        'search.warmup_steps': 2,
        'search.warmup_gates': 'uniform',
        'relaxation.name': 'dirichlet',
        'regularizers': {'beta_decay': {'scale': 1.0}, 'entropy': {}},
      },
    )
  )
  assert result.code == 0, result.err
  record = json.loads((tmp_path / 'run' / 'genotype.json').read_text())
  assert record['search']['selection'] == 'perturbation'
  rows = tiny_runs.rows(tmp_path / 'run')
  assert rows[-1]['regularizer/beta_decay'] > rows[0]['regularizer/beta_decay']
  assert rows[0]['gates/reduce'] != rows[-1]['gates/reduce']


class _Counting(dict):
  """A row that counts how often anything in it is looked at."""

  looks = 0

  def __getitem__(self, name):
    _Counting.looks += 1
    return super().__getitem__(name)

  def __contains__(self, name):
    _Counting.looks += 1
    return super().__contains__(name)

  def get(self, *args):
    _Counting.looks += 1
    return super().get(*args)


def _settings():
  return ml_collections.ConfigDict(
    {
      'search': {'num_steps': 1000, 'warmup_steps': 0},
      'diagnostics': {
        'skip_factor': 2.0,
        'from_step': 0,
        'eigenvalue_factor': 1.3,
        'window': 2,
      },
    }
  )


def test_to_look_back_at_a_run_takes_as_long_as_its_rows():
  """Those of a quiet one, where all must be looked at: a report has many."""
  looks = []
  for count in (500, 2000):
    rows = [
      _Counting(step=i, skip_mass=0.2, top_eigenvalue=1.0) for i in range(count)
    ]
    _Counting.looks = 0
    assert diagnose.all_complaints(_settings(), rows) == {}
    looks.append(_Counting.looks)
  assert looks[0] >= 500 and looks[1] <= 4 * looks[0]


def test_looking_back_finds_what_was_warned_of_on_the_way():
  """The first of each kind, though others and quiet rows come after it."""
  masses = [0.2, 0.3, 0.41, 0.3, 0.9, 0.2]
  values = [1.0, 1.0, 1.0, 1.0, 2.0, 9.0]
  rows = [
    {'step': 10 * i, 'skip_mass': m, 'top_eigenvalue': v}
    for i, (m, v) in enumerate(zip(masses, values, strict=True))
  ]
  whole = diagnose.all_complaints(_settings(), rows)
  assert whole['skip'].startswith('At step 20 ') and '41 %' in whole['skip']
  assert whole['eigenvalue'].startswith('At step 40 ')
  for end in range(len(rows)):
    part = diagnose.all_complaints(_settings(), rows[:end])
    assert part.items() <= whole.items()
    assert ('skip' in part, 'eigenvalue' in part) == (end > 2, end > 4)
