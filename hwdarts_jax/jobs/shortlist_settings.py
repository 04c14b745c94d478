"""What the section `shortlist` of a config may hold."""

from __future__ import annotations

from hwdarts_jax.jobs import rules
from hwdarts_jax.models import members

FIELDS: dict[str, dict[str, rules.Rule]] = {
  'shortlist': {
    'search_workdir': rules.TEXT,
    'targets_ms': rules.LIST,
    'size': rules.whole(1),
    'rounds': rules.whole(1),
    'more': rules.whole(1),
    'pool': rules.TEXT,
    'max_measured': rules.whole(0),
    'runner': rules.TEXT,
    'runner_dtype': rules.TEXT,
    'runner_batch': rules.whole(1),
    'num_epochs': rules.whole(1),
    'batch_size': rules.whole(1),
    'eval_batch_size': rules.whole(1),
    'steps_per_call': rules.whole(1),
    'members_per_program': rules.whole(1),
    'evaluation': rules.among('auto', *members.EVALUATIONS),
    'num_cells': rules.whole(0),
    'features': rules.whole(0),
    'image_size': rules.whole(0),
    'warmup_epochs': rules.NOT_NEGATIVE,
    'optimizer': rules.SECTION,
  }
}
