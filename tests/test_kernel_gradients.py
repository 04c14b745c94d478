"""Kernels of depthwise convolutions get their gradients another way."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.models import evaluations, kernel_gradients, network, op
from hwdarts_jax.spaces import discretize

OTHERS = [w for w in kernel_gradients.GRADIENTS if w != kernel_gradients.CONV]


@pytest.fixture(autouse=True)
def _double():
  with jax.enable_x64(True):
    yield


@st.composite
def _convolutions(draw):
  """Sizes, and a way that may take the place of XLA's own gradient."""
  kernel = draw(st.sampled_from([1, 3, 5, 7]))
  stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 2)]))
  # Only images that are larger than it are left to XLA, if nothing is dilated.
  small = st.integers(1, 8 if dilation > 1 else kernel)
  image = draw(st.permutations([draw(small), draw(st.integers(1, 8))]))
  ways = kernel_gradients.ways(kernel, stride, dilation, image)
  return kernel, stride, dilation, tuple(image), draw(st.sampled_from(ways))


def _arguments(kernel, image, batch=3, channels=2):
  """Images, a kernel, and a direction for each."""
  rng = np.random.default_rng(0)
  shapes = [(batch, *image, channels), (kernel, kernel, 1, channels)]
  return tuple(
    tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    for _ in range(2)
  )


def _loss(stride, dilation, gradient):
  def loss(x, kernel):
    y = kernel_gradients.convolve(x, kernel, stride, dilation, gradient)
    return jnp.sin(y).sum()

  return loss


@settings(max_examples=8, deadline=None)
@given(_convolutions())
def test_all_derivatives_are_those_of_xla(convolution):
  """Value, gradients, their tangents, and gradients of gradients."""
  kernel, stride, dilation, image, way = convolution
  at, along = _arguments(kernel, image)

  def derivatives(gradient):
    loss = _loss(stride, dilation, gradient)

    def slope(x, k):
      return sum(jnp.square(g).sum() for g in jax.grad(loss, (0, 1))(x, k))

    @jax.jit
    def every(at, along):
      return (
        jax.value_and_grad(loss, (0, 1))(*at),
        jax.grad(loss, 1)(*at),  # of the kernel alone
        jax.jvp(loss, at, along),
        jax.jvp(jax.grad(loss, (0, 1)), at, along)[1],
        jax.grad(slope, (0, 1))(*at),
      )

    return every(at, along)

  found, expected = derivatives(way), derivatives(kernel_gradients.CONV)
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('way', OTHERS)
def test_members_share_a_kernel(way):
  """Under vmap the gradient is the sum over members."""
  (x, kernel), _ = _arguments(5, (4, 3))
  members = jnp.stack([x, 2 * x, x - 1])
  loss = _loss(1, 1, way)

  def total(k):
    return jax.vmap(loss, (0, None))(members, k).sum()

  expected = sum(jax.grad(_loss(1, 1, 'conv'), 1)(m, kernel) for m in members)
  np.testing.assert_allclose(jax.grad(total)(kernel), expected, rtol=1e-9)


@pytest.mark.parametrize('way', OTHERS)
def test_sums_over_a_batch_are_taken_in_float32(way):
  """In bfloat16 a sum of ones ends at 256."""
  x, kernel = jnp.ones((640, 2, 2, 1)), jnp.ones((3, 3, 1, 1))

  def total(k):
    y = kernel_gradients.convolve(x.astype(k.dtype), k, 1, 1, way)
    return y.astype(jnp.float32).sum()

  found = jax.grad(total)(kernel.astype(jnp.bfloat16))
  assert found.dtype == jnp.bfloat16
  taps = np.array([1, 2, 1])  # pairs of pixels in a row of two
  expected = 640 * np.outer(taps, taps)
  np.testing.assert_array_equal(np.asarray(found, float)[..., 0, 0], expected)


@pytest.mark.parametrize('way', OTHERS)
@pytest.mark.parametrize(
  ('kernel', 'stride', 'dilation', 'pixels'),
  [(7, 1, 1, 8), (7, 2, 1, 7), (5, 2, 1, 4), (3, 1, 1, 4), (3, 1, 2, 16)],
)
def test_images_that_are_not_small_are_left_to_xla(
  way, kernel, stride, dilation, pixels
):
  """Where it asks for the gradient as such; where pairs would be too many."""
  (x, k), _ = _arguments(kernel, (pixels, pixels))
  programs = [
    str(jax.make_jaxpr(jax.grad(_loss(stride, dilation, w), 1))(x, k))
    for w in (way, 'conv')
  ]
  assert programs[0] == programs[1]


def test_images_are_no_windows_of_a_convolution():
  """That is what XLA is asked for by itself, and has no fast way to do."""
  (x, kernel), _ = _arguments(7, (7, 7))

  def windows(way):
    """Sizes of what the gradient's convolutions take for kernels."""
    _, gradient = jax.vjp(
      lambda k: kernel_gradients.convolve(x, k, gradient=way), kernel
    )
    jaxpr = jax.make_jaxpr(gradient)(x)
    return [
      sorted(e.invars[1].aval.shape)[-2:]
      for e in jaxpr.eqns
      if e.primitive.name == 'conv_general_dilated'
    ]

  assert windows('conv') == [[7, 7]]
  assert windows('pairs') == []
  assert windows('padded') == [[8, 8]]


@functools.cache
def _gradients(gradient):
  """Of a supernet on shared weights, whose kernels are masked."""
  spec = spaces.make(
    'mobile',
    features=8,
    num_blocks=2,
    num_stages=1,
    num_classes=3,
    image_size=8,
    kernels='3,5',
    expansions='3,6',
    activations='relu',
  )
  context = op.Context(
    affine=False, dtype=jnp.float64, depthwise_gradient=gradient
  )
  made = evaluations.make(spec, context, 'shared')
  variables = network.init(made, jax.random.key(0))
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(4, *spec.input_shape)))
  gates = discretize.uniform(spec, np.float64)

  def loss(params, gates):
    logits, _ = made.apply(
      {**variables, 'params': params},
      images,
      gates,
      train=True,
      mutable=['batch_stats'],
    )
    return jnp.square(logits).sum()

  found = jax.jit(jax.grad(loss, (0, 1)))
  arguments = variables['params'], gates
  return found(*arguments), str(jax.make_jaxpr(found)(*arguments))


@pytest.mark.parametrize('way', OTHERS)
def test_supernets_train_alike(way):
  """Gradients of params and gates; and it is another program."""
  (found, program), (expected, plain) = _gradients(way), _gradients('conv')
  assert program != plain
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
