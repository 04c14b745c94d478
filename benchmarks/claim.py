"""Are architectures for one device wider and shallower than for another?

python -m benchmarks.claim --runs=host_cpu=runs/frontier/search/host_cpu \
  --runs=h100_64=runs/frontier/search/h100_64 \
  --tables=host_cpu=host_cpu.mobile_cifar10.json \
  --tables=h100_64=h100_64.mobile_cifar10.json

Reads finished populations (job `pareto`) of one mobile space, each searched for
a device, and compares what they found at equal places in the range of latencies
of each device: the quantiles that `benchmarks.frontier` made targets, on a
logarithmic scale from the fastest architecture to the slowest. Intervals are
95 % over the seeds of members, by Student's t. Members of one population share
the weights of the network and differ in their alphas alone, so that intervals
do not hold what other weights would have found.

Of each architecture: its depth (blocks that are no identity), the mean
expansion of its blocks, the share of blocks of dense convolutions, the share of
kernels of each size among the others, and the share of squeeze-and-excitation.

What MACs do not tell is shown by pairs of entries of the tables that differ in
the kernel alone: how much longer the larger one takes, and how many more MACs
it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

from absl import app, flags
import numpy as np
from scipy import stats

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces.blocks import FusedConv, MBConv
from hwdarts_jax.spaces.mobile import (
  ACTIVATIONS,
  EXPANSIONS,
  FUSED_EXPANSIONS,
  KERNELS,
)
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

_RUNS = flags.DEFINE_multi_string('runs', [], 'DEVICE=WORKDIR of a population.')
_TABLES = flags.DEFINE_multi_string(
  'tables', [], 'DEVICE=TABLE, for the pairs.'
)
_JSON = flags.DEFINE_string('json', '', 'Where to write the results.')
_LEVEL = 0.95
QUANTILES = 'quantiles.json'  # in a workdir: target in ms of each quantile
# The blocks that ops are, by name; an identity is none.
BLOCKS: dict[str, MBConv | FusedConv] = {
  block.name: block
  for activation in ACTIVATIONS
  for block in (
    *(
      MBConv(k, e, s, activation)
      for k in KERNELS
      for e in EXPANSIONS
      for s in (False, True)
    ),
    *(FusedConv(e, activation) for e in FUSED_EXPANSIONS),
  )
}


def traits(genotype: Genotype) -> dict[str, float]:
  """What is told of an architecture; nan where nothing has the trait."""
  ops = [c.op for choices in genotype.cells.values() for c in choices]
  blocks = [BLOCKS[op] for op in ops if op in BLOCKS]
  thin = [b for b in blocks if isinstance(b, MBConv)]
  return {
    'depth': float(len(blocks)),
    'mean expansion': _mean([b.expansion for b in blocks]),
    'dense blocks, %': 100 * (1 - len(thin) / len(blocks)),
    **{
      f'{k}x{k} kernels, %': 100 * _mean([b.kernel == k for b in thin])
      for k in KERNELS
    },
    'mean kernel': _mean([b.kernel for b in thin]),
    'squeeze-excite, %': 100 * _mean([b.squeeze for b in thin]),
  }


def _mean(values: Sequence[float]) -> float:
  return float(np.mean(values)) if values else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half the width of its interval; nan values are left out."""
  known = [v for v in values if not math.isnan(v)]
  if len(known) < 2:
    return _mean(known), math.nan
  t = float(stats.t.ppf(0.5 + _LEVEL / 2, len(known) - 1))
  return _mean(known), t * float(np.std(known, ddof=1)) / math.sqrt(len(known))


def differs(a: Sequence[float], b: Sequence[float]) -> bool:
  """Whether two means differ, by Welch's test at 5 %."""
  first, second = ([v for v in x if not math.isnan(v)] for x in (a, b))
  if min(len(first), len(second)) < 2:
    return False
  if np.ptp(first) == np.ptp(second) == 0:
    return first[0] != second[0]
  p = stats.ttest_ind(first, second, equal_var=False).pvalue
  return bool(p < 1 - _LEVEL)


def members(workdir: pathlib.Path) -> dict[float, list[dict[str, Any]]]:
  """Members of a finished population by target, from the fastest on.

  Raises:
    ValueError: the run is not finished.
  """
  path = workdir / 'front.json'
  if not path.exists():
    raise ValueError(
      f'--runs: {workdir} has no front.json: it is not finished.'
    )
  found: dict[float, list[dict[str, Any]]] = {}
  for member in json.loads(path.read_text())['members']:
    found.setdefault(float(member['target_ms']), []).append(member)
  return dict(sorted(found.items()))


