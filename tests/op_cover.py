"""Which ops the costly contract tests run."""

from hwdarts_jax.models import ops

_MANY = 3


def names() -> list[str]:
  """All ops, but of classes with many only a few that have all there is.

  There are over 50 blocks of mobile networks. Every value of each setting is in
  one of those few; of a number with many values, whether it is 1, which may
  leave out a layer.
  """
  found = []
  for cls in {made.func for made in ops.OPS.values()}:
    settings = {
      name: made.keywords
      for name, made in sorted(ops.OPS.items())
      if made.func is cls
    }
    found += list(settings) if len(settings) <= _MANY else _cover(settings)
  return sorted(found)


def _is_many(values):
  return len(values) > _MANY and not any(isinstance(v, str) for v in values)


def _cover(settings):
  """Greedily: the op that has most of what is missing comes next."""
  values: dict[str, set] = {}
  for each in settings.values():
    for key, value in each.items():
      values.setdefault(key, set()).add(value)
  features = {
    name: {
      (key, value == 1 if _is_many(values[key]) else value)
      for key, value in each.items()
    }
    for name, each in settings.items()
  }
  missing = set().union(*features.values())
  found = []
  while missing:
    found.append(max(features, key=lambda name: len(features[name] & missing)))
    missing -= features[found[-1]]
  return found
