"""Logs of benchmark tools become numbers only where they hold a measurement."""

import pathlib

import hypothesis
from hypothesis import strategies as st
import pytest

from hwdarts_jax.harness import device_state, parsers

_LOGS = pathlib.Path(__file__).with_name('logs')


def _log(name):
  return (_LOGS / name).read_text()


@pytest.mark.parametrize(
  ('name', 'value_ms', 'repeats', 'statistic'),
  [
    # The timed block counts, never the warm-up before it.
    ('benchmark_model_2019.log', 1.41025, 60, 'mean'),
    ('benchmark_model_2020_nnapi.log', 0.5719, 106, 'mean'),
    ('benchmark_model_2022_logcat.log', 2950.34, 5, 'mean'),
    ('benchmark_model_2023_studio.log', 4.1113, 50, 'mean'),
    # One slow run moves the mean by a tenth, and the median not at all.
    ('benchmark_model_2025.log', 0.309, 193, 'median'),
    # A median of whole microseconds would be off by 2 % here.
    ('benchmark_model_2025_tiny.log', 0.0061204, 9800, 'mean'),
  ],
)
def test_benchmark_model_of_any_year(name, value_ms, repeats, statistic):
  timing = parsers.benchmark_model(_log(name))
  assert timing.value_ms == pytest.approx(value_ms, rel=1e-9)
  assert (timing.repeats, timing.statistic) == (repeats, statistic)


def test_profiled_block_is_not_taken_for_the_timed_one():
  timing = parsers.benchmark_model(_log('benchmark_model_2019_profiled.log'))
  assert timing.value_ms == pytest.approx(2.4995)
  assert timing.repeats is None  # that of the profiled block is another's


def test_a_log_that_ends_in_the_warm_up_is_no_measurement():
  with pytest.raises(parsers.LogError, match='no inference timings.*count=31'):
    parsers.benchmark_model(_log('benchmark_model_truncated.log'))


@pytest.mark.parametrize(
  ('name', 'delegate', 'share'),
  [
    ('benchmark_model_2020_nnapi.log', 'nnapi', 'all'),
    ('benchmark_model_2020_partial.log', 'nnapi', 'part'),
    ('benchmark_model_2020_refused.log', 'nnapi', 'none'),
    ('benchmark_model_no_accelerator.log', 'nnapi', 'none'),
    ('benchmark_model_2025.log', 'xnnpack', 'all'),
    ('benchmark_model_2025_gpu_share.log', 'gpu', 'part'),
    # XNNPACK took the model; the log says nothing of the one asked for.
    ('benchmark_model_2025.log', 'nnapi', 'unknown'),
    ('benchmark_model_2019.log', 'gpu', 'unknown'),
  ],
)
def test_what_executed_the_model_is_read_from_the_log(name, delegate, share):
  assert parsers.delegate(_log(name), delegate).share == share


def test_a_count_of_nodes_overrules_a_sentence_that_promises_more():
  log = _log('benchmark_model_2020_nnapi.log').replace(
    'Explicitly',
    'Replacing 7 out of 9 node(s) with delegate (TfLiteNnapiDelegate) node\n'
    'Explicitly',
  )
  assert parsers.delegate(log, 'nnapi').share == 'part'


@pytest.mark.parametrize(
  ('name', 'partial', 'message'),
  [
    ('benchmark_model_2020_refused.log', True, 'did not execute the model'),
    ('benchmark_model_2020_partial.log', False, 'only a part'),
    ('benchmark_model_2025.log', True, 'does not say whether'),
  ],
)
def test_a_delegate_that_did_not_apply_is_an_error(name, partial, message):
  with pytest.raises(parsers.DelegateError, match=message):
    parsers.check_delegate(_log(name), 'nnapi', partial)


def test_a_delegate_that_applied_in_part_passes_where_that_is_allowed():
  log = _log('benchmark_model_2020_partial.log')
  assert parsers.check_delegate(log, 'nnapi', partial=True) == 'part'


@pytest.mark.parametrize(
  ('name', 'value_ms', 'repeats', 'min_ms'),
  [
    ('trtexec_7.log', 4.57, None, 4.41),
    ('trtexec_8.log', 0.588443, 1650, 0.375977),
  ],
)
def test_trtexec_gives_gpu_time_not_host_latency(
  name, value_ms, repeats, min_ms
):
  timing = parsers.trtexec(_log(name))
  assert timing.value_ms == pytest.approx(value_ms)
  assert (timing.repeats, timing.min_ms) == (repeats, min_ms)


def test_trtexec_that_failed_gives_its_reason_and_no_number():
  with pytest.raises(parsers.LogError, match='did not pass.*HardSwish'):
    parsers.trtexec(_log('trtexec_failed.log'))


@pytest.mark.parametrize(
  ('name', 'value_ms', 'repeats', 'statistic'),
  [
    ('benchmark_app_2021.log', 2.41, 412, 'median'),
    # 0.11 ms has two digits; the duration of 9105 runs has more.
    ('benchmark_app_2021_tiny.log', 1000.04 / 9105, 9105, 'mean'),
    ('benchmark_app_2022.log', 10.45, 1413, 'median'),
    # Microseconds since 2026; taken for milliseconds they would be 72 ms.
    ('benchmark_app_2026.log', 0.07159, 11954, 'median'),
  ],
)
def test_benchmark_app_of_any_year(name, value_ms, repeats, statistic):
  timing = parsers.benchmark_app(_log(name))
  assert timing.value_ms == pytest.approx(value_ms)
  assert (timing.repeats, timing.statistic) == (repeats, statistic)


def test_benchmark_app_without_its_stick_gives_the_reason():
  with pytest.raises(parsers.LogError, match='no latency.*NC_ERROR'):
    parsers.benchmark_app(_log('benchmark_app_no_stick.log'))


def test_temperatures_are_those_of_now_and_of_sensors_that_are_on():
  text = _log('thermalservice.txt')
  assert device_state.temperatures(text) == {'CPU0': 46.5, 'skin': 31.25}
  assert device_state.temperatures('cpu-thermal 48312\nx 0\nidle') == {
    'cpu-thermal': 48.312
  }


def test_throttling_of_the_past_is_not_throttling():
  assert device_state.throttling(_log('thermalservice.txt')) == 2
  assert device_state.throttling('throttled=0x50000') == 0
  assert device_state.throttling('throttled=0x50004') == 4
  assert device_state.throttling('vcgencmd: not found') is None


_PARSERS = (parsers.benchmark_model, parsers.trtexec, parsers.benchmark_app)


@hypothesis.given(
  st.sampled_from(sorted(p.name for p in _LOGS.glob('*.log'))),
  st.integers(0, 4000),
  st.sampled_from(_PARSERS),
)
def test_a_log_cut_anywhere_gives_its_number_or_an_error(name, end, parse):
  """A cut digit would be a wrong number, so whole lines count only."""
  log = _log(name)
  try:
    whole = parse(log).value_ms
  except parsers.LogError:
    whole = None
  cut = '\n'.join(log[:end].split('\n')[:-1])
  try:
    value = parse(cut).value_ms
  except parsers.LogError:
    return
  assert value == pytest.approx(whole)
