"""What devices print about themselves: temperatures, throttling, properties."""

from __future__ import annotations

import re

_NUMBER = r'([-+]?\d+(?:\.\d+)?)'


def temperatures(text: str) -> dict[str, float]:
  """Degrees Celsius by sensor, from one of the forms that devices print.

  Args:
    text: output of `dumpsys thermalservice`, or lines `name millidegrees` of
      /sys/class/thermal. Cached values of the first are left out.

  Returns:
    {sensor: degrees}; empty where the device tells nothing.
  """
  live = text.rpartition('Current temperatures from HAL:')[2]
  found = {
    name: float(value)
    for value, name in re.findall(
      rf'Temperature\{{mValue={_NUMBER},[^}}]*?mName=([^,}}]+)', live
    )
  }
  if not found:
    found = {
      name: float(value) / (1e3 if abs(float(value)) > 1e3 else 1.0)
      for name, value in re.findall(r'(?m)^(\S+)[ \t]+(-?\d+)\s*$', text)
    }
  # Sensors that are switched off report -99.9 or 0.
  return {name: t for name, t in found.items() if 0.0 < t < 150.0}


def throttling(text: str) -> int | None:
  """How much a device slows itself down now; 0 is not at all.

  Args:
    text: output of Android's `dumpsys thermalservice` (status 0 to 6, 3 is
      severe) or of a Raspberry Pi's `vcgencmd get_throttled` (the bits that
      say now, not those that say since the start).

  Returns:
    None where the device tells nothing.
  """
  found = re.search(r'Thermal Status:\s*(\d+)', text)
  if found:
    return int(found[1])
  found = re.search(r'throttled=0x([0-9a-fA-F]+)', text)
  return int(found[1], 16) & 0xF if found else None


def properties(text: str) -> dict[str, str]:
  """{name: value} of the lines `name=value` that a device prints of itself."""
  pairs = (line.partition('=') for line in text.splitlines() if '=' in line)
  return {name.strip(): value.strip() for name, _, value in pairs}
