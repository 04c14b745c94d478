"""Traced programs are found again, and never where anything has changed."""

import contextlib
import dataclasses
import logging
import os
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwdarts_jax.runtime import programs, sharding


class State(NamedTuple):
  """With a typed key, like the states of searches."""

  params: dict[str, jax.Array]
  rng: jax.Array


@dataclasses.dataclass(eq=False)
class Traced:
  """A step that knows how often it was traced."""

  factor: float = 1.0
  count: int = 0

  def __call__(self, state, batch):
    self.count += 1
    params = {
      k: self.factor * v + jax.random.normal(state.rng, v.shape)
      for k, v in state.params.items()
    }
    return state._replace(params=params), {'sum': (params['b'] * batch).sum()}


@pytest.fixture
def cache(tmp_path):
  """A cache of JAX in a folder of its own."""
  before = jax.config.values['jax_compilation_cache_dir']
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before)


def _run(step, facts, size=3):
  """Results of a step from one state, and the program's own memory of it."""
  mesh = sharding.make_mesh(1)
  state = sharding.replicate(
    State({'b': jnp.arange(float(size)) + 1}, jax.random.key(5)), mesh
  )
  args = state, jnp.full((size,), 2.0)
  compiled = programs.find_or_trace(
    jax.jit(step, donate_argnums=0), args, facts
  ).compile()
  new, metrics = compiled(*args)
  assert isinstance(new, State)
  assert state.params['b'].is_deleted(), 'the state is taken over'
  return np.asarray(new.params['b']), float(metrics['sum'])


def test_a_second_start_traces_nothing_and_computes_the_same(cache):
  first, second, direct = Traced(), Traced(), Traced()
  params, total = _run(first, {'a': 1})
  again, same_total = _run(second, {'a': 1})
  assert (first.count, second.count) == (1, 0)
  np.testing.assert_array_equal(params, again)
  assert total == same_total
  state = State({'b': jnp.arange(3.0) + 1}, jax.random.key(5))
  expected, metrics = direct(state, jnp.full((3,), 2.0))
  np.testing.assert_allclose(params, expected.params['b'], rtol=1e-6)
  assert total == pytest.approx(float(metrics['sum']), rel=1e-6)


@pytest.mark.parametrize('what', ['fact', 'setting', 'source', 'version'])
def test_whatever_changes_is_traced_anew(cache, monkeypatch, what):
  params, _ = _run(Traced(), {'a': 1})
  changed, facts = Traced(factor=3.0), {'a': 1}
  context = contextlib.nullcontext()
  if what == 'fact':
    facts = {'a': 2}
  elif what == 'setting':
    context = jax.default_matmul_precision('highest')
  elif what == 'source':
    own = programs._file_digest
    monkeypatch.setattr(
      programs,
      '_file_digest',
      lambda f: 'new' if f.name == 'hypergrad.py' else own(f),
    )
  else:
    monkeypatch.setattr(programs.importlib.metadata, 'version', lambda _: '9')
  with context:
    other, _ = _run(changed, facts)
  assert changed.count == 1
  np.testing.assert_allclose(other - params, [2, 4, 6], rtol=1e-5)


def test_a_module_of_the_users_own_is_a_source(cache, monkeypatch, tmp_path):
  module = tmp_path / 'my_ops.py'
  module.write_text('KERNEL = 3\n')
  monkeypatch.syspath_prepend(tmp_path)
  import my_ops  # noqa: F401  # ty: ignore

  before = programs.digest_of_modules(['my_ops']), programs._sources()
  module.write_text('KERNEL = 5\n')
  programs._file_digest.cache_clear()
  after = programs.digest_of_modules(['my_ops']), programs._sources()
  assert before[0] != after[0]
  assert before[1] != after[1]


def test_modules_whose_file_never_was_are_no_sources(monkeypatch):
  before = programs._sources()
  module = types.ModuleType('classes')
  module.__file__ = '_classes.py'  # as `torch.classes` has it
  monkeypatch.setitem(sys.modules, 'classes', module)
  assert programs._sources() == before


def test_ops_without_a_file_are_not_kept():
  assert programs.digest_of_modules(['sys']) is None


def test_other_shapes_are_other_programs(cache):
  _run(Traced(), {})
  other = Traced()
  assert len(_run(other, {}, size=5)[0]) == 5
  assert other.count == 1


def test_a_damaged_program_is_traced_again_which_is_said(cache, capsys):
  _run(Traced(), {})
  (path,) = (cache / 'traced').iterdir()
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  again, third = Traced(), Traced()
  _run(again, {})
  assert again.count == 1
  assert f'{path} is damaged' in capsys.readouterr().out
  _run(third, {})
  assert third.count == 0, 'the good one has taken its place'


def test_programs_of_other_users_are_not_read(cache, monkeypatch, caplog):
  _run(Traced(), {})
  monkeypatch.setattr(os, 'getuid', lambda: 12345)
  with caplog.at_level(logging.WARNING):
    again = Traced()
    _run(again, {})
  assert again.count == 1


def test_without_facts_nothing_is_kept(cache):
  _run(Traced(), None)
  assert not (cache / 'traced').exists()


def test_only_the_newest_are_kept(cache, monkeypatch):
  monkeypatch.setattr(programs, '_MOST_KEPT', 2)
  for i in range(3):
    _run(Traced(), {'i': i})
  newest, oldest = Traced(), Traced()
  _run(newest, {'i': 2})
  _run(oldest, {'i': 0})
  assert (newest.count, oldest.count) == (0, 1)
