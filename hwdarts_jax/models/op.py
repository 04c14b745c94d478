"""What an op is: its contract, what all ops share, and the registry.

Every op is a Flax module ``Op(features, stride, context)`` with

    op(x: f[B, H, W, C], train) -> f[B, ceil(H / stride), ceil(W / stride),
                                      features]

`ops` holds the ops themselves, `layers` what they are made of. An op may also
say how it can be evaluated together with others that read the same input
(`Op.stages`, `Op.shared`); one that does not is evaluated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, cast, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from hwdarts_jax.models import initializers, patches
from hwdarts_jax.models.layers import (
  BatchNorm,
  DepthwiseConv,
  Padding,
  param_dtype,
  same,
)


@dataclasses.dataclass(frozen=True)
class Context:
  """What all ops of a network share.

  Attributes:
    affine: whether batch norms of searched ops have scale and bias; the
      published supernets have none, so that an op cannot rescale its gate.
    bn_groups: the batch is split into this many groups, each normalized by its
      own statistics: the result does not depend on the number of devices.
    bn_momentum: share of the old running statistics that an update keeps.
    pool_bn: whether pooling ends in batch normalization.
    dtype: type of activations; parameters and statistics are float32, or
      float64 where this is.
    depthwise: 'conv' (grouped convolution) or 'shift' (sum of shifted
      products: the same numbers up to rounding, many times faster on CPU).
    depthwise_gradient: of kernels of grouped convolutions, 'conv', 'pairs' or
      'padded' (the same numbers up to rounding); see
      `kernel_gradients.convolve`.
    dense: of other convolutions, 'conv' or 'matmul' (of patches; the same
      numbers up to rounding), which stays one call where params are batched.
    superkernels: whether candidates of an edge share weights where they can;
      see the module of that name.
    one_hot: whether gates are known to choose one op an edge, so that the
      fused evaluation may convolve once for several candidates.
  """

  affine: bool = True
  bn_groups: int = 1
  bn_momentum: float = 0.9
  pool_bn: bool = False
  dtype: Any = jnp.float32
  depthwise: str = 'conv'
  depthwise_gradient: str = 'conv'
  dense: str = 'conv'
  superkernels: bool = False
  one_hot: bool = False


class Stage(NamedTuple):
  """ReLU, one dense convolution, batch norm without scale and bias.

  Attributes:
    kernel: params of the op -> the dense kernel f[K, K, C, features], exact:
      nothing lies between the convolutions that it composes.
    norm: keys of the batch norm within the statistics of the op.
    stride: of the convolution.
    dilation: of the convolution.
    padding: of the convolution.
  """

  kernel: Callable[[Mapping[str, Any]], jax.Array]
  norm: tuple[str, ...]
  stride: int
  dilation: int
  padding: Padding


class Shared(NamedTuple):
  """An op without params: the same on every edge that leaves a node.

  Attributes:
    function: f[B, H, W, C] -> f[B, H', W', C], before the batch norm.
    norm: keys of the batch norm within the statistics of the op, () if it has
      none.
  """

  function: Callable[[jax.Array], jax.Array]
  norm: tuple[str, ...]


class Op(nn.Module):
  """Base of all candidate operations.

  Attributes:
    features: channels of the output.
    stride: spatial stride.
    context: what all ops of the network share.
  """

  features: int
  stride: int = 1
  context: Context = Context()

  # A zero op adds nothing to a node, so the network skips it.
  is_zero: ClassVar[bool] = False
  # Drop path spares ops that carry the signal unchanged.
  is_skip: ClassVar[bool] = False
  # Adds its input where the shapes agree: drop path drops what it adds, and
  # nothing where they do not, since all of the signal goes through.
  is_residual: ClassVar[bool] = False

  def stages(self, in_shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    """The op as a chain of stages, for inputs of (H, W, C); () if it is none.

    Assumes `context.affine` to be false.
    """
    del in_shape
    return ()

  def shared(self, in_shape: tuple[int, int, int]) -> Shared | None:
    """The op as a function of its input alone, for (H, W, C), if it is one."""
    del in_shape
    return None

  def norm(self, affine: bool | None = None) -> BatchNorm:
    """A batch norm with the settings of the context."""
    c = self.context
    return BatchNorm(
      c.bn_groups,
      c.affine if affine is None else affine,
      c.bn_momentum,
      dtype=c.dtype,
    )

  def conv(
    self, kernel: int, stride: int = 1, features: int | None = None
  ) -> nn.Conv:
    """A dense convolution without bias, padded symmetrically."""
    return nn.Conv(
      self.features if features is None else features,
      (kernel, kernel),
      stride,
      same(kernel),
      use_bias=False,
      dtype=self.context.dtype,
      param_dtype=param_dtype(self.context.dtype),
      kernel_init=initializers.he_normal,
      conv_general_dilated=patches.DENSE[self.context.dense],
    )

  def dense(self, features: int) -> nn.Dense:
    """A dense layer with bias over channels."""
    return nn.Dense(
      features,
      dtype=self.context.dtype,
      param_dtype=param_dtype(self.context.dtype),
      kernel_init=initializers.lecun_normal,
      bias_init=initializers.zeros,
    )

  def depthwise(
    self, kernel: int, stride: int = 1, dilation: int = 1
  ) -> DepthwiseConv:
    """A depthwise convolution without bias, padded symmetrically."""
    c = self.context
    return DepthwiseConv(
      kernel, stride, dilation, c.dtype, c.depthwise, c.depthwise_gradient
    )


OPS: dict[str, functools.partial[Op]] = {}
_FAMILIES: dict[type[Op], type[Op]] = {}


def register(name: str, **settings):
  """Class decorator: registers the op `name`, made with `settings`."""

  def decorate(cls):
    if name in OPS:
      raise ValueError(f'op {name!r} is registered twice.')
    OPS[name] = functools.partial(cls, **settings)
    return cls

  return decorate


def family(of: type[Op]):
  """Class decorator: evaluates ops of a class together, on shared weights.

  It is a module ``Family(features, stride, context, settings=...)``, with the
  registered settings of each op, and

      family(x: f[B, H, W, C], gates: f[O], train) -> f[B, H', W', features]

  whose variables have the names of the op's; see `superkernels`.
  """

  def decorate(cls):
    _FAMILIES[of] = cls
    return cls

  return decorate


def families(
  names: Sequence[str],
) -> list[tuple[type[Op] | None, tuple[str, ...]]]:
  """Ops that can share weights, together; each other op by itself, with None.

  One op alone shares with nobody.
  """
  found: dict[type[Op], tuple[str, ...]] = {}
  for name in names:
    cls = _FAMILIES.get(_op_class(name))
    if cls is not None:
      found[cls] = (*found.get(cls, ()), name)
  together = {n for group in found.values() if len(group) > 1 for n in group}
  return [
    *((cls, group) for cls, group in found.items() if len(group) > 1),
    *((None, (name,)) for name in names if name not in together),
  ]


def get(name: str) -> Callable[..., Op]:
  """Returns the op registered under `name`.

  Raises:
    ValueError: there is none; the message lists the known ones.
  """
  if name not in OPS:
    raise ValueError(f'unknown op {name!r}; known are {sorted(OPS)}.')
  return OPS[name]


def module(name: str) -> str:
  """The name of the module that has the op."""
  return _op_class(name).__module__


def is_zero(name: str) -> bool:
  """Whether the op contributes nothing."""
  return _op_class(name).is_zero


def is_skip(name: str) -> bool:
  """Whether the op carries its input on (see `Op.is_skip`)."""
  return _op_class(name).is_skip


def is_residual(name: str) -> bool:
  """Whether the op adds its input (see `Op.is_residual`)."""
  return _op_class(name).is_residual


def _op_class(name: str) -> type[Op]:
  get(name)  # names an unknown op
  return cast(type[Op], OPS[name].func)
