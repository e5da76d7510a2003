"""Run events as both loops of history need them: each is decoded by the one that reads it first, for both."""

from collections import OrderedDict
from dataclasses import dataclass, field

from anabranch.services.history.events import EventRecord
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.limits import MAX_SHARED_EVENT_BYTES, MAX_SHARED_EVENTS
from anabranch.shared.contracts.messages import RUN_EVENTS, RunEventMessage
from anabranch.shared.runtime.snapshots import Fields, fields_of


@dataclass(slots=True)
class ReadEvent:
    """An event, and the fields that it changes in its run's document, made when they are first asked for."""

    event: RunEventMessage
    _fields: Fields | None = field(default=None, init=False)

    @property
    def fields(self) -> Fields:
        """The fields; nobody changes them. Raises what a value that is none raises."""
        if self._fields is None:
            self._fields = fields_of(self.event)
        return self._fields


class DecodedEvents:
    """Decodes records, and keeps what one loop has decoded until the other asks for it.

    The loops read the same records some 100 ms apart. When one falls behind, what it will ask for much later is
    forgotten, the oldest first, and decoded twice.
    """

    def __init__(self, *, are_shared: bool) -> None:
        self._are_shared = are_shared
        self._kept: OrderedDict[tuple[int, int], tuple[ReadEvent, bytes]] = OrderedDict()  # by partition and offset
        self._bytes = 0

    def of(self, record: EventRecord) -> ReadEvent | Undecodable:
        """Return what a record says."""
        place = (record.partition, record.offset)
        kept = self._kept.pop(place, None)
        if kept is not None:
            self._bytes -= len(kept[1])
            if kept[1] == record.value:  # a partition that lost its end has another record at the offset
                return kept[0]
        event = decode(RUN_EVENTS, record.value)
        if isinstance(event, Undecodable):
            return event
        read = ReadEvent(event)
        if self._are_shared and record.value is not None:
            self._keep(place, read, record.value)
        return read

    def _keep(self, place: tuple[int, int], read: ReadEvent, value: bytes) -> None:
        self._kept[place] = read, value
        self._bytes += len(value)
        while self._bytes > MAX_SHARED_EVENT_BYTES or len(self._kept) > MAX_SHARED_EVENTS:
            _, (_, forgotten) = self._kept.popitem(last=False)
            self._bytes -= len(forgotten)
