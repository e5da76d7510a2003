"""Many who ask for the same at once are answered by few looks, each as fresh as if it were his own."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Flights(Generic[K, T]):
    """One look for each key at a time. Whoever comes while it is under way shares the next one with all who do.

    The one under way will not do: it may have begun before what he has already heard of.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._under_way: dict[K, asyncio.Task[T]] = {}
        self._next: dict[K, asyncio.Task[T]] = {}

    async def join(self, key: K, look: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `look` does, or raise it; a look goes on for the others when one of them leaves."""
        flight = self._next.get(key)
        if flight is None:
            before = self._under_way.get(key)
            flight = asyncio.create_task(self._fly(key, look, before), name=self._name)
            (self._under_way if before is None else self._next)[key] = flight
            flight.add_done_callback(_heard)
        return await asyncio.shield(flight)

    async def _fly(self, key: K, look: Callable[[], Coroutine[Any, Any, T]], before: "asyncio.Task[T] | None") -> T:
        if before is not None:
            await asyncio.wait([before])
            self._under_way[key] = self._next.pop(key)
        flight = self._under_way[key]
        try:
            return await look()
        finally:
            if self._under_way.get(key) is flight:
                del self._under_way[key]


def _heard(flight: "asyncio.Task[Any]") -> None:
    if not flight.cancelled():
        flight.exception()  # all who wanted to hear of it may have left
