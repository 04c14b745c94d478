"""What NAS-Bench-201 knows of the members of a job `pareto`.

For each member true accuracy, measured latency and regret within its target; of
all together the share of the true front's hypervolume that they reach. Writes
evaluate.json and evaluate.png. A member that was not measured on the device is
judged by the measured cell that it holds most probable of those that its
predictor puts within its target: what was measured may judge, but not choose.
Where there is none, it is not judged.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from hwdarts_jax import front, oracle, spaces
from hwdarts_jax.jobs import (
  bounds,
  common,
  evaluate_report,
  genotype_files,
  pareto_report,
)
from hwdarts_jax.latency import budgets
from hwdarts_jax.latency.corner import corners
from hwdarts_jax.runtime import front_plot, metrics
from hwdarts_jax.runtime import workdir as workdir_lib
from hwdarts_jax.spaces import nasbench201
from hwdarts_jax.spaces.spec import Genotype

_DRAWN = evaluate_report.DRAWN


def is_front(config: ml_collections.ConfigDict) -> bool:
  """Whether the workdir to evaluate is one of a job `pareto`."""
  folder = config.evaluate.search_workdir
  return bool(folder) and (epath.Path(folder) / pareto_report.FRONT).exists()


def look_up(
  config: ml_collections.ConfigDict, workdir: str, device: str
) -> None:
  """Looks all members up; prints what was found."""
  source = epath.Path(config.evaluate.search_workdir)
  with workdir_lib.lock(workdir):
    path = workdir_lib.prepare(workdir, config.to_dict())
    if (path / evaluate_report.RESULT).exists():
      print(f'{path} is finished already; another front needs a new --workdir.')
    elif jax.process_index() == 0:
      record = judge(source, device)
      _draw(record, path)
      workdir_lib.write_json_atomic(path / evaluate_report.RESULT, record)
    print(_text(path))


def _predicted_ms(deploy: dict[str, Any]) -> np.ndarray:
  """Latency of all cells as the members were bounded, f64[15625]."""
  spec = nasbench201.make()
  latency = common.load_latency(genotype_files.latency_section(deploy))(spec)
  budget = budgets.make(bounds.LATENCY, spec, latency.predict)
  return np.asarray(budget.costs(corners(spec)), np.float64)


def judge(source: epath.Path, device: str) -> dict[str, Any]:
  """The content of evaluate.json.

  Args:
    source: workdir of a finished job `pareto`.
    device: whose measurements count.
  """
  content = workdir_lib.read_json(source / pareto_report.FRONT)
  gates = metrics.read(source)[-1][f'gates/{nasbench201.GROUP}']
  # Fitted only if a member was not measured.
  predicted_ms = functools.cache(lambda: _predicted_ms(content['deploy']))
  members = [
    _member(member, np.asarray(own), device, predicted_ms)
    for member, own in zip(content['members'], gates, strict=True)
  ]
  cells = [
    oracle.index(Genotype.from_dict(m['genotype']))
    for m in members
    if m['genotype'] is not None
  ]
  return {
    'space': oracle.SPACE,
    'device': device,
    'members': members,
    'hypervolume': {
      d: front.hypervolume(cells, d, device) for d in oracle.DATASETS
    },
  }


def _member(
  member: dict[str, Any],
  gates: np.ndarray,
  device: str,
  predicted_ms: Callable[[], np.ndarray],
) -> dict[str, Any]:
  """What is known of a member."""
  genotype = Genotype.from_dict(member['genotype'])
  target_ms = member['target_ms']
  measured = oracle.candidates(device)
  nothing = {'target_ms': target_ms, 'genotype': None}
  fastest = oracle.latencies(device)[measured].min()
  if target_ms is not None and target_ms < fastest:
    return nothing
  is_measured = bool(measured[oracle.index(genotype)])
  judged = genotype
  if not is_measured:
    within = measured
    if target_ms is not None:
      within = measured & (predicted_ms() <= member['aim_ms'])
    if not within.any():
      return nothing
    scores = oracle.log_probabilities(gates)
    judged = oracle.project(np.where(within, scores, -np.inf), device)
  verdicts = {
    d: oracle.judge(judged, d, device, target_ms) for d in oracle.DATASETS
  }
  return {
    'target_ms': target_ms,
    'genotype': judged.to_dict(),
    'text': spaces.to_text(judged),
    'is_what_was_found': is_measured,
    'latency_ms': oracle.latency(judged, device),
    'accuracy': {d: v.accuracy for d, v in verdicts.items()},
    'regret': {d: v.regret for d, v in verdicts.items()},
    'meets_target': verdicts[_DRAWN].regret is not None,
  }


def _draw(record: dict[str, Any], path: epath.Path) -> None:
  """Draws evaluate.png."""
  judged = [m for m in record['members'] if m['genotype'] is not None]
  members = front_plot.Points(
    'members',
    [m['latency_ms'] for m in judged],
    [m['accuracy'][_DRAWN] for m in judged],
  )
  reached = 100 * record['hypervolume'][_DRAWN]
  evaluate_report.draw(
    path, record['device'], [members], f': {reached:.1f} % of the hypervolume'
  )


def _text(path: epath.Path) -> str:
  """The summary of an evaluated front, read from its workdir."""
  record = workdir_lib.read_json(path / evaluate_report.RESULT)
  lines = [
    '',
    f'What NAS-Bench-201 knows of this front on {record["device"]}; ~ is a '
    'cell that was measured in the place of one that was not:',
    '   target ms  measured ms  cifar10  regret  architecture',
  ]
  for m in record['members']:
    target = '-' if m['target_ms'] is None else f'{m["target_ms"]:.2f}'
    if m['genotype'] is None:
      lines.append(f'  {target:>10}  no cell within it was measured')
      continue
    regret = m['regret'][_DRAWN]
    lines.append(
      f'{" " if m["is_what_was_found"] else "~"} {target:>10}  '
      f'{m["latency_ms"]:>11.2f}  {m["accuracy"][_DRAWN]:>5.2f} %  '
      f'{"FAILED" if regret is None else f"{regret:.2f}":>6}  {m["text"]}'
    )
  shares = ', '.join(
    f'{d} {100 * share:.1f} %' for d, share in record['hypervolume'].items()
  )
  lines += [
    f'Share of the hypervolume of the true front: {shares}',
    f'Everything is in {path}: {evaluate_report.RESULT}, evaluate.png, '
    'config.json',
  ]
  return '\n'.join(lines)
