"""Workdirs of every space, as the jobs write them, without any training."""

import json
import types

from etils import epath
import ml_collections
import numpy as np

from configs import common as config_lib
from hwdarts_jax import spaces
from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.jobs import common, shortlist_candidates, shortlist_report
from hwdarts_jax.latency import table as table_lib
from hwdarts_jax.spaces import discretize

_IMAGES = {'num_classes': 10, 'image_size': 8, 'image_channels': 1}
DEPLOY = {
  'nasbench201': {'features': 4, 'num_cells': 1} | _IMAGES,
  'darts': {'features': 4, 'num_cells': 3, 'num_nodes': 2} | _IMAGES,
  'mobile': config_lib.DEPLOY_SPECS['mobile']
  | {'features': 4, 'stem_stride': 1, 'num_blocks': 2, 'kernels': '3,5'}
  | _IMAGES
  | {'image_size': 16},
}
STEPS = range(10, 310, 10)


def write_table(path, spec, num_networks=0, device='toy'):
  """Writes and returns a table that has every op of a spec."""
  rng = np.random.default_rng(0)
  keys = sorted({s.key(op) for s in spec.sites() for op in s.ops})
  entries = {
    key: table_lib.Entry(float(rng.uniform(0.1, 1.0)), 60, 3, 0.01)
    for key in keys
  }
  rows = []
  for _ in range(num_networks):
    genotype = some_genotype(spec, rng)
    network = discretize.discretize(spec, genotype)
    ms = sum(entries[s.key(s.ops[0])].value_ms for s in network.sites())
    rows.append(
      table_lib.NetworkRow(
        genotype, ms * rng.uniform(0.97, 1.03), 60, 0.01, spec.spec_hash()
      )
    )
  table = table_lib.LatencyTable(
    device=device,
    kind='measured',
    source={'what': 'toy'},
    entries=entries,
    networks=tuple(rows),
  )
  table_lib.save(table, path)
  return table


def some_genotype(spec, rng):
  alphas = {g: rng.normal(size=s.shape) for g, s in spec.groups().items()}
  return discretize.derive(spec, alphas)


def write_search(
  folder, space='darts', data='digits', num_networks=0, seed=0, device='toy'
):
  """Writes the workdir of a finished search; returns its record."""
  folder.mkdir(parents=True)
  spec = spaces.make(space, **DEPLOY[space])
  table = folder.parent / f'{device}.{space}.{num_networks}.json'
  if not table.exists():
    write_table(table, spec, num_networks, device)
  config = _config(space, data, table, seed)
  latency = common.load_latency(config['latency'])(spec)
  rng = np.random.default_rng(seed)
  genotype = some_genotype(spec, rng)
  rows = _rows(spec, genotype, rng)
  ms = latency.of(spec, genotype)
  record = _found(spec, genotype, ms) | {
    'seed': seed,
    'deploy': {
      'spec': DEPLOY[space],
      'spec_hash': spec.spec_hash(),
      'device': latency.device,
      **latency.source,
      'predicted_ms': ms,
      'expected_ms_at_start': rows[0]['expected_ms'],
      'expected_ms_at_end': rows[-1]['expected_ms'],
      'slower_random_percent': 29.0,
      'predictor': latency.card,
      **common.costs(spec, genotype),
      'bounds': {},
    },
    'search': {
      'spec': DEPLOY[space],
      'data': data,
      'num_steps': STEPS[-1],
      'supernet_val_accuracy': 0.9375,
      'early_stop_step': None,
    },
  }
  _write(folder, config, rows, 'genotype.json', record)
  return record


def write_pareto(folder, count=3):
  """Writes the workdir of a finished population; returns its record."""
  folder.mkdir(parents=True)
  spec = spaces.make('darts', **DEPLOY['darts'])
  table = folder.parent / 'toy.darts.0.json'
  if not table.exists():
    write_table(table, spec)
  config = _config('darts', 'digits', table, 0) | {'job': 'pareto'}
  latency = common.load_latency(config['latency'])(spec)
  rng = np.random.default_rng(5)
  genotypes = [some_genotype(spec, rng) for _ in range(count)]
  each = [_rows(spec, g, rng) for g in genotypes]
  rows = []
  for together in zip(*each, strict=True):
    row = dict(together[0])
    for key in [k for k in row if k.startswith('gates/')]:
      row[key] = [r[key] for r in together]
    row['member_ms'] = [r['expected_ms'] for r in together]
    rows.append(row)
  members = []
  for i, genotype in enumerate(genotypes):
    ms = latency.of(spec, genotype)
    members.append(
      _found(spec, genotype, ms)
      | {
        'target_ms': ms + 0.5,
        'predicted_ms': ms,
        'is_feasible': True,
        'supernet_val_accuracy': 0.5 + 0.125 * i,
        'is_on_front': False,
        **common.costs(spec, genotype),
      }
    )
  record = {
    'space': 'darts',
    'deploy': {
      'spec': DEPLOY['darts'],
      'device': latency.device,
      **latency.source,
      'predictor': latency.card,
    },
    'search': {'data': 'digits'},
    'members': members,
  }
  _write(folder, config, rows, 'front.json', record)
  return record


