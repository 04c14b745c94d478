"""First params are those that jax would draw, without its programs."""

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.models import initializers, network

_PEERS = {
  'he_normal': jax.nn.initializers.he_normal,
  'lecun_normal': jax.nn.initializers.lecun_normal,
}


@pytest.mark.parametrize('name', _PEERS)
@given(st.integers(0, 2**32 - 1))
def test_draws_are_those_of_jax(name, seed):
  """One shape, so that jax compiles once; keys are rich."""
  key, shape = jax.random.key(seed), (3, 3, 4, 6)
  ours = getattr(initializers, name)(key, shape, jnp.float32)
  theirs = _PEERS[name]()(key, shape, jnp.float32)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_draws_of_float64_are_those_of_jax():
  key, shape = jax.random.key(3), (5, 2, 7)
  with jax.enable_x64(True):
    theirs = jax.nn.initializers.he_normal()(key, shape, jnp.float64)
    ours = initializers.he_normal(key, shape, jnp.float64)
  assert ours.dtype == np.float64
  np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_draws_under_jit_are_the_same_to_the_bit():
  def draw(key):
    return initializers.he_normal(key, (3, 3, 2, 5), jnp.float32)

  key = jax.random.key(7)
  np.testing.assert_array_equal(jax.jit(draw)(key), draw(key))


def test_other_kinds_of_keys_draw_by_jax():
  key, shape = jax.random.key(0, impl='rbg'), (4, 5)
  np.testing.assert_array_equal(
    initializers.he_normal(key, shape, jnp.float32),
    jax.nn.initializers.he_normal()(key, shape, jnp.float32),
  )


def test_no_program_is_compiled_for_the_shape_of_a_kernel():
  """Nor for that of a batch norm, which is not evaluated."""
  programs = []

  def note(event, _, fun_name='', **unused):
    if event.endswith('backend_compile_duration'):
      programs.append(fun_name)

  net = network.Network(
    spaces.make('nasbench201', features=6, num_cells=1, image_size=10)
  )
  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    network.init(net, jax.random.key(0))
    jax.jit(lambda x: x + 1, inline=True)(np.ones(7))  # is heard of
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  assert any('lambda' in name for name in programs), programs
  draws = ('normal', 'uniform', 'bits', 'rsqrt', 'square')
  assert not [n for n in programs if any(d in n for d in draws)]
