"""Small supernets, their gates and genotypes."""

import functools

import jax
import jax.numpy as jnp
import space_strategies

from hwdarts_jax import spaces
from hwdarts_jax.models import network, ops
from hwdarts_jax.models.network import Network
from hwdarts_jax.spaces.spec import Choice, Genotype

# The smallest networks in which every kind of cell occurs.
_SMALL = {
  'darts': {'features': 2, 'num_cells': 2, 'num_nodes': 2, 'image_size': 4},
  'mobile': space_strategies.SMALL_MOBILE,
  'nasbench201': {'features': 2, 'num_cells': 1, 'image_size': 4},
}


@functools.cache
def _supernet(name, affine=False):
  """A small supernet, its variables and a batch of images."""
  spec = spaces.make(name, **_SMALL.get(name, {}))
  net = Network(spec, ops.Context(affine=affine))
  variables = network.init(net, jax.random.key(0))
  return net, variables, _images(spec)


def _images(spec, dtype=jnp.float32, batch=4):
  return jax.random.normal(jax.random.key(1), (batch, *spec.input_shape), dtype)


def _uniform(spec, dtype=jnp.float32):
  return {
    g: jnp.full(s.shape, 1 / s.shape[1], dtype)
    for g, s in spec.groups().items()
  }


def _some_genotype(spec):
  """The genotype of a convolution on the first edges."""
  cells = {}
  for name, group in spec.groups().items():
    keep = {c.keep for c in spec.cells if c.group == name}.pop()
    cells[name] = tuple(
      Choice(group.ops[-2], src, dst)
      for dst in sorted({d for _, d in group.edges})
      for src, d in [e for e in group.edges if e[1] == dst][:keep]
    )
  return Genotype(spec.space, cells)
