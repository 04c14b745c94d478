"""Which architectures of a finished search deserve a training of their own.

The candidates of a target are the most probable networks that meet its bounds,
or those that a `Ranking` holds best once some were trained. Where a space can
be enumerated these are exactly the best; elsewhere they are the best of those
drawn from the distribution, also flattened, and of the neighbours of the best.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hwdarts_jax.jobs import bounds as bounds_lib
from hwdarts_jax.latency import projection, sameness, sampling
from hwdarts_jax.latency.corner import corners, is_enumerable
from hwdarts_jax.spaces import discretize
from hwdarts_jax.spaces.spec import Genotype, NetworkSpec

Probs = Mapping[str, np.ndarray]
_DRAWN = 2000  # architectures at each temperature
_TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
_ROUNDS = 2  # of all changes of one choice of the best
_LEAST = 1e-30
# By a ranking, which costs more to ask than the score does.
_DRAWN_TO_RANK = 500
_CLIMBED = 6  # best ones whose neighbours are looked at
_CLIMBS = 3
_KEPT = 2000


class Target(NamedTuple):
  """What a shortlist is made for.

  Attributes:
    bounds: that its candidates meet; none: all that connect input and output.
    probs: distributions over ops f[E, O] of each group, by which they are
      scored.
  """

  bounds: tuple[bounds_lib.Bound, ...]
  probs: Probs


class Candidate(NamedTuple):
  """An architecture that is to be trained.

  Attributes:
    genotype: the most probable one that meets the bounds, of those that are the
      same network.
    key: of that network, see `sameness.keys`.
    score: sum of the log probabilities of its ops.
  """

  genotype: Genotype
  key: str
  score: float


class Ranking(NamedTuple):
  """What takes the place of the score.

  Attributes:
    values: of architectures f[N, E, O] of each group, f[N]; higher is better.
    starts: architectures whose neighbours are looked at.
  """

  values: Callable[[Probs], np.ndarray]
  starts: tuple[Genotype, ...] = ()


def best(
  spec: NetworkSpec,
  target: Target,
  size: int,
  without: Collection[str] = (),
  ranking: Ranking | None = None,
) -> list[Candidate]:
  """Up to `size` networks of the highest score that meet the bounds.

  Args:
    spec: the space; bounds are on a spec with the same groups.
    target: what they are for.
    size: how many, at most.
    without: keys of networks that are left out.
    ranking: of what they are the best instead.
  """
  limits = [b.limit for b in target.bounds]
  if is_enumerable(spec):
    every = corners(spec)
  elif ranking is not None:
    every = _climbed(spec, target.probs, limits, ranking)
  else:
    every = _sampled(spec, target.probs, limits, size + len(without))
  allowed = projection.violation(spec, every, limits) == 0
  scores = np.where(allowed, _scores(target.probs, every), -np.inf)
  values = scores
  if ranking is not None:
    values = _where(allowed, ranking.values, every)
  order = np.argsort(-values, kind='stable')[: int(allowed.sum())]
  found: dict[str, Candidate] = {}
  for start in range(0, len(order), 4 * size):
    some = order[start : start + 4 * size]
    genotypes = [
      projection.to_genotype(spec, {g: p[i] for g, p in every.items()})
      for i in some
    ]
    keys = sameness.keys(spec, genotypes)
    for i, genotype, key in zip(some, genotypes, keys, strict=True):
      if key not in without:
        found.setdefault(key, Candidate(genotype, key, float(scores[i])))
    if len(found) >= size:
      break
  return list(found.values())[:size]


def ranked(
  spec: NetworkSpec, candidates: list[Candidate], ranking: Ranking | None
) -> list[Candidate]:
  """Candidates, the best first; of equals the first."""
  values = np.array([c.score for c in candidates])
  if ranking is not None and candidates:
    values = ranking.values(stack(spec, [c.genotype for c in candidates]))
  order = np.argsort(-values, kind='stable')
  return [candidates[i] for i in order]


def stack(
  spec: NetworkSpec, genotypes: Sequence[Genotype]
) -> dict[str, np.ndarray]:
  """Genotypes, one at least, as architectures f[N, E, O] of each group."""
  each = [discretize.one_hot(spec, g) for g in genotypes]
  return {group: np.stack([one[group] for one in each]) for group in each[0]}


def union(shortlists: Sequence[Sequence[Candidate]]) -> dict[str, Genotype]:
  """What to train: the first of all shortlists, then the second, and so on."""
  found: dict[str, Genotype] = {}
  for rank in range(max(map(len, shortlists))):
    for candidates in shortlists:
      if rank < len(candidates):
        found.setdefault(candidates[rank].key, candidates[rank].genotype)
  return found


def score(spec: NetworkSpec, probs: Probs, genotype: Genotype) -> float:
  """Sum of the log probabilities of the ops of a genotype."""
  one_hot = discretize.one_hot(spec, genotype)
  return float(_scores(probs, {g: p[None] for g, p in one_hot.items()})[0])


def _scores(probs: Probs, one_hot: Probs) -> np.ndarray:
  """Sums f64[N] of the log probabilities of what architectures have."""
  total: Any = sum(
    np.einsum('neo,eo->n', one_hot[g], np.log(np.maximum(p, _LEAST)))
    for g, p in probs.items()
  )
  return np.asarray(total, np.float64)


def _where(
  allowed: np.ndarray, values: Callable[[Probs], np.ndarray], every: Probs
) -> np.ndarray:
  """Values f[N] of architectures that are allowed; -inf of the others."""
  found = np.full(len(allowed), -np.inf)
  if allowed.any():
    found[allowed] = values({g: p[allowed] for g, p in every.items()})
  return found


def _sampled(
  spec: NetworkSpec, probs: Probs, limits: Sequence[Any], size: int
) -> dict[str, np.ndarray]:
  """Architectures f[N, E, O] of a space that is too large to look at all."""
  blocks = sampling.blocks(spec)
  values = [sampling.choices(spec, b) for b in blocks]
  found = _drawn(spec, probs, limits, blocks, values, _DRAWN)
  for _ in range(_ROUNDS):
    one_hot = _one_hot(spec, found, blocks, values)
    allowed = projection.violation(spec, one_hot, limits) == 0
    scores = np.where(allowed, _scores(probs, one_hot), -np.inf)
    top = found[np.argsort(-scores, kind='stable')[:size]]
    found = np.unique(np.concatenate([found, _changed(top, values)]), axis=0)
  return _one_hot(spec, found, blocks, values)


def _climbed(
  spec: NetworkSpec, probs: Probs, limits: Sequence[Any], ranking: Ranking
) -> dict[str, np.ndarray]:
  """The best architectures f[N, E, O] that changes of one choice lead to.

  From those that are drawn, and from the starts.
  """
  blocks = sampling.blocks(spec)
  values = [sampling.choices(spec, b) for b in blocks]
  new = [_drawn(spec, probs, limits, blocks, values, _DRAWN_TO_RANK)]
  for genotype in ranking.starts:
    row = _row(spec, genotype, blocks, values)
    new += [row, _changed(row, values)]
  found = np.zeros((0, len(blocks)), int)
  known = np.zeros(0)
  for _ in range(1 + _CLIMBS):
    rows = np.unique(np.concatenate(new), axis=0)
    seen = set(map(bytes, found))
    rows = rows[[bytes(row) not in seen for row in rows]]
    if not len(rows):
      break
    one_hot = _one_hot(spec, rows, blocks, values)
    allowed = projection.violation(spec, one_hot, limits) == 0
    found = np.concatenate([found, rows])
    known = np.append(known, _where(allowed, ranking.values, one_hot))
    order = np.argsort(-known, kind='stable')[:_KEPT]
    new = [_changed(found[order[:_CLIMBED]], values)]
  return _one_hot(spec, found[order], blocks, values)


def _drawn(
  spec: NetworkSpec,
  probs: Probs,
  limits: Sequence[Any],
  blocks: list[sampling.Block],
  values: list[np.ndarray],
  count: int,
) -> np.ndarray:
  """Different choices i[N, B], with those of the projection among them.

  Args:
    spec: the space.
    probs: distributions over ops.
    limits: that the projection meets.
    blocks: of the space.
    values: what each can be.
    count: how many are drawn at each temperature.
  """
  rng = np.random.default_rng(0)
  logs = {g: np.log(np.maximum(p, _LEAST)) for g, p in probs.items()}
  nearest = projection.project(spec, probs, limits).genotype
  rows = [_row(spec, nearest, blocks, values)]
  for temperature in _TEMPERATURES:
    flat = {g: _softmax(v / temperature) for g, v in logs.items()}
    chances = [
      sampling.chances(v, flat[b.group][list(b.rows)])
      for b, v in zip(blocks, values, strict=True)
    ]
    drawn = [rng.choice(len(c), size=count, p=c) for c in chances]
    rows.append(np.stack(drawn, 1))
  return np.unique(np.concatenate(rows), axis=0)


def _changed(rows: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
  """Rows i[N, B] with one choice set to each that it can be."""
  return np.concatenate(
    [
      np.insert(np.delete(rows, i, 1), i, choice, 1)
      for i, v in enumerate(values)
      for choice in range(len(v))
    ]
  )


def _row(spec: NetworkSpec, genotype: Genotype, blocks, values) -> np.ndarray:
  """The choices i[1, B] of a genotype."""
  one_hot = discretize.one_hot(spec, genotype)
  picked = [
    int((v == one_hot[b.group][list(b.rows)]).all((1, 2)).argmax())
    for b, v in zip(blocks, values, strict=True)
  ]
  return np.array([picked])


def _one_hot(
  spec: NetworkSpec, rows: np.ndarray, blocks, values
) -> dict[str, np.ndarray]:
  """Choices i[N, B] as architectures f[N, E, O] of each group."""
  found = {
    name: np.zeros((len(rows), *group.shape), np.float32)
    for name, group in spec.groups().items()
  }
  for i, (block, own) in enumerate(zip(blocks, values, strict=True)):
    found[block.group][:, list(block.rows)] = own[rows[:, i]]
  return found


def _softmax(logits: np.ndarray) -> np.ndarray:
  shifted = np.exp(logits - logits.max(-1, keepdims=True))
  return shifted / shifted.sum(-1, keepdims=True)
