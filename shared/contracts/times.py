"""Times on the wire: integer milliseconds of broker time inside, RFC 3339 with microseconds outside."""

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=1024)  # what one record causes is all of one millisecond
def rfc3339(at_ms: int) -> str:
    """Return milliseconds since the epoch as `2026-01-31T12:00:00.123000Z`."""
    return f"{second_shown(at_ms // 1000)}.{at_ms % 1000:03d}000Z"


@lru_cache(maxsize=256)  # formatting a date takes several times as long as all the rest
def second_shown(at_s: int) -> str:
    """Return seconds since the epoch as `2026-01-31T12:00:00`, in UTC."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S}"
