"""What each op computes, in NumPy, as its paper says."""

import functools
import itertools

import numpy as np
from op_cases import _numpy_norm

from hwdarts_jax.models import mobile_ops, ops


def _windows(x, kernel, stride, dilation=1):
  """Yields (row, column, [(i, j, pixel f[B, C])]), pixels inside only."""
  _, height, width, _ = x.shape
  pad = dilation * (kernel - 1) // 2
  for row, column in itertools.product(
    range(-(-height // stride)), range(-(-width // stride))
  ):
    inside = []
    for i, j in itertools.product(range(kernel), repeat=2):
      y = row * stride + i * dilation - pad
      z = column * stride + j * dilation - pad
      if 0 <= y < height and 0 <= z < width:
        inside.append((i, j, x[:, y, z]))
    yield row, column, inside


def _numpy_windowed(x, features, kernel, stride, dilation, function):
  height, width = (-(-n // stride) for n in x.shape[1:3])
  out = np.zeros((x.shape[0], height, width, features))
  for row, column, inside in _windows(x, kernel, stride, dilation):
    out[:, row, column] = function(inside)
  return out


def _numpy_conv(x, kernel, stride=1):
  return _numpy_windowed(
    x,
    kernel.shape[-1],
    kernel.shape[0],
    stride,
    1,
    lambda inside: sum(pixel @ kernel[i, j] for i, j, pixel in inside),
  )


def _numpy_depthwise(x, kernel, stride=1, dilation=1):
  return _numpy_windowed(
    x,
    x.shape[-1],
    kernel.shape[0],
    stride,
    dilation,
    lambda inside: sum(pixel * kernel[i, j, 0] for i, j, pixel in inside),
  )


def _numpy_pool(x, stride, function):
  return _numpy_windowed(
    x,
    x.shape[-1],
    3,
    stride,
    1,
    lambda inside: function([pixel for _, _, pixel in inside], axis=0),
  )


def _relu(x):
  return np.maximum(x, 0)


def _reference_relu_conv_bn(x, p, stride):
  y = _numpy_conv(_relu(x), p['Conv_0']['kernel'], stride)
  return _numpy_norm(y, p['BatchNorm_0'])


def _reference_conv_bn(x, p, stride):
  y = _numpy_conv(x, p['Conv_0']['kernel'], stride)
  return _numpy_norm(y, p['BatchNorm_0'])


def _reference_sep_conv(x, p, stride):
  for i, s in enumerate((stride, 1)):
    y = _numpy_depthwise(_relu(x), p[f'DepthwiseConv_{i}']['kernel'], s)
    y = _numpy_conv(y, p[f'Conv_{i}']['kernel'])
    x = _numpy_norm(y, p[f'BatchNorm_{i}'])
  return x


def _reference_dil_conv(x, p, stride):
  y = _numpy_depthwise(_relu(x), p['DepthwiseConv_0']['kernel'], stride, 2)
  y = _numpy_conv(y, p['Conv_0']['kernel'])
  return _numpy_norm(y, p['BatchNorm_0'])


def _reference_factorized_reduce(x, p, stride):
  """Even pixels through one half of the features, odd ones through the other.

  The odd grid of an odd size ends in one row and column of zeros.
  """
  assert stride == 2
  x = _relu(x)
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  even, odd = x[:, ::2, ::2], padded[:, 1::2, 1::2]
  y = np.concatenate(
    [even @ p['Conv_0']['kernel'][0, 0], odd @ p['Conv_1']['kernel'][0, 0]],
    axis=-1,
  )
  return _numpy_norm(y, p['BatchNorm_0'])


def _reference_skip(x, p, stride):
  if stride == 1:
    return x
  return _reference_factorized_reduce(x, p['FactorizedReduce_0'], stride)


def _reference_residual_block(x, p, stride):
  y = _numpy_conv(_relu(x), p['Conv_0']['kernel'], stride)
  y = _numpy_norm(y, p['BatchNorm_0'])
  y = _numpy_conv(_relu(y), p['Conv_1']['kernel'])
  y = _numpy_norm(y, p['BatchNorm_1'])
  height, width = (-(-n // stride) for n in x.shape[1:3])
  small = np.zeros((x.shape[0], height, width, x.shape[-1]))
  for row, column in itertools.product(range(height), range(width)):
    rows = slice(row * stride, (row + 1) * stride)
    columns = slice(column * stride, (column + 1) * stride)
    small[:, row, column] = x[:, rows, columns].mean((1, 2))
  return y + _numpy_conv(small, p['Conv_2']['kernel'])


_NUMPY = {
  'relu': _relu,
  'relu6': lambda x: np.clip(x, 0, 6),
  'hswish': lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
  'silu': lambda x: x / (1 + np.exp(-x)),
}


def _numpy_dense(x, p):
  return x @ p['kernel'] + p['bias']


def _numpy_squeeze(y, p, act):
  """EfficientNet's where activations are SiLU, else MobileNetV3's."""
  means = y.mean((1, 2), keepdims=True)
  narrow = _numpy_dense(means, p['Dense_0'])
  if act == 'silu':
    gates = 1 / (
      1 + np.exp(-_numpy_dense(_NUMPY['silu'](narrow), p['Dense_1']))
    )
  else:
    gates = np.clip(_numpy_dense(_relu(narrow), p['Dense_1']) / 6 + 0.5, 0, 1)
  return y * gates


def _reference_mb_conv(x, p, stride, expansion, squeeze, activation, **_):
  act, y, i = _NUMPY[activation], x, 0
  if expansion != 1:
    y = _numpy_conv(y, p['Conv_0']['kernel'])
    y, i = act(_numpy_norm(y, p['BatchNorm_0'])), 1
  y = _numpy_depthwise(y, p['DepthwiseConv_0']['kernel'], stride)
  y = act(_numpy_norm(y, p[f'BatchNorm_{i}']))
  if squeeze:
    y = _numpy_squeeze(y, p, activation)
  y = _numpy_conv(y, p[f'Conv_{i}']['kernel'])
  y = _numpy_norm(y, p[f'BatchNorm_{i + 1}'])
  return x + y if x.shape == y.shape else y


def _reference_fused_conv(x, p, stride, activation, **_):
  y = _numpy_conv(x, p['Conv_0']['kernel'], stride)
  y = _NUMPY[activation](_numpy_norm(y, p['BatchNorm_0']))
  y = _numpy_norm(_numpy_conv(y, p['Conv_1']['kernel']), p['BatchNorm_1'])
  return x + y if x.shape == y.shape else y


# Of classes whose settings are many.
_OF_CLASSES = {
  mobile_ops.InvertedResidual: _reference_mb_conv,
  mobile_ops.FusedInvertedResidual: _reference_fused_conv,
  mobile_ops.ConvBnAct: lambda x, p, s, activation, **_: _NUMPY[activation](
    _reference_conv_bn(x, p, s)
  ),
  mobile_ops.DenseAct: lambda x, p, s, activation: _NUMPY[activation](
    _numpy_dense(x, p['Dense_0'])
  ),
}
REFERENCES = {
  'none': lambda x, p, s: 0 * x[:, ::s, ::s],
  'skip_connect': _reference_skip,
  'factorized_reduce': _reference_factorized_reduce,
  'nor_conv_1x1': _reference_relu_conv_bn,
  'nor_conv_3x3': _reference_relu_conv_bn,
  'relu_conv_bn_1x1': _reference_relu_conv_bn,
  'sep_conv_3x3': _reference_sep_conv,
  'sep_conv_5x5': _reference_sep_conv,
  'dil_conv_3x3': _reference_dil_conv,
  'dil_conv_5x5': _reference_dil_conv,
  'avg_pool_3x3': lambda x, p, s: _numpy_pool(x, s, np.mean),
  'max_pool_3x3': lambda x, p, s: _numpy_pool(x, s, np.max),
  'conv_bn_3x3': _reference_conv_bn,
  'residual_block_3x3': _reference_residual_block,
  'bn_relu': lambda x, p, s: _relu(_numpy_norm(x, p['BatchNorm_0'])),
  'global_avg_pool': lambda x, p, s: x.mean((1, 2), keepdims=True),
  'dense': lambda x, p, s: _numpy_dense(x, p['Dense_0']),
} | {
  name: functools.partial(_OF_CLASSES[made.func], **made.keywords)
  for name, made in ops.OPS.items()
  if made.func in _OF_CLASSES
}
