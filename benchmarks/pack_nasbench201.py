"""Makes the shipped NAS-Bench-201 files from a folder of published data.

    python benchmarks/pack_nasbench201.py --data=<folder>

The folder holds ``accuracy.csv.gz``, ``disconnected_341.json`` and
``latency/<device>.json``, described in ``latency_tables/README.md``. Writes
``latency_tables/<device>.nasbench201.json.gz`` and
``hwdarts_jax/nasbench201_accuracy.npz``. Values are carried over exactly; what
the source only believes becomes null and a note. Takes a few seconds.
"""

from __future__ import annotations

import csv
import gzip
import json
import pathlib
from typing import Any

from absl import app, flags
import numpy as np

from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import nasbench201

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_DATA = flags.DEFINE_string(
  'data', None, 'Folder of the published data.', required=True
)
_OUT = flags.DEFINE_string(
  'out', str(_REPOSITORY), 'Root of the checkout that is written to.'
)

# Names of the runtimes that the source states, and their versions.
_RUNTIMES = {
  'TensorFlow Lite 2.1': ('TensorFlow Lite', '2.1'),
  'OpenVINO 2019 R2': ('OpenVINO', '2019 R2'),
}
_DTYPES = ('fp32', 'fp16', 'int8')
# Chips that the file's name or notes state.
_SOCS = {
  'intel_ncs2': 'Intel Myriad X',
  'edge_tpu_int8': 'Coral Edge TPU',
  'snapdragon855_cpu_int8': 'Qualcomm Snapdragon 855',
  'snapdragon855_hexagon690_int8': 'Qualcomm Snapdragon 855',
}
# The notes name files that are not shipped.
_WORDS = {
  ' (disconnected_341.json)': (
    ' (where hwdarts_jax.oracle.connected is false)'
  ),
  'They are the indices in shared_1999.json.': (
    'They are the 1,999 on which all series of the target devices exist.'
  ),
}
_DATASETS = ('cifar10', 'cifar100', 'imagenet16_120')


def read_accuracy(
  folder: pathlib.Path,
) -> tuple[list[dict[str, str]], np.ndarray]:
  """Rows of ``accuracy.csv.gz`` and the number of each row's cell.

  Raises:
    ValueError: the rows are not the cells of the space, each once.
  """
  with gzip.open(folder / 'accuracy.csv.gz', 'rt') as f:
    rows = list(csv.DictReader(f))
  number = {
    g: i
    for i, g in enumerate(
      table_lib.decode(
        'nasbench201', np.arange(len(nasbench201.OPS) ** len(nasbench201.EDGES))
      )
    )
  }
  order = np.array(
    [number[nasbench201.from_arch_string(r['arch'])] for r in rows]
  )
  if sorted(order) != list(range(len(number))) or [
    int(r['index']) for r in rows
  ] != list(range(len(number))):
    raise ValueError(
      'accuracy.csv.gz does not list every cell once, in the official order.'
    )
  return rows, order


def pack_accuracy(
  rows: list[dict[str, str]], order: np.ndarray
) -> dict[str, np.ndarray]:
  """Arrays by cell number: accuracies i32 in 1e-4 %, and official index i16."""
  arrays = {'official_index': np.zeros(len(rows), np.int16)}
  arrays['official_index'][order] = np.arange(len(rows))
  for dataset in _DATASETS:
    texts = [r[f'{dataset}_test'].split('.') for r in rows]
    if any(len(decimals) != 4 for _, decimals in texts):
      raise ValueError(f'{dataset}: an accuracy has not 4 decimals.')
    arrays[dataset] = np.zeros(len(rows), np.int32)
    arrays[dataset][order] = [int(''.join(t)) for t in texts]
  return arrays


def to_table(data: dict[str, Any], order: np.ndarray) -> table_lib.LatencyTable:
  """The latency table of one ``latency/<device>.json``.

  Raises:
    ValueError: a note still names a file that is not shipped, or the count of
      measurements is not the one recorded.
  """
  notes = list(data['notes'])
  runtime, version = _RUNTIMES.get(data['runtime'], (None, None))
  if runtime is None:
    notes.append(f'Runtime: {data["runtime"]}.')
  dtype = data['dtype'] if data['dtype'] in _DTYPES else None
  if dtype is None:
    notes.append(f'Number format: {data["dtype"]}.')
  for old, new in _WORDS.items():
    notes = [n.replace(old, new) for n in notes]
  if any('.json' in n for n in notes):
    raise ValueError(f'{data["device"]}: a note names a file: {notes}.')
  values: list[float | None] = [None] * len(order)
  for cell, value in zip(order.tolist(), data['latency_ms'], strict=True):
    values[cell] = value
  if sum(v is not None for v in values) != data['count']:
    raise ValueError(f'{data["device"]}: count is not {data["count"]}.')
  source = {
    'what': data['what'],
    'stated_kind': data['kind'],
    **data['source'],
    'count': data['count'],
    'median_ms': data['median_ms'],
  }
  return table_lib.LatencyTable(
    device=data['device'],
    kind='published',
    source=source,
    soc=_SOCS.get(data['device']),
    runtime=runtime,
    runtime_version=version,
    dtype=dtype,
    space='nasbench201',
    spec_hash=nasbench201.make().spec_hash(),
    notes=tuple(notes),
    series=table_lib.Series(tuple(values)),
  )


def main(argv: list[str]) -> None:
  del argv
  folder, out = pathlib.Path(_DATA.value), pathlib.Path(_OUT.value)
  rows, order = read_accuracy(folder)
  path = out / 'hwdarts_jax' / 'nasbench201_accuracy.npz'
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(path, **pack_accuracy(rows, order))
  print(f'{path.name}: {path.stat().st_size} bytes')
  for source in sorted((folder / 'latency').glob('*.json')):
    table = to_table(json.loads(source.read_text()), order)
    path = out / 'latency_tables' / f'{table.device}.nasbench201.json.gz'
    table_lib.save(table, path)
    print(f'{path.name}: {path.stat().st_size} bytes, {table.table_hash()}')


if __name__ == '__main__':
  app.run(main)
