"""The events of one run as they are stored: in the record (SQL), or in the topic of run events."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from anabranch.shared.contracts.codec import Undecodable, decode, header
from anabranch.shared.contracts.messages import RUN_EVENTS, RunEventMessage
from anabranch.shared.record.database import open_database
from anabranch.shared.record.rows import COLUMNS, Place, Row, Rows
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.tables import EVENTS, METADATA
from anabranch.shared.runtime.partition_scan import PartitionScan
from anabranch.shared.runtime.settings import Settings

DATABASE: Final = "the record"
TOPIC: Final = "the topic of run events"

_UUID_7: Final = 7
_SKEW_MS: Final = 600_000  # by which a gateway's clock may be ahead of the broker's

Stored = Mapping[int, tuple[bytes, ...]]
"""By sequence number what is stored there: one value, or several that differ, as must not be."""

_MADE_OF_EVENTS: Final = ("runs", "run_values", "steps", "attempts")

Read = Callable[[], Coroutine[Any, Any, Stored]]


async def find(settings: RecordSettings, run_id: str) -> tuple[str, Stored, Read]:
    """Return where the run's events are stored, what they are, and how to read them once more."""
    if settings.database_url:
        stored = await from_database(settings, run_id)
        if stored:
            return DATABASE, stored, lambda: from_database(settings, run_id)
    return TOPIC, await from_topic(settings, run_id), lambda: from_topic(settings, run_id)


async def from_database(settings: RecordSettings, run_id: str) -> Stored:
    """Return what the record holds."""
    engine: AsyncEngine = open_database(settings.database_url, name="anabranch replay", connections=1)
    wanted = select(EVENTS.c.seq, EVENTS.c.body).where(EVENTS.c.run_id == run_id).order_by(EVENTS.c.seq)
    try:
        async with engine.connect() as connection:
            return {seq: (bytes(body),) for seq, body in await connection.execute(wanted)}
    finally:
        await engine.dispose()


async def wrong_rows(settings: RecordSettings, run_id: str) -> list[str]:
    """Return the tables of the record in which the run's rows are not what its events there make."""
    engine = open_database(settings.database_url, name="anabranch replay", connections=1)
    try:
        async with engine.connect() as connection:
            if connection.dialect.name == "postgresql":  # SQLite's transactions see one moment anyway
                await connection.execution_options(isolation_level="REPEATABLE READ")
            found = {table: await _rows_in(connection, table, run_id) for table in (*_MADE_OF_EVENTS, "events")}
    finally:
        await engine.dispose()
    made = rows_of(body for *_, body in sorted(found["events"]))
    return [table for table in _MADE_OF_EVENTS if sorted(made[table], key=repr) != sorted(found[table], key=repr)]


async def _rows_in(connection: AsyncConnection, table: str, run_id: str) -> list[Row]:
    columns = METADATA.tables[table].c
    wanted = select(*(columns[name] for name in COLUMNS[table])).where(columns.run_id == run_id)
    return [tuple(row) for row in await connection.execute(wanted)]


def rows_of(events: Iterable[bytes]) -> dict[str, list[Row]]:
    """Return by table the rows that a run's events make."""
    rows = Rows({})
    for value in events:
        event: RunEventMessage | Undecodable = decode(RUN_EVENTS, value)
        if not isinstance(event, Undecodable):
            rows.add(event, Place(0, 0, 0, value))
    return rows.tables()


async def from_topic(settings: Settings, run_id: str) -> Stored:
    """Return what the topic holds of the latest run with this id; an orchestrator that restored wrote some twice."""
    async with PartitionScan(settings, settings.topics.run_events, run_id.encode()) as scan:
        made_ms = _made_ms(run_id)
        if made_ms is not None:
            await scan.seek(made_ms)
            if stored := await _rest_of(scan, run_id):
                return stored
            await scan.seek(None)
        return await _rest_of(scan, run_id)


async def _rest_of(scan: PartitionScan, run_id: str) -> Stored:
    stored: dict[int, tuple[bytes, ...]] = {}
    key = run_id.encode()
    async for records in scan.to_end():
        for record in records:
            if record.key == key and record.value is not None:
                add(stored, _seq_of(record.headers), record.value)
    return stored


def add(stored: dict[int, tuple[bytes, ...]], seq: int | None, value: bytes) -> None:
    """Add an event of the topic, unless it is a repeat or none of ours."""
    if seq is None or value in stored.get(seq, ()):
        return
    if seq == 1:  # a second run, whose id an earlier one had
        stored.clear()
    stored[seq] = (*stored.get(seq, ()), value)


def _seq_of(headers: tuple[tuple[str, bytes], ...]) -> int | None:
    """Return the event's number by its id, which can be read when the event cannot."""
    number = (header(headers, "ce_id") or "").rpartition("/")[2]
    return int(number) if number.isascii() and number.isdigit() else None


def _made_ms(run_id: str) -> int | None:
    """Return a time before the run began, if its id tells when it was made (RFC 9562 §5.7)."""
    try:
        made = UUID(run_id)
    except ValueError:
        return None
    return max(0, (made.int >> 80) - _SKEW_MS) if made.version == _UUID_7 else None
