"""What is measured: the distinct ops of specs, and random whole networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import math
import pathlib
from typing import Any

import numpy as np

from hwdarts_jax import spaces
from hwdarts_jax.latency import cost, liveness, sampling
from hwdarts_jax.runtime.workdir import UserError
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec, Shape, Site

SIZE, WIDTH = 'image_size', 'features'  # settings of a space that ranges vary
_CHUNK = 64  # networks drawn at a time: of more, the first are the same
_MAX_DRAWS = 1000  # per network that is asked for
# Seconds of one conversion, for the estimate; measured on a 2.6 GHz core.
_CONVERT_OP_S, _CONVERT_NETWORK_S = 0.15, 2.0


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is measured.

  Attributes:
    spec: what the table is for; the whole networks are of it.
    settings: what `spaces.make` makes it of.
    ops: by latency key, a site and its op; also those of other resolutions
      and widths.
    sums: by latency key, shapes of the nodes that sum up edges, likewise.
    networks: whole networks, all with a path from input to output.
  """

  spec: NetworkSpec
  settings: Mapping[str, Any]
  ops: Mapping[str, tuple[Site, str]]
  sums: Mapping[str, Shape]
  networks: tuple[Genotype, ...]

  def digest(self) -> str:
    """Twelve hex digits that tell this plan from others."""
    what = [[*self.ops, *self.sums], [g.to_dict() for g in self.networks]]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def make(
  space: str,
  settings: Mapping[str, Any],
  networks: int,
  resolutions: Sequence[float] = (),
  widths: Sequence[float] = (),
  seed: int = 0,
) -> Plan:
  """Plans a table.

  Args:
    space: name of the space.
    settings: of the deployed network, what `spaces.make` takes.
    networks: how many whole networks.
    resolutions: image sizes beside that of the settings.
    widths: factors of the features, beside 1.
    seed: of the whole networks.

  Raises:
    UserError: there is no such space, or it has no such setting.
  """
  spec = _make_spec(space, settings)
  found: dict[str, tuple[Site, str]] = {}
  sums: dict[str, Shape] = {}
  for each in [spec, *_variants(space, settings, resolutions, widths)]:
    sums |= {cost.sum_key(s): s for s in cost.summed(each).values()}
    for site in each.sites():
      for op in site.ops:
        found.setdefault(site.key(op), (site, op))
  drawn = random_networks(spec, networks, seed)
  return Plan(spec, dict(settings), found, sums, drawn)


def of_networks(
  spec: NetworkSpec, settings: Mapping[str, Any], genotypes: Sequence[Genotype]
) -> Plan:
  """Plans a table of whole networks only.

  Args:
    spec: what they are deployed in.
    settings: that `spaces.make` makes it of.
    genotypes: the networks.
  """
  return Plan(spec, dict(settings), {}, {}, tuple(genotypes))


def read_networks(path: str, space: str, settings: Mapping[str, Any]) -> Plan:
  """Plans a table of the networks that a file lists.

  Args:
    path: JSON with 'genotypes', and 'spec_hash' of what they are deployed in.
    space: name of the space.
    settings: of the deployed network.

  Raises:
    UserError: the file is no such list, or of other networks.
  """
  spec = _make_spec(space, settings)
  try:
    content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    genotypes = [Genotype.from_dict(g) for g in content['genotypes']]
    spec_hash = content['spec_hash']
    for genotype in genotypes:
      discretize.discretize(spec, genotype)
  except (OSError, ValueError, TypeError, LookupError, AttributeError) as e:
    raise UserError(
      f'--genotypes is {path!r}, which lists no networks of space {space!r} '
      f'({type(e).__name__}: {e}): name a file of the folder measure/ in the '
      'workdir of a shortlist.'
    ) from e
  if spec_hash != spec.spec_hash():
    raise UserError(
      f'{path} is for networks with spec hash {spec_hash}, but those of '
      f'space.deploy have {spec.spec_hash()}: give the config of that '
      'shortlist.'
    )
  return of_networks(spec, settings, genotypes)


