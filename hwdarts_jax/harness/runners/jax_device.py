"""Any device that JAX knows: GPU, TPU or CPU, for programs compiled by XLA.

    --runner=jax_device                     the first device of JAX
    --runner=jax_device:device=cuda:1

Searches for a server's GPU want its latency at the batch that it serves: give
--batch. There are three ways to leave out what a launch from the host costs:

- `kernels` (on GPUs): the time that kernels took on the device, by its own
  clock. On an H100, kernels of small networks are over before the host has
  launched the next, and XLA's loops on GPUs are run by the host: by either of
  the other ways one measures the host.
- `loop` (on TPUs): the model runs many times in one program on the device,
  each run reading a number that the one before has written, so that XLA can
  neither leave out nor reorder any. The slope between two numbers of
  repetitions is free of the launch; the same slope of an empty model is what
  the repetition itself costs, and is subtracted.
- `call` (on CPUs, where XLA's loops slow convolutions down): the time of a
  call, less that of an empty model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import sys
import time
from typing import Any

import jax
from jax import export, lax
import jax.numpy as jnp
import tqdm

from hwdarts_jax.harness import kernel_times
from hwdarts_jax.harness.runners import (
  Description,
  DeviceError,
  Model,
  ModelError,
  Protocol,
  Reading,
  Runner,
)
from hwdarts_jax.harness.runners.host import cpu_name

# Runs of the model in the inner loop, whose length XLA knows. To end the outer
# one the host is asked, which takes as long as a small op.
_INNER = 16
_NUM_SAMPLES = 5  # of each number of repetitions
_MIN_OUTER = 4  # difference between the numbers of repetitions
REPEATS = ('auto', 'kernels', 'loop', 'call')
_AUTO = {'cpu': 'call', 'gpu': 'kernels'}
_STATISTICS = {
  'kernels': 'sum over its kernels of the median of their time on the device',
  'loop': 'slope of the minimum of wall time between two numbers of '
  'repetitions, less that of an empty model',
  'call': 'minimum of wall time, less that of an empty model',
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a JAX device is measured.

  Attributes:
    device: such as `cuda:0`, `tpu` or `cpu`; empty for the first one.
    repeat: one of `REPEATS`; `auto` is `kernels` on a GPU, `call` on a CPU,
      else `loop`.
  """

  device: str = ''
  repeat: str = 'auto'

  def __post_init__(self):
    if self.repeat not in REPEATS:
      raise ValueError(
        f'repeat is {self.repeat!r}; it must be one of {REPEATS}.'
      )


