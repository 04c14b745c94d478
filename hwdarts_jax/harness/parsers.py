"""Logs of benchmark tools: how long a model took, and what executed it.

The tools are `benchmark_model` of TensorFlow Lite, `trtexec` of TensorRT and
`benchmark_app` of OpenVINO. Their formats changed over the years; each parser
takes all of them. A log that ends early, or that speaks of another device than
was asked for, is never turned into a number.
"""

from __future__ import annotations

import dataclasses
import math
import re

# `benchmark_model` prints whole microseconds: below this the median of a short
# run is mostly rounding, and the mean of many runs is the better number.
_MEDIAN_FROM_US = 100.0
_APP_MEDIAN_FROM_MS = 1.0
_NUMBER = r'([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)'
_TAIL_LINES = 3
_MAX_TAIL = 300


class LogError(ValueError):
  """A log holds no measurement; the message says what it holds instead."""


class DelegateError(LogError):
  """The accelerator that was asked for did not execute the model."""


@dataclasses.dataclass(frozen=True)
class Timing:
  """What one run of a benchmark tool measured.

  Attributes:
    value_ms: milliseconds of one inference.
    repeats: inferences that were timed, or None where the tool does not say.
    statistic: `'median'` or `'mean'`, whichever of them value_ms is.
    min_ms: the fastest inference, or None where the tool does not say.
    max_ms: the slowest one, or None.
  """

  value_ms: float
  repeats: int | None
  statistic: str
  min_ms: float | None
  max_ms: float | None


def clean(log: str) -> list[str]:
  """The lines of a log without carriage returns, ends and logcat prefixes."""
  lines = (line.strip() for line in re.split(r'[\r\n]+', log))
  return [_PREFIX.sub('', line) for line in lines if line]


_PREFIX = re.compile(
  r'^(?:\d[\d-]*\s+\d\d:\d\d:\d\d\.\d+\s.*?\b[VDIWEF](?:[/ ]\s*\S+\s*:|\s)\s*'
  r'|[VDIWEF]/\S+\s*(?:\(\s*\d+\))?\s*:\s*)?'
  r'(?:(?:INFO|WARN|WARNING|ERROR|VERBOSE):\s*)?'
)


def tail(log: str) -> str:
  """The last lines of a log in one line, for the end of a message."""
  text = ' / '.join(clean(log)[-_TAIL_LINES:])
  return text[-_MAX_TAIL:] or 'no output'


def benchmark_model(log: str) -> Timing:
  """Reads the log of `benchmark_model`, of any year.

  The statistics of the timed runs follow those of the warm-up. Since 2025 they
  hold the median; before, the mean is all there is.

  Raises:
    LogError: the log has no result.
  """
  lines = clean(log)
  summary = _find_last(lines, r'^(?:Average i|I)nference timings in us:')
  if summary is None:
    raise LogError(
      f'benchmark_model printed no inference timings. It said: {tail(log)}'
    )
  stats = _find_last(lines, r'^(?:Timings \(microseconds\): )?count=\d+ first=')
  mean_us = _labelled(
    lines[summary], ('Inference (avg)', 'Inference', 'no stats')
  )
  fields = {} if stats is None or stats > summary else _fields(lines[stats])
  if mean_us is None:
    mean_us = fields.get('avg')
  if mean_us is None:
    raise LogError(
      f'benchmark_model printed no mean inference time: {lines[summary]!r}.'
    )
  # With op profiling there are two timed blocks; the last is not always ours.
  if not math.isclose(fields.get('avg', mean_us), mean_us, rel_tol=1e-3):
    fields = {}
  median_us = fields.get('median')
  if median_us is None or median_us < _MEDIAN_FROM_US:
    value_us, statistic = mean_us, 'mean'
  else:
    value_us, statistic = median_us, 'median'
  return _timing(
    'benchmark_model',
    value_us / 1e3,
    fields.get('count'),
    statistic,
    _thousandth(fields.get('min')),
    _thousandth(fields.get('max')),
  )


@dataclasses.dataclass(frozen=True)
class Delegate:
  """What `benchmark_model` says about the delegate it was told to apply.

  Attributes:
    share: `'all'`, `'part'` or `'none'` of the graph; `'unknown'` where an old
      tool does not say.
    detail: the line that says so.
  """

  share: str
  detail: str


