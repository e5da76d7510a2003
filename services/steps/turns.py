"""Turns of the event loop: what is large gets one for itself, so that many of them do not hold it one after another.

A command of a megabyte, or its answer, may be 300,000 objects: some 100 ms to read and to write. Sixty that arrive
together, or whose handlers return together, would keep heartbeats, renewals and neighbours waiting for all of them.
"""

import asyncio
from typing import Final

_SMALL_BYTES: Final = 8 * 1024  # costs a millisecond at most, and is not counted
_TURN_BYTES: Final = 64 * 1024  # of commands and answers in one turn: 10 to 20 ms


class Turns:
    """Says when this turn of the loop has had enough; who finds it so waits for another."""

    def __init__(self) -> None:
        self._bytes = 0
        self.is_spent = False

    def spend(self, size: int) -> None:
        """Count a command that was read or an answer that was written."""
        if size < _SMALL_BYTES:
            return
        if not self._bytes:
            asyncio.get_running_loop().call_soon(self._renew)
        self._bytes += size
        self.is_spent = self._bytes >= _TURN_BYTES

    async def next(self) -> None:
        """Return in a turn that is not spent yet: what waited in line goes first."""
        while self.is_spent:  # noqa: ASYNC110  each turn is one of the loop, an event would wake all in the same
            await asyncio.sleep(0)

    def _renew(self) -> None:
        self._bytes, self.is_spent = 0, False
