"""Runners: what takes a converted model to a device and times it there.

A runner is one module of this package, named after it, with two things:

- ``Settings``, a frozen dataclass whose fields are texts, numbers or booleans
  with defaults. They are given as ``--runner=adb:serial=XYZ,threads=4``.
- ``make(settings) -> Runner``.

The core asks for one `Reading` of every model in each of several shuffled
rounds and makes table entries of them; a runner knows nothing of entries,
rounds or tables.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
import dataclasses
import importlib
import pathlib
import pkgutil
from typing import Any, ClassVar, get_type_hints

from hwdarts_jax.runtime.workdir import UserError

FORMATS = ('tflite', 'onnx', 'jax')
# Settings that tell nothing about a measurement, but something about its owner.
_WHERE = (
  'adb',
  'binary',
  'config',
  'directory',
  'host',
  'identity',
  'port',
  'python',
  'serial',
  'upload',
)
DTYPES = ('float32', 'float16', 'bfloat16', 'int8')


class DeviceError(UserError):
  """The device cannot go on: the run ends, and can be resumed.

  No device, two and none named, not authorised, vanished, binary missing or
  not executable, no space left. The message is one sentence, or two: what
  happened, and what to do.
  """


class ModelError(UserError):
  """This one model cannot be measured; others may well be.

  The delegate refused it or silently did not apply, it ran into its time
  limit, the runtime lacks an op. The run goes on with the other models, names
  this one at the end and exits with an error. If the first few models all
  fail, it ends at once.
  """


@dataclasses.dataclass(frozen=True)
class Model:
  """A converted model.

  Attributes:
    name: key of the operation, or `network/<number>`; for messages. Not a
      file name: it has slashes.
    path: the file, of the runner's format; its name is unique in a run, has no
      spaces and ends in `.tflite`, `.onnx` or `.jax`.
    dtype: one of `DTYPES`; an ONNX file is float32 whatever this says, since
      its runtimes convert by themselves.
    batch: images in one input.
    input_shape: of its only input, the batch included.
  """

  name: str
  path: pathlib.Path
  dtype: str
  batch: int
  input_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How long one reading takes.

  Attributes:
    warmup_runs: untimed runs before it.
    min_runs: timed runs, at least.
    min_ms: milliseconds of timed runs, at least.
    timeout_s: what takes longer than this has hung.
  """

  warmup_runs: int = 5
  min_runs: int = 60
  min_ms: float = 60.0
  timeout_s: float = 120.0


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a model needed in one round.

  Attributes:
    ms: milliseconds of one inference: the median of the timed runs where the
      runtime tells it, else what `Description.statistic` says.
    runs: timed runs.
    remarks: what a reader of the table has to know, such as a temperature;
      equal ones are written once.
  """

  ms: float
  runs: int
  remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Description:
  """What runs the models, for the header of the table; None if not known.

  Attributes:
    soc: the chip.
    runtime: such as 'LiteRT' or 'TensorRT'.
    runtime_version: its version.
    delegate: accelerator back end, such as 'XNNPACK' or 'NNAPI eden-drv'.
    threads: CPU threads.
    affinity: CPU cores the process was pinned to.
    statistic: what a reading is, such as 'median of CPU time'.
    facts: JSON-able facts about the device: model, serial-free build, governor.
    remarks: notes for the table.
  """

  soc: str | None
  runtime: str
  runtime_version: str | None
  delegate: str | None
  threads: int | None
  affinity: str | None
  statistic: str
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  remarks: tuple[str, ...] = ()


class Runner(abc.ABC):
  """Times models on one device.

  The core calls `prepare` and `ready` once, `measure` many times from one
  thread, and `close` at the end, whatever happened. A context manager does the
  last.

  Attributes:
    model_format: one of `FORMATS`: what `measure` is given.
    overhead_s: about how many seconds a reading takes beside its runs (push,
      start of a process); for the estimate of `--dry_run`.
  """

  model_format: ClassVar[str] = 'tflite'
  overhead_s: ClassVar[float] = 0.0

  @property
  def dtypes(self) -> tuple[str, ...]:
    """Those of `DTYPES` that it measures."""
    return ('float32', 'float16', 'int8')

  @abc.abstractmethod
  def prepare(self) -> Description:
    """Finds the device, checks that it can measure, and describes it.

    Raises:
      DeviceError: it cannot.
    """

  @abc.abstractmethod
  def measure(self, model: Model, protocol: Protocol) -> Reading:
    """Takes one reading.

    A model comes again in every round. What the runner keeps of it on the
    device until `close` is its own affair, as long as a device that is
    rebooted in between is no harm.

    Raises:
      DeviceError: the device cannot go on.
      ModelError: this model cannot be measured.
    """

  def ready(self, models: Sequence[Model]) -> None:  # noqa: B027
    """Does beforehand what the first readings of models would wait for.

    Called once, after `prepare`, with the models that have readings to come.
    A model that cannot be made ready says so when it is measured.

    Raises:
      DeviceError: the device cannot go on.
    """

  def finish(self) -> tuple[str, ...]:
    """Remarks for the table after the last reading, such as temperatures."""
    return ()

  def close(self) -> None:  # noqa: B027, most have nothing to clean up
    """Removes what was left on the device; never raises."""

  def __enter__(self) -> Runner:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def names() -> list[str]:
  """Names of all runners."""
  return sorted(
    m.name for m in pkgutil.iter_modules(__path__) if m.name[0] != '_'
  )


def make(text: str) -> Runner:
  """Makes the runner that `text` names, such as ``host:threads=2``.

  Raises:
    UserError: there is none, or it has no such setting.
  """
  name, _, arguments = text.partition(':')
  if name not in names():
    raise UserError(f'--runner is {name!r}; known runners are {names()}.')
  module = importlib.import_module(f'{__name__}.{name}')
  return module.make(_parse(name, module.Settings, arguments))


def published(text: str) -> str:
  """`text` as in `make`, without settings that say where a device is."""
  name, _, arguments = text.partition(':')
  kept = [
    item
    for item in filter(None, arguments.split(','))
    if item.partition('=')[0] not in _WHERE
  ]
  return f'{name}:{",".join(kept)}' if kept else name


def _parse(name: str, settings: type, arguments: str) -> Any:
  """Settings of a runner from ``key=value,flag``; a name alone means true."""
  types = get_type_hints(settings)
  values = {}
  for item in filter(None, arguments.split(',')):
    key, equals, text = item.partition('=')
    if key not in types:
      raise UserError(
        f'--runner={name} has no setting {key!r}; it has {sorted(types)}.'
      )
    values[key] = _convert(name, key, text if equals else 'true', types[key])
  try:
    return settings(**values)
  except ValueError as e:
    raise UserError(f'--runner={name}: {e}') from e


def _convert(name: str, key: str, text: str, kind: type) -> Any:
  if kind is bool and text in ('true', 'false'):
    return text == 'true'
  try:
    if kind is not bool:
      return kind(text)
  except ValueError:
    pass
  allowed = {bool: 'true or false', int: 'a whole number', float: 'a number'}
  raise UserError(
    f'--runner={name}:{key} is {text!r}; it must be {allowed[kind]}.'
  )
