"""What the latency predictor costs of a search step.

    python -m benchmarks.latency_cost --space=nasbench201 --json=cost.json

Times one bilevel step of `benchmarks.search_step`, whose flags say of which
supernet, and the predictor alone: its value and its gradient by the alphas, as
every step needs them, of the largest model that a fit makes in this space.
"""

from __future__ import annotations

from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import search_step
from benchmarks import search_step_report as report
from benchmarks import search_step_setup as setup_lib
from hwdarts_jax.latency import predictor as predictor_lib

_REPEATS = flags.DEFINE_integer(
  'predictor_repeats', 200, 'Evaluations of one call.'
)


def make_predictor(setup: setup_lib.Setup):
  """Jitted: alphas to their values after `_REPEATS` steps down the latency.

  One evaluation feeds the next, so that none is left out.
  """
  model = predictor_lib.LatencyPredictor(setup.spec)
  made = jax.eval_shape(model.init, jax.random.key(0), setup.state.alphas)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda v: jnp.asarray(rng.uniform(size=v.shape), jnp.float32), made
  )

  def ms(alphas):
    gates = {g: jax.nn.softmax(a) for g, a in alphas.items()}
    return model.apply(variables, gates)

  def step(alphas, _):
    slope = jax.grad(ms)(alphas)
    return jax.tree.map(lambda a, s: a - 1e-3 * s, alphas, slope), None

  return jax.jit(
    lambda alphas: jax.lax.scan(step, alphas, length=_REPEATS.value)[0]
  )


def measure(setup: setup_lib.Setup) -> dict[str, Any]:
  """Median ms of a step and of the predictor in it."""
  alphas = jax.device_get(setup.state.alphas)  # the step reuses its memory
  predict = make_predictor(setup).lower(alphas).compile()
  compiled, facts = search_step.compile_update(setup)
  call = search_step.Caller(setup, compiled)
  per_call = setup.settings.steps_per_call
  _, seconds = report.time_calls(call, flags.FLAGS.warmup, flags.FLAGS.steps)
  step = report.summarize(seconds, per_call, setup.global_batch)
  _, seconds = report.time_calls(
    lambda: jax.block_until_ready(predict(alphas)), 3, 20
  )
  predictor = report.summarize(seconds, _REPEATS.value, 1)
  return {
    'step_ms': step['median_ms'],
    'predictor_ms': predictor['median_ms'],
    'share_percent': 100 * predictor['median_ms'] / step['median_ms'],
    'compile_s': facts['compile_s'],
  }


def main(_):
  search_step.configure()
  setup = setup_lib.make(search_step.settings())
  found = search_step.record(setup)
  found['command'] = found['command'].replace('search_step', 'latency_cost')
  found |= measure(setup)
  print(
    f'{found["device"]}, {setup.settings.space}: a step takes '
    f'{found["step_ms"]:.2f} ms, the predictor {found["predictor_ms"]:.4f} ms '
    f'or {found["share_percent"]:.3f} % of it'
  )
  if flags.FLAGS.json:
    search_step.write(flags.FLAGS.json, found)


if __name__ == '__main__':
  app.run(main)
