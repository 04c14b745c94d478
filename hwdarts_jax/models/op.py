"""What an op is: its contract, what all ops share, and the registry.

Every op is a Flax module ``Op(features, stride, context)`` with

    op(x: f[B, H, W, C], train) -> f[B, ceil(H / stride), ceil(W / stride),
                                      features]

`ops` holds the ops themselves. An op may also say how it can be evaluated
together with others that read the same input (`Op.stages`, `Op.shared`); one
that does not is evaluated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, cast, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hwdarts_jax.models import initializers, patches

EPSILON = 1e-5  # of all batch norms
Padding = tuple[tuple[int, int], tuple[int, int]]


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
    dense: of other convolutions, 'conv' or 'matmul' (of patches; the same
      numbers up to rounding), which stays one call where params are batched.
    superkernels: whether candidates of an edge share weights where they can;
      see the module of that name.
  """

  affine: bool = True
  bn_groups: int = 1
  bn_momentum: float = 0.9
  pool_bn: bool = False
  dtype: Any = jnp.float32
  depthwise: str = 'conv'
  dense: str = 'conv'
  superkernels: bool = False


class BatchNorm(nn.Module):
  """Batch normalization over a fixed number of batch groups.

  The batch is cut into `groups` contiguous parts and each part is normalized
  by its own mean and variance ("ghost" batch normalization, Hoffer et al.
  2017). Running statistics average over the groups. Unlike in PyTorch the
  running variance is the biased one.
  """

  groups: int = 1
  affine: bool = True
  momentum: float = 0.9
  epsilon: float = EPSILON
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns `x: f[B, H, W, C]` normalized per channel.

    Raises:
      ValueError: B is not divisible by the number of groups.
    """
    features = x.shape[-1]
    stat_dtype = param_dtype(self.dtype)
    ra_mean = self.variable(
      'batch_stats', 'mean', np.zeros, (features,), stat_dtype
    )
    ra_var = self.variable(
      'batch_stats', 'var', np.ones, (features,), stat_dtype
    )
    if self.affine:
      gamma = self.param('scale', initializers.ones, (features,), stat_dtype)
      beta = self.param('bias', initializers.zeros, (features,), stat_dtype)
    if self.is_initializing():
      return x.astype(self.dtype)  # whose values no initializer reads
    if train:
      mean, var, x = self._group_statistics(x, stat_dtype)
      if self.is_mutable_collection('batch_stats'):
        keep = self.momentum
        ra_mean.value = keep * ra_mean.value + (1 - keep) * mean.mean(
          (0, 1, 2, 3)
        )
        ra_var.value = keep * ra_var.value + (1 - keep) * var.mean((0, 1, 2, 3))
    else:
      shape = (1,) * (x.ndim - 1) + (features,)
      mean, var = ra_mean.value.reshape(shape), ra_var.value.reshape(shape)
    scale = jax.lax.rsqrt(var + self.epsilon)
    offset = -mean * scale
    if self.affine:
      shape = (1,) * (x.ndim - 1) + (features,)
      scale = scale * gamma.reshape(shape)
      offset = offset * gamma.reshape(shape) + beta.reshape(shape)
    # In the wide type, so that its gradients are also summed in it.
    y = (x * scale + offset).astype(self.dtype)
    return y.reshape((-1, *y.shape[-3:]))

  def _group_statistics(self, x, stat_dtype):
    """Returns mean and variance [G, 1, 1, 1, C], and x [G, B/G, H, W, C]."""
    batch = x.shape[0]
    if batch % self.groups:
      raise ValueError(
        f'batch of {batch} examples is not divisible by '
        f'batch_groups={self.groups}.'
      )
    x = x.reshape((self.groups, batch // self.groups, *x.shape[1:]))
    wide = x.astype(stat_dtype)
    mean = wide.mean((1, 2, 3), keepdims=True)
    # Two passes: E[x^2] - E[x]^2 loses all digits where the mean dominates.
    var = jnp.square(wide - mean).mean((1, 2, 3), keepdims=True)
    return mean, var, x


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
    return DepthwiseConv(
      kernel, stride, dilation, self.context.dtype, self.context.depthwise
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


class DepthwiseConv(nn.Module):
  """Depthwise convolution; see `Context.depthwise` for the two evaluations."""

  kernel: int
  stride: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  method: str = 'conv'

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """x: f[B, H, W, C] -> f[B, ceil(H / stride), ceil(W / stride), C].

    A mask f[K, K, 1, C] is a factor of the kernel.
    """
    channels = x.shape[-1]
    kernel = self.param(
      'kernel',
      initializers.he_normal,
      (self.kernel, self.kernel, 1, channels),
      param_dtype(self.dtype),
    )
    if mask is not None:
      kernel = kernel * mask
    kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
    # Of fresh params only the shape counts: a convolution is traced soonest.
    method = 'conv' if self.is_initializing() else self.method
    evaluate = {'conv': self._grouped, 'shift': self._shifted}[method]
    return evaluate(x, kernel)

  def _grouped(self, x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      same(self.kernel, self.dilation),
      rhs_dilation=(self.dilation, self.dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[-1],
    )

  def _shifted(self, x, kernel):
    height, width = (-(-n // self.stride) for n in x.shape[1:3])
    pad = same(self.kernel, self.dilation)
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    # Products are summed in the wide type, as by a convolution.
    kernel = kernel.astype(param_dtype(self.dtype))
    total = jnp.zeros((), kernel.dtype)
    for i in range(self.kernel):
      for j in range(self.kernel):
        top, left = i * self.dilation, j * self.dilation
        part = x[
          :,
          top : top + (height - 1) * self.stride + 1 : self.stride,
          left : left + (width - 1) * self.stride + 1 : self.stride,
        ]
        term = part * kernel[i, j].reshape(1, 1, 1, -1)
        total = total + term
    return total.astype(self.dtype)


def param_dtype(dtype: Any) -> Any:
  """Type of parameters and statistics beside activations of `dtype`."""
  return jnp.promote_types(dtype, jnp.float32)


def same(kernel: int, dilation: int = 1) -> Padding:
  """Symmetric padding that keeps ceil(size / stride), as in PyTorch."""
  pad = dilation * (kernel - 1) // 2
  return ((pad, pad), (pad, pad))
