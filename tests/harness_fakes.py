"""A device that takes as long as the size of a model says; for tests."""

from __future__ import annotations

import collections
import pathlib
import zlib

import numpy as np

from hwdarts_jax.harness import convert, plan, runners, session
from hwdarts_jax.harness.convert import Converted
from hwdarts_jax.harness.measure import Rounds
from hwdarts_jax.harness.runners import Description, DeviceError, Reading

SETTINGS = {'features': 4, 'num_cells': 1, 'image_size': 8}


class Device(runners.Runner):
  """Remembers what it was asked.

  Attributes:
    asked: names of the models, in order.
    made_ready: names of the models that it was to make ready.
    breaks_after: readings until it vanishes.
    refuses: names of models that it cannot run.
    noise: (name, how often it was read) -> factor of the latency.
  """

  model_format = 'jax'

  def __init__(self):
    self.asked: list[str] = []
    self.made_ready: list[str] = []
    self.breaks_after = 10**9
    self.refuses: set[str] = set()
    self.noise = lambda name, count: 1.0
    self.threads = 1
    self.closed = 0
    self._counts: collections.Counter[str] = collections.Counter()

  def prepare(self):
    return Description(
      soc='paper',
      runtime='none',
      runtime_version='1',
      delegate=None,
      threads=self.threads,
      affinity=None,
      statistic='made up',
    )

  def ready(self, models):
    self.made_ready = [m.name for m in models]

  def measure(self, model, protocol):
    if len(self.asked) >= self.breaks_after:
      raise DeviceError('The device vanished. Plug it in.')
    if model.name in self.refuses:
      raise runners.ModelError(f'{model.name} was refused.')
    self.asked.append(model.name)
    self._counts[model.name] += 1
    ms = truth(model.name) * self.noise(model.name, self._counts[model.name])
    return Reading(ms, protocol.min_runs)

  def close(self):
    self.closed += 1


def truth(name: str) -> float:
  """Milliseconds that a model takes."""
  return 0.1 + zlib.crc32(name.encode()) % 1000 / 100


def use(monkeypatch, device: Device) -> Device:
  """Makes it the runner `fake`, and conversion quick."""
  make = runners.make
  monkeypatch.setattr(
    runners, 'make', lambda text: device if text == 'fake' else make(text)
  )
  monkeypatch.setattr(convert, 'network', lambda spec: None)
  monkeypatch.setattr(
    convert,
    'convert',
    lambda function, shape, target, name: Converted(
      name.encode(), 0 if name.startswith(('none', 'skip')) else 1
    ),
  )
  return device


def request(
  out: pathlib.Path, networks: int = 4, **settings
) -> session.Request:
  """A small table of NAS-Bench-201 by the runner `fake`."""
  planned = settings.pop('plan', None)
  if planned is None:
    planned = plan.make('nasbench201', SETTINGS, networks)
  settings.setdefault('rounds', Rounds())
  return session.Request(plan=planned, out=out, runner='fake', **settings)


def partial(out: pathlib.Path) -> pathlib.Path:
  """Where a table is kept until it is whole."""
  return out.with_name(out.name + '.partial')


def additive_table_ms(spec, one_hot, table) -> np.ndarray:
  """Sums of entries of NAS-Bench-201: live ops, merged, and sums of edges."""
  from hwdarts_jax.latency import cost, liveness, predictor

  entries = cost.of_entries(spec, table)
  return predictor.sum_costs(spec, entries, one_hot, liveness.MERGED)
