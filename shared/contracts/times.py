"""Times on the wire: integer milliseconds of broker time inside, RFC 3339 with microseconds outside."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

_SHOWN_CHARS: Final = len("2026-01-31T12:00:00.123000Z")


@lru_cache(maxsize=1024)  # what one record causes is all of one millisecond
def rfc3339(at_ms: int) -> str:
    """Return milliseconds since the epoch as `2026-01-31T12:00:00.123000Z`."""
    return f"{second_shown(at_ms // 1000)}.{at_ms % 1000:03d}000Z"


@lru_cache(maxsize=256)  # formatting a date takes several times as long as all the rest
def second_shown(at_s: int) -> str:
    """Return seconds since the epoch as `2026-01-31T12:00:00`, in UTC."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S}"


@lru_cache(maxsize=1024)  # a run's events repeat the times of its steps
def milliseconds(shown: str) -> int:
    """Return the milliseconds since the epoch of a time as `rfc3339` shows it. Raises `ValueError` for any other."""
    if len(shown) != _SHOWN_CHARS or not shown.endswith("000Z") or shown[19] != ".":
        raise ValueError(f"{shown[:40]!r} is no time as it stands in events: 2026-01-31T12:00:00.123000Z")
    return 1000 * _second(shown[:19]) + int(shown[20:23])


@lru_cache(maxsize=256)  # as above
def _second(shown: str) -> int:
    return int(datetime.fromisoformat(shown).replace(tzinfo=UTC).timestamp())
