"""What streams of events read: many by one statement, and no more at once than there is room for.

A client that does not read holds small events of one answer and the buffer of its connection. Large events are read one
at a time, each when there is room for it, and no client has all the room.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from anabranch.services.gateway.flights import Flights
from anabranch.services.gateway.together import Together
from anabranch.shared.contracts.limits import MAX_STREAMED_BYTES, MAX_STREAMED_BYTES_OF_CLIENT
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.events import EventReader, Events, Question, RecordedEvent
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.room import Room

_TOGETHER: Final = 64  # questions of one statement
_COPIES: Final = 4  # of a large event while it is sent: its bytes, its text, and both as they are sent


class EventFeed:
    """Events for all streams of a gateway."""

    def __init__(self, record: RecordReader, events: EventReader) -> None:
        self._record = record
        self._events = events
        self._after: Together[Question, Events] = Together("ask for events", self._after_all, _TOGETHER)
        self._progress: Flights[str, Mapping[int, int]] = Flights("ask how far the record is")
        self._parts: Flights[tuple[int, str, int, int], Events] = Flights("read a part of the events")
        self._room = Room(MAX_STREAMED_BYTES)
        self._room_of: WeakValueDictionary[str, Room] = WeakValueDictionary()  # as long as anybody is in it

    async def after(self, run_id: str, tenant: str, seq: int) -> Events:
        """Return the next events of the tenant's run. Raises `RecordUnavailable`."""
        return await self._after.ask(Question(run_id, tenant, seq))

    async def progress(self) -> Mapping[int, int]:
        """Return by partition how far the record is: the next offset. Raises `RecordUnavailable`."""
        return await self._progress.join("", self._reached)

    async def at(self, partition: int, tenant: str, *, begin: int, end: int) -> Events:
        """Return events of all the tenant's runs in a part of a partition. Raises `RecordUnavailable`."""
        return await self._parts.join(
            (partition, tenant, begin, end), lambda: self._events.at(partition, tenant, begin=begin, end=end)
        )

    @asynccontextmanager
    async def whole(self, event: RecordedEvent, tenant: str, client: str) -> AsyncIterator[bytes]:
        """Yield the event's body; a large one has its room until the context ends. Raises `RecordUnavailable`."""
        if event.body is not None:
            yield event.body
            return
        async with _taken(self._room_of_client(client), event.size), _taken(self._room, event.size):
            body = await self._events.body(event.run_id, tenant, event.seq)
            if body is None:
                raise RecordUnavailable("the event is no longer in the record")
            yield body

    def _room_of_client(self, client: str) -> Room:
        return self._room_of.setdefault(client, Room(MAX_STREAMED_BYTES_OF_CLIENT))

    async def _reached(self) -> Mapping[int, int]:
        return {partition: each.next_offset for partition, each in (await self._record.progress()).items()}

    async def _after_all(self, asked: Sequence[Question]) -> list[Events | None]:
        """Return the answers, None where others' events took all the room."""
        answers = await self._events.after(asked)
        return [each if each.events or each.is_all else None for each in answers]


@asynccontextmanager
async def _taken(room: Room, size: int) -> AsyncIterator[None]:
    taken = await room.take(_COPIES * size)
    try:
        yield
    finally:
        room.give_back(taken)