# The name in the messages of each `--use_...` flag.
DELEGATE_NAMES = {
  'nnapi': 'NNAPI',
  'gpu': 'GPU',
  'hexagon': 'Hexagon',
  'xnnpack': 'XNNPACK',
  'external': 'EXTERNAL',
}
# Each with the delegate's name in place of {0}.
_REFUSALS = (
  r'Though {0} delegate is explicitly applied, .* not be executed',
  r'Failed to apply {0} delegate',
  r'{0} acceleration is unsupported',
  r'{0} delegate is not supported',
  r'Could not create {0} delegate',
  r'Couldn.t create {0} delegate',
  r'Could not find the specified NNAPI accelerator',
  r'Restored original execution plan after delegate application failure',
)


def delegate(log: str, name: str) -> Delegate:
  """Which share of the graph the delegate executed, by the log's own words.

  Args:
    log: output of `benchmark_model`, standard error included.
    name: a key of `DELEGATE_NAMES`.
  """
  label = re.escape(DELEGATE_NAMES[name])
  lines = clean(log)
  for pattern in _REFUSALS:
    found = _find_last(lines, pattern.format(label))
    if found is not None:
      return Delegate('none', lines[found])
  shares = (
    ('all', rf'[Aa]pplied {label} delegate, .* completely executed'),
    ('part', rf'[Aa]pplied {label} delegate, .* partially executed'),
  )
  for share, pattern in shares:
    found = _find_last(lines, pattern)
    if found is not None:
      return _recount(lines, share, lines[found])
  found = _find_last(lines, rf'^Applied {label} delegate')
  detail = 'an old log' if found is None else lines[found]
  return _recount(lines, 'unknown', detail)


def check_delegate(log: str, name: str, partial: bool) -> str:
  """The share of the graph that the delegate executed, if it is enough.

  Args:
    log: output of `benchmark_model`.
    name: a key of `DELEGATE_NAMES`.
    partial: whether a part of the graph may run on the CPU.

  Returns:
    `'all'` or `'part'`.

  Raises:
    DelegateError: the delegate executed nothing, or too little; a latency of
      the CPU would be taken for that of the accelerator.
  """
  found = delegate(log, name)
  label = DELEGATE_NAMES[name]
  if found.share == 'all' or (found.share == 'part' and partial):
    return found.share
  if found.share == 'part':
    raise DelegateError(
      f'The {label} delegate executes only a part of the model '
      f'({found.detail!r}); the rest would run on the CPU. Use operations '
      'and a dtype that it takes, or allow it by partial_delegate=true.'
    )
  if found.share == 'none':
    raise DelegateError(
      f'The {label} delegate did not execute the model ({found.detail!r}). '
      'Check the accelerator name and the dtype (NPUs take int8).'
    )
  raise DelegateError(
    f'benchmark_model does not say whether the {label} delegate executed the '
    f'model ({found.detail!r}). Use a benchmark_model of 2020 or later.'
  )


def trtexec(log: str) -> Timing:
  """Reads the log of `trtexec`: the median GPU compute time.

  Raises:
    LogError: the tool did not pass, or printed no summary.
  """
  lines = [
    re.sub(r'^\[[^\]]*\]\s*(?:\[[A-Z]\]\s*)?', '', x) for x in clean(log)
  ]
  lines = [re.sub(r'^\[[VIWEF]\]\s*', '', line) for line in lines]
  if _find_last(lines, r'^&&&& PASSED') is None:
    errors = [x for x in clean(log) if re.search(r'\[E\]|&&&& FAILED', x)]
    raise LogError(
      'trtexec did not pass. It said: ' + (tail('\n'.join(errors[:3] or [log])))
    )
  fields = _compute_time(lines)
  if 'median' not in fields:
    raise LogError(
      f'trtexec printed no median GPU compute time. It said: {tail(log)}'
    )
  trace = _find_last(lines, r'^Timing trace has [1-9]\d* queries')
  count = None if trace is None else float(lines[trace].split()[3])
  return _timing(
    'trtexec',
    fields['median'],
    count,
    'median',
    fields.get('min'),
    fields.get('max'),
  )


