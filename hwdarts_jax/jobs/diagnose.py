"""What a search watches of itself: rows, warnings, and an early end.

Shares of the mass and entropies are in every row and cost nothing. The top
eigenvalue of the Hessian is measured every `diagnostics.every_steps`, always
on the same images: the first batch of the validation half, not augmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import math
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np

from hwdarts_jax.bilevel import diagnostics, losses
from hwdarts_jax.bilevel.problem import Problem, SearchState
from hwdarts_jax.jobs import feeding
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import packing, sharding

Row = dict[str, Any]
_MOST_PERCENT = 5.0  # of the time; more is said
_EIGENVALUE, _STOP = 'top_eigenvalue', 'early_stop_step'
_WAYS_OUT = (
  'Ways out, each with a new --workdir: '
  '--config.regularizers="{\'beta_decay\': {}}", '
  '--config.relaxation.name=dirichlet, --config.search.auxiliary_skip=1.0 or '
  '--config.search.warmup_steps={steps}'
)


class Diagnosis:
  """Diagnostics of one search.

  Attributes:
    compiled: (state, batch, vector f32[N]) -> f32[N], the product with the
      Hessian; None before `use`, and where it is never measured.
  """

  def __init__(self, search: Any, path: epath.Path):
    self._search, self._path = search, path
    self._settings = search.config.diagnostics
    spec = search.specs.search
    self._copying = diagnostics.copying(spec)
    self._zeros = diagnostics.zeros(spec)
    self._history: list[Row] | None = None
    self._warned: set[str] = set()
    self._begun = self._spent = 0.0
    self.compiled: Any = None

  @property
  def is_measuring(self) -> bool:
    """Whether eigenvalues are measured at all."""
    return bool(self._settings.every_steps)

  def job(self, problem: Problem, state: SearchState):
    """The function to compile, evaluated as `problem` says, and its args."""
    search = self._search
    batched = sharding.batched(search.mesh)

    def product(state, batch, vector):
      image = search.normalize(batch['image'])
      batch = jax.lax.with_sharding_constraint(
        {'image': image, 'label': batch['label']}, batched
      )
      loss = losses.noiseless_val_loss(problem, state, batch)
      return diagnostics.hessian_product(loss, state.alphas, vector)

    args = state, self._batch(), np.zeros(_size(state), np.float32)
    everywhere = sharding.replicated(search.mesh)
    return jax.jit(product, out_shardings=everywhere), args

  def use(self, compiled: Any) -> None:
    """Takes the compiled function of `job`; the clock of its share starts."""
    self.compiled = compiled
    self._begun, self._spent = time.monotonic(), 0.0

  def row(self, state: SearchState, step: int) -> Row:
    """What a row of metrics gets; warns when it is time.

    Args:
      state: packed or not.
      step: number of steps done.
    """
    if self._history is None:
      rows = metrics_lib.read(self._path)
      self._history = [r for r in rows if r['step'] < step]
    probs = jax.device_get(self._search.problem.probabilities(state))
    row: Row = {
      'step': step,
      'skip_mass': diagnostics.mass(probs, self._copying),
      'zero_mass': diagnostics.mass(probs, self._zeros),
    }
    for group, entropies in diagnostics.row_entropies(probs).items():
      row[f'gate_entropies/{group}'] = entropies
      if len(probs) > 1:
        row[f'gate_entropy/{group}'] = float(entropies.mean())
    if self.is_measuring and step % self._settings.every_steps == 0:
      row |= self._measure(packing.unpacked(state))
    self._history.append(row)
    row |= self._judge(self._history)
    return {k: v for k, v in row.items() if k != 'step'}

  def _batch(self):
    search = self._search
    size = search.config.search.batch_size
    return next(feeding.whole_batches(search.val, size, search.mesh))

  def _measure(self, state: SearchState) -> Row:
    """The top eigenvalue, and what all of them have cost."""
    begun = time.monotonic()
    product = functools.partial(self.compiled, state, self._batch())
    value = diagnostics.top_eigenvalue(
      lambda v: product(v.astype(np.float32)),
      _size(state),
      self._search.config.seed,
      self._settings.num_products,
    )
    now = time.monotonic()
    self._spent += now - begun
    percent = 100 * self._spent / (now - self._begun)
    logging.info('The top eigenvalue took %.2f s.', now - begun)
    if percent > _MOST_PERCENT:
      self._warn(
        'time',
        f'Diagnostics take {percent:.1f} % of the time. '
        'A larger --config.diagnostics.every_steps makes it less.',
      )
    return {_EIGENVALUE: value, 'diagnostics_percent': percent}

  def _judge(self, rows: Sequence[Row]) -> Row:
    """Warns of what the rows show; returns what ends the search."""
    config, last = self._search.config, rows[-1]
    found = _growth(config, rows) if _EIGENVALUE in last else None
    skip = _of_skips(config, _first_mass(rows), last)
    for kind, message in _complaints(config, skip, found).items():
      self._warn(kind, message)
    stops = found is not None and config.diagnostics.early_stop
    return {_STOP: found[0]} if found and stops else {}

  def _warn(self, kind: str, message: str) -> None:
    """Prints a warning, once of each kind."""
    if kind not in self._warned and jax.process_index() == 0:
      print(f'\nWarning: {message}', flush=True)
    self._warned.add(kind)


def all_complaints(config: Any, rows: Sequence[Row]) -> dict[str, str]:
  """What a search warned of on its way, by kind, each kind once.

  Args:
    config: of the search.
    rows: of its metrics, each of which is looked at a few times.
  """
  first = _first_mass(rows)
  of_skips = (_of_skips(config, first, row) for row in rows)
  # A growth is seen as soon as it is there, and then stays the first one.
  return _complaints(
    config, next(filter(None, of_skips), None), _growth(config, rows)
  )


def _first_mass(rows: Sequence[Row]) -> float:
  """The mass of the first row on ops that copy."""
  return next((r['skip_mass'] for r in rows if 'skip_mass' in r), 0.0)


def _of_skips(config: Any, first: float, row: Row) -> str | None:
  """What is wrong with the mass on ops that copy, if it is.

  Args:
    config: of the search.
    first: that mass, of the first row.
    row: of its metrics.
  """
  if not row.get('skip_mass', 0.0) > config.diagnostics.skip_factor * first > 0:
    return None
  return (
    f'At step {row["step"]} ops that copy their input have '
    f'{100 * row["skip_mass"]:.0f} % of the mass, at first '
    f'{100 * first:.0f} %: the search may be collapsing. '
  )


def _complaints(
  config: Any, skips: str | None, growth: tuple[int, int] | None
) -> dict[str, str]:
  """Messages of what was found, with the ways out, by kind."""
  found, settings = {}, config.diagnostics
  steps = max(config.search.num_steps // 10, 1)
  ways_out = _WAYS_OUT.replace('{steps}', str(steps))
  if skips is not None:
    found['skip'] = f'{skips}{ways_out}.'
  if growth is not None:
    before, at = growth
    found['eigenvalue'] = (
      f'At step {at} the top eigenvalue of the Hessian has grown by more than '
      f'{settings.eigenvalue_factor:g} times: architectures found from here on '
      f'tend to be worse. {ways_out}, or --config.diagnostics.early_stop=true, '
      f'which returns the alphas of step {before}.'
    )
  return found


def has_stopped(row: Mapping[str, Any]) -> bool:
  """Whether a search ends early with this row."""
  return _STOP in row


def stop_step(rows: Sequence[Mapping[str, Any]]) -> int | None:
  """The step whose alphas count, if the search ended early; else None."""
  return int(rows[-1][_STOP]) if rows and has_stopped(rows[-1]) else None


def final_probabilities(
  problem: Problem, state: SearchState, rows: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
  """The distribution over ops that a search ends with, f32[E, O] a group.

  That of the last alphas, or of those before the growth of the eigenvalue.
  """
  stop = stop_step(rows)
  if stop is None:
    probs = problem.probabilities(state)
    return {g: np.asarray(p) for g, p in probs.items()}
  (row,) = (r for r in rows if r['step'] == stop)
  return {g: np.asarray(row[f'gates/{g}'], np.float32) for g in state.alphas}


def check(config: Any) -> None:
  """Checks that fields of the config go together.

  Raises:
    ValueError: they do not.
  """
  settings, every = config.diagnostics, config.search.log_every_steps
  if settings.every_steps % every:
    raise ValueError(
      f'diagnostics.every_steps is {settings.every_steps}; it must be 0 or a '
      f'multiple of search.log_every_steps = {every}.'
    )
  if settings.early_stop and not settings.every_steps:
    raise ValueError(
      'diagnostics.early_stop is true, but nothing is measured: set '
      f'--config.diagnostics.every_steps, a multiple of {every}.'
    )


def _growth(config: Any, rows: Sequence[Row]) -> tuple[int, int] | None:
  """Steps before and at the growth of the eigenvalue, if there is any."""
  settings = config.diagnostics
  start = max(settings.from_step, config.search.warmup_steps)
  measured = [
    (r['step'], r[_EIGENVALUE])
    for r in rows
    if r['step'] >= start and math.isfinite(r.get(_EIGENVALUE, math.nan))
  ]
  found = diagnostics.first_growth(
    [value for _, value in measured],
    settings.eigenvalue_factor,
    settings.window,
  )
  return found and (measured[found.before][0], measured[found.at][0])


def _size(state: SearchState) -> int:
  return sum(a.size for a in state.alphas.values())
