"""The throughput benchmark runs on a CPU, and its JSON says what it must."""

import json
import os
import pathlib
import subprocess
import sys

import jax
from jax.profiler import ProfileData
import numpy as np
import pytest

from benchmarks import search_step_peer as peer_lib
from benchmarks import search_step_profile as profile_lib
from benchmarks import search_step_report as report
from benchmarks import search_step_setup as setup_lib
from hwdarts_jax import spaces
from hwdarts_jax.jobs import memory

ROOT = pathlib.Path(__file__).parents[1]


def _run(*arguments):
  command = [sys.executable, '-m', 'benchmarks.search_step', *arguments]
  # A program that runs four times need not be fast.
  flags = '--xla_backend_optimization_level=0'
  return subprocess.run(
    command,
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': flags},
  )


@pytest.mark.slow
def test_script_times_a_tiny_search_and_writes_what_it_measured(tmp_path):
  path, profile_path = tmp_path / 'out.json', tmp_path / 'profile.json'
  ran = _run(
    '--space=nasbench201', '--features=2', '--cells=1', '--image_size=4',
    '--batch=4', '--images=16', '--dtype=float32', '--steps=3', '--warmup=1',
    '--devices=2', '--packed', f'--json={path}', f'--profile={profile_path}',
  )  # fmt: skip
  assert ran.returncode == 0, ran.stderr
  assert 'a look, not a result' in ran.stdout  # three calls are too few
  assert 'no device plane' in ran.stdout
  assert json.loads(profile_path.read_text()) is None
  result = json.loads(path.read_text())
  assert str(tmp_path) not in json.dumps(result)
  ours = result['ours']
  assert ours['calls'] == 3
  assert ours['p10_ms'] <= ours['median_ms'] <= ours['p90_ms']
  # Batches of four on two devices.
  assert ours['images_per_s'] == pytest.approx(8e3 / ours['median_ms'])
  for name in ('trace_s', 'compile_s', 'peak_mib', 'counted_gb_per_s'):
    assert ours[name] > 0, name
  assert ours['state_leaves'] > ours['param_leaves'] > 0
  spec = setup_lib.make_spec(setup_lib.Settings(**result['settings']))
  assert spec == spaces.make(
    'nasbench201', features=2, num_cells=1, image_size=4
  )


def test_a_step_that_computes_more_again_keeps_less():
  def kept(remat):
    settings = setup_lib.Settings(
      space='darts', features=2, cells=1, image_size=4, batch=4,
      images=8, dtype='float32', remat=remat,
    )  # fmt: skip
    setup = setup_lib.make(settings)
    batch = {
      'image': jax.ShapeDtypeStruct((4, 4, 4, 3), np.float32),
      'label': jax.ShapeDtypeStruct((4,), np.int32),
    }
    return memory.kept_bytes(setup.problem, setup.state, batch)

  some, most, least = map(
    kept, ('activations', 'nothing', 'first_convolutions')
  )
  assert least < some < most


def test_plain_evaluation_cannot_compute_activations_again():
  with pytest.raises(ValueError, match="remat is 'activations' and eval"):
    setup_lib.make(setup_lib.Settings(evaluation='plain', remat='activations'))


def test_a_timed_population_searches_with_those_whose_turn_it_is():
  setup = setup_lib.make(
    setup_lib.Settings(
      space='nasbench201', features=2, cells=1, image_size=4, batch=4,
      images=8, dtype='float32', evaluation='plain', members=4,
      members_per_step=2,
    )
  )  # fmt: skip
  before = np.asarray(setup.state.alphas['cell'])
  state, metrics = setup.update(setup.state, *setup.chunks(0))
  moved = (np.asarray(state.alphas['cell']) != before).any((1, 2))
  assert moved.tolist() == [True, True, False, False]
  assert setup_lib.is_finite(metrics)


