"""Folding constants into weights leaves the function as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tflite_extra

from hwdarts_jax.harness import convert, execute, inference

_X = np.random.default_rng(1).normal(size=(2, 5, 5, 4)).astype(np.float32)
_KERNELS = (
  np.random.default_rng(5).normal(size=(2, 3, 3, 4, 4)).astype(np.float32)
)


def _conv(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


_SCALE = np.array([[[[2.0, -1.0, 0.5, 3.0]]]], np.float32)


def _read_twice(x):
  y = _conv(x, _KERNELS[0])
  return y * _SCALE + y


def _read_after_a_call(x):
  y = jax.jit(lambda x: _conv(x, _KERNELS[0]) * _SCALE)(x)
  return (y * 3.0 + 1.0) * y


def _mixed_concatenation(x):
  a, b = (_conv(x, k) for k in _KERNELS)
  c = jnp.concatenate([a, b], -1)
  both = np.concatenate([_SCALE, -_SCALE], -1)
  return (c * both) * both + both + jnp.concatenate([x, b], -1) * both


def _along_another_axis(x):
  a, b = (_conv(x, k) for k in _KERNELS)
  return jnp.concatenate([a, b], 1) * _SCALE + _SCALE


def _by_pixel(x):
  return _conv(x, _KERNELS[0]) * _X[:1, ..., :1] + _X[1:]


_every_function = pytest.mark.parametrize(
  'function',
  [
    _read_twice,
    _read_after_a_call,
    _mixed_concatenation,
    _along_another_axis,
    _by_pixel,
  ],
)


@_every_function
def test_folding_never_changes_the_function(function):
  """Also where a result is read twice, or the constant is not by channel."""
  simple = inference.simplify(function, _X.shape)
  want, got = jax.jit(lambda x: (function(x), simple(x)))(_X)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@_every_function
def test_a_file_of_the_folded_function_computes_the_same(function):
  """The exporter gives a convolution no bias that others would see."""
  tflite_extra.skip_without()
  target = convert.Target('onnx', batch=2)
  data = convert.convert(function, _X.shape[1:], target).data
  got, want = execute.load(data, 'onnx')(_X), np.asarray(function(_X))
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_scaled_convolution_is_one_convolution():
  """Products and sums by channel are gone, also behind a concatenation."""

  def function(x):
    a, b = (_conv(x, k) for k in _KERNELS)
    both = np.concatenate([_SCALE, -_SCALE], -1)
    return jnp.concatenate([a, b], -1) * both / 3.0 + both

  simple = inference.simplify(function, _X.shape)
  eqns = jax.make_jaxpr(simple)(_X).jaxpr.eqns
  names = sorted(e.primitive.name for e in eqns)
  assert names == ['add'] * 2 + ['concatenate'] + ['conv_general_dilated'] * 2
