"""A state that is packed while a loop runs: nothing else is different."""

import dataclasses
import json
import shutil

from flax import struct
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from hwdarts_jax.jobs import pareto, retrain, search
from hwdarts_jax.runtime import metrics, packing, sharding


class _State(struct.PyTreeNode):
  """Fields that may be packed, and others."""

  step: jax.Array
  many: dict[str, jax.Array]
  pair: tuple
  rng: jax.Array


_SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
_LEAVES = st.lists(
  st.tuples(_SHAPES, st.sampled_from(['float32', 'int32', 'bool'])),
  min_size=1,
  max_size=30,
)


def _state(leaves, num_devices=1):
  rng = np.random.default_rng(0)
  made = [
    jnp.asarray(rng.integers(0, 9, shape).astype(dtype))
    for shape, dtype in leaves
  ]
  many = {f'{i:02d}': leaf for i, leaf in enumerate(made)}
  state = _State(jnp.int32(7), many, (made[0].copy(),), jax.random.key(3))
  return sharding.replicate(state, sharding.make_mesh(num_devices))


def _check_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.sharding == y.sharding
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(x, y)


@hypothesis.given(_LEAVES)
def test_unpacking_undoes_packing(leaves):
  """Of arrays of any shapes and dtypes, in any order."""
  state = _state(leaves)
  held = packing.packed(state, ('many', 'pair'))
  assert isinstance(held.many, packing.Packed) == (len(leaves) >= 16)
  _check_equal(packing.unpacked(held), state)


def test_a_packed_state_has_an_array_of_each_dtype_on_every_device():
  leaves = [((i, 2), ('float32', 'int32')[i % 2]) for i in range(40)]
  state = _state(leaves, 2)
  held = packing.packed(state, ('many', 'pair'))
  assert len(jax.tree.leaves(held.many)) == 2
  _check_equal(packing.unpacked(held), state)
  assert len(jax.tree.leaves(held)[1].devices()) == 2


def test_a_step_of_a_packed_state_is_that_of_the_state():
  """Also where a field is passed on, and where it is differentiated."""

  def step(state, x):
    def loss(many):
      return sum((x * jnp.sin(v)).sum() for v in many.values())

    grads = jax.grad(loss)(state.many)
    many = jax.tree.map(lambda p, g: p - 0.1 * g, state.many, grads)
    return state.replace(step=state.step + 1, many=many), loss(many)

  def passing(state, x):
    return state.replace(step=state.step + 1), x

  leaves = [((1 + i % 3, 2), 'float32') for i in range(20)]
  for function in (step, passing):
    expected = jax.jit(function)(_state(leaves), 2.0)
    either = jax.jit(packing.transparent(function), donate_argnums=0)
    for state in (
      _state(leaves),
      packing.packed(_state(leaves), ('many', 'pair')),
    ):
      is_packed = isinstance(state.many, packing.Packed)
      new, result = either(state, 2.0)
      assert isinstance(new.many, packing.Packed) == is_packed
      assert result == expected[1]
      whole = packing.unpacked(new)
      for x, y in zip(
        jax.tree.leaves(dataclasses.replace(whole, rng=0)),
        jax.tree.leaves(dataclasses.replace(expected[0], rng=0)),
        strict=True,
      ):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def run(table, monkeypatch):
  """Runs a tiny job here, as on a device where packing pays."""
  monkeypatch.syspath_prepend(str(tiny_runs.ROOT))
  monkeypatch.setattr(packing, 'pays', lambda: True)
  # The states of tiny networks have few arrays; and a field that is read as it
  # is would be missed.
  monkeypatch.setattr(packing, '_LEAST', 1)
  calls = []
  packed = packing.packed
  monkeypatch.setattr(
    packing, 'packed', lambda *args: calls.append(args) or packed(*args)
  )

  def start(job, workdir, **overrides):
    config = tiny_runs.tiny('get_config')()
    config.job = job.__name__.rpartition('.')[2]
    config.update_from_flattened_dict(
      {'num_devices': 1, 'latency.table': str(table), **overrides}
    )
    job.run(config, str(workdir))
    assert calls

  return start


def _check_same(here, there, file):
  """Same numbers, but for what compilers may do to their last bits."""
  mine, other = tiny_runs.last_state(here), tiny_runs.last_state(there)
  assert mine.keys() == other.keys()
  for name, value in mine.items():
    np.testing.assert_allclose(value, other[name], 2e-4, 1e-5, err_msg=name)
  rows = [{r['step'] for r in metrics.read(p)} for p in (here, there)]
  assert rows[0] == rows[1]
  found = [json.loads((p / file).read_text()) for p in (here, there)]
  if 'genotype' in found[0]:
    assert found[0]['genotype'] == found[1]['genotype']


def test_a_packed_search_is_the_search(run, monkeypatch, tmp_path, capsys):
  """Checkpoints and all; one that began the other way goes on."""
  run(search, tmp_path / 'packed')
  with monkeypatch.context() as patch:
    patch.setattr(packing, 'pays', lambda: False)
    run(search, tmp_path / 'plain')
  shutil.copytree(tmp_path / 'plain', tmp_path / 'resumed')
  (tmp_path / 'resumed' / 'genotype.json').unlink()
  for step in ('14', '16'):
    shutil.rmtree(tmp_path / 'resumed' / 'checkpoints' / step)
  run(search, tmp_path / 'resumed')
  assert 'at step 12 of 16' in capsys.readouterr().out
  for name in ('packed', 'resumed'):
    _check_same(tmp_path / name, tmp_path / 'plain', 'genotype.json')


@pytest.mark.slow
def test_a_packed_population_is_the_population(run, monkeypatch, tmp_path):
  """Whose step is two programs, as it looks ahead."""
  settings = {
    'hypergrad.name': 'lookahead',
    'network.bn_groups': 1,
    'population.members_per_step': 2,
    'population.targets_ms': (4.4, 9.0),
    'search.num_steps': 4,
  }
  run(pareto, tmp_path / 'packed', **settings)
  monkeypatch.setattr(packing, 'pays', lambda: False)
  run(pareto, tmp_path / 'plain', **settings)
  _check_same(tmp_path / 'packed', tmp_path / 'plain', 'front.json')


def test_a_packed_training_is_the_training(run, finished, retrained, tmp_path):
  run(
    retrain,
    tmp_path / 'retrain',
    **{'retrain.search_workdir': str(finished[0])},
  )
  _check_same(tmp_path / 'retrain', retrained[0], 'retrain.json')
