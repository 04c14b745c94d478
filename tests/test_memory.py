"""A search that is told how much memory there is keeps to it."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from hwdarts_jax.bilevel import update
from hwdarts_jax.jobs import memory
from hwdarts_jax.models import evaluations, ops
from hwdarts_jax.runtime import optimizers
from hwdarts_jax.spaces import nasbench201

GROUPS, BATCH, SIZE = 4, 16, 8


@functools.cache
def _problem(evaluation):
  spec = nasbench201.make(
    4, 1, num_classes=4, image_size=SIZE, image_channels=1
  )
  context = ops.Context(affine=False, bn_groups=GROUPS, depthwise='shift')
  return update.Problem(
    network=evaluations.make(spec, context, evaluation),
    latency=lambda gates: gates['cell'].sum(),
    params_optimizer=optimizers.make('sgd', 0.1, 10, schedule='constant'),
    alphas_optimizer=optimizers.make('adam', 0.1, 10, schedule='constant'),
    num_steps=10,
    hypergrad='first_order',
  )


def _batch():
  image = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 1), jnp.float32)
  return {'image': image, 'label': jax.ShapeDtypeStruct((BATCH,), jnp.int32)}


@functools.cache
def _state(evaluation):
  return jax.eval_shape(lambda: update.init_state(_problem(evaluation), 0, 0.1))


@functools.cache
def _compiled(plan):
  problem = memory.planned(_problem('fused'), plan)
  step = jax.jit(functools.partial(update.bilevel_update, problem))
  batch = _batch()
  return step.lower(_state('fused'), batch, batch).compile(
    compiler_options={'xla_backend_optimization_level': 0}
  )


def _compile(problem):
  """Each problem once for all tests."""
  remat = getattr(problem.network, 'remat', 'nothing')
  return _compiled(memory.Plan(remat, problem.batch_parts))


def _within(memory_gb):
  return memory.compile_within(
    _problem('fused'), memory_gb, _compile, _state('fused'), _batch()
  )


@pytest.mark.parametrize('evaluation', evaluations.EVALUATIONS)
def test_every_plan_keeps_less_than_the_one_before(evaluation):
  problem = _problem(evaluation)
  kept = [
    memory.kept_bytes(
      memory.planned(problem, plan), _state(evaluation), _batch()
    )
    for plan in memory.plans(problem)
  ]
  assert len(kept) >= 3
  assert all(more > less for more, less in zip(kept, kept[1:], strict=False))


def test_a_compiled_step_needs_what_its_backward_pass_keeps_and_more():
  kept = memory.kept_bytes(_problem('fused'), _state('fused'), _batch())
  assert kept < memory.needed_bytes(_compiled(memory.Plan())) < 10 * kept


def test_the_first_plan_that_fits_is_taken_and_named(capsys):
  whole = memory.needed_bytes(_compiled(memory.Plan()))
  fits = _within(1.01 * whole / memory.GB)
  assert memory.needed_bytes(fits) == whole
  assert 'nothing saved' in capsys.readouterr().out
  limit = 0.6 * whole
  assert memory.needed_bytes(_within(limit / memory.GB)) <= limit
  assert 'batches in' in capsys.readouterr().out


def test_what_cannot_fit_is_refused_with_what_is_needed():
  with pytest.raises(
    memory.OutOfMemoryError,
    match=r'memory_gb is 1e-06; .* needs more than .*GB .* in 4 parts.*lower',
  ):
    _within(1e-6)


def test_a_step_too_large_for_its_device_is_refused_before_it_runs(monkeypatch):
  monkeypatch.setattr(memory, 'device_bytes', lambda: 100_000)
  with pytest.raises(
    memory.OutOfMemoryError, match=r'needs .*GB, the device has 0\.0001 GB'
  ):
    _within(0)


@pytest.mark.parametrize('limit', [85_899_345_920, 999_999, 17_179_869_184])
def test_the_advice_is_never_more_than_the_device_has(limit, monkeypatch):
  monkeypatch.setattr(memory, 'device_bytes', lambda: limit)
  monkeypatch.setattr(memory, 'needed_bytes', lambda compiled: 10**12)
  with pytest.raises(memory.OutOfMemoryError) as e:
    _within(0)
  advised = float(re.search(r'memory_gb=(\S+)', str(e.value))[1])
  assert 0.9 * limit < advised * memory.GB <= limit


def test_parts_leave_every_device_a_batch_group():
  plans = memory.plans(_problem('plain'), num_devices=2)
  assert [plan.batch_parts for plan in plans] == [1, 2]
