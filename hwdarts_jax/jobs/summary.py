"""What a finished run says: the record on disk and the text on the screen."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import sys
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.jobs import bounds, common, diagnose, genotype_files
from hwdarts_jax.latency import projection
from hwdarts_jax.runtime import command
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

_SAMPLES = 1000  # random architectures that the found one is compared with
_EVALUATION = 'network.evaluation'


def search_record(
  search,
  found: projection.Projection,
  state,
  val_accuracy: float,
  rows: list[dict[str, Any]],
) -> dict[str, Any]:
  """The content of genotype.json; every figure stands under its spec."""
  deploy, genotype = search.specs.deploy, found.genotype
  config, latency = search.config, search.latency
  predicted_ms = latency.of(deploy, genotype)
  random_ms = _random_ms(search, deploy)
  return {
    'space': genotype.space,
    'genotype': genotype.to_dict(),
    'text': spaces.to_text(genotype),
    'seed': config.seed,
    'deploy': {
      **genotype_files.deploy_record(config.space.deploy, deploy, latency),
      'predicted_ms': predicted_ms,
      'expected_ms_at_start': float(rows[0]['expected_ms']),
      'expected_ms_at_end': float(rows[-1]['expected_ms']),
      'slower_random_percent': float(100 * (random_ms > predicted_ms).mean()),
      'random_ms': {
        f'p{q}': float(np.percentile(random_ms, q)) for q in (0, 5, 50, 95, 100)
      },
      **common.costs(deploy, genotype),
      'bounds': bounds.record(search.bounds, found, rows),
    },
    'search': {
      'spec': config.space.search.to_dict(),
      'spec_hash': search.specs.search.spec_hash(),
      'data': config.data.name,
      'num_steps': config.search.num_steps,
      'supernet_val_accuracy': val_accuracy,
      'val_loss': float(rows[-1]['val_loss']),
      'gate_entropy': float(rows[-1]['gate_entropy']),
      'objective': config.objective.name,
      'multiplier': float(state.multiplier),
      'reference_ms': search.problem.reference_ms,
      'selection': config.search.selection,
      'early_stop_step': diagnose.stop_step(rows),
    },
  }


def _random_ms(search, deploy: NetworkSpec) -> np.ndarray:
  """Predicted ms f[N] of architectures derived from random alphas."""
  rng = np.random.default_rng(0)
  gates: dict[str, list[np.ndarray]] = {g: [] for g in deploy.groups()}
  for _ in range(_SAMPLES):
    alphas = {g: rng.normal(size=s.shape) for g, s in deploy.groups().items()}
    one_hot = discretize.one_hot(deploy, discretize.derive(deploy, alphas))
    for name, value in one_hot.items():
      gates[name].append(value)
  stacked = {g: np.stack(v) for g, v in gates.items()}
  return np.asarray(jax.jit(search.latency.predict)(stacked))


def retrain_record(training, accuracy: dict[str, float]) -> dict[str, Any]:
  """The content of retrain.json; every figure stands under its spec."""
  config, deploy = training.config, training.specs.deploy
  role = config.retrain.spec
  latency = training.latency
  return {
    'space': training.genotype.space,
    'genotype': training.genotype.to_dict(),
    'text': training.text,
    'seed': config.seed,
    'trained': {
      'role': role,
      'spec': training.trained,
      'spec_hash': training.space.spec_hash(),
      'data': config.data.name,
      'num_epochs': config.retrain.num_epochs,
      'recipe': config.retrain.recipe,
      'teacher': config.retrain.distill.workdir,
      'inherited': config.retrain.inherit,
      **common.costs(training.space, training.genotype),
      **accuracy,
    },
    'deploy': {
      'spec': config.space.deploy.to_dict(),
      'spec_hash': deploy.spec_hash(),
      **_predicted(latency, deploy, training.genotype),
      **common.costs(deploy, training.genotype),
    },
  }


def _predicted(
  latency: common.LatencyModel | None, deploy: NetworkSpec, genotype: Genotype
) -> dict[str, Any]:
  """The predicted latency of an architecture, None where nothing is known."""
  if latency is None:
    return {'device': None, 'predicted_ms': None}
  return {
    'device': latency.device,
    **latency.source,
    'predicted_ms': latency.of(deploy, genotype),
  }


def of_retrain(path: epath.Path) -> str:
  """The summary of a finished training, read from its workdir."""
  record = workdir_lib.read_json(path / 'retrain.json')
  deploy, trained = record['deploy'], record['trained']
  start = 'inherited params' if trained['inherited'] else 'scratch'
  return '\n'.join(
    [
      '',
      f'Trained from {start} ({record["space"]}, seed {record["seed"]}):',
      f'  {record["text"]}',
      f'As trained ({trained["role"]} spec: {_settings(trained["spec"])}), '
      f'{trained["num_epochs"]} epochs on {trained["data"]}:',
      f'  test accuracy      {100 * trained["test_accuracy"]:.2f} %, '
      f'{100 * trained["test_accuracy_of_average"]:.2f} % with averaged params',
      f'  MACs               {trained["macs"] / 1e6:.2f} M',
      f'  parameters         {trained["params"] / 1e6:.4f} M',
      *_as_deployed(deploy),
      f'  MACs               {deploy["macs"] / 1e6:.2f} M',
      f'  parameters         {deploy["params"] / 1e6:.4f} M',
      f'Everything is in {path}: retrain.json, retrain.png, metrics.jsonl, '
      'tensorboard/, checkpoints/, config.json',
      'Next, export it:',
      f'  {export_command(path)}',
    ]
  )


def _as_deployed(deploy: dict[str, Any]) -> list[str]:
  """What heads the figures of the deployed network."""
  settings = _settings(deploy['spec'])
  if deploy['predicted_ms'] is None:
    return [f'As deployed ({settings}):']
  return [
    f'As deployed ({settings}), on {deploy["device"]}:',
    f'  predicted latency  {deploy["predicted_ms"]:.2f} ms',
  ]


def title(record: dict[str, Any]) -> str:
  """One line for the picture."""
  deploy = record['deploy']
  return (
    f'{record["space"]} for {deploy["device"]}: '
    f'{deploy["predicted_ms"]:.2f} ms predicted, '
    f'{deploy["macs"] / 1e6:.1f} M MACs, '
    f'{deploy["params"] / 1e6:.3f} M params'
  )


def of_search(path: epath.Path) -> str:
  """The summary of a finished search, read from its workdir."""
  record = workdir_lib.read_json(path / 'genotype.json')
  deploy, search = record['deploy'], record['search']
  spec = _settings(deploy['spec'])
  accuracy = f'{100 * search["supernet_val_accuracy"]:.1f} %'
  return '\n'.join(
    [
      '',
      f'Architecture found ({record["space"]}, seed {record["seed"]}):',
      f'  {record["text"]}',
      f'As deployed ({spec}), on {deploy["device"]}:',
      f'  predicted latency  {deploy["predicted_ms"]:.2f} ms '
      f'({_confidence(deploy)})',
      f'  MACs               {deploy["macs"] / 1e6:.2f} M',
      f'  parameters         {deploy["params"] / 1e6:.4f} M',
      f'As searched ({_settings(search["spec"])}), on {search["data"]}:',
      f'  supernet accuracy  {accuracy} on the validation half',
      *_early_stop(search),
      'What was traded:',
      *_traded(deploy, search),
      f'  expected latency of the mixture went from '
      f'{deploy["expected_ms_at_start"]:.2f} to '
      f'{deploy["expected_ms_at_end"]:.2f} ms, gate entropy ends at '
      f'{search["gate_entropy"]:.2f} nats',
      f'  {deploy["slower_random_percent"]:.0f} % of random architectures are '
      f'slower; they span {deploy["random_ms"]["p5"]:.2f} to '
      f'{deploy["random_ms"]["p95"]:.2f} ms (5th to 95th percentile)',
      f'Everything is in {path}: genotype.json, search.png, metrics.jsonl, '
      'tensorboard/, checkpoints/, config.json',
      'See how it came about:',
      f'  {report_command(path)}',
      'Next, train it:',
      f'  {retrain_command(path)}',
    ]
  )


def _early_stop(search: dict[str, Any]) -> list[str]:
  """What a search that ended early says of it; records may be older."""
  step = search.get('early_stop_step')
  if step is None:
    return []
  return [f'  ended early, with the alphas of step {step}']


def _traded(deploy: dict[str, Any], search: dict[str, Any]) -> list[str]:
  """What the objective weighed against the validation loss."""
  loss = f'  objective = validation loss {search["val_loss"]:.3f}'
  if not deploy.get('bounds'):  # records may be older
    return [
      f'{loss} + latency cost, {search["objective"]} with multiplier '
      f'{search["multiplier"]:g} (reference {search["reference_ms"]:.2f} ms)'
    ]
  return [f'{loss}, within bounds'] + [
    f'  {line}'
    for name, bound in deploy['bounds'].items()
    for line in bounds.lines(name, bound)
  ]


def _confidence(deploy: dict[str, Any]) -> str:
  """How far the predicted latency can be trusted, in words."""
  card, ms = deploy['predictor'], deploy['predicted_ms']
  if card['held_out'] is None:
    rows = card['rows']
    return f'{card["model"]}, {rows} whole networks, no held-out error'
  low, high = card['measured_ms']
  if not low <= ms <= high:
    return f'extrapolated: measured networks take {low:.2f} to {high:.2f} ms'
  error = card['held_out']
  return (
    f'held-out error {error["mape_percent"]:.1f} % mean, '
    f'{error["within_10_percent"]:.1f} % within 10 %'
  )


def _settings(spec: dict[str, Any]) -> str:
  return ', '.join(f'{k} {v}' for k, v in spec.items())


def retrain_command(path: epath.Path) -> str:
  """The command that trains the genotype of a search, with its config."""
  return _next_command(path, 'retrain', 'retrain.search_workdir')


def export_command(path: epath.Path) -> str:
  """The command that exports the network of a training, with its config."""
  return _next_command(path, 'export', 'export.retrain_workdir')


def retrain_member_command(path: epath.Path) -> str:
  """The command that trains the first member of a population."""
  member = path / 'members' / '00.json'
  return _next_command(path, 'retrain', 'retrain.genotype', member)


def report_command(path: epath.Path, *more: str) -> str:
  """The command that makes the report of a workdir; `more` are flags."""
  words = ['--config.job=report', f'--workdir={path}', *more]
  return shlex.join([interpreter(), '-m', 'hwdarts_jax.main', *words])


def evaluate_command(path: epath.Path) -> str:
  """The command that looks up what a search found."""
  return _next_command(path, 'evaluate', 'evaluate.search_workdir')


def _next_command(
  path: epath.Path, job: str, field: str, value: epath.Path | None = None
) -> str:
  """The command of a job on what is in a workdir, or on a file of it."""
  config = workdir_lib.read_json(path / 'config.json')['config']
  flags = {'config': config['source']}
  flags |= {f'config.{k}': v for k, v in overrides(config).items()}
  flags |= {'config.job': job, f'config.{field}': str(value or path)}
  words = [interpreter(), '-m', 'hwdarts_jax.main']
  words += [f'--{name}={value}' for name, value in flags.items()]
  return shlex.join(words)


def interpreter() -> str:
  """The interpreter, which in a virtual environment need not be on the path."""
  python = os.path.relpath(sys.executable)
  return 'python' if python.startswith('..') else python


def overrides(config: dict[str, Any]) -> dict[str, Any]:
  """What the command line changed in the config file, by dotted name.

  Nothing where the file cannot be read any more, or where to run it is not for
  a workdir to ask (`command.is_trusted_config`). Zeros of the search spec are
  left out: the data set fills them in again.
  """
  name, _, arg = config['source'].partition(':')
  if not command.is_trusted_config(name):
    return {}
  try:
    built = runpy.run_path(name)['get_config'](arg or None).to_dict()
  except (OSError, ImportError, KeyError):
    return {}
  original = json.loads(json.dumps(built))  # as `config` is: without tuples
  was, now = (
    traverse_util.flatten_dict(c, sep='.') for c in (original, config)
  )
  # 'auto' was resolved; the next job reads which it was from the workdir.
  if was.get(_EVALUATION) == 'auto':
    now[_EVALUATION] = 'auto'
  changed = {
    k: v
    for k, v in now.items()
    if was.get(k) != v
    and not (k.startswith('space.search.') and was.get(k) == 0)
  }
  for name in [k for k in changed if k not in was]:
    # No such field is in the file, so the whole section was given.
    section, given, there = name, config, original
    parts = name.split('.')
    for i, part in enumerate(parts):
      given, there = given[part], there[part]
      if parts[i + 1] not in there:
        section = '.'.join(parts[: i + 1])
        break
    changed = {
      k: v for k, v in changed.items() if not k.startswith(f'{section}.')
    }
    changed[section] = given
  return changed
