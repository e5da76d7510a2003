"""Keeps children running: one that dies is started again after a second, until it has died too often.

A child may die at any moment, also while it is being started again: that is one more death, and it is tried again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from anabranch.deploy.local.console import Console
from anabranch.deploy.local.server import DiedStartingError

RESTART_DELAY_S = 1.0
RESTARTS_PER_WINDOW = 5
WINDOW_S = 60.0


class StackFailedError(RuntimeError):
    """The stack cannot go on; the message ends with the last words of the child that stopped it."""


class Supervised(Protocol):
    """A child as its supervisor sees it."""

    name: str

    async def died(self) -> int:
        """Wait until it ends without anybody having asked for it; return the exit status."""

    async def start(self) -> None:
        """Start it (again)."""

    def last_words(self) -> str:
        """The end of what it printed."""


@dataclass(slots=True)
class RestartBudget:
    """At most so many restarts within a sliding window."""

    limit: int = RESTARTS_PER_WINDOW
    window_s: float = WINDOW_S
    _spent_at: deque[float] = field(default_factory=deque)

    def spend(self, now: float) -> bool:
        """Whether one more restart is allowed at `now` (seconds, monotonic); if so it is counted."""
        while self._spent_at and now - self._spent_at[0] >= self.window_s:
            self._spent_at.popleft()
        if len(self._spent_at) >= self.limit:
            return False
        self._spent_at.append(now)
        return True


async def start(child: Supervised, budget: RestartBudget, console: Console, *, delay_s: float) -> None:
    """Start the child for the first time; one that dies before it answers is started again like any that dies.

    Raises what else kept it from starting, as it is: a download that fails will fail again.
    """
    try:
        await child.start()
    except DiedStartingError as error:
        await _start_again(child, _first_line(error), budget, console, delay_s)


async def supervise(child: Supervised, console: Console, budget: RestartBudget, *, delay_s: float) -> None:
    """Start the child again whenever it dies; raise StackFailedError when it does so too often."""
    while True:
        how = f"{child.name} {ending(await child.died())}"
        await _start_again(child, how, budget, console, delay_s)


async def _start_again(child: Supervised, how: str, budget: RestartBudget, console: Console, delay_s: float) -> None:
    """Start the child until it stays up. A start that fails, for whatever reason, is one more death."""
    for _ in range(budget.limit):  # in a row: those that take long do not fall out of the window
        if not budget.spend(time.monotonic()):
            break
        console.say("stack", f"{how}; starting it again in {delay_s:g} s")
        await asyncio.sleep(delay_s)
        try:
            await child.start()
        except (RuntimeError, OSError) as error:  # killed, too slow, its port taken, no process or disk to be had
            how = _first_line(error)
        else:
            return
    raise StackFailedError(
        f"{how} and had been started again {budget.limit} times; giving up. Its last words:\n{child.last_words()}"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def ending(code: int) -> str:
    """What an exit status says."""
    return f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"


async def all_of(jobs: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Run jobs side by side; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_run(job))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _run(job: Callable[[], Awaitable[object]]) -> None:
    await job()
