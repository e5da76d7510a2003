"""One time limit for many waits."""

import asyncio
from collections import deque
from typing import Any, TypeVar

T = TypeVar("T")


class TimeLimit:
    """Gives each future the same time, with one timer for all: `asyncio.timeout` sets one for each, at ten times the
    cost.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()  # until when, the first of them first
        self._timer: asyncio.TimerHandle | None = None

    def give(self, future: "asyncio.Future[T]") -> "asyncio.Future[T]":
        """Return the future; it fails with `TimeoutError` when it is not done in time."""
        loop = future.get_loop()
        self._drop(until_s=0.0)
        self._waiting.append((loop.time() + self._seconds, future))
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        return future

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        self._drop(until_s=loop.time())
        if self._waiting:
            self._timer = loop.call_at(self._waiting[0][0], self._look)

    def _drop(self, until_s: float) -> None:
        """Let go of the first ones that are done, and fail those whose time is up."""
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= until_s):
            future = self._waiting.popleft()[1]
            if not future.done():
                future.set_exception(TimeoutError())
