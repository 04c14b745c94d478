"""Skips tests that need the extra `tflite`; CI has it, and never skips."""

import importlib.util
import os

import pytest

_PACKAGES = (
  'ai_edge_litert',
  'ai_edge_quantizer',
  'litert_converter',
  'onnx',
  'onnxruntime',
)


def skip_module_without():
  """Skips the module that calls it where a package is missing."""
  _skip(allow_module_level=True)


def skip_without():
  """Skips the test that calls it where a package is missing."""
  _skip()


def _skip(**settings):
  missing = [p for p in _PACKAGES if importlib.util.find_spec(p) is None]
  if missing and not os.environ.get('CI'):
    pytest.skip(
      f"not installed: {', '.join(missing)}; pip install '.[test,tflite]'",
      **settings,
    )
