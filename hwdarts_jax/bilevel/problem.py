"""What a search optimizes, and the state that it carries from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from hwdarts_jax.bilevel import dual, exploration, relax
from hwdarts_jax.models import fused
from hwdarts_jax.models import network as network_lib

Tree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class SearchState(struct.PyTreeNode):
  """Everything that a search is; the whole checkpoint.

  Attributes:
    step: i32[], bilevel steps done.
    params: network weights.
    batch_stats: running statistics of batch norms.
    alphas: for each group f32[E, O].
    params_opt: optimizer state of params.
    alphas_opt: optimizer state of alphas.
    multiplier: f32[], weight of the hardware cost.
    rng: typed key; folded with the step, never changed.
    duals: of each constraint, by name: its target and its own multiplier.
  """

  step: jax.Array
  params: Tree
  batch_stats: Tree
  alphas: dict[str, jax.Array]
  params_opt: Tree
  alphas_opt: Tree
  multiplier: jax.Array
  rng: jax.Array
  duals: dict[str, dual.Dual] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a search optimizes, and by what means.

  Attributes:
    network: the supernet, in the plain or the fused evaluation.
    latency: gates -> expected ms of the deploy spec, f[].
    params_optimizer: of params.
    alphas_optimizer: of alphas.
    num_steps: length of the search; sets the temperature schedule.
    warmup_steps: steps before alphas start to move.
    learning_rate: step -> learning rate of params, for estimators that need
      it.
    relaxation: name in `relax.RELAXATIONS`.
    temperature_start: of the relaxation, at the first step.
    temperature_end: at the last step.
    hypergrad: name in `hypergrad.HYPERGRADS`.
    hypergrad_settings: keyword arguments of the estimator.
    objective: name in `objective.OBJECTIVES`.
    reference_ms: latency that counts as one in relative objectives.
    batch_parts: a batch is evaluated in this many parts, to save memory.
    regularizers: settings of those in `regularizers.REGULARIZERS` that are
      added to the objective, by name.
    auxiliary_skip: coefficient of an extra identity on every searched edge at
      the first step; decays to 0 at the last (`exploration.auxiliary_skip`).
    warmup_gates: name in `exploration.WARMUP_GATES`.
    constraints: on expected costs; `SearchState.duals` has one dual of each.
    dual: how their multipliers are found.
  """

  network: network_lib.Network | fused.FusedNetwork
  latency: Callable[[Mapping[str, jax.Array]], jax.Array]
  params_optimizer: optax.GradientTransformation
  alphas_optimizer: optax.GradientTransformation
  num_steps: int
  warmup_steps: int = 0
  learning_rate: Callable[[jax.Array], jax.Array] | None = None
  relaxation: str = 'softmax'
  temperature_start: float = 1.0
  temperature_end: float = 1.0
  hypergrad: str = 'lookahead'
  hypergrad_settings: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )
  objective: str = 'relative'
  reference_ms: float = 1.0
  batch_parts: int = 1
  regularizers: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  auxiliary_skip: float = 0.0
  warmup_gates: str = 'relaxed'
  constraints: tuple[dual.Constraint, ...] = ()
  dual: dual.Settings = dual.Settings()

  @property
  def takes_both_batches(self) -> bool:
    """Whether one pass over the network serves both levels."""
    return self.hypergrad == 'first_order' and isinstance(
      self.network, fused.FusedNetwork
    )

  def progress(self, step: jax.Array | int) -> jax.Array:
    """How much of the search is done at `step`: 0 at the first, 1 at the last.

    Returns:
      f32[].
    """
    return jnp.clip(jnp.asarray(step) / max(self.num_steps - 1, 1), 0.0, 1.0)

  def temperature(self, step: jax.Array | int) -> jax.Array:
    """Temperature of the relaxation at `step`."""
    return relax.temperature_at(
      self.progress(step), self.temperature_start, self.temperature_end
    )

  def gates(
    self, alphas: Mapping[str, jax.Array], step: jax.Array, rng: jax.Array
  ) -> dict[str, jax.Array]:
    """The gates of a step, for each group f[E, O]; samples depend on `rng`."""
    gates = relax.gates(self.relaxation, alphas, self.temperature(step), rng)
    warmup = exploration.WARMUP_GATES[self.warmup_gates]
    if warmup is not None and self.warmup_steps:
      early = warmup(gates, rng)
      warm = step < self.warmup_steps
      gates = {g: jnp.where(warm, early[g], gates[g]) for g in gates}
    return self._with_auxiliary_skip(gates, step)

  def evaluation_gates(self, state: SearchState) -> dict[str, jax.Array]:
    """Gates without noise at `state`, for each group f[E, O]."""
    gates = relax.evaluation_gates(
      self.relaxation, state.alphas, self.temperature(state.step)
    )
    return self._with_auxiliary_skip(gates, state.step)

  def _with_auxiliary_skip(self, gates, step):
    if not self.auxiliary_skip:
      return gates
    return exploration.auxiliary_skip(
      self.network.spec, gates, self.auxiliary_skip * (1 - self.progress(step))
    )

  def probabilities(self, state: SearchState) -> dict[str, jax.Array]:
    """Distribution over ops at `state`: for each group f32[E, O]."""
    return relax.probabilities(
      self.relaxation, state.alphas, self.temperature(state.step)
    )


def init_state(
  problem: Problem,
  seed: int,
  multiplier: float,
  alphas_scale: float = 1e-3,
  targets: Mapping[str, float] | None = None,
) -> SearchState:
  """Returns the state before the first step.

  Alphas start near zero with a little noise that breaks ties, as in DARTS.

  Args:
    problem: what is optimized.
    seed: of params, alphas and the steps.
    multiplier: fixed weight of the hardware cost.
    alphas_scale: standard deviation of the first alphas.
    targets: of each constraint of the problem, in the unit of its cost.
  """
  # Op by op; hundreds of tiny programs are compiled sooner for the host.
  with jax.default_device(_host()):
    return _init_state(problem, seed, multiplier, alphas_scale, targets)


def _host():
  """The first CPU, None where JAX_PLATFORMS leaves it out."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return None


def _init_state(problem, seed, multiplier, alphas_scale, targets):
  network_rng, alphas_rng, step_rng = _keys(seed)
  variables = network_lib.init(problem.network, network_rng)
  return SearchState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    params_opt=jax.jit(problem.params_optimizer.init)(variables['params']),
    rng=step_rng,
    **_of_alphas(problem, alphas_rng, multiplier, alphas_scale, targets),
  )


def init_alphas(
  problem: Problem,
  seed: int,
  multiplier: float,
  alphas_scale: float = 1e-3,
  targets: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """Returns the fields of `init_state` that do not depend on params."""
  with jax.default_device(_host()):
    _, alphas_rng, _ = _keys(seed)
    return _of_alphas(problem, alphas_rng, multiplier, alphas_scale, targets)


def _keys(seed: int) -> jax.Array:
  """Keys of the network, of the alphas and of the steps."""
  return jax.random.split(jax.random.key(seed), 3)


def _of_alphas(problem, rng, multiplier, alphas_scale, targets):
  groups = problem.network.spec.groups()
  alphas = {
    g: alphas_scale
    * jax.random.normal(jax.random.fold_in(rng, i), groups[g].shape)
    for i, g in enumerate(sorted(groups))
  }
  return {
    'alphas': alphas,
    'alphas_opt': problem.alphas_optimizer.init(alphas),
    'multiplier': jnp.asarray(multiplier, jnp.float32),
    'duals': {
      c.name: dual.start((targets or {})[c.name]) for c in problem.constraints
    },
  }
