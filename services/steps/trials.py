"""Who is tried alone: what was in hand when a worker ended is suspect, and nothing begins beside it.

A leased handler goes on meanwhile: it may take hours. A trial beside one is a trial, though it blames nobody.
"""

import asyncio
from collections.abc import Mapping

from anabranch.services.steps.attempt import Attempt


class Trials:
    """The suspects of one worker, one at a time, in the order they were taken."""

    def __init__(self, attempts: Mapping[str, Attempt]) -> None:
        self._attempts = attempts
        self._unknown = 0  # attempts whose past is being looked up
        self._waiting = 0  # suspects, the one on trial included
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._is_news = asyncio.Event()

    @property
    def may_be_on(self) -> bool:
        """Whether anyone is suspect, or may turn out to be."""
        return self._waiting > 0 or self._unknown > 0

    async def until_none_may_be_on(self) -> None:
        """Return when nobody is suspect, and nobody's past is unknown. (A full worker takes no more: it ends.)"""
        while self._waiting or self._unknown:
            await self._news()

    async def until_over(self) -> None:
        """Return when nobody is suspect."""
        while self._waiting:
            await self._news()

    def doubt(self, attempt: Attempt) -> None:
        """Note that an attempt's past is being looked up."""
        attempt.is_in_doubt = True
        self._unknown += 1

    def know(self, attempt: Attempt) -> None:
        """Note that an attempt's past is known now."""
        if attempt.is_in_doubt:
            attempt.is_in_doubt = False
            self._unknown -= 1
            self._is_news.set()

    async def begin(self, attempt: Attempt) -> bool:
        """Return when it is the attempt's turn and no handler runs that is not leased; True: none runs at all."""
        self._waiting += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._end()
            raise
        attempt.is_on_trial = True
        while beside := [one for one in self._attempts.values() if one.is_at_work()]:
            if all(one.lease_until is not None for one in beside):
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def leave(self, attempt: Attempt) -> None:
        """End the trial of an attempt, if it is on trial: it ended, or is leased. Any other is one fewer beside it."""
        if attempt.is_on_trial:
            attempt.is_on_trial = False
            self._turn.release()
            self._end()
        self.know(attempt)
        if self._waiting:
            self._changed.set()

    async def _news(self) -> None:
        self._is_news.clear()
        await self._is_news.wait()

    def _end(self) -> None:
        self._waiting -= 1
        self._is_news.set()
