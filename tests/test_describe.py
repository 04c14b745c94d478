"""What networks of a config are made of and cost, without any training."""

import importlib
import itertools
import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import space_strategies
import tiny_runs

from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, describe
from hwdarts_jax.latency import cost
from hwdarts_jax.spaces import discretize


def _config(path, arg=None, **overrides):
  name, _, _ = path.partition('.')
  config = importlib.import_module(f'configs.{name}').get_config(arg)
  config.job = 'describe'
  config.update_from_flattened_dict(overrides)
  return config


def _describe(config, folder):
  describe.run(config, str(folder))
  return json.loads((folder / 'describe.json').read_text())


def test_a_reference_is_described_by_the_command_of_the_readme(
  nursery, tmp_path
):
  result = nursery.run(
    '--config=configs/references.py:model=mobilenet_v3_large',
    '--config.job=describe',
    f'--workdir={tmp_path / "run"}',
  )
  assert result.code == 0, result.err
  record = json.loads((tmp_path / 'run' / 'describe.json').read_text())
  assert record['params'] == 5_483_032
  assert record['macs'] == sum(site['macs'] for site in record['sites'])
  assert record['params'] == sum(site['params'] for site in record['sites'])
  assert '5,483,032' in result.out
  assert 'mb_conv_5x5_e6_se_hswish' in result.out
  assert 'architectures' not in result.out


def test_a_space_is_described_by_ranges(tmp_path, capsys):
  record = _describe(_config('pixel4'), tmp_path / 'run')
  assert record['num_architectures'] == 15_625
  assert record['params']['max'] == 1_531_546
  (site,) = (s for s in record['sites'] if s['path'] == 'stage_0_cell_0/0_to_1')
  assert site['macs'] == {'min': 0, 'max': 9 * 32 * 32 * 16 * 16}
  out = capsys.readouterr().out
  assert 'one of A' in out
  assert 'A, 5 ops: none' in out


def test_the_config_of_the_predictor_is_described_as_well(tmp_path):
  record = _describe(_config('predictor', 'space=darts'), tmp_path / 'run')
  assert record['space'] == 'darts'
  assert record['num_architectures'] > 10**18


def test_the_searched_spec_is_made_for_the_data(tmp_path):
  config = _config('pixel4', **{'describe.spec': 'search'})
  record = _describe(config, tmp_path / 'run')
  assert record['settings']['image_size'] == 8
  assert record['sites'][0]['in_shape'] == [8, 8, 1]


@pytest.mark.parametrize('form', ['workdir', 'folder', 'file'])
def test_an_architecture_costs_what_its_search_said(finished, tmp_path, form):
  workdir = finished[0]
  config = _config('pixel4')
  config.space = {
    'name': 'darts',
    'search': tiny_runs.tiny('SPEC'),
    'deploy': tiny_runs.tiny('DEPLOY'),
  }
  if form == 'workdir':
    config.describe.search_workdir = str(workdir)
  else:
    file = workdir / 'genotype.json'
    config.describe.genotype = str(file if form == 'file' else workdir)
  record = _describe(config, tmp_path / 'run')
  found = json.loads((workdir / 'genotype.json').read_text())
  assert record['genotype'] == found['genotype']
  assert record['num_architectures'] == 1
  for name in ('params', 'macs'):
    assert record[name] == found['deploy'][name]


def test_other_networks_need_another_workdir(tmp_path):
  describe.run(_config('references'), str(tmp_path / 'run'))
  with pytest.raises(ValueError, match='space.deploy.model'):
    describe.run(
      _config('references', 'model=mobilenet_v2'), str(tmp_path / 'run')
    )


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'space.name': 'typo'}, 'space.name'),
    ({'space.deploy.model': 'resnet'}, "model is 'resnet'"),
    ({'describe.spec': 'search'}, "describe.spec is 'search'"),
    ({'describe.spec': 'other'}, "describe.spec is 'other'"),
    ({'describe.genotype': 'no/such.json'}, 'no/such.json does not exist'),
  ],
)
def test_what_cannot_be_described_is_named(tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    describe.run(_config('references', **overrides), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('job', ['search', 'pareto'])
def test_fixed_networks_are_not_searched(nursery, tmp_path, job):
  result = nursery.run(
    '--config=configs/references.py',
    f'--config.job={job}',
    f'--workdir={tmp_path / "run"}',
  )
  assert result.code == 2
  assert 'have no choices' in result.err


def _drawn_costs(spec, seed):
  rng = np.random.default_rng(seed)
  return cost.CostTable(
    {g: rng.uniform(0, 1, s.shape) for g, s in spec.groups().items()}, 3.0, ''
  )


@hypothesis.settings(max_examples=20)
@hypothesis.given(spec=space_strategies.small_specs(), seed=st.integers(0, 99))
def test_extremes_and_count_are_those_of_the_enumeration(spec, seed):
  """Over all genotypes that the space accepts."""
  table = _drawn_costs(spec, seed)
  ((name, group),) = spec.groups().items() or ((None, None),)
  costs = []
  nothing = (None, *group.ops)
  for ops in itertools.product(nothing, repeat=len(group.edges)):
    choices = [
      spaces.spec.Choice(op, *edge)
      for op, edge in zip(ops, group.edges, strict=True)
      if op
    ]
    genotype = spaces.spec.Genotype(spec.space, {name: tuple(choices)})
    try:
      costs.append(table.of(discretize.one_hot(spec, genotype)))
    except ValueError:
      continue
  assert discretize.num_architectures(spec) == len(costs)
  assert cost.extremes(spec, table) == pytest.approx((min(costs), max(costs)))


@pytest.mark.parametrize('device, runner', [
  ('pixel4', 'adb:upload=benchmark_model'),
  ('host_cpu', 'host'),
  ('jetson_nano', 'trtexec:host=nano@jetson'),
])  # fmt: skip
def test_a_device_without_a_table_says_what_measures_it(device, runner):
  """The whole command, of this space, and how to name its result."""
  config = _config(device, 'space=mobile,dataset=imagenet2012')
  config.latency.table = 'nothing.mobile'
  with pytest.raises(ValueError) as e:
    common.load_latency(config.latency)
  message = str(e.value)
  assert f'--runner={runner} ' in message
  assert '.py:space=mobile,dataset=imagenet2012 ' in message
  assert (
    f'--out={_config(device, "space=mobile").latency.table}.json' in message
  )
  assert '--config.latency.table' in message
  # Nor does a table of another space do.
  config.latency.table = 'pixel4_cpu.nasbench201'
  specs = common.make_specs(
    config.space.to_dict() | {'search': config.space.deploy.to_dict()}
  )
  with pytest.raises(ValueError, match='entries are missing') as e:
    common.load_latency(config.latency)(specs.deploy)
  assert f'--runner={runner} ' in str(e.value)
