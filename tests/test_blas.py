"""Fits use one thread of BLAS, and leave the others as they were."""

import numpy as np
import threadpoolctl

from hwdarts_jax.latency import blas


def _threads():
  return {
    pool['num_threads']
    for pool in threadpoolctl.threadpool_info()
    if pool['user_api'] == 'blas'
  }


def test_a_fit_has_one_thread_and_the_rest_what_it_had():
  @blas.by_one_thread
  def fit(value, *, power):
    return np.linalg.matrix_power(value, power), _threads()

  with threadpoolctl.threadpool_limits(2, user_api='blas'):
    found, threads = fit(np.array([[2.0]]), power=3)
    assert found == 8
    assert threads == {1}
    assert _threads() == {2}
