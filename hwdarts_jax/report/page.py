"""Makes report.html: one file that needs no network.

Whatever a user has named, a data set or a device, is escaped: by Jinja2 in the
text, as JSON in the data that the script reads. The script that runs is ours
alone; the page's own content security policy, which has its hash, holds that.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
import hashlib
import json
import pathlib
from typing import Any

import jinja2
import markupsafe

_FOLDER = pathlib.Path(__file__).parent
_SCRIPTS = ('base', 'lines', 'scatter', 'strip', 'graph', 'app')
# Characters that would end the element that holds the data, or a line of it.
_ESCAPED = {
  ord(c): f'\\u{ord(c):04x}' for c in ('<', '>', '&', '\u2028', '\u2029')
}
_DRAWN = ('architectures', 'curves', 'quality', 'front')


def render(content: Mapping[str, Any]) -> str:
  """Returns the page.

  Args:
    content: of `jobs/report_sections.py`.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {'figure': figure, 'plain': plain}
  script = '\n'.join(_static(f'{name}.js') for name in _SCRIPTS)
  digest = hashlib.sha256(script.encode()).digest()
  return environment.get_template('report.html.j2').render(
    content,
    style=markupsafe.Markup(_static('report.css')),
    script=markupsafe.Markup(script),
    script_hash=f'sha256-{base64.b64encode(digest).decode()}',
    data=embedded({name: content[name] for name in _DRAWN}),
  )


def embedded(data: Any) -> markupsafe.Markup:
  """JSON that can stand inside a script element, whatever it holds."""
  text = json.dumps(data, separators=(',', ':'), allow_nan=False)
  return markupsafe.Markup(text.translate(_ESCAPED))


def figure(value: float | None) -> str:
  """A number as people read it: three or four digits, or a dash."""
  if value is None:
    return '\N{EN DASH}'
  size = abs(value)
  if size == int(size) and size < 1e6:
    return f'{int(value):,}'
  if size < 0.1:
    return f'{value:.2g}'
  return f'{value:,.{3 if size < 1 else 2 if size < 100 else 1}f}'


def plain(value: Any) -> str:
  """A setting as JSON, a text as it is."""
  return value if isinstance(value, str) else json.dumps(value)


def _static(name: str) -> str:
  return (_FOLDER / 'static' / name).read_text()
