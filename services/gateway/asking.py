"""Redis is asked for many at once: alone, a command costs ten times what it costs in company."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from anabranch.shared.runtime.redis import Pipeline, Redis, RedisError

Command = Callable[[Pipeline], Any]
"""Puts one command into a pipeline."""

Question = tuple[Command, "asyncio.Future[Any]"]

_MOST: Final = 256  # commands that go together: a few milliseconds of the loop, and small answers only


class Asking:
    """What is asked while an answer is on its way goes together with the next question."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[Question] = []
        self._exchanging: asyncio.Task[None] | None = None

    async def ask(self, command: Command) -> Any:
        """Return the answer. Raises `RedisError`, `OSError`, `TimeoutError`."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answered))
        if self._exchanging is None:
            self._exchanging = asyncio.create_task(self._exchange(), name="ask Redis")
        return await answered

    async def _exchange(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                try:
                    answers = await self._answers(asked)
                except (RedisError, OSError, TimeoutError) as error:
                    asked, self._waiting = asked + self._waiting, []  # these would wait as long, and for nothing
                    answers = [error] * len(asked)
                for (_, answered), answer in zip(asked, answers, strict=True):
                    _tell(answered, answer)
        finally:
            self._exchanging = None

    async def _answers(self, asked: Sequence[Question]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command, _ in asked:
            command(pipeline)
        return await pipeline.execute(raise_on_error=False)


def _tell(answered: "asyncio.Future[Any]", answer: Any) -> None:
    if answered.done():
        return  # who asked has left
    if isinstance(answer, Exception):
        answered.set_exception(answer)
    else:
        answered.set_result(answer)