@pytest.mark.parametrize('space', spaces.names())
def test_every_space_has_a_size_in_which_it_is_timed(space):
  spec = setup_lib.make_spec(setup_lib.Settings(space=space))
  assert spec.space == space
  assert any(len(g.ops) > 1 for g in spec.groups().values())


def test_published_supernet_with_other_params_is_refused():
  spec = setup_lib.make_spec(setup_lib.Settings(space='darts'))
  setup_lib.check_params(spec, 1_930_618)
  with pytest.raises(AssertionError, match='1930618'):
    setup_lib.check_params(spec, 1_930_619)


def test_profile_counts_overlapping_kernels_once_as_busy_time():
  # Two streams: [0, 4) with [2, 6), then nothing until [8, 10), in ms.
  data = ProfileData.from_text_proto("""
    planes {
      name: "/device:GPU:0"
      event_metadata { key: 1 value { id: 1 name: "conv_1" } }
      event_metadata { key: 2 value { id: 2 name: "conv_22" } }
      lines {
        name: "Stream #1(Compute)"
        events { metadata_id: 1 offset_ps: 0 duration_ps: 4000000000 }
        events { metadata_id: 1 offset_ps: 8000000000 duration_ps: 2000000000 }
      }
      lines {
        name: "Stream #2(Compute)"
        events { metadata_id: 2 offset_ps: 2000000000 duration_ps: 4000000000 }
      }
      lines {
        name: "XLA Ops"
        events { metadata_id: 2 offset_ps: 0 duration_ps: 9000000000 }
      }
    }
    planes { name: "/host:CPU" }
  """)
  profile = profile_lib.aggregate(data, steps=2)
  assert profile['device_ms'] == pytest.approx(5)
  assert profile['busy_ms'] == pytest.approx(4)
  assert profile['span_ms'] == pytest.approx(5)
  assert profile['idle_share'] == pytest.approx(0.2)
  assert profile['kernels'] == pytest.approx(1.5)
  top = [(k['name'], k['ms'], k['count']) for k in profile['top']]
  assert top == [('conv_1', 3.0, 1.0), ('conv_22', 2.0, 0.5)]
  (family,) = profile['families']
  assert (family['name'], family['ms']) == ('conv', pytest.approx(5))
  assert 'conv_22' in profile_lib.describe(profile)


def test_median_is_per_step_and_not_per_call():
  summary = report.summarize([0.2, 0.1, 0.4], steps_per_call=10, global_batch=5)
  assert summary['median_ms'] == pytest.approx(20)
  assert summary['images_per_s'] == pytest.approx(250)


@pytest.mark.parametrize(
  ('changes', 'variants', 'message'),
  [
    ({'space': 'nasbench201'}, ['eager'], "space is 'nasbench201'.*darts"),
    ({'hypergrad': 'neumann'}, ['eager'], "hypergrad is 'neumann'"),
    ({'devices': 2}, ['eager'], 'devices is 2'),
    ({'members': 4}, ['eager'], 'members is 4'),
    ({}, ['eager', 'fast'], "peer_variants has 'fast'.*graph_bf16"),
  ],
)
def test_peer_that_cannot_do_the_same_is_refused(changes, variants, message):
  with pytest.raises(ValueError, match=message):
    peer_lib.check(setup_lib.Settings(**changes), variants)


def test_peer_follows_the_learning_rate_of_ours():
  settings = setup_lib.Settings(
    space='nasbench201', features=2, cells=1, image_size=4, batch=2, images=4
  )
  setup = setup_lib.make(settings)
  work = peer_lib.make_work(setup)
  for step in (0, 7000, setup.problem.num_steps):
    assert work.rate(step) == pytest.approx(
      float(setup.problem.learning_rate(step)), rel=1e-5
    )
  ours = [chunk.indices[0] for chunk in setup.chunks(1)]
  assert [i.tolist() for i in work.indices(1)] == [i.tolist() for i in ours]
