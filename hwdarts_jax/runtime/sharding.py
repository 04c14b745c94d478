"""Where arrays live: one mesh with one axis, and the two shardings we need."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

AXIS = 'data'  # the axis of the mesh


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh with one axis over the devices of all processes.

  Args:
    num_devices: how many; None means all.

  Raises:
    ValueError: there are not so many devices, or some processes would have
      none.
  """
  devices = jax.devices()
  if num_devices not in (None, len(devices)) and jax.process_count() > 1:
    raise ValueError(
      f'num_devices is {num_devices}; with --multihost it must be 0, which is '
      f'all {len(devices)} devices of the {jax.process_count()} processes.'
    )
  count = len(devices) if num_devices is None else num_devices
  if not 1 <= count <= len(devices):
    raise ValueError(
      f'num_devices is {num_devices!r}; it must be from 1 to {len(devices)}, '
      'the number of devices that jax sees, or None for all of them.'
    )
  # Explicit axes, the default, would ask every op for its sharding.
  return jax.make_mesh(
    (count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count]
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Axis number `axis` split over the devices."""
  return NamedSharding(mesh, PartitionSpec(*([None] * axis), AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a pytree, that all processes hold alike, on every device."""
  return put(tree, replicated(mesh))


def put(tree: Any, where: jax.sharding.Sharding) -> Any:
  """Puts a pytree, that all processes hold alike, where a sharding says."""
  if where.is_fully_addressable:
    return jax.device_put(tree, where)

  def one(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = one(jax.random.key_data(leaf))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    # device_put would compare the values between the processes.
    return jax.make_array_from_callback(
      host.shape, where, lambda index: host[index]
    )

  return jax.tree.map(one, tree)


def check_batch(
  batch_size: int,
  batch_groups: int,
  num_devices: int,
  field: str = 'batch_size',
) -> None:
  """Checks that a batch splits evenly into batch groups and over devices.

  Args:
    batch_size: examples of a batch, over all devices.
    batch_groups: parts that have batch-norm statistics of their own.
    num_devices: devices of the mesh.
    field: name of the batch size in the config, for the message.

  Raises:
    ValueError: it does not; the message says what would.
  """
  for name, value in (
    (field, batch_size),
    ('batch_groups', batch_groups),
    ('num_devices', num_devices),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value!r}; it must be at least 1.')
  for name, parts in (
    ('batch_groups', batch_groups),
    ('num_devices', num_devices),
  ):
    if batch_size % parts:
      below = batch_size // parts * parts
      near = [n for n in (below, below + parts) if n]
      raise ValueError(
        f'{field} is {batch_size}; it must be a multiple of {name} = {parts}, '
        f'for example {" or ".join(map(str, near))}.'
      )
  if batch_groups % num_devices and num_devices % batch_groups:
    raise ValueError(
      f'batch_groups is {batch_groups}; it must divide the number of devices, '
      f'{num_devices}, or be a multiple of it, so that no device holds parts '
      f'of groups that others share unevenly, for example {num_devices}.'
    )
