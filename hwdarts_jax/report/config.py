"""The config of job `report`, for commands that name none.

What a report shows is the config of its workdir, so any other would do.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  return ml_collections.ConfigDict({'source': '', 'job': 'report'})
