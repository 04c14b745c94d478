"""The PyTorch peer of the benchmark computes what the reference computes."""

import functools
import importlib

from flax import traverse_util
import jax
import numpy as np
import optax
import pytest

from hwdarts_jax import spaces
from hwdarts_jax.bilevel import hypergrad
from hwdarts_jax.models import network as network_lib
from hwdarts_jax.models import ops

torch = pytest.importorskip('torch')
torch_peer = importlib.import_module('benchmarks.torch_peer')
peer_lib = importlib.import_module('benchmarks.search_step_torch')

SIZES = {'features': 4, 'num_cells': 3, 'num_nodes': 2}
TOLERANCE = 1e-4
WEIGHT = 0.3  # of the latency, per ms
KINDS = ('DepthwiseConv', 'Conv', 'BatchNorm', 'Dense')
LEAVES = ('kernel', 'scale', 'bias')


def _rank(path):
  """Where a leaf stands in an op: convolutions alternate, affines follow."""
  kind, index = path[-2].rsplit('_', 1)
  return int(index), KINDS.index(kind), LEAVES.index(path[-1])


def _in_torch_layout(spec, params):
  """Leaves as a list in the order and layout of the peer."""
  found = []
  for cell in spec.all_cells:
    for edge in cell.edges:
      for op in edge.ops:
        leaves = traverse_util.flatten_dict(
          params.get(cell.name, {}).get(edge.name, {}).get(op, {})
        )
        for path in sorted(leaves, key=_rank):
          leaf = np.array(leaves[path])
          axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
          found.append(leaf.transpose(axes))
  return found


def _peer(spec, params, alphas, per_op):
  """The other side, with the same params and alphas."""
  net = torch_peer.Supernet(**SIZES)
  layout = _in_torch_layout(spec, params)
  with torch.no_grad():
    for mine, theirs in zip(net.parameters(), layout, strict=True):
      assert mine.shape == theirs.shape
      mine.copy_(torch.tensor(theirs))
  costs = torch_peer.Costs(per_op, 0.0, 1.0, WEIGHT)
  return torch_peer.Search(net, alphas, costs)


@pytest.fixture(scope='module')
def case():
  """Both sides with the same params, alphas and batches, and our numbers."""
  spec = spaces.make('darts', image_size=8, **SIZES)
  network = network_lib.Network(spec, ops.Context(affine=False))
  variables = network_lib.init(network, jax.random.key(0))
  rng = np.random.default_rng(0)
  alphas, per_op = (
    {
      g: rng.normal(size=s.shape).astype(np.float32)
      for g, s in spec.groups().items()
    }
    for _ in range(2)
  )
  images = rng.normal(size=(2, 8, 8, 8, 3)).astype(np.float32)
  labels = rng.integers(0, 10, (2, 8))

  def task(params, alphas, i):
    gates = jax.tree.map(jax.nn.softmax, alphas)
    logits, _ = network.apply(
      {**variables, 'params': params},
      images[i],
      gates,
      train=True,
      mutable=['batch_stats'],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels[i])
    return loss.mean(), logits

  def objective(params, alphas, i):
    loss, logits = task(params, alphas, i)
    gates = jax.tree.map(jax.nn.softmax, alphas)
    ms = sum((gates[g] * per_op[g]).sum() for g in gates)
    return loss + WEIGHT * ms, logits

  gradient = jax.jit(
    jax.value_and_grad(functools.partial(objective, i=1), (0, 1), has_aux=True)
  ).lower(variables['params'], alphas)
  # It runs once: compiling is all the time there is.
  gradient = gradient.compile({'xla_backend_optimization_level': 0})
  (value, logits), (params_grad, alphas_grad) = gradient(
    variables['params'], alphas
  )

  batches = [
    (torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y))
    for x, y in zip(images, labels, strict=True)
  ]
  return {
    'search': _peer(spec, variables['params'], alphas, per_op),
    'batches': batches,
    'value': value,
    'logits': logits,
    'alphas_grad': alphas_grad,
    'params_grad': _in_torch_layout(spec, params_grad),
  }


def _close(theirs, ours):
  np.testing.assert_allclose(
    theirs.detach().numpy(), ours, rtol=TOLERANCE, atol=TOLERANCE
  )


