"""Answers of the record that were given a moment ago: a page that many look at costs one search a second."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from cachetools import TTLCache

from anabranch.services.gateway.flights import Flights
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.shared.contracts.limits import MAX_RECENT_ANSWERS_BYTES

_KEPT_S: Final = 1.0

Question = tuple[str, str, str]
"""Whose it is, the route's path and the query as it was written."""


class RecentAnswers:
    """Each answer is kept for a second, the least asked for go first. Of a question only one is worked on at a time."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._answers: TTLCache[Question, bytes] = TTLCache(MAX_RECENT_ANSWERS_BYTES, _KEPT_S, getsizeof=len)
        self._flights = Flights[Question, bytes]("ask the record")

    async def answer(self, question: Question, ask: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """Return what the record says, or said a second ago at most. Raises what `ask` does, which is not kept."""
        found = self._answers.get(question)
        if found is not None:
            self._metrics.record_asked("memory")
            return found
        return await self._flights.join(question, lambda: self._ask(question, ask))

    async def _ask(self, question: Question, ask: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        found = self._answers.get(question)
        if found is not None:  # those who came while it was worked on share the next flight, which ends here
            self._metrics.record_asked("memory")
            return found
        self._metrics.record_asked("sql")
        answer = await ask()
        if len(answer) <= self._answers.maxsize:
            self._answers[question] = answer
        return answer
