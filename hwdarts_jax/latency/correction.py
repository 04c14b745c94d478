"""What a few more measurements say of a predictor that is kept as it is.

The predictor of a device may err by one factor for all networks (another
runtime, another clock) and by more for networks of some kind. Measured over
predicted latency is taken for one, plus a constant, plus a function that is
about the same for architectures unless they differ by a few ops, plus noise
(`gaussian.Regression`, which also tells readings that have gone wrong).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import numpy as np

from hwdarts_jax.latency import features, gaussian, kernels, liveness
from hwdarts_jax.spaces.spec import NetworkSpec

_MATCH_LENGTH = 1.5  # ops that may differ where errors are alike
_LEAST = 0.05  # far from what was measured a factor may fall below


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
  """Factors on predicted latencies.

  Attributes:
    spec: the space.
    regression: of measured over predicted latencies.
  """

  spec: NetworkSpec
  regression: gaussian.Regression

  def __call__(self, one_hot: Mapping[str, np.ndarray]) -> np.ndarray:
    """Factors f[N] of architectures f[N, E, O] of each group."""
    found = _kernels(self.spec, one_hot)
    ones = np.ones(len(found['common'].values))
    return np.maximum(self.regression.predict(found, ones), _LEAST)


def fit(
  spec: NetworkSpec,
  one_hot: Mapping[str, np.ndarray],
  measured_ms: np.ndarray,
  predicted_ms: np.ndarray,
) -> Correction:
  """Learns what a predictor lacks.

  Args:
    spec: the space.
    one_hot: measured architectures, one at least, for each group f[N, E, O].
    measured_ms: f[N], positive.
    predicted_ms: of the predictor that is corrected, f[N], positive.
  """
  ratio = np.asarray(measured_ms, np.float64) / np.asarray(predicted_ms)
  regression = gaussian.Regression(
    _kernels(spec, one_hot),
    ratio,
    np.ones(len(ratio)),
    np.random.default_rng(0),
  )
  return Correction(spec, regression.refine(gaussian.Tails()))


def _kernels(
  spec: NetworkSpec, one_hot: Mapping[str, np.ndarray]
) -> dict[str, gaussian.Kernel]:
  """A constant, and how alike architectures are in ops that most run."""
  paid = liveness.paid_ops(spec, one_hot, kernels.semantics(spec)[-1])
  matches = features.categories(paid)
  return {
    'common': gaussian.Kernel(np.ones((len(matches), 1))),
    'alike': gaussian.Kernel(matches, _MATCH_LENGTH),
  }
