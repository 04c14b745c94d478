"""What a reader believes of a checkpoint, and of where its arrays live."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwdarts_jax.runtime import checkpoints, sharding


class State(NamedTuple):
  step: Any
  params: Any
  opt: Any
  rng: Any
  nothing: Any = None


def _state(seed, mesh=None):
  """A state with the dtypes, keys and odd names that real ones have."""
  key = jax.random.key(seed)
  params = {
    'cell/0_to_2': {'kernel': jax.random.normal(key, (8, 32))},
    'half': jax.random.normal(key, (3,)).astype(jnp.bfloat16),
    'nan': jnp.asarray([jnp.nan, -0.0, jnp.inf]),
    'flag': jnp.asarray([True, False]),
    'none': {},
  }
  opt = optax.adam(1e-3).init(params['half'])
  state = State(jnp.int32(seed), params, opt, jax.random.fold_in(key, 1))
  if mesh is None:
    return state
  state = jax.device_put(state, sharding.replicated(mesh))
  split = jax.device_put(params['cell/0_to_2'], sharding.batched(mesh))
  return state._replace(params=state.params | {'cell/0_to_2': split})


def _bits(leaf):
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def _assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  assert [_bits(x) for x in jax.tree.leaves(a)] == [
    _bits(x) for x in jax.tree.leaves(b)
  ]


def _saved(path, steps, state=None):
  with checkpoints.Checkpoints(path) as saver:
    for step in steps:
      assert saver.save(step, state or _state(step), {'epoch': step / 2})


def _restore(path, template=None):
  with checkpoints.Checkpoints(path) as saver:
    return saver.restore_latest(_state(0) if template is None else template)


def test_a_state_comes_back_to_the_bit(tmp_path):
  _saved(tmp_path, [1, 2])
  restored = _restore(tmp_path)
  assert restored.step == 2
  assert restored.extra == {'epoch': 1.0}
  _assert_same(restored.state, _state(2))
  assert jax.random.normal(restored.state.rng) == jax.random.normal(
    _state(2).rng
  )


@pytest.mark.usefixtures('devices')
def test_a_state_comes_back_where_the_template_is(tmp_path):
  eight, two = sharding.make_mesh(), sharding.make_mesh(2)
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, _state(1, eight))
    for mesh in (eight, two):
      template = _state(0, mesh)
      abstract = jax.eval_shape(lambda s: s, template)
      abstract = jax.tree.map(
        lambda a, t: jax.ShapeDtypeStruct(
          a.shape, a.dtype, sharding=t.sharding
        ),
        abstract, template,
      )  # fmt: skip
      for wanted in (template, abstract):
        got = saver.restore_latest(wanted).state
        _assert_same(got, _state(1))
        assert [x.sharding for x in jax.tree.leaves(got)] == [
          x.sharding for x in jax.tree.leaves(template)
        ]


def test_buffers_may_be_donated_right_after_a_save(tmp_path):
  state = {'w': jnp.arange(300_000.0)}
  want = np.arange(300_000, dtype=np.float32)
  update = jax.jit(lambda s: jax.tree.map(lambda x: 0 * x - 1, s),
                   donate_argnums=0)  # fmt: skip
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, state)
    for _ in range(3):
      state = update(state)
    got = saver.restore_latest(state).state
  np.testing.assert_array_equal(got['w'], want)


def test_only_the_newest_are_kept_and_only_due_steps_saved(tmp_path):
  with checkpoints.Checkpoints(tmp_path, 2, save_every_steps=10) as saver:
    done = [saver.save(s, {'a': jnp.ones(2)}) for s in (5, 10, 20, 30)]
    assert done == [False, True, True, True]
    assert saver.save(35, {'a': jnp.ones(2)}, force=True)
    assert not saver.save(35, {'a': jnp.ones(2)}, force=True)
    saver.wait()
    assert saver.steps() == [30, 35]


def test_nothing_is_restored_where_nothing_was_saved(tmp_path):
  assert _restore(tmp_path / 'new') is None


def _files(path):
  return sorted(p for p in path.rglob('*') if p.is_file())


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _truncate(path):
  os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize('damage', [_flip, _truncate, os.unlink])
def test_a_damaged_file_of_any_kind_is_found(tmp_path, damage, caplog):
  state = {'a': jnp.arange(64.0), 'rng': jax.random.key(3)}
  older = state | {'a': jnp.arange(64.0) - 7}
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, older)
    saver.save(2, state)
  with checkpoints.Checkpoints(tmp_path) as saver:
    for path in _files(tmp_path / '2'):
      whole = path.read_bytes()
      damage(path)
      caplog.clear()
      restored = saver.restore_latest(state)
      if path.parent.name == '2':  # beside the items: times, and the digests
        assert restored.step == 2
        _assert_same(restored.state, state)
        path.write_bytes(whole)
        continue
      assert restored.step == 1, path
      _assert_same(restored.state, older)
      assert 'Checkpoint 2 in' in caplog.text
      assert f'{path.name} was changed' in caplog.text
      assert 'falling back to checkpoint 1' in caplog.text
      (tmp_path / '2.corrupt').rename(tmp_path / '2')
      path.write_bytes(whole)
      saver._manager.reload()
    assert saver.restore_latest(state).step == 2


def test_values_are_guarded_also_without_digests_of_files(tmp_path):
  state = {'a': jax.random.normal(jax.random.key(0), (4000,))}
  _saved(tmp_path, [1, 2], state=state)
  (tmp_path / '2' / 'digests.json').unlink()  # as in a bucket
  assert _restore(tmp_path, state).step == 2
  data = max(_files(tmp_path / '2' / 'state'), key=lambda p: p.stat().st_size)
  assert data.stat().st_size > 10_000  # the file that holds the values
  _flip(data)
  assert _restore(tmp_path, state).step == 1


def test_what_orbax_cannot_read_is_damaged_too(tmp_path):
  _saved(tmp_path, [1, 2])
  (tmp_path / '2' / 'digests.json').unlink()
  shutil.rmtree(tmp_path / '2' / 'state')
  assert _restore(tmp_path).step == 1


def test_damaged_digests_do_not_condemn_a_checkpoint(tmp_path):
  _saved(tmp_path, [1, 2])
  path = tmp_path / '2' / 'digests.json'
  whole = path.read_bytes()
  for i in range(0, len(whole), 97):
    path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
    assert _restore(tmp_path).step == 2


def test_a_step_can_be_saved_again_after_it_was_damaged(tmp_path):
  _saved(tmp_path, [1, 2])
  for _ in range(2):
    for path in _files(tmp_path / '2' / 'info'):
      path.write_text('')
    with checkpoints.Checkpoints(tmp_path) as saver:
      assert saver.restore_latest(_state(0)).step == 1
      assert saver.save(2, _state(5))
      assert saver.restore_latest(_state(0)).step == 2
  _assert_same(_restore(tmp_path).state, _state(5))


def test_when_all_are_damaged_nothing_is_lost_and_the_way_out_is_said(tmp_path):
  _saved(tmp_path, [1, 2])
  for path in _files(tmp_path):
    path.write_bytes(b'')
  before = _files(tmp_path)
  with pytest.raises(ValueError, match=r'(?s)No checkpoint .*delete it'):
    _restore(tmp_path)
  assert _files(tmp_path) == before


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'params': {'half': jnp.ones(3, jnp.bfloat16)}}, 'now'),
    ({'step': jnp.zeros(2, jnp.int32)}, r'int32\[\] there, int32\[2\] now'),
    ({'step': jnp.float32(0)}, r'int32\[\] there, float32\[\] now'),
    ({'nothing': jnp.ones(1)}, r'absent there, float32\[1\] now'),
  ],
)
def test_another_template_is_an_error_not_a_fallback(tmp_path, change, words):
  _saved(tmp_path, [1, 2])
  with pytest.raises(ValueError, match=words) as e:
    _restore(tmp_path, _state(0)._replace(**change))
  assert 'another --workdir' in str(e.value)
  assert _restore(tmp_path).step == 2


def test_a_reader_changes_nothing(tmp_path):
  _saved(tmp_path, [1, 2])
  for path in _files(tmp_path / '2' / 'info'):
    path.write_text('')
  before = _files(tmp_path)
  with checkpoints.Checkpoints(tmp_path, read_only=True) as reader:
    assert reader.restore_latest(_state(0)).step == 1
  assert _files(tmp_path) == before


def test_a_run_killed_at_any_moment_resumes_from_a_whole_checkpoint(tmp_path):
  code = """
      import sys
      import jax.numpy as jnp
      from hwdarts_jax.runtime import checkpoints
      saver = checkpoints.Checkpoints(sys.argv[1])
      restored = saver.restore_latest({'a': jnp.zeros(100_000)})
      step = restored.step if restored else 0
      assert restored is None or (restored.state['a'] == step).all()
      print(step, flush=True)
      while True:
        step += 1
        saver.save(step, {'a': jnp.full(100_000, float(step))})
        print(step, flush=True)
      """
  last = 0
  for count in (2, 5):
    child = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(code), str(tmp_path)],
      stdout=subprocess.PIPE,
      env=os.environ | {'XLA_FLAGS': ''},
      text=True,
    )
    with child:
      try:
        first = int(child.stdout.readline())
        assert first >= max(last - 1, 0)  # the one in flight may be lost
        for _ in range(count):
          last = int(child.stdout.readline())
      finally:
        child.send_signal(signal.SIGKILL)
  with checkpoints.Checkpoints(tmp_path) as saver:
    step, state, _ = saver.restore_latest({'a': jnp.zeros(100_000)})
    assert step >= last - 1
    assert (state['a'] == step).all()
    assert saver.save(step + 1, state)
  assert not [p for p in tmp_path.iterdir() if 'tmp' in p.name]


def test_an_array_without_values_is_refused_by_name(tmp_path):
  with (
    checkpoints.Checkpoints(tmp_path) as saver,
    pytest.raises(ValueError, match=r"state\['a'\] has shape \(0, 2\)"),
  ):
    saver.save(1, {'a': jnp.zeros((0, 2))})


@pytest.mark.parametrize('field', ['keep', 'save_every_steps'])
def test_a_setting_that_makes_no_sense_is_named(tmp_path, field):
  with pytest.raises(ValueError, match=f'{field} is 0'):
    checkpoints.Checkpoints(tmp_path, **{field: 0})


@pytest.mark.usefixtures('devices')
def test_a_batch_is_split_over_the_mesh():
  mesh = sharding.make_mesh(4)
  x = jax.device_put(jnp.ones((3, 8)), sharding.batched(mesh, axis=1))
  assert {s.data.shape for s in x.addressable_shards} == {(3, 2)}
  with pytest.raises(ValueError, match=r'num_devices is 9.*from 1 to 8'):
    sharding.make_mesh(9)


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [
    ((64, 8, 8), None),
    ((64, 8, 2), None),
    ((64, 2, 8), None),
    ((60, 8, 1), r'data\.batch_size is 60.*batch_groups = 8.*56 or 64'),
    ((12, 1, 8), r'data\.batch_size is 12.*num_devices = 8.*8 or 16'),
    ((48, 6, 8), r'batch_groups is 6.*divide the number of devices, 8'),
    ((64, 0, 8), r'batch_groups is 0'),
  ],
)
def test_a_batch_that_does_not_split_evenly_is_refused(sizes, words):
  if words is None:
    sharding.check_batch(*sizes, field='data.batch_size')
    return
  with pytest.raises(ValueError, match=words):
    sharding.check_batch(*sizes, field='data.batch_size')
