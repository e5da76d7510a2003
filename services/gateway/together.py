"""What is asked while an answer is on its way goes together with the next question: one statement for many."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from anabranch.shared.record.errors import RecordUnavailable

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """Asks the record, `most` questions at a time; `ask` answers in their order, None for what is to be asked again."""

    def __init__(self, name: str, ask: Callable[[Sequence[Q]], Awaitable[Sequence[A | None]]], most: int) -> None:
        self._name = name
        self._ask_for = ask
        self._most = most
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Return the answer. Raises `RecordUnavailable`."""
        answered: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answered))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name=self._name)
        return await answered

    async def _ask(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                asked = [each for each in asked if not each[1].done()]  # who asked may have left
                if not asked:
                    continue
                try:
                    answers = await self._ask_for([question for question, _ in asked])
                except RecordUnavailable as error:  # all who wait would wait as long, and for nothing
                    waiting, self._waiting = self._waiting, []
                    _refuse(asked + waiting, error)
                    continue
                except Exception as error:  # noqa: BLE001  it is theirs who asked: none of them waits for ever
                    _refuse(asked, error)
                    continue
                again = []
                for each, answer in zip(asked, answers, strict=True):
                    if answer is None:
                        again.append(each)
                    elif not each[1].done():
                        each[1].set_result(answer)
                self._waiting = again + self._waiting
        finally:
            self._asking = None


def _refuse(asked: Sequence[tuple[Q, "asyncio.Future[A]"]], error: Exception) -> None:
    for _, answered in asked:
        if not answered.done():
            answered.set_exception(error)
