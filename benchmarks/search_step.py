"""Times one bilevel step of a search, the whole of it, and says what it costs.

    python -m benchmarks.search_step --space=darts --hypergrad=first_order \
      --batch=64 --peer=torch --json=search_step.json

The step is that of the search job: two different batches gathered from images
on the device, cropped and flipped there; both gradients; clipping, weight
decay, momentum with its schedule and Adam; batch statistics; a latency term.
The images and the latencies are noise, which changes no time. A timed call
starts with the indices of its images on the host and ends when state and
metrics are there.

--features, --cells and --image_size make it small enough for a CPU:

    python -m benchmarks.search_step --space=darts --features=4 --cells=3 \
      --image_size=8 --batch=8 --steps=3 --warmup=1 --dtype=float32

--members=16 times a step of the job `pareto`, whose members share params.

--peer=torch times the same step in PyTorch (see `torch_peer`) in the same run.
"""

from __future__ import annotations

import os

# Before jax starts, or it would take most of the memory from the peer.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import datetime
import json
import pathlib
import sys
import time
from typing import Any

from absl import app, flags
import jax

from benchmarks import search_step_peer as peer_lib
from benchmarks import search_step_profile as profile_lib
from benchmarks import search_step_report as report
from benchmarks import search_step_setup as setup_lib
from hwdarts_jax import spaces
from hwdarts_jax.bilevel import hypergrad, relax
from hwdarts_jax.jobs import common
from hwdarts_jax.models import evaluations, fans, kernel_gradients
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import packing

_SPACE = flags.DEFINE_enum('space', 'darts', spaces.names(), 'Space.')
_HYPERGRAD = flags.DEFINE_enum(
  'hypergrad', 'first_order', sorted(hypergrad.HYPERGRADS), 'Estimator.'
)
_BATCH = flags.DEFINE_integer('batch', 64, 'Images of a batch, a device.')
_DEVICES = flags.DEFINE_integer('devices', 1, 'Devices; the batch grows.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', sorted(common.DTYPES), 'Of activations.'
)
_EVALUATION = flags.DEFINE_enum(
  'evaluation',
  'fused',
  sorted([*evaluations.EVALUATIONS, evaluations.SHARED]),
  'How edges are evaluated.',
)
_RELAXATION = flags.DEFINE_enum(
  'relaxation', 'softmax', sorted(relax.RELAXATIONS), 'Of alphas to gates.'
)
_REMAT = flags.DEFINE_enum(
  'remat', 'nothing', sorted(fans.REMATS), 'What backward computes again.'
)
_GRADIENT = flags.DEFINE_enum(
  'depthwise_gradient',
  'conv',
  kernel_gradients.GRADIENTS,
  'Of depthwise kernels, on small images; not if fused.',
)
_FEATURES = flags.DEFINE_integer('features', 0, 'Of the first cell; 0: paper.')
_CELLS = flags.DEFINE_integer('cells', 0, 'Of the supernet; 0: paper.')
_IMAGE = flags.DEFINE_integer('image_size', 0, 'Pixels; 0: paper.')
_IMAGES = flags.DEFINE_integer('images', 0, 'Of a set; 0: at most 25,000.')
_STEPS = flags.DEFINE_integer('steps', 100, 'Calls that are timed.')
_WARMUP = flags.DEFINE_integer('warmup', 20, 'Calls before.')
_MEMBERS = flags.DEFINE_integer(
  'members', 0, 'Of a population on one set of params; 0: a single search.'
)
_PER_STEP = flags.DEFINE_integer(
  'members_per_step', 4, 'Members that share the batches of a step.'
)
_PER_CALL = flags.DEFINE_integer('steps_per_call', 1, 'Steps of one call.')
_PACKED = flags.DEFINE_bool(
  'packed', None, 'The state as few large arrays; on GPUs if not said.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of images, params and order.')
_OURS = flags.DEFINE_bool('ours', True, 'Whether to time ours.')
_PEER = flags.DEFINE_enum('peer', '', ['', 'torch'], 'Also time this.')
_VARIANTS = flags.DEFINE_list(
  'peer_variants',
  ['eager', 'graph', 'eager_bf16', 'graph_bf16'],
  'Variants of the peer; those of graphs need a GPU.',
)
_EAGER_STEPS = flags.DEFINE_integer(
  'peer_eager_steps', 20, 'Calls that are timed in eager variants.'
)
_CACHE = flags.DEFINE_string('cache', '', 'Folder of compiled programs.')
_OPTIONS = flags.DEFINE_string(
  'compile_options', '{}', 'JSON of compiler options and their values.'
)
_PROFILE = flags.DEFINE_string('profile', '', 'Where to write a profile.')
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
_PATHS = ('cache', 'json', 'profile')  # not part of what was measured
_PROFILED_CALLS = 5
_EAGER_WARMUP = 5  # a step of the peer may take a second
_MIB = 2**20