def test_logits_and_objective_are_those_of_the_reference(case):
  search, (_, val_batch) = case['search'], case['batches']
  _close(search.net(val_batch[0], search.gates()), case['logits'])
  _close(search.objective(val_batch), case['value'])


def test_first_order_gradient_of_alphas_is_that_of_the_reference(case):
  search = case['search']
  grads = search.alphas_grads(*case['batches'])
  for group, grad in zip(search.alphas, grads, strict=True):
    _close(grad, case['alphas_grad'][group])


def test_gradient_of_params_is_that_of_the_reference(case):
  search, (_, val_batch) = case['search'], case['batches']
  loss = search.objective(val_batch)
  grads = torch.autograd.grad(loss, list(search.net.parameters()))
  for grad, expected in zip(grads, case['params_grad'], strict=True):
    _close(grad, expected)


def test_supernet_of_the_paper_has_the_published_number_of_params():
  assert torch_peer.Supernet().num_params() == 1_930_618


def test_second_order_is_a_central_difference_about_the_old_params():
  # Smooth losses of two numbers stand for the network, so that the estimator
  # itself is compared.
  search = torch_peer.Search.__new__(torch_peer.Search)
  weight = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
  alphas = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
  search.alphas, search._params = {'a': alphas}, [weight]
  search._momenta = [torch.tensor([0.2, 0.1], dtype=torch.float64)]
  search.rate = torch.tensor(0.1, dtype=torch.float64)
  search.task_loss = lambda _: (weight**3 * alphas.exp()).sum()
  search.objective = lambda _: (weight**2 * (1 + alphas) ** 2).sum()
  (found,) = search._unrolled_grads(None, None)

  with jax.enable_x64(True):

    def inner_step(params, grads):
      step = grads + torch_peer.WEIGHT_DECAY * params
      return params - 0.1 * (step + 0.9 * np.array([0.2, 0.1]))

    expected = hypergrad.finite_difference(
      lambda p, a: (p**3 * jax.numpy.exp(a)).sum(),
      lambda p, a: (p**2 * (1 + a) ** 2).sum(),
      inner_step,
      jax.numpy.array([0.7, -0.4]),
      jax.numpy.array([0.3, 0.9]),
      inner_lr=0.1,
    )
  np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
  np.testing.assert_allclose(weight.detach().numpy(), [0.7, -0.4], rtol=1e-12)


def test_step_moves_params_by_clipped_momentum_and_keeps_the_loss_finite(case):
  search = case['search']
  before = [p.detach().clone() for p in search.net.parameters()]
  search.rate.fill_(0.025)
  loss = search.step(*case['batches'])
  assert torch.isfinite(loss)
  after = [p.detach() for p in search.net.parameters()]
  moved = [(a - b).norm() for a, b in zip(after, before, strict=True)]
  length = float(torch.stack(moved).norm())
  weights = float(torch.stack([b.norm() for b in before]).norm())
  bound = torch_peer.CLIP_NORM + torch_peer.WEIGHT_DECAY * weights
  assert 0 < length <= 0.025 * bound * (1 + 1e-5)


@pytest.mark.parametrize('pad', [0, 2])
def test_augmentation_shows_a_shifted_or_mirrored_window(pad):
  rng = np.random.default_rng(0)
  images = torch.tensor(rng.integers(1, 256, (4, 5, 5, 2), np.uint8))
  labels = torch.arange(4)
  indices = torch.tensor([2, 0, 3])
  zero, one = torch.zeros(2), torch.ones(2)
  x, y = peer_lib.augmented(images, labels, indices, zero, one, pad)
  assert y.tolist() == [2, 0, 3]
  for image, index in zip(x, indices, strict=True):
    padded = np.pad(images[index].numpy(), ((pad, pad), (pad, pad), (0, 0)))
    windows = [
      padded[i : i + 5, j : j + 5, :][:, ::flip]
      for i in range(2 * pad + 1)
      for j in range(2 * pad + 1)
      for flip in (1, -1)
    ]
    found = image.permute(1, 2, 0).numpy()
    assert any(np.array_equal(found, w) for w in windows)
