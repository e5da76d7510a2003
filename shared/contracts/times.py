"""Times on the wire: integer milliseconds of broker time inside, RFC 3339 with microseconds outside."""

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=1024)
def rfc3339(at_ms: int) -> str:
    """Return milliseconds since the epoch as `2026-01-31T12:00:00.123000Z`."""
    whole = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}000Z"