def settings() -> setup_lib.Settings:
  """What the flags ask for."""
  return setup_lib.Settings(
    space=_SPACE.value,
    hypergrad=_HYPERGRAD.value,
    batch=_BATCH.value,
    devices=_DEVICES.value,
    dtype=_DTYPE.value,
    evaluation=_EVALUATION.value,
    relaxation=_RELAXATION.value,
    remat=_REMAT.value,
    depthwise_gradient=_GRADIENT.value,
    steps_per_call=_PER_CALL.value,
    features=_FEATURES.value,
    cells=_CELLS.value,
    image_size=_IMAGE.value,
    images=_IMAGES.value,
    seed=_SEED.value,
    members=_MEMBERS.value,
    members_per_step=_PER_STEP.value,
    packed=packing.pays() if _PACKED.value is None else _PACKED.value,
  )


def compile_update(setup: setup_lib.Setup) -> tuple[Any, dict[str, Any]]:
  """The compiled update, and what it took."""
  moments = [time.perf_counter()]
  with metrics_lib.heartbeat('compiling the bilevel update'):
    traced = setup.update.trace(setup.state, *setup.chunks(0))
    moments.append(time.perf_counter())
    lowered = traced.lower()
    moments.append(time.perf_counter())
    compiled = lowered.compile(compiler_options=json.loads(_OPTIONS.value))
  moments.append(time.perf_counter())
  trace_s, lower_s, compile_s = (
    b - a for a, b in zip(moments, moments[1:], strict=False)
  )
  return compiled, {
    'trace_s': trace_s,
    'lower_s': lower_s,
    'compile_s': compile_s,
    'hlo_lines': lowered.as_text().count('\n'),
    'is_compile_cold': not _CACHE.value,
  }


class Caller:
  """Calls the compiled update again and again; waits for each call."""

  def __init__(self, setup: setup_lib.Setup, compiled: Any):
    self._setup, self._compiled = setup, compiled
    self._state, self._step = setup.state, 0
    self.metrics: Any = None

  def __call__(self) -> None:
    self.start()
    jax.block_until_ready((self._state, self.metrics))

  def start(self) -> None:
    """Starts a call without waiting, as the search job does."""
    chunks = self._setup.chunks(self._step)
    self._state, self.metrics = self._compiled(self._state, *chunks)
    self._step += self._setup.settings.steps_per_call


def measure(setup: setup_lib.Setup) -> tuple[dict[str, Any], Any]:
  """Everything about our side, and its profile if one is asked for.

  Raises:
    FloatingPointError: a metric is not finite, so the times mean nothing.
  """
  sizes = {
    'params': setup.num_params,
    'param_leaves': len(jax.tree.leaves(setup.state.params)),
    'state_leaves': len(jax.tree.leaves(setup.state)),
  }
  compiled, ours = compile_update(setup)
  peak_after_compile = _peak_mib(setup)
  call = Caller(setup, compiled)
  per_call = setup.settings.steps_per_call
  _, seconds = report.time_calls(call, _WARMUP.value, _STEPS.value)
  ours = report.summarize(seconds, per_call, setup.global_batch) | ours
  ours['warmup_calls'] = _WARMUP.value
  begun = time.perf_counter()
  for _ in range(_STEPS.value):
    call.start()
  call()  # waits for all of them
  calls = _STEPS.value + 1
  ours['unblocked_ms'] = (time.perf_counter() - begun) / calls / per_call * 1e3
  if not setup_lib.is_finite(call.metrics):
    raise FloatingPointError(f'not finite: {jax.device_get(call.metrics)}')
  ours |= sizes | _costs(setup, compiled, ours['median_ms'] / 1e3)
  ours['peak_mib'] = _peak_mib(setup) or ours['program_mib']
  # If it is the same, the compiler's trials needed more than the step.
  ours['peak_after_compile_mib'] = peak_after_compile
  profile = None
  if _PROFILE.value:
    data = profile_lib.record(call, _PROFILED_CALLS)
    profile = profile_lib.aggregate(data, _PROFILED_CALLS * per_call)
    print(profile_lib.describe(profile), flush=True)
  return ours, profile


