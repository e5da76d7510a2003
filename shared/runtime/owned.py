"""A task that its owner cannot do without: however it ends before its owner lets it go, somebody is told."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from anabranch.shared.contracts.errors import AnabranchError

Fail = Callable[[BaseException], Awaitable[None]]
"""Ends the process, and says why."""


class EndedUnasked(AnabranchError):
    """A task that goes on for ever has ended: it returned, or a stranger cancelled it, a handler for instance."""


class OwnedTask:
    """Starts work that goes on until `let_go`; any other end of it is told to `fail`."""

    def __init__(self, work: Coroutine[Any, Any, None], *, name: str, fail: Fail, may_return: bool = False) -> None:
        self._fail = fail
        self._may_return = may_return
        self._is_let_go = False
        self._failing: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self.task.add_done_callback(self._ended)

    def let_go(self) -> None:
        """Cancel it: its owner needs it no longer."""
        self._is_let_go = True
        self.task.cancel()

    async def stop(self) -> None:
        """Let it go, and return when it has ended."""
        self.let_go()
        await asyncio.wait([self.task])

    def _ended(self, task: "asyncio.Task[None]") -> None:
        why = _why(task)  # asked for in any case: an exception that nobody looks at is logged
        if self._is_let_go or (why is None and self._may_return):
            return
        self._failing = asyncio.ensure_future(self._fail(why or EndedUnasked(f"{task.get_name()}: it returned")))


def _why(task: "asyncio.Task[None]") -> BaseException | None:
    return EndedUnasked(f"{task.get_name()}: it was cancelled") if task.cancelled() else task.exception()
