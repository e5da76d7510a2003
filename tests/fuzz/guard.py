"""What one case may cost: time on the loop, memory, bytes appended. What is over it is a finding."""

import asyncio
import resource
import selectors
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from anabranch.shared.contracts.limits import MIB

HELD_S = 0.5  # CPU between two turns of a loop: twice what a single record may take
GROWTH_BYTES: Final = 256 * MIB  # of the process's peak, by one case
APPENDED_BYTES: Final = 64 * MIB  # by one record
HANG_S: Final = 60  # after which a case ends its process, with the stacks of all threads
ADDRESS_SPACE_BYTES: Final = 6 * 1024 * MIB  # a case that wants more gets a MemoryError


class TooCostly(AssertionError):
    """A case that took too long, or too much memory."""


class Meter:
    """The longest time that a loop was held, in CPU seconds of its thread."""

    def __init__(self) -> None:
        self.held_s = 0.0
        self._since: float | None = None

    def begin_anew(self) -> None:
        """Forget what was measured, and what the thread did since the loop stopped: drawing a case, for instance."""
        self.held_s = 0.0
        self._since = None

    def turn_begins(self) -> None:
        """The loop has what it waited for."""
        self._since = time.thread_time()

    def turn_ends(self) -> None:
        """The loop waits again."""
        if self._since is not None:
            self.held_s = max(self.held_s, time.thread_time() - self._since)


class _Selector(selectors.SelectSelector):
    def __init__(self, meter: Meter, is_virtual: bool) -> None:
        super().__init__()
        self._meter = meter
        self._is_virtual = is_virtual
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._meter.turn_ends()
        if self._is_virtual and timeout is not None:
            self.now += timeout
            found = super().select(0)
        else:
            found = super().select(timeout)
        self._meter.turn_begins()
        return found


class MeteredLoop(asyncio.SelectorEventLoop):
    """An event loop that knows how long it was held; with `is_virtual` its time moves only when nothing else can."""

    def __init__(self, *, is_virtual: bool) -> None:
        self.meter = Meter()
        self._metered = _Selector(self.meter, is_virtual)
        self._is_virtual = is_virtual
        super().__init__(self._metered)

    def time(self) -> float:
        return 1000 + self._metered.now if self._is_virtual else super().time()


def close(loop: asyncio.AbstractEventLoop) -> None:
    """End everything that a loop still has to do, its threads and processes too, and close it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@contextmanager
def bounded(what: str) -> Iterator[Meter]:
    """Fail with `TooCostly` when what is done inside holds the thread or a metered loop too long, or grows too much."""
    meter, peak = Meter(), _peak_bytes()
    started = time.thread_time()
    yield meter
    taken = meter.held_s or time.thread_time() - started
    grown = _peak_bytes() - peak
    if taken > HELD_S:
        raise TooCostly(f"{what} held its thread for {taken:.2f} s of CPU time, {HELD_S} s are allowed")
    if grown > GROWTH_BYTES:
        raise TooCostly(f"{what} took {grown // MIB} MiB of memory, {GROWTH_BYTES // MIB} are allowed")


def check_appended(what: str, appended: int) -> None:
    """Fail when one record led to too many bytes."""
    if appended > APPENDED_BYTES:
        raise TooCostly(f"{what} appended {appended // MIB} MiB, {APPENDED_BYTES // MIB} are allowed")


def limit_memory() -> None:
    """Let this process have so much address space and no more."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
