"""Mobile blocks that share their weights; see `superkernels`.

What is exact, and what is a relaxation, where gates are not one-hot:

- The expansion is one for all: channels and their batch norms do not depend on
  each other, so the channels of a smaller expansion are the first of the
  largest. Exact.
- Depthwise kernels are mixed into one, channel by channel
  (`superkernels.kernel_mask`): the mean of the convolutions, exactly, but it is
  taken before the batch norm and the activation, not after them.
- A hidden channel is weighted by the ops that have it, and so is how much it is
  squeezed. The projection is linear in both, but all ops share the batch norm
  behind it.
- The sum over the family is its total gate times that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from hwdarts_jax.models import layers
from hwdarts_jax.models import op as op_lib
from hwdarts_jax.models.mobile_ops import (
  Block,
  FusedInvertedResidual,
  InvertedResidual,
)
from hwdarts_jax.models.superkernels import kernel_mask, share, units


class _Blocks(Block):
  """What families of blocks share; `settings` are those of each op."""

  settings: tuple[Mapping[str, Any], ...] = ()

  def values(self, name: str) -> np.ndarray:
    """A setting of all ops, [O]."""
    return np.asarray([s[name] for s in self.settings])

  def hidden_of(self, x: jax.Array) -> np.ndarray:
    """Channels between expansion and projection of each op, i64[O]."""
    expansions = self.values('expansion')
    return np.round(expansions * x.shape[-1]).astype(int)

  def mixed(
    self, y: jax.Array, x: jax.Array, total: jax.Array, train: bool
  ) -> jax.Array:
    """The projection of `y`, and the input `x`, times the total gate."""
    y = self.project(y, x, train)
    return (y * total.astype(layers.param_dtype(y.dtype))).astype(y.dtype)


@op_lib.family(InvertedResidual)
class InvertedResiduals(_Blocks):
  """Inverted residual blocks, that differ in anything but the activation."""

  @nn.compact
  def __call__(self, x, gates, train):
    total = gates.sum()
    weights, hidden = share(gates, total), self.hidden_of(x)
    most = int(hidden.max())
    y = self.act(self.norm()(self.conv(1, 1, most)(x), train))
    kernels = self.values('kernel')
    mask = kernel_mask(weights, kernels, hidden, most)
    y = self.depthwise(int(kernels.max()), self.stride)(y, mask)
    y = self.act(self.norm()(y, train))
    weight = _of_channels(units(weights, hidden, most))
    masked = (y * weight).astype(y.dtype)
    squeeze = self.values('squeeze')
    if squeeze.any():
      squeezed = weights * squeeze
      part = share(_of_channels(units(squeezed, hidden, most)), weight)
      gate = self._gates(masked, x.shape[-1], squeezed, hidden)
      masked = (masked * (1 - part + part * gate)).astype(y.dtype)
    return self.mixed(masked, x, total, train)

  def _gates(self, y, channels, weights, hidden):
    """f[B, 1, 1, C] in 0 to 1 for y: f[B, H, W, C]; `weights` of squeezing."""
    kind = self.squeeze_kind()
    narrow = np.asarray([kind.channels(channels, int(h)) for h in hidden])
    most = int(narrow.max())
    weight = share(_of_channels(units(weights, narrow, most)), weights.sum())
    means = y.mean((1, 2), keepdims=True)
    inner = kind.activation(self.dense(most)(means)) * weight
    return kind.gate(self.dense(y.shape[-1])(inner.astype(y.dtype)))


@op_lib.family(FusedInvertedResidual)
class FusedInvertedResiduals(_Blocks):
  """Blocks that expand by a dense convolution, of several expansions."""

  @nn.compact
  def __call__(self, x, gates, train):
    total = gates.sum()
    hidden = self.hidden_of(x)
    most = int(hidden.max())
    y = self.conv(3, self.stride, most)(x)
    y = self.act(self.norm()(y, train))
    weight = _of_channels(units(share(gates, total), hidden, most))
    return self.mixed((y * weight).astype(y.dtype), x, total, train)


def _of_channels(weights: jax.Array) -> jax.Array:
  """f[C] -> f[1, 1, 1, C]."""
  return weights.reshape(1, 1, 1, -1)