def by_place(workdir: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """Members by their place in the range of latencies of the space.

  `benchmarks.frontier` notes which targets are quantiles of it; where it did
  not, places are the ranks of the targets.

  Raises:
    ValueError: the run is not finished, or a quantile was not searched.
  """
  found = members(workdir)
  path = workdir / QUANTILES
  if not path.exists():
    return {f'target {i}': own for i, own in enumerate(found.values())}
  chosen = {}
  for quantile, ms in json.loads(path.read_text()).items():
    if ms not in found:
      raise ValueError(
        f'{path}: {quantile} is {ms} ms, but the targets are {[*found]}.'
      )
    chosen[quantile] = found[ms]
  return chosen


def compare(
  by_device: Mapping[str, Mapping[str, list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
  """A record for each quantile and trait."""
  records = []
  for quantile in next(iter(by_device.values())):
    values = {
      device: [
        traits(Genotype.from_dict(m['genotype'])) for m in found[quantile]
      ]
      for device, found in by_device.items()
    }
    for trait in next(iter(values.values()))[0]:
      each = {d: [v[trait] for v in some] for d, some in values.items()}
      first, second = list(each.values())[:2]
      records.append(
        {
          'quantile': quantile,
          'trait': trait,
          'seeds': {d: len(v) for d, v in each.items()},
          'devices': {d: interval(v) for d, v in each.items()},
          'differs': differs(first, second),
        }
      )
  return records


def describe(records: Sequence[Mapping[str, Any]]) -> str:
  """The table of traits, in Markdown."""
  devices = list(records[0]['devices'])
  lines = [
    f'| quantile | | {" | ".join(devices)} | differ |',
    '|---|---|' + '---|' * (len(devices) + 1),
  ]
  for r in records:
    cells = [_show(*r['devices'][d]) for d in devices]
    lines.append(
      f'| {r["quantile"]} | {r["trait"]} | {" | ".join(cells)} | '
      f'{"yes" if r["differs"] else "no"} |'
    )
  return '\n'.join(lines)


def _show(mean: float, half_width: float) -> str:
  if math.isnan(mean):
    return '-'
  width = '' if math.isnan(half_width) else f' ± {half_width:.3g}'
  return f'{mean:.3g}{width}'


def kernel_pairs(
  spec: NetworkSpec, tables: Mapping[str, table_lib.LatencyTable]
) -> list[dict[str, Any]]:
  """Ratios of entries that differ in the kernel alone.

  Args:
    spec: of the space.
    tables: measured, by device.

  Returns:
    A record for each place and pair of kernels, the smallest one against each
    other: its MACs ratio, and that of milliseconds on each device.
  """
  records, seen = [], set()
  for site in spec.sites():
    for op in site.ops:
      block = BLOCKS.get(op)
      if not isinstance(block, MBConv) or block.kernel == KERNELS[0]:
        continue
      small = MBConv(
        KERNELS[0], block.expansion, block.squeeze, block.activation
      )
      if small.name not in site.ops or site.key(op) in seen:
        continue
      seen.add(site.key(op))
      records.append(
        {
          'kernel': block.kernel,
          'pixels': site.in_shape[0],
          'key': site.key(op),
          'macs': cost.macs(site, op) / cost.macs(site, small.name),
          'ms': {
            device: table.lookup(site.key(op)).value_ms
            / table.lookup(site.key(small.name)).value_ms
            for device, table in tables.items()
          },
        }
      )
  return records


def describe_pairs(records: Sequence[Mapping[str, Any]]) -> str:
  """Median ratios by size of the image and of the kernel, in Markdown."""
  devices = list(records[0]['ms'])
  lines = [
    f'| pixels | kernel | pairs | MACs | {" | ".join(devices)} |',
    '|---|---|---|---|' + '---|' * len(devices),
  ]
  places = sorted({(-r['pixels'], r['kernel']) for r in records})
  for pixels, kernel in places:
    own = [
      r for r in records if (-r['pixels'], r['kernel']) == (pixels, kernel)
    ]
    cells = [np.median([r['macs'] for r in own])]
    cells += [np.median([r['ms'][d] for r in own]) for d in devices]
    lines.append(
      f'| {-pixels} | {kernel}x{kernel} | {len(own)} | '
      + ' | '.join(f'{c:.2f}x' for c in cells)
      + ' |'
    )
  return '\n'.join(lines)


def _pairs_of(texts: Sequence[str]) -> dict[str, str]:
  """Texts such as device=path, by device."""
  return {device: path for device, _, path in (t.partition('=') for t in texts)}


def spec_of(workdir: pathlib.Path) -> NetworkSpec:
  """The space whose latencies counted in a run."""
  front = json.loads((workdir / 'front.json').read_text())
  return spaces.make(front['space'], **front['deploy']['spec'])


def spec_for(table: table_lib.LatencyTable) -> NetworkSpec:
  """The space that a table was measured for."""
  return spaces.make(table.space, **table.source['deploy'])


def judge(
  runs: Mapping[str, str], tables: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Records of `compare` and of `kernel_pairs`.

  Args:
    runs: workdirs of two populations by device, or none.
    tables: names or paths of tables by device; without runs they say for which
      space they are.

  Raises:
    ValueError: runs are not finished, or they or the tables not of one space.
  """
  paths = {device: pathlib.Path(path) for device, path in runs.items()}
  loaded = {device: table_lib.load(path) for device, path in tables.items()}
  specs = {spec_of(path) for path in paths.values()}
  if not runs:
    specs = {spec_for(table) for table in loaded.values()}
  if len(specs) != 1 or len(runs) not in (0, 2):
    raise ValueError(
      f'--runs are {dict(runs)} and --tables {dict(tables)}; runs must be two '
      'populations of one space, or be left out and tables be of one space.'
    )
  records = []
  if runs:
    records = compare(
      {device: by_place(path) for device, path in paths.items()}
    )
  return records, kernel_pairs(specs.pop(), loaded) if tables else []


def main(argv: Sequence[str]) -> None:
  """Prints both tables, or that of --tables alone; writes the JSON."""
  del argv
  records, pairs = judge(_pairs_of(_RUNS.value), _pairs_of(_TABLES.value))
  if records:
    print(describe(records) + '\n')
  if pairs:
    print('Longer and more than with a kernel of 3x3, median of pairs:')
    print(describe_pairs(pairs))
  if _JSON.value:
    content = {'traits': records, 'pairs': pairs}
    pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
