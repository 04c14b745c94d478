"""One environment for all tests; it is set before jax is imported."""

import os
import pathlib

import hypothesis

NUM_DEVICES = 8
pytest_plugins = ['tiny_runs', 'export_runs']

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('MPLBACKEND', 'agg')
_FLAG = '--xla_force_host_platform_device_count'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = ' '.join(
    filter(None, (os.environ.get('XLA_FLAGS'), f'{_FLAG}={NUM_DEVICES}'))
  )

import jax  # noqa: E402
import pytest  # noqa: E402

_CACHE_HOME = pathlib.Path(
  os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
)

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Programs compiled by an earlier run are taken from disk.
if jax.config.jax_compilation_cache_dir is None:
  jax.config.update(
    'jax_compilation_cache_dir', str(_CACHE_HOME / 'hwdarts_jax' / 'xla')
  )
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)

# An example may compile a program, so the time of one says nothing.
hypothesis.settings.register_profile(
  'default', deadline=None, max_examples=50, print_blob=True
)
hypothesis.settings.register_profile(
  'ci', hypothesis.settings.get_profile('default'), derandomize=True
)
hypothesis.settings.load_profile('ci' if os.environ.get('CI') else 'default')


@pytest.fixture(scope='session')
def devices() -> list[jax.Device]:
  """The virtual devices of the host."""
  found = jax.devices()
  assert len(found) == NUM_DEVICES, found
  return found


@pytest.fixture
def x64():
  """Everything in the test is float64."""
  with jax.enable_x64(True):
    yield
