"""Mutates JSON files, and reads them as the jobs do."""

from __future__ import annotations

import collections
from collections.abc import Callable
import copy
import functools
import json
import pathlib
import random
import time
from typing import Any

from etils import epath
import ml_collections

from configs import common as configs
from hwdarts_jax import spaces
from hwdarts_jax.jobs import genotype_files, settings
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.runtime import workdir
from hwdarts_jax.spaces import discretize, spec_json
from hwdarts_jax.spaces.spec import NetworkSpec

_MOST_SECONDS = 10.0
_ODD = (
  None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, '',
  'x', '\x00', '../../etc/passwd', '__import__("os")', 'é' * 999, [], {}, [[]],
  {'': None}, float('nan'), float('inf'), [1] * 999, 'none', 'skip_connect',
)  # fmt: skip
_SPEC = {
  'features': 2,
  'num_cells': 1,
  'num_classes': 2,
  'image_size': 8,
  'image_channels': 1,
}


@functools.cache
def _spec() -> NetworkSpec:
  return spaces.make('nasbench201', **_SPEC)


@functools.cache
def _texts() -> dict[str, str]:
  """A good file of each kind."""
  spec = _spec()
  found = discretize.derive(spec, discretize.uniform(spec)).to_dict()
  entries = {
    site.key(op): table_lib.Entry(1.0 + i, None, None, None)
    for site in spec.sites()
    for i, op in enumerate(site.ops)
  }
  table = table_lib.LatencyTable(
    device='toy', kind='estimated', source={'what': 'toy'}, entries=entries
  )
  config = configs.search_config('configs/pixel4.py', 'pixel4_cpu').to_dict()
  record = {'config': config, 'versions': {'jax': '0'}, 'hashes': {'a': 'b'}}
  return {
    'genotype': json.dumps({'genotype': found, 'target_ms': 8.0}),
    'table': json.dumps(table.to_dict()),
    'spec': spec.to_json(),
    'settings': json.dumps(json.loads(json.dumps(config))),
    'record': json.dumps(record),
  }


def _read_genotype(path: pathlib.Path) -> None:
  section = ml_collections.ConfigDict(
    {'search_workdir': '', 'genotype': str(path)}
  )
  genotype_files.read('retrain', section, _spec())


def _read_record(path: pathlib.Path) -> None:
  config = json.loads(_texts()['record'])['config']
  workdir.prepare(epath.Path(path.parent), config, hashes={'a': 'b'})


def _read_settings(path: pathlib.Path) -> None:
  data = spec_json.loads(path.read_text(errors='replace'), 'settings')
  if not isinstance(data, dict):
    raise ValueError('no section')  # flags make sure of that
  settings.check(data)


READERS: dict[str, Callable[[pathlib.Path], Any]] = {
  'genotype': _read_genotype,
  'table': lambda path: table_lib.load(path).check_covers(_spec()),
  'spec': lambda path: NetworkSpec.from_json(
    path.read_text(errors='replace')
  ).sites(),
  'settings': _read_settings,
  'record': _read_record,
}


def fuzz(
  kind: str, count: int, rng: random.Random, folder: pathlib.Path
) -> dict[str, int]:
  """Mutates a file `count` times; anything but `ValueError` gets through.

  Returns:
    How many were 'read' and how many 'refused'.

  Raises:
    AssertionError: a file took too long, or a message says nothing.
  """
  path = folder / 'config.json'
  counts: dict[str, int] = collections.Counter()
  for _ in range(count):
    data = _mutated(_texts()[kind], rng)
    path.write_bytes(data)
    begun = time.monotonic()
    try:
      READERS[kind](path)
      counts['read'] += 1
    except ValueError as e:
      assert str(e).strip(), data[:200]
      counts['refused'] += 1
    except Exception as e:
      e.add_note(f'{kind}: {data[:2000]!r}')
      raise
    assert time.monotonic() - begun < _MOST_SECONDS, data[:200]
  return counts


def _mutated(text: str, rng: random.Random) -> bytes:
  """One or a few changes, of values or of bytes."""
  if rng.random() < 0.7:
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
      data = _change(data, rng)
    return json.dumps(data).encode()
  raw = bytearray(text.encode())
  where = rng.randrange(len(raw))
  change = rng.randrange(5)
  if change == 0:
    raw[where] ^= 1 << rng.randrange(8)
  elif change == 1:
    del raw[where:]
  elif change == 2:
    raw[where:where] = rng.randbytes(rng.randrange(1, 9))
  elif change == 3:
    raw[where:where] = b'[' * rng.choice((10, 30_000))
  else:
    del raw[where : where + rng.randrange(1, 99)]
  return bytes(raw)


def _change(data: Any, rng: random.Random) -> Any:
  """Changes a value, a key or an item somewhere inside."""
  data = copy.deepcopy(data)
  inner, parent, key = data, None, None
  while isinstance(inner, dict | list) and inner and rng.random() < 0.85:
    parent = inner
    key = rng.choice(
      list(inner) if isinstance(inner, dict) else range(len(inner))
    )
    inner = parent[key]
  odd = rng.choice(_ODD)
  if parent is None:
    return odd if rng.random() < 0.1 else data
  change = rng.randrange(4)
  if change == 0:
    del parent[key]
  elif change == 1 and isinstance(parent, dict):
    parent[rng.choice(('', 'x', str(key) * 2, '\x00'))] = parent.pop(key)
  elif change == 2 and isinstance(parent, list):
    parent.append(copy.deepcopy(inner))
  else:
    parent[key] = copy.deepcopy(odd)
  return data
