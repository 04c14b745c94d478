"""Times the PyTorch peer: eager and captured in one CUDA graph."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import search_step_report as report
from benchmarks import torch_peer
from benchmarks.search_step_peer import Variant, VARIANTS, Work

_CAPTURE_WARMUP = 3  # steps before the capture, on its stream
_MIB = 2**20


class Runner:
  """A variant of the peer on its device; calling it does one step."""

  def __init__(self, work: Work, variant: Variant):
    cuda = torch.cuda.is_available()
    if variant.graph and not cuda:
      raise ValueError(
        'variants of graphs need a GPU; choose among '
        f'{[n for n, v in VARIANTS.items() if not v.graph]}.'
      )
    self.device = torch.device('cuda' if cuda else 'cpu')
    if cuda:
      torch.backends.cuda.matmul.allow_tf32 = True
      torch.backends.cudnn.allow_tf32 = True
      torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    net = torch_peer.Supernet(**work.network).to(self.device)
    if variant.channels_last:
      net = net.to(memory_format=torch.channels_last)
    self._work, self._layout = work, variant.channels_last
    self.num_params = net.num_params()
    self._search = torch_peer.Search(
      net,
      work.alphas,
      torch_peer.Costs(**work.costs),
      work.second_order,
      variant.bf16,
    )
    self._sets = [
      (self._put(images), self._put(labels).long())
      for images, labels in work.sets
    ]
    self._mean, self._std = (
      255 * self._put(np.asarray(v, np.float32)) for v in (work.mean, work.std)
    )
    self._indices = [self._put(i).long() for i in work.indices(0)]
    self._next, self._graph, self.loss = 0, None, None
    if variant.graph:
      self._capture()

  def __call__(self) -> None:
    """One step, from indices on the host to its end."""
    self._feed()
    if self._graph is None:
      self.loss = self._step()
    else:
      self._graph.replay()
    if self.device.type == 'cuda':
      torch.cuda.synchronize()

  def _put(self, array: np.ndarray):
    return torch.from_numpy(np.array(array)).to(self.device)

  def _feed(self) -> None:
    fresh = self._work.indices(self._next)
    for old, new in zip(self._indices, fresh, strict=True):
      old.copy_(torch.from_numpy(np.array(new)), non_blocking=True)
    self._search.rate.fill_(self._work.rate(self._next))
    self._next += 1

  def _step(self):
    batches = [
      augmented(images, labels, indices, self._mean, self._std)
      for (images, labels), indices in zip(
        self._sets, self._indices, strict=True
      )
    ]
    if self._layout:
      batches = [
        (x.contiguous(memory_format=torch.channels_last), y) for x, y in batches
      ]
    return self._search.step(*batches)

  def _capture(self) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
      for _ in range(_CAPTURE_WARMUP):
        self._step()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()
    torch.cuda.empty_cache()
    self._graph = torch.cuda.CUDAGraph()
    # Threads of jax may talk to the driver meanwhile.
    with torch.cuda.graph(self._graph, capture_error_mode='thread_local'):
      self.loss = self._step()


def augmented(images, labels, indices, mean, std, pad: int = 4):
  """Gathers a batch, crops it out of black borders and mirrors half of it.

  Args:
    images: u8[N, H, W, C].
    labels: i64[N].
    indices: i64[B].
    mean: f[C], of images in 0..255.
    std: f[C].
    pad: width of the border.

  Returns:
    Images f[B, C, H, W], normalized, and labels i64[B].
  """
  number, (_, height, width, _) = len(indices), images.shape
  device = images.device

  def draw(high):
    return torch.randint(high, (number, 1), device=device)

  x = functional.pad(images[indices], (0, 0, pad, pad, pad, pad))
  rows = draw(2 * pad + 1) + torch.arange(height, device=device)
  columns = torch.arange(width, device=device).expand(number, -1)
  columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
  columns = draw(2 * pad + 1) + columns
  every = torch.arange(number, device=device)[:, None, None]
  x = x[every, rows[:, :, None], columns[:, None, :]]
  x = (x.float() - mean) / std
  return x.permute(0, 3, 1, 2).contiguous(), labels[indices]


def measure(
  work: Work, name: str, warmup: int, calls: int, batch: int
) -> dict[str, Any]:
  """Times one of `VARIANTS`.

  Args:
    work: what it does.
    name: of the variant.
    warmup: calls before it counts.
    calls: calls that count.
    batch: images of a batch.

  Raises:
    FloatingPointError: the loss is not finite, so the times mean nothing.
    ValueError: there is no GPU for a graph.
  """
  cuda = torch.cuda.is_available()
  if cuda:
    torch.cuda.reset_peak_memory_stats()
  begun = time.perf_counter()
  runner = Runner(work, VARIANTS[name])
  ready_s = time.perf_counter() - begun
  before, seconds = report.time_calls(runner, warmup, calls)
  loss = float(runner.loss)
  if not np.isfinite(loss):
    raise FloatingPointError(f'peer {name}: the train loss is {loss}.')
  result = {
    'variant': name,
    **report.summarize(seconds, 1, batch),
    'warmup_calls': warmup,
    'ready_s': ready_s,
    'first_call_s': before[0] if before else seconds[0],
    'params': runner.num_params,
    'peak_mib': torch.cuda.max_memory_allocated() / _MIB if cuda else None,
    'reserved_mib': torch.cuda.max_memory_reserved() / _MIB if cuda else None,
    'torch': torch.__version__,
    'device': torch.cuda.get_device_name() if cuda else 'cpu',
  }
  del runner
  gc.collect()
  if cuda:
    torch.cuda.empty_cache()
  return result
