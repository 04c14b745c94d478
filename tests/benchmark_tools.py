"""Imports tools of `benchmarks` side by side: flags of theirs share names."""

import contextlib
import importlib

from absl import flags

_OWN = {}  # flags of each tool, by their name


def load(name):
  """Imports `benchmarks.<name>`; its flags are there inside `own_flags`."""
  every = flags.FLAGS._flags()
  before = dict(every)
  every.clear()
  module = importlib.import_module(f'benchmarks.{name}')
  found = dict(every)
  of_tools = {
    n
    for n in found
    if flags.FLAGS.find_module_defining_flag(n).startswith('benchmarks.')
  }
  _OWN[name] = {n: found[n] for n in of_tools}
  every.clear()
  every.update({n: f for n, f in found.items() if n not in of_tools} | before)
  return module


@contextlib.contextmanager
def own_flags(name):
  """Flags are those of a tool that was loaded, besides those of all."""
  every = flags.FLAGS._flags()
  before = dict(every)
  every.update(_OWN[name])
  yield
  every.clear()
  every.update(before)
