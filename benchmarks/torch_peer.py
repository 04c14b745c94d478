"""The bilevel step of the DARTS supernet in PyTorch: what we compare with.

Liu, Simonyan & Yang, "DARTS", ICLR 2019, written for this benchmark. All ops on
all edges, batch normalization by batch statistics and without affine, pooling
followed by batch normalization, softmax of the alphas; alphas move first, by
the validation batch, then params by the train batch. Second order is the
paper's: a central difference about the params, with gradients at the unrolled
ones.

Where the published code does work that has no result, this does not: `none` is
left out of the sums, no params gradient is computed where only that of the
alphas is used, and the unrolled params take the place of the old ones for a
while instead of a second network. The step runs without the host knowing any
value, so that it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import operator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

STEM_MULTIPLIER = 3
CLIP_NORM = 5.0
MOMENTUM = 0.9
WEIGHT_DECAY = 3e-4
EPSILON = 0.01  # of the central difference


class Branch(nn.Sequential):
  """ReLU, a convolution or two, batch normalization."""

  def __init__(self, *convolutions: nn.Module, features: int):
    super().__init__(
      nn.ReLU(), *convolutions, nn.BatchNorm2d(features, affine=False)
    )


def _pointwise(inputs: int, features: int, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, features, 1, stride, bias=False)


def _depthwise(
  features: int, kernel: int, stride: int, dilation: int = 1
) -> nn.Conv2d:
  return nn.Conv2d(
    features,
    features,
    kernel,
    stride,
    dilation * (kernel // 2),
    dilation,
    groups=features,
    bias=False,
  )


def _sep_conv(features: int, kernel: int, stride: int) -> nn.Module:
  return nn.Sequential(
    *(
      Branch(
        _depthwise(features, kernel, s),
        _pointwise(features, features),
        features=features,
      )
      for s in (stride, 1)
    )
  )


def _dil_conv(features: int, kernel: int, stride: int) -> nn.Module:
  return Branch(
    _depthwise(features, kernel, stride, 2),
    _pointwise(features, features),
    features=features,
  )


def _pool(pool: nn.Module, features: int) -> nn.Module:
  return nn.Sequential(pool, nn.BatchNorm2d(features, affine=False))


class FactorizedReduce(nn.Module):
  """Two 1x1 convolutions of stride 2, the second one pixel further on."""

  def __init__(self, inputs: int, features: int):
    super().__init__()
    self.first = _pointwise(inputs, features // 2, 2)
    self.second = _pointwise(inputs, features - features // 2, 2)
    self.norm = nn.BatchNorm2d(features, affine=False)

  def forward(self, x):
    x = functional.relu(x)
    parts = [self.first(x), self.second(x[:, :, 1:, 1:])]
    return self.norm(torch.cat(parts, 1))


# In the order of the alphas; None adds nothing.
OPS: dict[str, Any] = {
  'none': lambda c, s: None,
  'max_pool_3x3': lambda c, s: _pool(nn.MaxPool2d(3, s, 1), c),
  'avg_pool_3x3': lambda c, s: _pool(
    nn.AvgPool2d(3, s, 1, count_include_pad=False), c
  ),
  'skip_connect': lambda c, s: (
    nn.Identity() if s == 1 else FactorizedReduce(c, c)
  ),
  'sep_conv_3x3': lambda c, s: _sep_conv(c, 3, s),
  'sep_conv_5x5': lambda c, s: _sep_conv(c, 5, s),
  'dil_conv_3x3': lambda c, s: _dil_conv(c, 3, s),
  'dil_conv_5x5': lambda c, s: _dil_conv(c, 5, s),
}


class MixedEdge(nn.Module):
  """The sum of all ops, weighted by gates."""

  def __init__(self, features: int, stride: int):
    super().__init__()
    made = {name: make(features, stride) for name, make in OPS.items()}
    self.ops = nn.ModuleDict({k: v for k, v in made.items() if v is not None})
    self._columns = [i for i, v in enumerate(made.values()) if v is not None]

  def forward(self, x, gates):
    ops = self.ops.values()
    pairs = zip(self._columns, ops, strict=True)
    return _sum(gates[i] * op(x) for i, op in pairs)


class Cell(nn.Module):
  """Two preprocessed inputs, then nodes that sum all earlier ones."""

  def __init__(
    self,
    inputs: tuple[int, int],
    features: int,
    num_nodes: int,
    reduce: bool,
    reduced_last: bool,
  ):
    super().__init__()
    self.group = 'reduce' if reduce else 'normal'
    before, last = inputs
    self.preprocess = nn.ModuleList(
      [
        FactorizedReduce(before, features)
        if reduced_last
        else Branch(_pointwise(before, features), features=features),
        Branch(_pointwise(last, features), features=features),
      ]
    )
    self.edges = nn.ModuleList(
      MixedEdge(features, 2 if reduce and source < 2 else 1)
      for node in range(num_nodes)
      for source in range(2 + node)
    )
    self._num_nodes = num_nodes

  def forward(self, before, last, gates):
    states = [
      f(x) for f, x in zip(self.preprocess, (before, last), strict=True)
    ]
    row = 0
    for _ in range(self._num_nodes):
      edges = self.edges[row : row + len(states)]
      pairs = zip(edges, states, gates[row : row + len(states)], strict=True)
      row += len(states)
      states.append(_sum(edge(x, g) for edge, x, g in pairs))
    return torch.cat(states[2:], 1)


class Supernet(nn.Module):
  """The network of the search; (f[B, C, H, W], gates) -> logits."""

  def __init__(
    self,
    features: int = 16,
    num_cells: int = 8,
    num_classes: int = 10,
    num_nodes: int = 4,
    image_channels: int = 3,
  ):
    super().__init__()
    width = STEM_MULTIPLIER * features
    self.stem = nn.Sequential(
      nn.Conv2d(image_channels, width, 3, padding=1, bias=False),
      nn.BatchNorm2d(width),
    )
    reductions = {num_cells // 3, 2 * num_cells // 3}
    before, last, reduced_last = width, width, False
    self.cells = nn.ModuleList()
    for i in range(num_cells):
      reduce = i in reductions
      features *= 2 if reduce else 1
      self.cells.append(
        Cell((before, last), features, num_nodes, reduce, reduced_last)
      )
      before, last, reduced_last = last, num_nodes * features, reduce
    self.classifier = nn.Linear(last, num_classes)

  def forward(self, x, gates):
    before = last = self.stem(x)
    for cell in self.cells:
      before, last = last, cell(before, last, gates[cell.group])
    return self.classifier(last.mean((2, 3)))

  def num_params(self) -> int:
    """Number of params."""
    return sum(p.numel() for p in self.parameters())


@dataclasses.dataclass(frozen=True)
class Costs:
  """Latency that adds up, and what it weighs.

  Attributes:
    per_op: for each group f[E, O], ms.
    fixed_ms: of all that is not searched.
    reference_ms: that counts as one.
    multiplier: weight in the loss.
  """

  per_op: Mapping[str, Any]
  fixed_ms: float
  reference_ms: float
  multiplier: float


class Search:
  """Supernet, alphas, both optimizers and both updates.

  Attributes:
    net: the supernet.
    alphas: for each group f[E, O].
    rate: learning rate of params, f[] on the device; set it before a step.
  """

  def __init__(
    self,
    net: Supernet,
    alphas: Mapping[str, np.ndarray],
    costs: Costs,
    second_order: bool = False,
    bf16: bool = False,
  ):
    """Takes over `net` on its device.

    Args:
      net: the supernet.
      alphas: their values, for each group f[E, O].
      costs: the latency term of the alphas.
      second_order: whether alphas see through the step of the params.
      bf16: whether activations are bfloat16, by autocast.
    """
    self.net = net
    self._params = list(net.parameters())
    like = self._params[0]

    def put(values):
      return torch.tensor(values, dtype=like.dtype, device=like.device)

    self.alphas = {g: put(a).requires_grad_() for g, a in alphas.items()}
    self._per_op = {g: put(c) for g, c in costs.per_op.items()}
    self._costs, self._second_order, self._bf16 = costs, second_order, bf16
    self.rate = put(0.025)
    self._momenta = [torch.zeros_like(p) for p in self._params]
    self._alphas_optimizer = torch.optim.Adam(
      self.alphas.values(),
      lr=3e-4,
      betas=(0.5, 0.999),
      weight_decay=1e-3,
      capturable=like.is_cuda,
    )

  def gates(self) -> dict[str, Any]:
    """Softmax of the alphas."""
    return {g: a.softmax(-1) for g, a in self.alphas.items()}

  def task_loss(self, batch):
    """Cross entropy of a batch (images, labels)."""
    images, labels = batch
    cast = (
      torch.autocast(images.device.type, torch.bfloat16)
      if self._bf16
      else contextlib.nullcontext()
    )
    with cast:
      logits = self.net(images, self.gates())
    if self._bf16:
      logits = logits.float()
    return functional.cross_entropy(logits, labels)

  def objective(self, batch):
    """What the alphas minimize: task loss and weighted latency."""
    costs = self._costs
    ms = costs.fixed_ms + sum(
      (p * self._per_op[g]).sum() for g, p in self.gates().items()
    )
    weight = costs.multiplier / costs.reference_ms
    return self.task_loss(batch) + weight * ms

  def alphas_grads(self, train_batch, val_batch):
    """Gradient by which the alphas move, in the order of `alphas`."""
    if self._second_order:
      return self._unrolled_grads(train_batch, val_batch)
    return torch.autograd.grad(
      self.objective(val_batch), list(self.alphas.values())
    )

  def step(self, train_batch, val_batch):
    """One bilevel step; returns the train loss, f[] on the device."""
    grads = self.alphas_grads(train_batch, val_batch)
    for alphas, grad in zip(self.alphas.values(), grads, strict=True):
      alphas.grad = grad
    self._alphas_optimizer.step()
    loss = self.task_loss(train_batch)
    grads = list(torch.autograd.grad(loss, self._params))
    with torch.no_grad():
      scale = (CLIP_NORM / (_norm(grads) + 1e-6)).clamp(max=1.0)
      torch._foreach_mul_(grads, scale)
      torch._foreach_add_(grads, self._params, alpha=WEIGHT_DECAY)
      torch._foreach_mul_(self._momenta, MOMENTUM)
      torch._foreach_add_(self._momenta, grads)
      torch._foreach_sub_(
        self._params, torch._foreach_mul(self._momenta, self.rate)
      )
    return loss.detach()

  def _unrolled_grads(self, train_batch, val_batch):
    """The second-order gradient of the paper, equations 7 and 8."""
    alphas = list(self.alphas.values())
    grads = torch.autograd.grad(self.task_loss(train_batch), self._params)
    old = [p.detach().clone() for p in self._params]
    with torch.no_grad():  # the params after the step, not clipped
      step = torch._foreach_add(list(grads), old, alpha=WEIGHT_DECAY)
      torch._foreach_add_(step, self._momenta, alpha=MOMENTUM)
      torch._foreach_mul_(step, self.rate)
      torch._foreach_sub_(self._params, step)
    grads = torch.autograd.grad(
      self.objective(val_batch), [*alphas, *self._params]
    )
    direct, vector = grads[: len(alphas)], list(grads[len(alphas) :])
    with torch.no_grad():
      length = EPSILON / _norm(vector)
      torch._foreach_mul_(vector, length)

    def at(sign):
      with torch.no_grad():
        torch._foreach_copy_(self._params, old)
        torch._foreach_add_(self._params, vector, alpha=sign)
      return torch.autograd.grad(self.task_loss(train_batch), alphas)

    plus, minus = at(1), at(-1)
    with torch.no_grad():
      torch._foreach_copy_(self._params, old)
      scale = self.rate / (2 * length)
      return [
        d - scale * (p - m) for d, p, m in zip(direct, plus, minus, strict=True)
      ]


def _norm(tensors):
  """Global norm, f[]."""
  return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _sum(tensors):
  """Sum that does not begin with adding to zero."""
  return functools.reduce(operator.add, tensors)
