"""Job `report`: one page that shows what a run found, and how.

``--config.job=report --workdir=W [--compare=W2,W3]`` reads the workdir of a
search, a population, a shortlist, a training or an export, and what belongs to
it, and writes report.html and figures/ (PNG and SVG) into it. The page needs no
network. Nothing is trained; the same inputs give the same page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib

from etils import epath
import jax
import jinja2
import ml_collections

from hwdarts_jax.jobs import (
  report_architecture,
  report_checks,
  report_front,
  report_read,
  report_sections,
)
from hwdarts_jax.report import figures, page
from hwdarts_jax.runtime import metrics as metrics_lib
from hwdarts_jax.runtime import workdir as workdir_lib

PAGE = 'report.html'
FIGURES = 'figures'


def run(
  config: ml_collections.ConfigDict, workdir: str, compare: Sequence[str] = ()
) -> None:
  """Writes the report; prints where it is.

  Args:
    config: of any kind: what is shown is the config of the workdir.
    workdir: of a run.
    compare: workdirs of further runs, for the front.

  Raises:
    UserError: a folder is no workdir, or is damaged.
  """
  del config
  # Without the lock: a run that goes on may be looked at, and nothing of it is
  # written to.
  own = report_read.read(workdir)
  with metrics_lib.heartbeat('making the report'), _damage_is_told(own.path):
    content = collect(own, report_front.compared(compare))
    if jax.process_index() != 0:
      return
    html = page.render(content)
    drawn = figures.write(content, own.path / FIGURES)
    workdir_lib.write_text_atomic(own.path / PAGE, html)
  print(f'{_told(own.path, content)}\nPictures for papers: {drawn}')


def collect(
  own: report_read.Run, others: Sequence[report_read.Run] = ()
) -> report_sections.Content:
  """All that the page of a run shows, as JSON.

  Args:
    own: the run.
    others: that it is compared with.
  """
  family = report_read.family(own, others)
  families = [family, *map(report_read.family, others)]
  about = report_architecture.subject(family)
  if about is None and own.result is not None:
    raise workdir_lib.UserError(
      f'{own.path} is of job {own.job!r}, and the search that it looked at is '
      'not there: give the workdir of that as --workdir.'
    )
  if about is None:
    return report_sections.unfinished(own, family)
  known = report_architecture.latency(about)
  architectures = [
    report_architecture.architecture(
      about, i, known, report_architecture.rows(family, i)
    )
    for i in range(len(about.found))
  ]
  return report_sections.content(
    own,
    family,
    about,
    known,
    architectures,
    report_front.of(families, about),
    report_checks.warnings(family, known, architectures),
  )


@contextlib.contextmanager
def _damage_is_told(path: epath.Path) -> Iterator[None]:
  """Whatever is wrong with a record that was read becomes one message."""
  try:
    yield
  except workdir_lib.UserError:
    raise
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
  ) as e:
    raise workdir_lib.UserError(
      f'{path}, or a run that belongs to it, has a record that cannot be read '
      f'({type(e).__name__}: {e}): it is damaged, or of another version.'
    ) from e


def _told(path: epath.Path, content: report_sections.Content) -> str:
  lines = ['', content['headline'], *(f'  ! {w}' for w in content['warnings'])]
  return '\n'.join([*lines, f'The report is {path / PAGE}: open it anywhere.'])