class JaxDeviceRunner(Runner):
  """Times compiled programs."""

  model_format = 'jax'
  overhead_s = 0.5  # compilation, in the first of several rounds

  def __init__(self, settings: Settings):
    self._settings = settings
    self._device: Any = None
    self._compiled: dict[str, tuple[Callable[..., Any], jax.Array]] = {}
    self._affordable: dict[Callable[..., Any], int] = {}  # by program
    self._empty_ms = 0.0

  @property
  def dtypes(self) -> tuple[str, ...]:
    """See `Runner.dtypes`."""
    return ('float32', 'float16', 'bfloat16')

  def prepare(self) -> Description:
    """See `Runner.prepare`."""
    self._device = _find(self._settings.device)
    with self._faults('an empty model'):
      image = jax.device_put(jnp.zeros((1, 8, 8, 8)), self._device)
      empty = self._compile(lambda x: x[0, 0, 0, 0], image)
      ms, _ = self._read(empty, image, Protocol())
      self._empty_ms = 0.0 if self._repeat == 'kernels' else ms
    client = self._device.client
    kind = self._device.device_kind
    return Description(
      soc=cpu_name() if self._device.platform == 'cpu' else kind,
      runtime='JAX',
      runtime_version=jax.__version__,
      delegate=f'XLA for {self._device.platform}',
      threads=None,
      affinity=None,
      statistic=_STATISTICS[self._repeat],
      facts={
        'device': str(self._device),
        'platform_version': str(client.platform_version).strip(),
        'repeat': self._repeat,
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
      },
    )

  def ready(self, models: Sequence[Model]) -> None:
    """Compiles them and runs them once, side by side: most of a table's time.

    Where that is too much at once for the device (each compilation tries
    algorithms there), a model is compiled again by itself when it is measured,
    and named then if it fails once more.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
      loads = {pool.submit(self._start, model): model.name for model in models}
      for load in tqdm.tqdm(
        concurrent.futures.as_completed(loads),
        total=len(loads),
        desc='compile',
        unit='model',
        dynamic_ncols=True,
      ):
        error = load.exception()
        if isinstance(error, jax.errors.JaxRuntimeError):
          reason = str(error).strip().splitlines()[0]
          tqdm.tqdm.write(
            f'{loads[load]} did not compile beside others: {reason}. '
            'It is compiled once more, alone.',
            file=sys.stderr,
          )
        else:
          load.result()

  def measure(self, model: Model, protocol: Protocol) -> Reading:
    """See `Runner.measure`."""
    with self._faults(model.name):
      ms, runs = self._read(*self._load(model), protocol)
    return Reading(max(ms - self._empty_ms, 0.0), runs)

  def close(self) -> None:
    """See `Runner.close`."""
    self._compiled.clear()
    self._affordable.clear()

  def _load(self, model: Model) -> tuple[Callable[..., Any], jax.Array]:
    """The compiled program of a model, and an image for it."""
    key = str(model.path)
    if key not in self._compiled:
      exported = export.deserialize(bytearray(model.path.read_bytes()))
      aval = exported.in_avals[0]
      image = jax.random.normal(jax.random.key(0), aval.shape, aval.dtype)
      image = jax.device_put(image, self._device)
      self._compiled[key] = self._compile(exported.call, image), image
    return self._compiled[key]

  def _start(self, model: Model) -> None:
    """Compiles a model and runs it once.

    In its first run cuDNN plans all convolutions, seconds on a GPU.
    """
    program, image = self._load(model)
    count = (1,) if self._repeat == 'loop' else ()
    jax.block_until_ready(program(image, *count))

  @property
  def _repeat(self) -> str:
    if self._settings.repeat == 'auto':
      return _AUTO.get(self._device.platform, 'loop')
    return self._settings.repeat

  def _compile(
    self, function: Callable[[jax.Array], jax.Array], image: jax.Array
  ) -> Callable[..., Any]:
    """A program that runs `function`, in a loop as often as it is told."""
    if self._repeat != 'loop':
      return jax.jit(function).lower(image).compile()
    y = jnp.zeros_like(jax.eval_shape(function, image))
    y = jax.device_put(y, self._device)
    program = jax.jit(functools.partial(_repeat, function))
    compiled = program.lower(image, y, 0).compile()
    return lambda x, count: compiled(x, y, count)

  def _read(
    self, program: Callable[..., Any], image: jax.Array, protocol: Protocol
  ) -> tuple[float, int]:
    """Milliseconds of one run, and how many runs were timed."""
    timer = _Timer(program, image, protocol)
    if self._repeat == 'loop':
      return _slope(timer)
    for _ in range(protocol.warmup_runs):
      timer()
    if self._repeat == 'kernels':
      return self._kernels(program, timer)
    samples: list[float] = []
    while (
      len(samples) < protocol.min_runs or sum(samples) < protocol.min_ms / 1e3
    ):
      samples.append(timer())
    return 1e3 * min(samples), len(samples)

  def _kernels(
    self, program: Callable[..., Any], timer: _Timer
  ) -> tuple[float, int]:
    """The device's own time; see `kernel_times.device_ms`."""
    if program not in self._affordable:
      runs = kernel_times.affordable_runs(timer, timer.protocol.min_runs)
      self._affordable[program] = runs
    runs = self._affordable[program]
    ms = runs and kernel_times.device_ms(kernel_times.record(timer, runs), runs)
    if not ms:
      raise DeviceError(
        f"JAX's profiler has seen no kernel on {self._device}: it may lack "
        "NVIDIA's CUPTI, or the device is no GPU. Measure with "
        '--runner=jax_device:repeat=loop.'
      )
    return ms, runs

  def _faults(self, name: str) -> Any:
    return _Faults(name, self._device)


