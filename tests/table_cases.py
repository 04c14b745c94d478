"""Small latency tables and genotypes."""

import numpy as np

from hwdarts_jax.latency.table import LatencyTable
from hwdarts_jax.spaces import discretize, nasbench201

SPEC = nasbench201.make()
HASH = SPEC.spec_hash()


def small_table(**kwargs):
  return LatencyTable(
    **{'device': 'bench', 'kind': 'measured', 'source': {}, **kwargs}
  )


def random_genotype(spec, seed):
  rng = np.random.default_rng(seed)
  groups = spec.groups().items()
  return discretize.derive(
    spec, {g: rng.normal(size=s.shape) for g, s in groups}
  )
