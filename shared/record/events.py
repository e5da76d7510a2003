"""Reads events from the record for those who follow runs: for many runs by one statement, and never more than fits.

An answer holds small events up to `MAX_EVENTS_READ_BYTES` together. A large one is only named in it, and read alone by
whoever has room for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import BigInteger, Integer, LargeBinary, Text, column, text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.contracts.limits import MAX_EVENTS_READ_BYTES, MAX_UNCOUNTED_EVENT_BYTES
from anabranch.shared.record.asking import WITHIN_S, Asking, is_possible
from anabranch.shared.record.database import is_sqlite

MOST_OF_RUN: Final = 100
"""Events of one run in one answer."""


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A run event, byte for byte as it stands in Kafka; without its body where that is large."""

    run_id: str
    seq: int
    type: str
    offset: int
    size: int
    body: bytes | None


class Question(NamedTuple):
    """The events of a tenant's run after a number."""

    run_id: str
    tenant: str
    after: int


class Events(NamedTuple):
    """Events in their order; `is_all` says whether there were no more."""

    events: Sequence[RecordedEvent]
    is_all: bool


class EventReader:
    """Reads events. Each question, or many, is one statement, which has its answer within `within_s`."""

    def __init__(self, engine: AsyncEngine, *, within_s: float = WITHIN_S) -> None:
        self._asking = Asking(engine, within_s=within_s)
        self._of_runs = _of_runs(is_sqlite=is_sqlite(engine.url))

    async def after(self, asked: Sequence[Question]) -> list[Events]:
        """Return what was asked for, in the order of the questions. Raises `RecordUnavailable`.

        What does not fit is left out; of the first question at least the next event is in.
        """
        wanted = [
            {"number": number, "run_id": each.run_id, "tenant": each.tenant, "seen": each.after}
            for number, each in enumerate(asked)
            if is_possible(each.run_id) and is_possible(each.tenant)
        ]
        values = {"wanted": orjson.dumps(wanted).decode()}
        rows: list[list[Any]] = [[] for _ in asked]
        for row in await self._asking.ask_the_same(self._of_runs, values) if wanted else ():
            rows[row.number].append(row)
        return [_events(each, is_all=len(each) < MOST_OF_RUN) for each in rows]

    async def at(self, partition: int, tenant: str, *, begin: int, end: int) -> Events:
        """Return the events of all the tenant's runs between two offsets of a partition, in their order.

        Raises `RecordUnavailable`.
        """
        if not is_possible(tenant):
            return Events((), is_all=True)
        values = {"partition": partition, "tenant": tenant, "begin": begin, "end": end}
        return _events(await self._asking.ask_the_same(_AT, values), is_all=True)

    async def body(self, run_id: str, tenant: str, seq: int) -> bytes | None:
        """Return one event of the tenant's run, None when there is none such. Raises `RecordUnavailable`."""
        found = await self._asking.ask_the_same(_BODY, {"run_id": run_id, "tenant": tenant, "seq": seq})
        return bytes(found[0].body) if found else None


def _events(rows: Sequence[Any], *, is_all: bool) -> Events:
    """Return the rows up to the first one that did not fit, or that is large."""
    events: list[RecordedEvent] = []
    for row in rows:
        is_large = row.size > MAX_UNCOUNTED_EVENT_BYTES
        if row.body is None and not is_large:
            return Events(events, is_all=False)
        events.append(RecordedEvent(row.run_id, row.seq, row.type, row.offset, row.size, row.body))
        if is_large:
            return Events(events, is_all=False)
    return Events(events, is_all)


def _of_runs(*, is_sqlite: bool) -> Any:
    wanted = _WANTED_OF_SQLITE if is_sqlite else _WANTED_OF_POSTGRES
    return text(_OF_RUNS.format(wanted=wanted)).columns(column("number", Integer), *_COLUMNS)


# The wanted come as one JSON text, so that the statement is the same for any number of them.
_WANTED_OF_SQLITE: Final = """
    SELECT json_extract(value, '$.number') AS number, json_extract(value, '$.run_id') AS run_id,
        json_extract(value, '$.tenant') AS tenant, json_extract(value, '$.seen') AS seen
    FROM json_each(:wanted)"""
_WANTED_OF_POSTGRES: Final = """
    SELECT * FROM json_to_recordset(CAST(:wanted AS json)) AS w(number int, run_id text, tenant text, seen int)"""

# Which events there are and how large, before any body is touched. SQLite joins in the order in which tables are named.
_SIZE: Final = f"CASE WHEN length(e.body) <= {MAX_UNCOUNTED_EVENT_BYTES} THEN length(e.body) ELSE 0 END"
_SELECTED: Final = f"""
    s.run_id, s.seq, e.type, e."offset", s.size,
    CASE WHEN s.size <= {MAX_UNCOUNTED_EVENT_BYTES} AND s.together <= {MAX_EVENTS_READ_BYTES} THEN e.body END AS body
FROM sized s CROSS JOIN events e
WHERE e.run_id = s.run_id AND e.seq = s.seq"""
_OF_RUNS: Final = f"""
WITH wanted AS ({{wanted}}),
sized AS (
    SELECT w.number, e.run_id, e.seq, length(e.body) AS size,
        SUM({_SIZE}) OVER (ORDER BY w.number, e.seq) AS together
    FROM wanted w CROSS JOIN runs r CROSS JOIN events e
    WHERE r.run_id = w.run_id AND r.tenant = w.tenant AND r.header IS NOT NULL
        AND e.run_id = w.run_id AND e.seq > w.seen AND e.seq <= (
            SELECT MAX(n.seq) FROM (
                SELECT seq FROM events WHERE run_id = w.run_id AND seq > w.seen ORDER BY seq LIMIT {MOST_OF_RUN}
            ) n
        )
)
SELECT s.number, {_SELECTED}
ORDER BY s.number, s.seq"""  # noqa: S608  numbers of ours
_COLUMNS: Final = (
    column("run_id", Text), column("seq", Integer), column("type", Text), column("offset", BigInteger),
    column("size", Integer), column("body", LargeBinary),
)  # fmt: skip
_AT: Final = text(
    f"""
WITH sized AS (
    SELECT e.run_id, e.seq, length(e.body) AS size, SUM({_SIZE}) OVER (ORDER BY e."offset") AS together
    FROM events e CROSS JOIN runs r
    WHERE e.partition = :partition AND e."offset" >= :begin AND e."offset" < :end
        AND r.run_id = e.run_id AND r.tenant = :tenant
)
SELECT {_SELECTED}
ORDER BY e."offset\""""  # noqa: S608  likewise
).columns(*_COLUMNS)
_BODY: Final = text(
    "SELECT e.body FROM events e JOIN runs r ON r.run_id = e.run_id"
    " WHERE e.run_id = :run_id AND e.seq = :seq AND r.tenant = :tenant"
).columns(column("body", LargeBinary))
