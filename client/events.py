"""Run events as the gateway streams them (server-sent events, WHATWG HTML §9.2)."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from anabranch.client.model import Run
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.messages import RUN_ENDED_TYPES, RUN_EVENTS
from anabranch.shared.runtime.snapshots import RUN, Fields, document, fields_of

_NAMES: Final = frozenset({"id", "event", "data"})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run. `place` is where a stream goes on after it, `data` the event as JSON text."""

    place: str
    type: str
    data: str

    @property
    def document(self) -> dict[str, Any]:
        """What the event says."""
        found = orjson.loads(self.data)
        return found if isinstance(found, dict) else {}

    @property
    def is_last(self) -> bool:
        """Whether nothing follows in its run."""
        return self.type in RUN_ENDED_TYPES


async def events_in(lines: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield the events of a stream's lines; one that breaks off before its empty line is none."""
    fields: dict[str, list[str]] = {}
    place = ""
    async for line in lines:
        text = line.decode(errors="replace").rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            if name in _NAMES:
                fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        place = fields.get("id", [place])[-1]
        if "data" in fields:
            yield Event(place, fields.get("event", ["message"])[-1], "\n".join(fields["data"]))
        fields = {}


@dataclass(slots=True)
class Unfolded:
    """A run as its events so far make it, from the first one on."""

    run_id: str
    _fields: Fields = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Have the run be as the event says."""
        message = decode(RUN_EVENTS, event.data.encode())
        if not isinstance(message, Undecodable):
            self._fields |= fields_of(message)

    @property
    def size(self) -> int:
        """Return the bytes of all that is known."""
        return sum(map(len, self._fields.values()))

    def run(self) -> Run | None:
        """Return the run, None before it has begun."""
        return Run.model_validate_json(document(self.run_id, self._fields)) if RUN in self._fields else None