def benchmark_app(log: str) -> Timing:
  """Reads the log of OpenVINO's `benchmark_app`, of 2020 to today.

  Raises:
    LogError: the log has no latency.
  """
  lines = [re.sub(r'^\[\s*\w+\s*\]\s*', '', line) for line in clean(log)]
  latency = _find_last(lines, r'^Latency:')
  if latency is None:
    errors = [x for x in clean(log) if re.search(r'ERROR|[Ee]xception', x)]
    raise LogError(
      'benchmark_app printed no latency. It said: '
      + tail('\n'.join(errors[-2:]) or log)
    )
  block = ' '.join(lines[latency : latency + 6])
  # Up to 2021 the one number is the median.
  median = _in_ms(block, ('Median', 'Latency'))
  if median is None:
    raise LogError(
      f'benchmark_app printed a latency without a number: {block!r}.'
    )
  counts = re.findall(r'(?m)^Count:\s+(\d+)', '\n'.join(lines))
  duration = _in_ms('\n'.join(lines), ('Duration',))
  count = float(counts[-1]) if counts else None
  value, statistic = median, 'median'
  # Old versions round to 0.01 ms; the mean of a long run is finer than that.
  coarse = f' {median:.2f} ms' in f' {block}' and median < _APP_MEDIAN_FROM_MS
  if coarse and count and duration:
    value, statistic = duration / count, 'mean'
  return _timing(
    'benchmark_app',
    value,
    count,
    statistic,
    _in_ms(block, ('Min', 'MIN')),
    _in_ms(block, ('Max', 'MAX')),
  )


def _recount(lines: list[str], share: str, detail: str) -> Delegate:
  """Takes the count of replaced nodes where it says less than the sentence."""
  counts = [
    re.search(
      r'Replacing (\d+) out of (\d+) node\(s\) with delegate '
      r'\((?!TfLiteXNNPack)',
      line,
    )
    for line in lines
  ]
  pairs = [(int(c[1]), int(c[2]), c.string) for c in counts if c]
  if not pairs or share == 'none':
    return Delegate(share, detail)
  replaced, total, line = pairs[0]
  by_count = 'all' if replaced == total else 'part' if replaced else 'none'
  if share == 'unknown' or by_count != 'all':
    return Delegate(by_count, line)
  return Delegate(share, detail)


def _compute_time(lines: list[str]) -> dict[str, float]:
  """The numbers after 'GPU Compute', on the same line or on the next ones."""
  head = _find_last(lines, r'^GPU Compute(?: Time)?\b')
  if head is None:
    return {}
  pattern = rf'\b(min|max|mean|median)\s*[=:]?\s*{_NUMBER} ms'
  rows = (lines[head], ' '.join(lines[head + 1 : head + 6]))
  found = re.findall(pattern, rows[0]) or re.findall(pattern, rows[1])
  return {name: float(value) for name, value in found}


def _find_last(lines: list[str], pattern: str) -> int | None:
  regex = re.compile(pattern)
  found = [i for i, line in enumerate(lines) if regex.search(line)]
  return found[-1] if found else None


def _fields(line: str) -> dict[str, float]:
  return {
    name: float(value)
    for name, value in re.findall(rf'\b(\w+)={_NUMBER}(?=\s|$)', line)
  }


def _labelled(line: str, labels: tuple[str, ...]) -> float | None:
  """The number after the first of `labels` that the line holds."""
  for label in labels:
    found = re.search(rf'(?<!\w){re.escape(label)}:\s*{_NUMBER}', line)
    if found:
      return float(found[1])
  return None


def _in_ms(text: str, labels: tuple[str, ...]) -> float | None:
  """As `_labelled`, of a number with its unit; new versions print us, too."""
  for label in labels:
    found = re.search(
      rf'(?<!\w){re.escape(label)}:\s*{_NUMBER}\s*(us|ms|s)\b', text
    )
    if found:
      return float(found[1]) * {'us': 1e-3, 'ms': 1.0, 's': 1e3}[found[2]]
  return None


def _thousandth(value: float | None) -> float | None:
  return None if value is None else value / 1e3


def _timing(
  tool: str,
  value_ms: float,
  count: float | None,
  statistic: str,
  min_ms: float | None,
  max_ms: float | None,
) -> Timing:
  """Checks the numbers that a log gave."""
  if not (math.isfinite(value_ms) and value_ms >= 0.0):
    raise LogError(f'{tool} printed a latency of {value_ms} ms.')
  if count is not None and count < 1:
    raise LogError(f'{tool} timed no inference at all.')
  repeats = None if count is None else int(count)
  return Timing(value_ms, repeats, statistic, min_ms, max_ms)
