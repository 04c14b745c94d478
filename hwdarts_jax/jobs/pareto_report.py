"""What a finished population says: records on disk and a text on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.jobs import common, genotype_files, summary
from hwdarts_jax.latency import projection
from hwdarts_jax.runtime import front_plot
from hwdarts_jax.runtime import workdir as workdir_lib

FRONT = 'front.json'
PICTURE = 'front.png'
MEMBERS = 'members'


def record(
  pareto: Any,
  found: Sequence[projection.Projection],
  accuracies: Sequence[float],
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """The content of front.json.

  Args:
    pareto: a `pareto.Pareto`.
    found: of each member.
    accuracies: by the shared params, of each member.
    rows: of the metrics.
  """
  search = pareto.search
  deploy, latency, config = search.specs.deploy, search.latency, search.config
  members = [
    {
      'target_ms': member.bound.target if member.bound else None,
      'aim_ms': member.bound.aim if member.bound else None,
      'multiplier': None if member.bound else member.multiplier,
      'seed': member.seed,
      'space': each.genotype.space,
      'genotype': each.genotype.to_dict(),
      'text': spaces.to_text(each.genotype),
      'predicted_ms': latency.of(deploy, each.genotype),
      'is_feasible': each.is_feasible,
      'was_projected': each.has_moved,
      'expected_ms_at_end': float(rows[-1]['member_ms'][i]),
      'supernet_val_accuracy': accuracies[i],
      **common.costs(deploy, each.genotype),
    }
    for i, (member, each) in enumerate(zip(pareto.members, found, strict=True))
  ]
  for i in on_front(members):
    members[i]['is_on_front'] = True
  for member in members:
    member.setdefault('is_on_front', False)
  return {
    'space': deploy.space,
    'seed': config.seed,
    'deploy': genotype_files.deploy_record(
      config.space.deploy, deploy, latency
    ),
    'search': {
      'spec': config.space.search.to_dict(),
      'spec_hash': search.specs.search.spec_hash(),
      'data': config.data.name,
      'num_steps': config.search.num_steps,
      'members_per_step': pareto.population.per_step,
    },
    'members': members,
  }


def on_front(members: Sequence[Mapping[str, Any]]) -> list[int]:
  """Numbers of the members that no other one beats, from the fastest on.

  A member is beaten by one that is as fast and more accurate, or faster and as
  accurate. Of equal ones the first counts.
  """
  order = sorted(
    range(len(members)),
    key=lambda i: (
      members[i]['predicted_ms'],
      -members[i]['supernet_val_accuracy'],
      i,
    ),
  )
  found: list[int] = []
  best = -np.inf
  for i in order:
    if members[i]['supernet_val_accuracy'] > best:
      found.append(i)
      best = members[i]['supernet_val_accuracy']
  return found


def write(path: epath.Path, content: dict[str, Any]) -> None:
  """Writes the files of members, the picture and, last, front.json."""
  (path / MEMBERS).mkdir(exist_ok=True)
  for i, member in enumerate(content['members']):
    workdir_lib.write_json_atomic(member_path(path, i), member)
  _draw(path, content)
  workdir_lib.write_json_atomic(path / FRONT, content)


def member_path(path: epath.Path, number: int) -> epath.Path:
  """The file of a member, of its genotype and what is known of it."""
  return path / MEMBERS / f'{number:02d}.json'


def _draw(path: epath.Path, content: dict[str, Any]) -> None:
  members = content['members']
  front = [members[i] for i in on_front(members)]

  def points(label, some):
    return front_plot.Points(
      label,
      [m['predicted_ms'] for m in some],
      [100 * m['supernet_val_accuracy'] for m in some],
    )

  front_plot.plot_front(
    points(f'{len(members)} members', members),
    points('their front', front),
    [points(f'{len(members)} members', members)],
    path / PICTURE,
    f'{content["space"]} for {content["deploy"]["device"]}',
    labels=('predicted latency (ms)', 'accuracy by shared params (%)'),
  )


def of(path: epath.Path) -> str:
  """The summary of a finished population, read from its workdir."""
  content = workdir_lib.read_json(path / FRONT)
  members = content['members']
  lines = [
    '',
    f'Front of {content["space"]} for {content["deploy"]["device"]}, '
    f'{len(members)} members on one set of params; * no other member beats it, '
    '> its latency was brought within the target by projection:',
    '  file  target ms  predicted ms  accuracy  architecture',
  ]
  for i, m in enumerate(members):
    target = '-' if m['target_ms'] is None else f'{m["target_ms"]:.2f}'
    lines.append(
      f'{"*" if m["is_on_front"] else " "}{">" if m["was_projected"] else " "}'
      f'{i:02d}  {target:>11}  {m["predicted_ms"]:>12.2f}  '
      f'{100 * m["supernet_val_accuracy"]:>6.1f} %  {m["text"]}'
    )
  lines += [
    f'Accuracy is that of the shared params on {content["search"]["data"]}: '
    'train a member to know what it is worth, with --config.job=retrain '
    f'--config.retrain.genotype={member_path(path, 0)}',
    f'See them: {summary.report_command(path)}',
    f'Everything is in {path}: {FRONT}, {PICTURE}, {MEMBERS}/, metrics.jsonl, '
    'tensorboard/, checkpoints/, config.json',
  ]
  return '\n'.join(lines)
