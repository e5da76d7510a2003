"""The worker's way to its memory: writes and reads that fall together share a round trip; an outage costs one line."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from structlog.typing import FilteringBoundLogger

from anabranch.services.steps.ports import Asked, Memory, MemoryUnavailable, Note, Remembered, Take
from anabranch.services.steps.settings import WorkerSettings

T = TypeVar("T")
_UNKNOWN = Remembered()


Q = TypeVar("Q")


class _Questions(Generic[Q, T]):
    """All that was asked during one round trip shares the next: one connection, however many attempts ask."""

    def __init__(self, unknown: T) -> None:
        self._unknown = unknown
        self._asked: list[tuple[Q, asyncio.Future[T]]] = []
        self._asks = asyncio.Event()

    async def ask(self, asked: Q) -> T:
        """Return the memory's answer, or `unknown` if it has none."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append((asked, answer))
        self._asks.set()
        return await answer

    async def keep_answering(self, call: Callable[[Sequence[Q]], Awaitable[Sequence[T] | None]]) -> None:
        """Put what is asked to the memory, for ever."""
        while True:
            await self._asks.wait()
            self._asks.clear()
            asked, self._asked = self._asked, []
            answers = await call([ask for ask, _ in asked])
            for position, (_, answer) in enumerate(asked):
                if not answer.done():
                    answer.set_result(answers[position] if answers else self._unknown)


class Notes:
    """Notes waiting to be written, and a circuit that leaves an unavailable memory alone for a while.

    Nothing here raises and nothing waits for longer than `memory_timeout_s`: without its memory a worker runs a
    repeated command again, as documented (at least once).
    """

    def __init__(self, memory: Memory, settings: WorkerSettings, log: FilteringBoundLogger) -> None:
        self._memory = memory
        self._settings = settings
        self._log = log
        self._waiting: dict[str, Note] = {}  # by attempt: the result of a short step replaces its lease
        self._waiting_bytes = 0  # of their results
        self._noted = asyncio.Event()
        self._recalls = _Questions[Asked, Remembered](_UNKNOWN)
        self._takes = _Questions[Take, None](None)
        self._closed_until = 0.0
        self._writing = asyncio.Lock()  # who flushes waits for a flush under way too
        self.is_available = True

    def note(self, note: Note) -> None:
        """Have a note written with the next flush."""
        self._drop(note.attempt_id)
        self._waiting[note.attempt_id] = note
        self._waiting_bytes += len(note.result or b"")
        settings = self._settings
        while len(self._waiting) > settings.memory_notes or self._waiting_bytes > settings.memory_notes_bytes:
            self._drop(next(iter(self._waiting)))
        self._noted.set()

    def _drop(self, attempt_id: str) -> None:
        dropped = self._waiting.pop(attempt_id, None)
        if dropped is not None:
            self._waiting_bytes -= len(dropped.result or b"")

    async def keep_writing(self) -> None:
        """Write what is noted, a little later, for ever."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(self._settings.memory_flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Return when what is noted now is written; what cannot be written is dropped."""
        async with self._writing:
            self._noted.clear()
            notes, self._waiting, self._waiting_bytes = list(self._waiting.values()), {}, 0
            if notes:
                await self._try(self._memory.remember(notes))

    async def recall(self, asked: Asked) -> Remembered:
        """Return what is known of an attempt; nothing, if the memory is unavailable."""
        pending = self._waiting.get(asked.attempt_id)
        if pending is not None and pending.result is not None:
            return Remembered(result=pending.result)
        return await self._recalls.ask(asked)

    async def count_take(self, take: Take) -> None:
        """Return when it is written that the attempt is taken up again, or the memory is unavailable."""
        await self._takes.ask(take)

    async def last_words(self, worker: str) -> str:
        """Return how a worker ended; nothing, if nobody said or the memory is unavailable."""
        return await self._try(self._memory.last_words(worker)) or ""

    async def keep_reading(self) -> None:
        """Answer what `recall` asks, for ever."""
        await self._recalls.keep_answering(lambda asked: self._try(self._memory.recall(asked)))

    async def keep_counting(self) -> None:
        """Answer what `count_take` asks, for ever."""
        await self._takes.keep_answering(self._count)

    async def _count(self, takes: Sequence[Take]) -> None:
        await self._try(self._memory.count_takes(takes))

    async def _try(self, call: Awaitable[T]) -> T | None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._closed_until:
            _discard(call)
            return None
        try:
            async with asyncio.timeout(self._settings.memory_timeout_s):
                answer = await call
        except (MemoryUnavailable, TimeoutError) as error:
            self._closed_until = loop.time() + self._settings.memory_retry_s
            self._became(available=False, error=error)
            return None
        self._became(available=True)
        return answer

    def _became(self, *, available: bool, error: BaseException | None = None) -> None:
        if available and not self.is_available:
            self._log.info("memory is back: repeated commands are recognised across crashes again")
        elif not available and self.is_available:
            self._log.warning(
                "memory is unavailable: a command repeated across a crash or a rebalance runs again",
                error=str(error) or type(error).__name__,
            )
        self.is_available = available


def _discard(call: Awaitable[object]) -> None:
    close = getattr(call, "close", None)
    if close is not None:
        close()  # a coroutine that is never awaited would warn
