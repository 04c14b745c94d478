"""Specs and genotypes from JSON."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from typing import Any, TYPE_CHECKING, TypeVar

from hwdarts_jax.spaces.checks import check, is_int
from hwdarts_jax.spaces.spec_types import CellSpec, Choice, EdgeSpec

if TYPE_CHECKING:
  from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

T = TypeVar('T')


def loads(text: str, what: str) -> Any:
  """The JSON value in `text`; the ValueError if there is none names `what`."""
  try:
    return json.loads(text)
  except (TypeError, ValueError, RecursionError) as e:
    raise ValueError(f'{what}: not JSON ({e}).') from e


def network_from_dict(cls: type[NetworkSpec], data: Any) -> NetworkSpec:
  """See `NetworkSpec.from_dict`."""
  fields = _fields(data, cls, 'spec')
  for part in ('stem', 'cells', 'head'):
    fields[part] = tuple(
      _cell_from_dict(c, f'spec.{part}[{i}]')
      for i, c in enumerate(_items(fields[part], f'spec.{part}'))
    )
  for name in ('input_shape', 'excluded'):
    fields[name] = _items(fields[name], f'spec.{name}')
  return _build(cls, fields, 'spec')


def genotype_from_dict(cls: type[Genotype], data: Any) -> Genotype:
  """See `Genotype.from_dict`."""
  data = _check_mapping(data, 'genotype', {'space', 'cells'})
  check(
    isinstance(data['space'], str),
    'genotype.space',
    data['space'],
    'the name of a space',
  )
  check(
    isinstance(data['cells'], Mapping),
    'genotype.cells',
    data['cells'],
    'a mapping from group to a list of [op, src, dst]',
  )
  cells = {}
  for group, choices in data['cells'].items():
    field = f'genotype.cells[{group!r}]'
    check(isinstance(choices, list), field, choices, 'a list')
    cells[group] = tuple(_choice_from_list(c, field) for c in choices)
  return cls(data['space'], cells)


def _cell_from_dict(data: Any, field: str) -> CellSpec:
  fields = _fields(data, CellSpec, field)
  fields['edges'] = tuple(
    _edge_from_dict(e, f'{field}.edges[{i}]')
    for i, e in enumerate(_items(fields['edges'], f'{field}.edges'))
  )
  fields['inputs'] = tuple(
    _items(pair, f'{field}.inputs')
    for pair in _items(fields['inputs'], f'{field}.inputs')
  )
  fields['outputs'] = _items(fields['outputs'], f'{field}.outputs')
  return _build(CellSpec, fields, field)


def _edge_from_dict(data: Any, field: str) -> EdgeSpec:
  fields = _fields(data, EdgeSpec, field)
  fields['ops'] = _items(fields['ops'], f'{field}.ops')
  return _build(EdgeSpec, fields, field)


def _choice_from_list(value: Any, field: str) -> Choice:
  check(
    isinstance(value, list | tuple)
    and len(value) == 3
    and isinstance(value[0], str)
    and is_int(value[1])
    and is_int(value[2]),
    field,
    value,
    '[op, src, dst]',
  )
  return Choice(*value)


def _build(cls: type[T], fields: dict[str, Any], field: str) -> T:
  try:
    return cls(**fields)
  except ValueError as e:
    raise ValueError(f'{field}: {e}') from e


def _fields(data: Any, cls: type, field: str) -> dict[str, Any]:
  names = {f.name for f in dataclasses.fields(cls)}
  return dict(_check_mapping(data, field, names))


def _check_mapping(data: Any, what: str, keys: set[str]) -> Mapping[str, Any]:
  check(isinstance(data, Mapping), what, data, 'a JSON object')
  check(
    set(data) == keys, f'{what} keys', sorted(map(str, data)), f'{sorted(keys)}'
  )
  return data


def _items(value: Any, field: str) -> tuple[Any, ...]:
  check(isinstance(value, list | tuple), field, value, 'a list')
  return tuple(value)
