"""The whole command on a device that goes away: what is said, and kept."""

import collections
import os
import pathlib
import re
import subprocess
import sys

from adb_device import Device
import pytest
import remote_peers as peers

from hwdarts_jax.latency import table

_ROOT = pathlib.Path(__file__).parents[1]
# The larger the model the longer it takes.
_TOOL = (
  '#!/bin/sh\nfor a; do case $a in --help) echo --graph; exit;;\n'
  '--graph=*) model=${a#*=};; esac; done\nn=$(wc -c < "$model")\n'
)


def _measure(folder, tool, env):
  return subprocess.run(
    [
      sys.executable,
      *('-m', 'hwdarts_jax.harness', '--config=configs/pixel4.py'),
      f'--runner=adb:upload={tool},directory={folder},affinity=none',
      *(f'--out={folder}/phone.json', '--networks=1', '--rounds=2'),
    ],
    cwd=_ROOT,
    env=os.environ | env | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )


def _plug(device, env):
  argv = ['adb', 'connect', device.address]
  subprocess.run(argv, env=os.environ | env, check=True, capture_output=True)


def _models(device):
  """The models that were timed, in order."""
  found = [re.search(r'--graph=(\S+)', c) for c in device.commands]
  return [f[1] for f in found if f]


def test_a_device_that_vanishes_costs_no_reading_that_was_taken(tmp_path):
  peers.skip_without('adb')
  pytest.importorskip('litert_converter', reason='needs the extra [tflite]')
  tool = peers.program(tmp_path, 'tool', _TOOL + peers.takes('$n'))
  programs = peers.programs(tmp_path / 'programs')
  out = tmp_path / 'phone.json'
  with peers.adb_server(tmp_path) as env:
    with Device(programs, num_commands=30) as device:
      _plug(device, env)
      broken = _measure(tmp_path, tool, env)
      before = _models(device)
    assert broken.returncode == 2
    assert 'Traceback' not in broken.stderr
    assert 'Error: The device' in broken.stderr
    assert 'vanished in the middle of a command' in broken.stderr
    assert not out.exists()
    with Device(programs) as device:
      _plug(device, env)
      resumed = _measure(tmp_path, tool, env)
      assert resumed.returncode == 0, resumed.stderr
      after = _models(device)
  counts = collections.Counter(before + after)
  assert len(set(before)) > 5
  # Twice each; but for the sentinel and the model that was interrupted.
  assert set(counts.values()) >= {2}
  assert sum(n > 2 for n in counts.values()) <= 2
  measured = table.load(out)
  assert measured.kind == 'measured'
  assert len(measured.networks) == 1
  # A network is larger than each of its ops, and the tool goes by size.
  slowest = max(e.value_ms for e in measured.entries.values())
  assert measured.networks[0].value_ms > slowest > 0