class _Timer:
  """Calls a program, and tells how many seconds that took."""

  def __init__(
    self, program: Callable[..., Any], image: jax.Array, protocol: Protocol
  ):
    self.protocol = protocol
    self._program, self._image = program, image
    self._deadline = time.monotonic() + protocol.timeout_s

  def __call__(self, *count: int) -> float:
    if time.monotonic() > self._deadline:
      raise ModelError(f'it took longer than {self.protocol.timeout_s:g} s.')
    start = time.perf_counter()
    jax.block_until_ready(self._program(self._image, *count))
    return time.perf_counter() - start


def _slope(timer: _Timer) -> tuple[float, int]:
  """Milliseconds of one run of a loop, and how many runs were timed."""
  protocol = timer.protocol
  want = protocol.min_ms / 1e3 / _NUM_SAMPLES
  for _ in range(-(-protocol.warmup_runs // _INNER)):
    timer(1)
  outer = max(1, -(-protocol.min_runs // (_NUM_SAMPLES * _INNER)))
  if timer(1) < want:  # a longer one is well known from a few
    outer = max(outer, _MIN_OUTER)
  while True:
    pairs = [(timer(1 + outer), timer(1)) for _ in range(_NUM_SAMPLES)]
    # What disturbs a sample only lengthens it.
    many, one = (min(times) for times in zip(*pairs, strict=True))
    if many - one >= want / 2:
      break
    # At most eightfold, since a short difference is not well known.
    outer *= max(2, min(8, round(want / max(many - one, 1e-9))))
  return 1e3 * (many - one) / (outer * _INNER), _NUM_SAMPLES * outer * _INNER


class _Faults:
  """Errors of the device as sentences."""

  def __init__(self, name: str, device: Any):
    self._name, self._device = name, device

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    if isinstance(error, ModelError):
      raise ModelError(f'{self._name} was not measured: {error}') from error
    if not isinstance(error, jax.errors.JaxRuntimeError):
      return
    reason = str(error).strip().splitlines()[0]
    if 'RESOURCE_EXHAUSTED' in reason:
      raise ModelError(
        f'{self._name} needs more memory than {self._device} has: {reason}. '
        'Choose a smaller --batch.'
      ) from error
    raise DeviceError(f'{self._device} failed: {reason}.') from error


def _repeat(
  function: Callable[[jax.Array], jax.Array],
  image: jax.Array,
  y: jax.Array,
  count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Runs `function` `count * _INNER` times, each after the one before.

  The whole result is carried along, so that it is computed in whole; a number
  of it is written into the next input.
  """

  def run(_, carry):
    x, y = carry
    number = y[(0,) * y.ndim].astype(x.dtype)
    # Changes nothing much; but that is not for the compiler to know.
    x = x.at[(0,) * x.ndim].set(jnp.clip(number, -1, 1))
    return x, function(x)

  def inner(_, carry):
    return lax.fori_loop(0, _INNER, run, carry)

  return lax.fori_loop(0, count, inner, (image, y))


def _find(name: str) -> Any:
  """The device that a text such as `cuda:0` names."""
  platform, _, number = name.partition(':')
  try:
    devices = jax.devices(platform or None)
    return devices[int(number or 0)]
  except (RuntimeError, AssertionError, IndexError, ValueError) as e:
    there = 'none'
    with contextlib.suppress(RuntimeError, AssertionError):
      there = ', '.join(str(d) for d in jax.devices())
    raise DeviceError(
      f'JAX has no device {name!r}; it has {there}. Install jax[cuda13] or '
      'jax[tpu] for an accelerator.'
    ) from e


def make(settings: Settings) -> JaxDeviceRunner:
  """Makes the runner."""
  return JaxDeviceRunner(settings)
