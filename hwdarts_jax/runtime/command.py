"""Command lines: flags, and errors that a user can mend."""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import re
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_REPORT_CONFIG = pathlib.Path(__file__).parents[1] / 'report' / 'config.py'

_MOST_CHARACTERS = 6000  # of a message
_trusted: set[pathlib.Path] = set()


def run(main: Callable[[list[str]], None]) -> NoReturn:
  """Runs a program; errors that a user can mend end it by `fail`."""

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except (ValueError, OSError) as e:
      if logging.get_verbosity() >= logging.DEBUG:  # --verbosity=1
        raise
      fail(e)

  app.run(guarded, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; errors get the same form as all others."""
  try:
    argv = _with_config(argv)
    _check_config_file(argv)
    return flags.FLAGS(argv)
  except (flags.Error, ValueError, AttributeError, KeyError, TypeError) as e:
    fail(e)


def fail(error: BaseException) -> NoReturn:
  """Prints one message and exits with code 2."""
  report(error)
  sys.exit(2)


def report(error: BaseException) -> None:
  """Prints one message, however long what it quotes."""
  text = _message(error)
  if len(text) > _MOST_CHARACTERS:
    half = _MOST_CHARACTERS // 2
    text = f'{text[:half]} ... {text[-half:]}'
  print(f'\nError: {text}', file=sys.stderr)
  logging.debug('', exc_info=error)


def _with_config(argv: list[str]) -> list[str]:
  """The arguments, with a config for a report, which needs none of its own."""
  names = [arg.lstrip('-').partition('=')[0] for arg in argv[1:]]
  if '--config.job=report' not in argv or 'config' in names:
    return argv
  return [argv[0], f'--config={_REPORT_CONFIG}', *argv[1:]]


def trust(name: str) -> None:
  """Says that the user of this process has named a config file."""
  _trusted.add(pathlib.Path(name).resolve())


def is_trusted_config(name: str) -> bool:
  """Whether a config file, which is a program, may be run.

  A workdir may come from anybody, and says by which config it was made. Run are
  only the config of this command line, those that this process has loaded for
  its user, and those in the folder `configs` here.
  """
  if re.fullmatch(r'configs/\w+\.py', name):
    return True
  if pathlib.Path(name).resolve() in _trusted:
    return True
  known = 'config' in flags.FLAGS and flags.FLAGS.is_parsed()
  if not known or flags.FLAGS['config'].value is None:
    return False
  mine = config_flags.get_config_filename(flags.FLAGS['config'])
  return pathlib.Path(mine).resolve() == pathlib.Path(name).resolve()


def _check_config_file(argv: list[str]) -> None:
  """Raises ValueError if --config names no file."""
  for previous, arg in zip(['', *argv], argv, strict=False):
    match = re.fullmatch(r'--?config=([^:]*)(:.*)?', arg)
    if previous in ('--config', '-config'):
      match = re.fullmatch(r'([^:]*)(:.*)?', arg)
    if match and not pathlib.Path(match[1]).is_file():
      here = sorted(str(p) for p in pathlib.Path('configs').glob('*.py'))
      raise ValueError(
        f'--config names {match[1]!r}, which is not a file; here are {here}.'
      )


def _message(error: BaseException) -> str:
  """The message without what absl and ml_collections wrap around it."""
  text = str(error)
  # A config that fails to load comes with the text of its traceback.
  raised = re.findall(r'^ *[A-Za-z]*Error: (.*)', text, re.M)
  if 'Traceback' in text and raised:
    return raised[-1]
  if isinstance(error, KeyError | AttributeError):
    name = re.search(r'\w+', text)
    meant = re.search(r'Did you mean "(\w+)"', text)
    hint = f'; did you mean {meant[1]!r}?' if meant else '.'
    return f'the config has no field {name[0] if name else text!r}{hint}'
  return re.sub(r'\s*\n(\s*)', r'\n\1', text).strip()
