"""A run decided again from the inbox, or read from its stored events, and the first thing that is not the same."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from anabranch.client.stored_events import DATABASE, Read, Stored, find, from_database, wrong_rows
from anabranch.services.orchestrator.replay import RULES_VERSION, Cause, InboxReplay, open_inbox
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.times import milliseconds
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.runtime.deadline import Deadline

_STORED_WITHIN_S: Final = 5.0  # history may be behind
_LOOK_AGAIN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Difference:
    """The first event that is not stored as it was rebuilt; None stands for no event."""

    seq: int
    rebuilt: bytes | None
    stored: bytes | None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A run's events, where they come from, and whether what is stored is the same."""

    events: Sequence[bytes]
    causes: Sequence[Cause | None]
    source: str
    stored_in: str
    stored: int  # how many
    rules: int  # under which the run began
    difference: Difference | None
    wrong_rows: Sequence[str] = ()  # tables of the record in which the run is not what its events make of it
    not_decided_since: str = "the inbox no longer holds the run's beginning"  # where the events were only read

    @property
    def is_equal(self) -> bool:
        """Whether everything that is stored is as it should be."""
        return self.difference is None and not self.wrong_rows

    @property
    def is_decided(self) -> bool:
        """Whether the events were decided again, not only read."""
        return bool(self.causes) and self.causes[0] is not None


async def rebuild(settings: RecordSettings, run_id: str) -> Rebuilt | None:
    """Return the run as the core decides it now and what is stored of it, or None if there is no such run."""
    stored_in, stored, read = await find(settings, run_id)
    async with open_inbox(settings, run_id) as inbox:
        if await inbox.begin(_started_ms(stored)):
            rebuilt = await _compared(inbox, stored_in, stored, read)
        elif stored:
            rebuilt = as_stored(stored_in, stored)
        else:
            return None
    if stored_in == DATABASE and rebuilt.difference is None:
        return replace(rebuilt, wrong_rows=await wrong_rows(settings, run_id))
    return rebuilt


async def rebuild_without_kafka(settings: RecordSettings, run_id: str, why: str) -> Rebuilt | None:
    """Return the run of the events that the record has, or None if there is no record, or no such run in it."""
    stored = await from_database(settings, run_id) if settings.database_url else {}
    if not stored:
        return None
    rebuilt = replace(as_stored(DATABASE, stored), not_decided_since=why)
    return rebuilt if rebuilt.difference else replace(rebuilt, wrong_rows=await wrong_rows(settings, run_id))


async def _compared(inbox: InboxReplay, stored_in: str, stored: Stored, read: Read) -> Rebuilt:
    decided, deadline = len(inbox.events), Deadline.after(_STORED_WITHIN_S)
    while _last(stored) < decided and not deadline.passed:
        await asyncio.sleep(_LOOK_AGAIN_S)
        stored = await read()
    if _last(stored) > len(inbox.events) and not inbox.has_ended:  # it went on meanwhile
        await inbox.go_on()
    events = [event.value for event in inbox.events]
    rules = _rules_of(stored)
    # What the run did since the last look at what is stored need not be there.
    compared = events[: max(decided, _last(stored))]
    return Rebuilt(
        events,
        [event.cause for event in inbox.events],
        f"partition {inbox.partition} of the inbox",
        stored_in,
        len(stored),
        rules,
        first_difference(compared, stored, same_rules=rules == RULES_VERSION),
    )


def first_difference(rebuilt: Sequence[bytes], stored: Stored, *, same_rules: bool) -> Difference | None:
    """Return the first event that is not the same: byte for byte, or in what it says if other rules decided it."""
    for seq in range(1, max(len(rebuilt), _last(stored)) + 1):
        event = rebuilt[seq - 1] if seq <= len(rebuilt) else None
        for value in stored.get(seq, (None,)):
            if value != event and (same_rules or _said(value) != _said(event)):
                return Difference(seq, event, value)
    return None


def _said(value: bytes | None) -> Any:
    """Return what an event says, but for the rules it was decided under."""
    try:
        said = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return value
    if isinstance(said, dict):
        said.pop("rules", None)
    return said


def as_stored(stored_in: str, stored: Stored) -> Rebuilt:
    """Return the run of its stored events: nothing decides them again, so only what is missing can be told."""
    events: list[bytes] = []
    difference = None
    for seq in range(1, _last(stored) + 1):
        values = stored.get(seq, ())
        if len(values) != 1 or event_of(values[0]) is None:
            difference = Difference(seq, None, values[0] if values else None)
            break
        events += values
    return Rebuilt(events, [None] * len(events), stored_in, stored_in, len(stored), _rules_of(stored), difference)


def event_of(value: bytes) -> m.RunEventMessage | None:
    """Return the event in a record's value, or None when it is none."""
    event: m.RunEventMessage | Undecodable = decode(m.RUN_EVENTS, value)
    return None if isinstance(event, Undecodable) else event


def _last(stored: Stored) -> int:
    return max(stored, default=0)


def _start_of(stored: Stored) -> m.RunStarted | None:
    event = event_of(stored[1][0]) if 1 in stored else None
    return event if isinstance(event, m.RunStarted) else None


def _started_ms(stored: Stored) -> int | None:
    start = _start_of(stored)
    try:
        return None if start is None else milliseconds(start.at)
    except ValueError:  # not as it was written
        return None


def _rules_of(stored: Stored) -> int:
    start = _start_of(stored)
    return RULES_VERSION if start is None else start.rules
