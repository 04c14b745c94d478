"""Convolutions that edges share do what the separate ones do."""

import functools

import jax
import jax.numpy as jnp
import pytest

from hwdarts_jax.models import convs, layers, op

_WINDOW, _CHANNELS, _FEATURES = 3, 2, 3


def _dilated(x, kernel, stride):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 2,
    layers.same(_WINDOW, 2),
    rhs_dilation=(2, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [6, 7])
def test_a_dilated_convolution_equals_that_of_its_phases(size, stride):
  stage = op.Stage(None, (), stride, 2, layers.same(_WINDOW, 2))
  x = jax.random.normal(jax.random.key(0), (2, size, size + 2, _CHANNELS))
  kernel = jax.random.normal(
    jax.random.key(1), (_WINDOW, _WINDOW, _CHANNELS, _FEATURES)
  )
  want, pullback = jax.vjp(
    functools.partial(_dilated, stride=stride), x, kernel
  )
  got, pullback_of_phases = jax.vjp(
    functools.partial(convs.convolve, stage), x, kernel
  )
  cotangent = jax.random.normal(jax.random.key(2), want.shape)
  for a, b in zip(
    (want, *pullback(cotangent)),
    (got, *pullback_of_phases(cotangent)),
    strict=True,
  ):
    assert jnp.allclose(a, b, atol=1e-5)


def test_no_dilated_convolution_is_left_where_phases_are_whole():
  stage = op.Stage(None, (), 1, 2, layers.same(_WINDOW, 2))
  program = jax.jit(functools.partial(convs.convolve, stage)).lower(
    jnp.zeros((1, 8, 8, _CHANNELS)),
    jnp.zeros((_WINDOW, _WINDOW, _CHANNELS, _FEATURES)),
  )
  assert 'rhs_dilate = [2, 2]' not in program.as_text()
