"""What can be chosen: search spaces as data. No jax is imported here."""

from __future__ import annotations

import importlib
import json
import pkgutil
import reprlib

from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

_NOT_SPACES = (
  'blocks',
  'checks',
  'discretize',
  'spec',
  'spec_json',
  'spec_sites',
  'spec_types',
)
# Their networks have no choices: there is nothing to search.
_FIXED = ('references',)


def names() -> list[str]:
  """Names of all spaces that can be searched.

  They are the modules of this package that have `make`, but for those whose
  networks are fixed.
  """
  return [n for n in makers() if n not in _FIXED]


def makers() -> list[str]:
  """What `make` knows: `names`, and modules of fixed networks."""
  found = (m.name for m in pkgutil.iter_modules(__path__))
  return sorted(n for n in found if n not in _NOT_SPACES)


def make(name: str, **kwargs) -> NetworkSpec:
  """Returns the space or fixed network `name`, made with `kwargs`.

  Raises:
    ValueError: there is no such space, or it has no such setting.
  """
  if name not in makers():
    raise ValueError(f'space.name is {name!r}; known are {makers()}.')
  module = importlib.import_module(f'hwdarts_jax.spaces.{name}')
  try:
    return module.make(**kwargs)
  except TypeError as e:
    raise ValueError(f'space {name!r}: {e}.') from e


def to_text(genotype: Genotype) -> str:
  """The usual notation of the genotype's space, else its JSON."""
  module = importlib.import_module(f'hwdarts_jax.spaces.{genotype.space}')
  if hasattr(module, 'to_arch_string'):
    return module.to_arch_string(genotype)
  return json.dumps(genotype.to_dict()['cells'])


def from_text(space: str, text: str) -> Genotype:
  """Inverse of `to_text`; takes the JSON of a genotype as well.

  Args:
    space: name of the space.
    text: the usual notation of the space, JSON of `Genotype.to_dict` or of its
      cells alone, or the content of a genotype.json.

  Raises:
    ValueError: it is none of them.
  """
  module = importlib.import_module(f'hwdarts_jax.spaces.{space}')
  text = text.strip()
  if hasattr(module, 'from_arch_string') and not text.startswith('{'):
    return module.from_arch_string(text)
  try:
    data = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(
      f'genotype is {reprlib.repr(text)}; it must be JSON such as '
      f'{{"space": "{space}", "cells": {{group: [[op, src, dst], ...]}}}}.'
    ) from e
  if isinstance(data, dict) and 'genotype' in data:
    data = data['genotype']
  if isinstance(data, dict) and not {'space', 'cells'} & set(data):
    data = {'space': space, 'cells': data}
  return Genotype.from_dict(data)
