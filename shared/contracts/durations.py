"""Durations of the pipeline language: `500ms`, `15m`, `1h30m`, `2d`, or a number of seconds."""

import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Final

from anabranch.shared.contracts.limits import MAX_WAIT_S

_US_PER_UNIT: Final = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}
_DURATION: Final = re.compile(
    "".join(rf"(?:(?P<{unit}>[0-9]{{1,12}}(?:\.[0-9]{{1,6}})?){unit})?" for unit in _US_PER_UNIT)
)
_ONE: Final = "[0-9]{1,12}([.][0-9]{1,6})?"
_UNITS: Final = tuple(_US_PER_UNIT)
# The same for JSON Schemas, whose patterns cannot say that a text is not empty: begun by each unit in turn.
DURATION_PATTERN: Final = "^({})$".format(
    "|".join(
        _ONE + unit + "".join(f"({_ONE}{smaller})?" for smaller in _UNITS[at + 1 :]) for at, unit in enumerate(_UNITS)
    )
)
_WHAT_IT_IS: Final = "write it like 500ms, 15m, 1h30m or 2d, or as a number of seconds"


class DurationError(ValueError):
    """A text or number that is not a duration, or one over the limit."""


def parse_duration(value: object) -> float:
    """Return the duration in seconds, exact to the microsecond.

    Units are d, h, m, s and ms, each at most once and from large to small; a bare number is seconds.
    Raises `DurationError`.
    """
    if isinstance(value, str):
        return _within_limit(_parse_text(value), value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DurationError(f"a duration is a text or a number, not {type(value).__name__}: {_WHAT_IT_IS}")
    if isinstance(value, float) and not math.isfinite(value):
        raise DurationError(f"{value} is not a duration: {_WHAT_IT_IS}")
    return _within_limit(value, value)


def format_duration(seconds: float) -> str:
    """Return the shortest spelling of a duration; `parse_duration` reads it back, exact to the microsecond."""
    rest = round(seconds * 1_000_000)
    text = ""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, _US_PER_UNIT[unit])
        text += f"{count}{unit}" if count else ""
    if rest:
        milliseconds, microseconds = divmod(rest, 1_000)
        fraction = f".{microseconds:03}".rstrip("0") if microseconds else ""
        text += f"{milliseconds}{fraction}ms"
    return text or "0s"


@lru_cache(maxsize=1024)
def _parse_text(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise DurationError(f"{text[:64]!r} is not a duration: {_WHAT_IT_IS}")
    parts = (Decimal(count) * _US_PER_UNIT[unit] for unit, count in match.groupdict().items() if count is not None)
    return float(sum(parts, Decimal(0)) / 1_000_000)


def _within_limit(seconds: float, given: object) -> float:
    if seconds < 0:
        raise DurationError(f"{given} is negative: {_WHAT_IT_IS}")
    if seconds > MAX_WAIT_S:
        raise DurationError(f"{given!s:.64} is longer than anything may wait ({format_duration(MAX_WAIT_S)})")
    return float(seconds)
