"""This host's wall clock: it may be ahead of the brokers' or behind, and step."""

import time


def now_ms() -> int:
    """Return milliseconds since 1970, to be compared with broker times with a margin."""
    return time.time_ns() // 1_000_000