def random_networks(
  spec: NetworkSpec, count: int, seed: int
) -> tuple[Genotype, ...]:
  """Different architectures of a space with a path from input to output.

  Each op that may win is equally likely on each edge.

  Raises:
    UserError: there are not that many.
  """
  rng = np.random.default_rng(seed)
  groups = spec.groups()
  gates = {name: np.ones(group.shape) for name, group in groups.items()}
  found: dict[Genotype, None] = {}
  for _ in range(count * _MAX_DRAWS // _CHUNK):
    if len(found) >= count:
      break
    drawn = sampling.draw(spec, gates, _CHUNK, rng)
    for i in np.flatnonzero(liveness.is_connected(spec, drawn)):
      # The op itself, whose logit exceeds those of edges that are dropped.
      alphas = {name: 9.0 * gate[i] for name, gate in drawn.items()}
      found.setdefault(discretize.derive(spec, alphas))
  if len(found) < count:
    raise UserError(
      f'--networks is {count}; of space {spec.space!r} only {len(found)} '
      'different networks were found. Ask for fewer.'
    )
  return tuple(found)[:count]


def numbers(text: str, flag: str, whole: bool) -> tuple[float, ...]:
  """Numbers of a flag: ``24,32`` or ``24:40:8``, which is 24, 32 and 40.

  Raises:
    UserError: the text is something else, or a number is not positive.
  """
  found: list[float] = []
  try:
    for item in filter(None, text.split(',')):
      parts = [float(p) for p in item.split(':')]
      if len(parts) == 1:
        found += parts
        continue
      start, stop, step = parts
      # Of a step like 0.1 the last value falls short of `stop` by a little.
      found += [
        start + i * step for i in range(int((stop - start) / step + 1.001))
      ]
    if not all(n > 0 and math.isfinite(n) for n in found):
      raise ValueError
    if whole and not all(n.is_integer() for n in found):
      raise ValueError
  except (ValueError, ZeroDivisionError, OverflowError) as e:
    raise UserError(
      f'{flag} is {text!r}; it must be positive '
      f'{"whole " if whole else ""}numbers such as 24,32 or first:last:step.'
    ) from e
  return tuple(round(n, 6) for n in found)


def expected_minutes(
  plan: Plan, seconds_a_reading: float, rounds: int
) -> float:
  """A guess: conversions, and every model once in each round."""
  ops, networks = len(plan.ops) + len(plan.sums), len(plan.networks)
  convert_s = ops * _CONVERT_OP_S + networks * _CONVERT_NETWORK_S
  return (convert_s + rounds * (ops + networks) * seconds_a_reading) / 60


def describe(plan: Plan) -> str:
  """The plan in a few lines, with the keys of all ops."""
  spec = plan.spec
  settings = ', '.join(f'{k}={v}' for k, v in plan.settings.items())
  lines = [
    f'Space {spec.space} ({settings}), spec hash {spec.spec_hash()}:',
    f'{len(plan.ops)} ops at different places, {len(plan.sums)} sums of two, '
    f'{len(plan.networks)} whole networks.',
  ]
  return '\n'.join(lines + [f'  {key}' for key in (*plan.ops, *plan.sums)])


def _make_spec(space: str, settings: Mapping[str, Any]) -> NetworkSpec:
  try:
    return spaces.make(space, **settings)
  except ValueError as e:
    raise UserError(f'config.space.deploy: {e}') from e


def _variants(space, settings, resolutions, widths) -> list[NetworkSpec]:
  """The same network at other resolutions and widths."""
  sizes = _setting(space, settings, SIZE, bool(resolutions))
  features = _setting(space, settings, WIDTH, bool(widths))
  return [
    _make_spec(
      space,
      {
        **settings,
        **({SIZE: int(size)} if resolutions else {}),
        **({WIDTH: max(1, round(features * width))} if widths else {}),
      },
    )
    for size in (resolutions and sorted({sizes, *resolutions})) or [sizes]
    for width in (widths and sorted({1.0, *widths})) or [1.0]
  ]


def _setting(
  space: str, settings: Mapping[str, Any], name: str, needed: bool
) -> Any:
  if needed and name not in settings:
    flag = '--resolutions' if name == SIZE else '--widths'
    raise UserError(
      f'{flag} varies {name!r}, but config.space.deploy of space {space!r} '
      f'has no such setting: it has {sorted(settings)}.'
    )
  return settings.get(name)
