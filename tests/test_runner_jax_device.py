"""The runner of JAX devices, on a CPU of this machine."""

import jax
import jax.numpy as jnp
import pytest

from hwdarts_jax.harness import convert, runners
from hwdarts_jax.harness.convert import Target
from hwdarts_jax.harness.runners import jax_device, Model, Protocol

_PROTOCOL = Protocol(warmup_runs=1, min_runs=32, min_ms=4.0)


def _model(folder, products, size=128, dtype='float32'):
  """As many products of matrices, one after the other."""

  def function(x):
    for _ in range(products):
      x = jnp.tanh(x @ x)
    return x

  shape = (1, 1, size, size)
  made = convert.convert(
    lambda x: function(x[0, 0]), shape[1:], Target('jax', dtype)
  )
  path = folder / f'{products}_{size}.jax'
  path.write_bytes(made.data)
  return Model(f'{products} products', path, dtype, 1, shape)


@pytest.mark.parametrize('repeat', ['loop', 'call'])
def test_eight_times_the_work_takes_several_times_as_long(tmp_path, repeat):
  """Nothing is left out of the loop, and no launch is counted."""
  with runners.make(f'jax_device:device=cpu,repeat={repeat}') as runner:
    description = runner.prepare()
    assert description.runtime_version == jax.__version__
    assert 'less that of an empty model' in description.statistic
    models = [_model(tmp_path, n) for n in (2, 16)]
    # The least of a few, as a disturbed one is longer.
    two, sixteen = (
      min(runner.measure(m, _PROTOCOL).ms for _ in range(3)) for m in models
    )
  assert 2.5 < sixteen / two < 25  # other processes may slow down either


def test_every_repetition_computes_and_depends_on_the_one_before():
  """The result is that of as many calls, each on what the last has changed."""
  image = jnp.full((1, 2, 2, 1), 0.5)

  def function(x):
    return x.sum((1, 2)) - 0.6

  x, y = jax.jit(
    lambda x: jax_device._repeat(function, x, jnp.zeros((1, 1)), 2)
  )(image)
  number = 0.0
  for _ in range(2 * jax_device._INNER):
    expected = image.at[0, 0, 0, 0].set(min(max(number, -1), 1))
    number = float(function(expected)[0, 0])
  assert x[0, 0, 0, 0] == pytest.approx(float(expected[0, 0, 0, 0]))
  assert y[0, 0] == pytest.approx(number)


def test_an_empty_model_costs_nothing(tmp_path):
  with runners.make('jax_device:device=cpu,repeat=loop') as runner:
    runner.prepare()
    empty = _model(tmp_path, 0, size=1)
    full = _model(tmp_path, 8)
    nothing = runner.measure(empty, _PROTOCOL).ms
    assert nothing < 0.05 * runner.measure(full, _PROTOCOL).ms


def test_models_that_are_ready_are_not_compiled_again(tmp_path, monkeypatch):
  with runners.make('jax_device:device=cpu,repeat=loop') as runner:
    runner.prepare()
    compiled = []
    compile_one = runner._compile

    def count(function, image):
      compiled.append(image.shape)
      return compile_one(function, image)

    monkeypatch.setattr(runner, '_compile', count)
    models = [_model(tmp_path, n, size=8) for n in (1, 2, 3)]
    runner.ready(models)
    assert len(compiled) == 3
    assert all(runner.measure(m, _PROTOCOL).runs for m in models)
    assert len(compiled) == 3


def test_a_model_that_does_not_compile_is_named_when_it_is_measured(
  tmp_path, monkeypatch, capsys
):
  with runners.make('jax_device:device=cpu') as runner:
    runner.prepare()

    def fail(function, image):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 1 TB')

    monkeypatch.setattr(runner, '_compile', fail)
    model = _model(tmp_path, 2)
    runner.ready([model])
    assert '2 products did not compile beside others: RES' in (
      capsys.readouterr().err
    )
    with pytest.raises(runners.ModelError, match='2 products needs more mem'):
      runner.measure(model, _PROTOCOL)


def test_a_device_that_is_not_there_is_named():
  runner = runners.make('jax_device:device=cpu:99')
  with pytest.raises(runners.DeviceError, match=r"no device 'cpu:99'; it has"):
    runner.prepare()
  runner = runners.make('jax_device:device=abacus')
  with pytest.raises(runners.DeviceError, match='no device .abacus.'):
    runner.prepare()


def test_a_model_that_hangs_is_named(tmp_path):
  with runners.make('jax_device:device=cpu,repeat=loop') as runner:
    runner.prepare()
    with pytest.raises(runners.ModelError, match='8 products was not measured'):
      runner.measure(_model(tmp_path, 8), Protocol(timeout_s=0.0))


def test_only_known_ways_to_repeat():
  with pytest.raises(ValueError, match="repeat is 'twice'; it must be one of"):
    runners.make('jax_device:repeat=twice')


def test_without_any_device_there_is_one_sentence(monkeypatch):
  def none(platform=None):
    raise RuntimeError('no backend')

  monkeypatch.setattr(jax, 'devices', none)
  runner = runners.make('jax_device:device=cuda')
  with pytest.raises(runners.DeviceError, match="no device 'cuda'.* none"):
    runner.prepare()


def test_a_device_whose_kernels_the_profiler_does_not_see_says_so():
  runner = runners.make('jax_device:device=cpu,repeat=kernels')
  with pytest.raises(runners.DeviceError, match='no kernel on .*repeat=loop'):
    runner.prepare()