def write_shortlist(
  folder, search, targets_ms, size=4, slower=None, has_rounds=False
):
  """Writes the workdir of a shortlist of a search; returns its record.

  What was trained is made up; all else is done as by the job. All candidates
  were measured where `slower` says by what factor than predicted. Where it has
  rounds, all but the first network come from the second of them, and the first
  is the best without the noise.
  """
  folder.mkdir(parents=True)
  found = json.loads((search / 'config.json').read_text())['config']
  config = found | {'job': 'shortlist'}
  config['shortlist'] = found['shortlist'] | {'search_workdir': str(search)}
  spec = spaces.make(found['space']['name'], **found['space']['deploy'])
  latency = common.load_latency(config['latency'])(spec)
  rows = (search / 'metrics.jsonl').read_text().splitlines()
  probs = {
    name.removeprefix('gates/'): np.array(value)
    for name, value in json.loads(rows[-1]).items()
    if name.startswith('gates/')
  }
  targets = []
  for ms in targets_ms:
    objective = {'target_ms': ms, 'constraints': {}, 'margin': 0.0}
    bounds = bounds_lib.make(objective, spec, latency)
    targets.append(shortlist_candidates.Target(bounds, probs))
  candidates = [shortlist_candidates.best(spec, t, size) for t in targets]
  keys = {c.key: None for some in candidates for c in some}
  shortlist = types.SimpleNamespace(
    config=ml_collections.ConfigDict(config),
    specs=types.SimpleNamespace(deploy=spec),
    latency=latency,
    pool=types.SimpleNamespace(settings={'training': {'num_epochs': 2}}),
    targets=targets,
  )
  measured_ms = {
    c.genotype: slower * latency.of(spec, c.genotype)
    for c in (c for some in candidates for c in some if slower)
  }
  # The last of all is the best, and no two are alike.
  accuracies = {key: 0.5 + 0.03125 * i for i, key in enumerate(keys)}
  rounds = None
  if has_rounds:
    smoothed = {key: 0.75 - a / 4 for key, a in accuracies.items()}
    first = {key: min(i + 1, 2) for i, key in enumerate(keys)}
    rounds = shortlist_report.Rounds(smoothed, first, [1, len(keys) - 1])
  _write(folder, config)
  found = shortlist_report.Found(candidates, accuracies, measured_ms, rounds)
  shortlist_report.write(epath.Path(folder), shortlist, found)
  return json.loads((folder / shortlist_report.RESULT).read_text())


def _config(space, data, table, seed):
  config = config_lib.search_config(
    'configs/pixel4.py', 'toy', f'space={space},runlocal'
  )
  config.seed = seed
  config.data.name = data
  config.latency.table = str(table)
  config.space.deploy = DEPLOY[space]
  config.search.num_steps = STEPS[-1]
  return json.loads(json.dumps(config.to_dict()))


def _found(spec, genotype, ms):
  return {
    'space': spec.space,
    'genotype': genotype.to_dict(),
    'text': spaces.to_text(genotype),
  }


def _rows(spec, genotype, rng):
  """Gates that go from uniform to the genotype, and curves beside them."""
  ends = discretize.one_hot(spec, genotype)
  for end in ends.values():
    end[~end.any(-1)] = 1 / end.shape[-1]  # of edges that are dropped
  rows = []
  for step in STEPS:
    far = step / STEPS[-1]
    row = {
      'step': step,
      'train_loss': 2.0 - far,
      'val_loss': 2.1 - far,
      'train_accuracy': 0.1 + 0.8 * far,
      'val_accuracy': 0.1 + 0.7 * far,
      'expected_ms': 5.0 + far,
      'gate_entropy': 1.6 - far,
      'skip_mass': 0.2,
      'zero_mass': 0.2,
    }
    for name, end in ends.items():
      noise = rng.uniform(0.5, 1.5, end.shape)
      gates = (1 - far) * noise / noise.sum(-1, keepdims=True) + far * end
      row[f'gates/{name}'] = (gates / gates.sum(-1, keepdims=True)).tolist()
    rows.append(row)
  return rows


def _write(folder, config, rows=(), name='', record=None):
  versions = {'python': '3.11', 'hwdarts_jax': '0.1.0'}
  content = {'config': config, 'versions': versions, 'hashes': {'a': 'b'}}
  (folder / 'config.json').write_text(json.dumps(content))
  lines = [json.dumps(row) + '\n' for row in rows]
  (folder / 'metrics.jsonl').write_text(''.join(lines))
  if record is not None:
    (folder / name).write_text(json.dumps(record))
