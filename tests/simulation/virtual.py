"""A virtual clock, and processes that can be killed and frozen between any two awaits.

The loop has no I/O: when nothing is ready its time jumps to the next timer. Every callback belongs to the process
(`Host`) in whose context it was scheduled, or to nobody: then it is the world's. Callbacks of a dead process are
dropped where they stand, those of a frozen one wait; so a process stops between two awaits, and none of its cleanup
runs.
"""

import asyncio
import heapq
from asyncio.base_events import BaseEventLoop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_HOST: "ContextVar[Host]" = ContextVar("host")


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set, although the simulation has not ended."""


class Host:
    """One process: what runs in its context lives, freezes and dies with it."""

    def __init__(self, name: str, loop: "VirtualLoop") -> None:
        self.name = name
        self.is_alive = True
        self.is_frozen = False
        self.is_deaf = False  # the group's coordinator and it do not hear each other; everything else works
        self.is_done = False  # it has ended by itself, as it should
        self.has_failed = False  # killed, ended by an error, frozen, deaf, or not told of a revoke: at some time
        self.handles_left: int | None = None  # until it is killed
        self.busy_until = 0.0  # what it does now takes so long, and its loop does nothing else meanwhile
        self.on_death: Callable[[Host], None] = lambda _: None
        self.context = copy_context()
        self.context.run(_HOST.set, self)
        self._loop = loop
        self._parked: deque[asyncio.Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []  # kept: a task that is collected would run its cleanup

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        """Run a coroutine as part of this process."""
        return self._loop.create_task(work, name=name, context=self.context)

    def keeps(self, task: "asyncio.Task[Any]") -> None:
        """Note a task of this process. One that is never finished was killed: no reason to complain."""
        self._tasks.append(task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    def cancel_all(self) -> None:
        """Cancel every task, as a process does that ends by itself."""
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        """End at once: nothing of it runs any more."""
        if self.is_alive:
            self.is_alive = False
            self.has_failed |= not self.is_done
            self._parked.clear()
            self.on_death(self)

    def freeze(self) -> None:
        """Stop as SIGSTOP does."""
        self.is_frozen = self.has_failed = True

    def thaw(self) -> None:
        """Go on as after SIGCONT: what came due meanwhile happens now, in its order."""
        self.is_frozen = False
        self._loop.make_ready(self._parked)
        self._parked = deque()

    def works_for(self, seconds: float) -> None:
        """Have the callback that runs now take so long: time goes on within it, all else of this process waits."""
        self.busy_until = max(self.busy_until, self._loop.now) + seconds
        self._loop.call_at(self.busy_until, self._go_on, context=self._loop.world)

    def _go_on(self) -> None:
        if self.busy_until <= self._loop.now and not self.is_frozen:
            self._loop.make_ready(self._parked)
            self._parked = deque()

    def takes(self, handle: asyncio.Handle) -> bool:
        """Whether a callback of this process runs now."""
        if not self.is_alive:
            return False
        if self.busy_until > self._loop.now:
            self._parked.append(handle)
            return False
        if self.is_frozen:
            self._parked.append(handle)
            return False
        if self.handles_left is not None:
            self.handles_left -= 1
            if self.handles_left <= 0:
                self.kill()
                return False
        return True


def host_at_work() -> Host | None:
    """Return the process that does what is done now; None when it is the world's."""
    return _HOST.get(None)


class VirtualLoop(BaseEventLoop):
    """An event loop whose time moves only when nothing is ready."""

    _ready: "deque[asyncio.Handle]"
    _scheduled: "list[asyncio.TimerHandle]"

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.handled = 0
        self.limit = 300_000  # a hundred times what a simulation takes: something is busy for ever
        self.world = Context()  # what runs in here belongs to no process

    def time(self) -> float:
        """Return the virtual seconds since the start, as whoever asks has it: one who is busy is ahead."""
        host = _HOST.get(None)
        return self.now if host is None else max(self.now, host.busy_until)

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> "asyncio.Task[Any]":
        """Make a task, and have its process keep it."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=str(name or "task"), context=context)
        host = _HOST.get(None) if context is None else context.get(_HOST)
        if host is not None:
            host.keeps(task)
        return task

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Have the world do something, whatever becomes of the process that asks for it."""
        return self.call_at(self.now + delay_s, callback, *args, context=self.world)

    def make_ready(self, handles: "deque[asyncio.Handle]") -> None:
        """Run these callbacks next."""
        self._ready.extend(handles)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            while scheduled and scheduled[0].cancelled():
                heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
            if not scheduled:
                raise Stuck(f"nothing left to do at {self.now:.3f} s")
            self.now = max(self.now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self.now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)
        for _ in range(len(ready)):
            self._run_handle(ready.popleft())
        if self.handled > self.limit:
            raise Stuck(f"still busy after {self.handled} callbacks at {self.now:.3f} s")

    def _run_handle(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        host = handle._context.get(_HOST)  # type: ignore[attr-defined]
        if host is None or host.takes(handle):
            self.handled += 1
            handle._run()

    def _process_events(self, event_list: object) -> None:
        """There are none: nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody waits for I/O that would have to be woken."""
