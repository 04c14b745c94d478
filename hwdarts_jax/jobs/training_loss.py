"""What a training minimizes: targets, mixed images, a teacher; and averages.

Pure functions of arrays. Everything is drawn for a whole batch from one key,
so that it does not depend on how the batch is spread over devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

Pair = tuple[jax.Array, jax.Array]


def soft_targets(
  label: jax.Array, num_classes: int, smoothing: float, dtype=jnp.float32
) -> jax.Array:
  """One-hot labels, of which every class gets some (Szegedy et al. 2016).

  Args:
    label: i32[B].
    num_classes: N.
    smoothing: share that is spread evenly over all classes.
    dtype: of the result.

  Returns:
    f[B, N]; rows sum to 1.
  """
  one_hot = jax.nn.one_hot(label, num_classes, dtype=dtype)
  return optax.smooth_labels(one_hot, smoothing)


def mixed(
  rng: jax.Array,
  image: jax.Array,
  target: jax.Array,
  mixup: float,
  cutmix: float,
) -> Pair:
  """Images and targets mixed with those of the example before.

  Where both are on, each step is one of them by chance. Partners are
  neighbours in the batch, whose order is random: a fixed shift moves one image
  between devices, where the permutation of the papers would move most.

  Args:
    rng: key of this step.
    image: f[B, H, W, C].
    target: f[B, N].
    mixup: both parameters of the Beta distribution of mixup (Zhang et al.
      2018); 0 leaves it out.
    cutmix: those of cutmix (Yun et al. 2019).
  """
  if not mixup and not cutmix:
    return image, target
  of_mixup, of_cutmix, choice = jax.random.split(rng, 3)
  results = []
  if mixup:
    results.append(_mixup(of_mixup, image, target, mixup))
  if cutmix:
    results.append(_cutmix(of_cutmix, image, target, cutmix))
  if len(results) == 1:
    return results[0]
  first = jax.random.bernoulli(choice)
  return jax.tree.map(lambda a, b: jnp.where(first, a, b), *results)


def _mixup(
  rng: jax.Array, image: jax.Array, target: jax.Array, alpha: float
) -> Pair:
  share = jax.random.beta(rng, alpha, alpha)
  return _blend(image, share), _blend(target, share)


def _blend(x: jax.Array, share: jax.Array) -> jax.Array:
  """Share * x + (1 - share) * (x of the example before)."""
  share = share.astype(x.dtype)
  return share * x + (1 - share) * jnp.roll(x, 1, axis=0)


def _cutmix(
  rng: jax.Array, image: jax.Array, target: jax.Array, alpha: float
) -> Pair:
  """A rectangle is taken from the example before; targets by its area."""
  of_share, of_centre = jax.random.split(rng)
  height, width = image.shape[1:3]
  side = jnp.sqrt(1 - jax.random.beta(of_share, alpha, alpha))
  centre = jax.random.uniform(of_centre, (2,))
  inside = (
    _within(height, centre[0], side)[:, None]
    & _within(width, centre[1], side)[None, :]
  )
  image = jnp.where(inside[None, :, :, None], jnp.roll(image, 1, axis=0), image)
  return image, _blend(target, 1 - inside.mean())


def _within(size: int, centre: jax.Array, side: jax.Array) -> jax.Array:
  """Which of `size` pixels lie in a span, clipped: bool[size]."""
  half = side * size / 2
  first, last = (jnp.round(centre * size + s * half) for s in (-1, 1))
  pixels = jnp.arange(size)
  return (pixels >= first) & (pixels < last)


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
  """Mean cross-entropy f[] of logits f[B, N] and targets f[B, N]."""
  return optax.softmax_cross_entropy(logits, target).mean()


def distillation(
  logits: jax.Array, teacher: jax.Array, temperature: float
) -> jax.Array:
  """How far a network is from its teacher, f[] (Hinton et al. 2015).

  The mean Kullback-Leibler divergence of both at a temperature, times its
  square, so that gradients keep their size; 0 where they agree.

  Args:
    logits: f[B, N].
    teacher: f[B, N], of the teacher; not differentiated.
    temperature: by which both are divided.
  """
  wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
  found = jax.nn.log_softmax(logits / temperature)
  divergence = (jnp.exp(wanted) * (wanted - found)).sum(-1)
  return temperature**2 * divergence.mean()


def average(old, new, decay: float, step: jax.Array):
  """One step of the exponential moving average of a tree.

  Early averages would remember the start: the decay grows to its value as
  (1 + step) / (10 + step), as in TensorFlow.

  Args:
    old: the average so far.
    new: what is averaged.
    decay: share of the old average that is kept, in the long run.
    step: i32[], steps done before this one.
  """
  decay_now = jnp.minimum(decay, (1 + step) / (10 + step))
  return optax.incremental_update(new, old, 1 - decay_now)
