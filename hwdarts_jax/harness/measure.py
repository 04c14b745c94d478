"""The protocol: shuffled rounds, a sentinel, and what disagrees once more.

In every round each model is read once, in another order, so that whatever
changes over time (clock, temperature, other processes) meets all models alike
and shows as a difference between the rounds of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import tqdm

from hwdarts_jax.harness.journal import Journal
from hwdarts_jax.harness.runners import Model, ModelError, Protocol, Runner
from hwdarts_jax.runtime.workdir import UserError

SENTINEL = 'sentinel'
_HOPELESS = 3  # models that fail before any other was measured


@dataclasses.dataclass(frozen=True)
class Rounds:
  """How often models are read.

  Attributes:
    rounds: of all models.
    extra_rounds: at most, of those models whose rounds differ.
    tolerance: relative difference between rounds that is still agreement.
    floor_ms: difference in milliseconds that is agreement in any case.
    sentinel_every: readings between two of the sentinel.
    seed: of the order.
  """

  rounds: int = 3
  extra_rounds: int = 4
  tolerance: float = 0.05
  floor_ms: float = 0.0003
  sentinel_every: int = 20
  seed: int = 0

  def __post_init__(self):
    if self.rounds < 1:
      raise UserError(f'--rounds is {self.rounds}; it must be at least 1.')


@dataclasses.dataclass(frozen=True)
class Result:
  """What a model needs.

  Attributes:
    ms: median of the rounds, in milliseconds.
    runs: timed runs in all rounds.
    rounds: how many there were.
    spread_ms: between the slowest and the fastest round; where the model was
      read once more, of the majority of rounds that is nearest to the median.
    noisy: whether that is still more than the tolerance.
  """

  ms: float
  runs: int
  rounds: int
  spread_ms: float
  noisy: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a run has found.

  Attributes:
    results: by name of the model.
    failed: why a model could not be measured, by its name.
    drift: relative range of the sentinel, None without one.
    remarks: of all readings, each once.
  """

  results: Mapping[str, Result]
  failed: Mapping[str, str]
  drift: float | None
  remarks: tuple[str, ...]


def run(
  runner: Runner,
  models: Sequence[Model],
  sentinel: Model | None,
  journal: Journal,
  protocol: Protocol,
  rounds: Rounds,
) -> Outcome:
  """Reads all models; what the journal has already is not read again.

  Raises:
    DeviceError: the device cannot go on.
    UserError: the journal cannot be written.
  """
  session = _Session(runner, sentinel, journal, protocol, rounds)
  runner.ready(session.unread(models))
  session.begin(models)
  for number in range(rounds.rounds + rounds.extra_rounds):
    left = models if number < rounds.rounds else session.disagreeing(models)
    session.round(number, [m for m in left if m.name not in session.failed])
  return session.outcome(models)


def summarize(ms: Sequence[float], runs: int, rounds: Rounds) -> Result:
  """The result of a model from its readings, one from each round."""
  ordered = np.sort(np.asarray(ms, np.float64))
  value = float(np.median(ordered))
  count = len(ordered)
  kept = count if count <= rounds.rounds else max(rounds.rounds, count // 2 + 1)
  # Of all such runs of neighbours the narrowest holds the median, if more than
  # half are kept.
  spread = float((ordered[kept - 1 :] - ordered[: count - kept + 1]).min())
  noisy = spread > max(rounds.tolerance * value, rounds.floor_ms)
  return Result(value, runs, count, spread, noisy)


class _Session:
  """One run over all models, resumed from a journal."""

  def __init__(
    self,
    runner: Runner,
    sentinel: Model | None,
    journal: Journal,
    protocol: Protocol,
    rounds: Rounds,
  ):
    self._runner, self._sentinel, self._journal = runner, sentinel, journal
    self._protocol, self._rounds = protocol, rounds
    self.failed: dict[str, str] = {}
    self._ms: dict[str, dict[int, float]] = {}
    self._runs: dict[str, int] = {}
    self._remarks: dict[str, None] = {}
    self._sentinel_ms: list[float] = []
    self._count = 0
    for line in journal.readings:
      self._take(line)

  def unread(self, models: Sequence[Model]) -> list[Model]:
    """The models that lack a reading of some round."""
    wanted = set(range(self._rounds.rounds))
    return [m for m in models if wanted - set(self._ms.get(m.name, {}))]

  def begin(self, models: Sequence[Model]) -> None:
    """Starts the progress bar."""
    names = {m.name for m in models}
    done = sum(len(v) for k, v in self._ms.items() if k in names)
    self._bar = tqdm.tqdm(
      total=max(done, len(models) * self._rounds.rounds),
      initial=done,
      desc='measure',
      unit='reading',
      dynamic_ncols=True,
    )

  def round(self, number: int, models: Sequence[Model]) -> None:
    """Reads every model that has no reading in this round."""
    order = np.random.default_rng([self._rounds.seed, number]).permutation(
      len(models)
    )
    left = [models[i] for i in order]
    left = [m for m in left if number not in self._ms.get(m.name, {})]
    if number >= self._rounds.rounds:
      self._bar.total += len(left)
      self._bar.refresh()
    for model in left:
      due = self._count % self._rounds.sentinel_every == 0
      if due and self._sentinel and self._sentinel.name not in self.failed:
        self._read(self._sentinel, SENTINEL, number)
      self._count += 1
      if model.name not in self.failed:
        self._read(model, model.name, number)
      self._bar.update()

  def disagreeing(self, models: Sequence[Model]) -> list[Model]:
    """The models whose rounds differ."""
    return [m for m in models if m.name in self._ms and self._of(m).noisy]

  def outcome(self, models: Sequence[Model]) -> Outcome:
    """What was found of the models."""
    self._bar.close()
    drift = None
    if self._sentinel_ms:
      drift = float(np.ptp(self._sentinel_ms) / np.median(self._sentinel_ms))
    return Outcome(
      {
        m.name: self._of(m)
        for m in models
        if m.name in self._ms and m.name not in self.failed
      },
      dict(self.failed),
      drift,
      tuple(self._remarks),
    )

  def _of(self, model: Model) -> Result:
    ms = list(self._ms[model.name].values())
    return summarize(ms, self._runs[model.name], self._rounds)

  def _read(self, model: Model, name: str, number: int) -> None:
    try:
      reading = self._runner.measure(model, self._protocol)
      if not (math.isfinite(reading.ms) and reading.ms >= 0):
        raise ModelError(f'{model.name} was measured at {reading.ms} ms.')
    except ModelError as e:
      self.failed[model.name] = str(e)
      if not self._ms and len(self.failed) >= _HOPELESS:
        self._bar.close()
        raise
      return
    line = {'model': name, 'round': number, **dataclasses.asdict(reading)}
    self._journal.add_reading(line)
    self._take(line)

  def _take(self, line: Mapping[str, Any]) -> None:
    name = line['model']
    self._remarks.update(dict.fromkeys(line['remarks']))
    if name == SENTINEL:
      self._sentinel_ms.append(line['ms'])
      return
    self._ms.setdefault(name, {})[line['round']] = line['ms']
    self._runs[name] = self._runs.get(name, 0) + line['runs']
