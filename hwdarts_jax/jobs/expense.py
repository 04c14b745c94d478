"""What a run will cost, computed from a stated rate before it starts."""

from __future__ import annotations

from typing import Any


def of_training(training: Any) -> str:
  """What a `retrain.Training` will take, in words."""
  settings = training.config.retrain
  return _words(
    f'Training, {settings.num_epochs} epochs',
    training.schedule.num_steps * settings.batch_size,
    settings.images_per_second,
    training.mesh.size,
    'retrain.images_per_second',
  )


def of_search(search: Any) -> str:
  """What a `search.Search` will take, in words."""
  settings = search.config.search
  return _words(
    f'Search, {settings.num_steps} bilevel steps',
    # Of both halves: a step takes a batch of each.
    2 * settings.num_steps * settings.batch_size,
    settings.images_per_second,
    search.mesh.size,
    'search.images_per_second',
  )


def _words(
  what: str, num_images: int, rate: float, num_devices: int, field: str
) -> str:
  """One line; `rate` is that of one device in images/s, 0 if none is known."""
  total = f'{what}: {num_images:,} images.'
  if not rate:
    return total
  hours = num_images / (rate * num_devices) / 3600
  of = '1 device' if num_devices == 1 else f'{num_devices} devices'
  return (
    f'{total} Computed from {field}={rate:g}, as stated for one device: '
    f'{hours:.1f} hours, {hours * num_devices:.1f} device hours on {of}.'
  )