def _peak_mib(setup: setup_lib.Setup) -> float | None:
  """Most memory in use on the first device so far, in MiB."""
  (device, *_) = setup.state.step.sharding.device_set
  stats = device.memory_stats()
  return stats['peak_bytes_in_use'] / _MIB if stats else None


def _costs(setup: setup_lib.Setup, compiled: Any, step_s: float):
  """What the compiler says of one call on one device, and the rates."""
  per_call = setup.settings.steps_per_call
  analysis = compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  # A loop is analysed as if its body ran once.
  traffic = analysis.get('bytes accessed')
  flops = analysis.get('flops')
  macs = setup_lib.useful_macs(setup)
  program = None
  if memory is not None:
    program = (
      memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    ) / _MIB
  return {
    'program_mib': program,
    'temp_mib': memory.temp_size_in_bytes / _MIB if memory else None,
    'images_mib': sum(s.images.nbytes for s in setup.sets) / _MIB,
    'counted_gb': traffic / 1e9 if traffic else None,
    'counted_gb_per_s': traffic / step_s / 1e9 if traffic else None,
    'counted_gmacs': flops / 2e9 if flops else None,
    'counted_gmacs_per_s': flops / 2e9 / step_s if flops else None,
    'useful_gmacs': macs / 1e9 if macs else None,
    'useful_gmacs_per_s': macs / 1e9 / step_s if macs else None,
    'counts_are_per': 'device and step, loop bodies once'
    if per_call > 1
    else 'device and step',
  }


def measure_peer(setup: setup_lib.Setup) -> list[dict[str, Any]]:
  """The variants of the PyTorch peer, one by one."""
  # Only here, since it need not be installed.
  from benchmarks import search_step_torch as torch_lib

  work = peer_lib.make_work(setup)
  rows = []
  for name in _VARIANTS.value:
    is_graph = peer_lib.VARIANTS[name].graph
    row = torch_lib.measure(
      work,
      name,
      _WARMUP.value if is_graph else min(_WARMUP.value, _EAGER_WARMUP),
      _STEPS.value if is_graph else min(_STEPS.value, _EAGER_STEPS.value),
      _BATCH.value,
    )
    setup_lib.check_params(setup.spec, row['params'])
    rows.append(row)
    print(f'peer {name}: {row["median_ms"]:.1f} ms', flush=True)
  return rows


def record(setup: setup_lib.Setup) -> dict[str, Any]:
  """The facts about a run, without results."""
  arguments = [
    a for a in sys.argv[1:] if a.lstrip('-').split('=')[0] not in _PATHS
  ]
  device = jax.devices()[0]
  return {
    'command': ' '.join(['python -m benchmarks.search_step', *arguments]),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'device': device.device_kind,
    'num_devices': setup.settings.devices,
    'jax': jax.__version__,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'settings': vars(setup.settings),
  }


def configure() -> None:
  """Settings of jax that must be there before it looks for devices."""
  flag = '--xla_force_host_platform_device_count'
  if _DEVICES.value > 1 and flag not in os.environ.get('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  jax.config.update('jax_enable_compilation_cache', bool(_CACHE.value))
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', _CACHE.value)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def write(path: str, record_of_run: Any) -> None:
  """Writes JSON, making the folder."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  pathlib.Path(path).write_text(json.dumps(record_of_run, indent=1) + '\n')


def main(_):
  configure()
  if _PEER.value:
    peer_lib.check(settings(), _VARIANTS.value)
  begun = time.perf_counter()
  setup = setup_lib.make(settings())
  setup_s = time.perf_counter() - begun
  result = record(setup) | {'setup_s': setup_s}
  if _OURS.value:
    result['ours'], profile = measure(setup)
    print(report.describe(result), flush=True)
    if _PROFILE.value:
      write(_PROFILE.value, profile)
  if _PEER.value:
    result['peer'] = measure_peer(setup)
    for row in result['peer']:
      ours = result.get('ours')
      row['ratio'] = row['median_ms'] / ours['median_ms'] if ours else None
    print(report.describe_peer(result['peer']), flush=True)
  if _JSON.value:
    write(_JSON.value, result)


if __name__ == '__main__':
  app.run(main)
