"""What a library complains of while a server is away: one line when it begins, one when it is over.

While Kafka is away its client complains some hundred times a second, in a dozen different sentences. The first is
written as it is; of each further sentence the first is written as information, since it may say more; the rest are
counted.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 15.0  # without a complaint: longer than the client pauses between two attempts
_REMEMBERED: Final = 200

Over = Callable[[int, float], None]
"""Is told how many complaints there were, and for how many seconds."""


class Complaints:
    """The complaints of one library. `over` is called from a thread of its own."""

    def __init__(self, over: Over, quiet_s: float = QUIET_S) -> None:
        self._over = over
        self._quiet_s = quiet_s
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._count = 0
        self._first = self._last = 0.0
        self._timer: threading.Timer | None = None

    def level_of(self, record: logging.LogRecord) -> int | None:
        """Return the level at which a complaint is to be written, or None if it is only counted."""
        with self._lock:
            begins = not self._count
            if begins:
                self._first = record.created
                self._watch(self._quiet_s)
            self._count += 1
            self._last = record.created
            sentence = str(record.msg)
            if sentence in self._said or len(self._said) >= _REMEMBERED:
                return None
            self._said.add(sentence)
            return record.levelno if begins else logging.INFO

    def look(self, now: float) -> None:
        """End it when there was no complaint for long enough; otherwise look again when that may be so."""
        with self._lock:
            left = self._last + self._quiet_s - now
            if left > 0:
                self._watch(left)
                return
            count, seconds = self._count, self._last - self._first
            self._said.clear()
            self._count = 0
        self._over(count, seconds)

    def close(self) -> None:
        """Look no more."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()

    def _watch(self, after_s: float) -> None:
        self._timer = threading.Timer(after_s, self._look_by_the_clock)
        self._timer.daemon = True  # it holds up nobody's end
        self._timer.start()

    def _look_by_the_clock(self) -> None:
        self.look(time.time())  # as records are stamped
