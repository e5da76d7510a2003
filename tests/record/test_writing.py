"""The record holds every event once, and what follows from them, however they arrive."""

import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.messages import (
    QueuedStep,
    RunEnded,
    RunEventMessage,
    RunStarted,
    StepChanged,
    StepsQueued,
)
from anabranch.shared.contracts.times import milliseconds, rfc3339
from anabranch.shared.record.database import open_database
from anabranch.shared.record.errors import RecordUnavailable, RowsRefused
from anabranch.shared.record.rows import Place, Rows
from anabranch.shared.record.schema import upgrade
from anabranch.shared.record.tables import METADATA
from anabranch.shared.record.writing import RecordWriter, write
from tests.support.databases import a_database, execute

START_MS = 1_769_860_800_000
ODD = "a\x00b'%_\\\U0001f600"


def started(run_id: str, at: int, **values: Any) -> RunStarted:
    given = {"pipeline": "p", "tenant": "acme", "inputs": {"n": 1, "text": ODD, "deep": {"a": 1}}, "labels": {"a": ODD}}
    return RunStarted(
        run_id=run_id, seq=1, at=rfc3339(at), body_hash="h", steps={"a": "http", "b": "sql"}, **(given | values)
    )


def changed(run_id: str, seq: int, at: int, type_: Any, status: str, attempt: int = 1, **values: Any) -> StepChanged:
    return StepChanged(
        type=type_, run_id=run_id, seq=seq, at=rfc3339(at), step="a", uses="http", status=status, attempt=attempt,
        queued_at=rfc3339(START_MS), started_at=rfc3339(START_MS + 1), **values,
    )  # fmt: skip


def life(run_id: str = "r", at: int = START_MS) -> list[RunEventMessage]:
    """Return a run whose first attempt fails, and whose second one was lost before the third succeeds."""
    error = StepError(type="HttpError", message="503" + ODD)
    return [
        started(run_id, at),
        StepsQueued(run_id=run_id, seq=2, at=rfc3339(at), queued=(QueuedStep("a", "http", 1),)),
        changed(run_id, 3, at + 2, "StepStarted", "running"),
        changed(run_id, 4, at + 3, "StepRetrying", "waiting", error=error, waiting_on="attempt 2"),
        StepsQueued(run_id=run_id, seq=5, at=rfc3339(at + 4), queued=(QueuedStep("a", "http", 2),)),
        StepsQueued(run_id=run_id, seq=6, at=rfc3339(at + 5), queued=(QueuedStep("a", "http", 3),)),
        changed(run_id, 7, at + 6, "StepSucceeded", "succeeded", 3, finished_at=rfc3339(at + 6), output={"x": ODD}),
        RunEnded(
            type="RunFailed", run_id=run_id, seq=8, at=rfc3339(at + 7), status="failed", started_at=rfc3339(at),
            error=StepError(type="Odd" + ODD, message=ODD * 1000),
        ),
    ]  # fmt: skip


async def record(database: AsyncEngine, *batches: Sequence[tuple[int, RunEventMessage]]) -> list[Rows]:
    """Write batches of events, each with its offset."""
    written = []
    for batch in batches:
        async with RecordWriter(database).transaction() as session:
            known = await session.known(sorted({event.run_id for _, event in batch}))
            rows = Rows(known)
            for offset, event in batch:
                place = Place(0, offset, START_MS + offset, event.model_dump_json().encode())
                rows.passed(place)
                rows.add(event, place)
            await write(session, rows)
        written.append(rows)
    return written


async def everything(database: AsyncEngine) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables."""
    async with database.connect() as connection:
        return {
            table.name: sorted(map(tuple, (await connection.execute(select(table))).all()), key=repr)
            for table in METADATA.sorted_tables
        }


def numbered(events: Sequence[RunEventMessage], first: int = 0) -> list[tuple[int, RunEventMessage]]:
    return list(enumerate(events, start=first))


async def test_every_table_has_what_the_events_say(database: AsyncEngine) -> None:
    """A run, what it is found by, its step, its three attempts, its events, its revision, and how far that is."""
    events = life()
    await record(database, numbered(events))
    found = await everything(database)
    assert found["progress"] == [(0, 8, START_MS + 7)]
    assert [row[1:3] for row in found["events"]] == [(event.seq, event.type) for event in events]
    assert [row[6] for row in found["events"]] == [event.model_dump_json().encode() for event in events]
    assert found["revisions"] == [("acme", "p", 0, START_MS)]
    odd = ODD.replace("\0", "\ufffd")
    assert [row[1:3] for row in found["run_values"]] == [("input:n", "1"), ("input:text", odd), ("label:a", odd)]
    statuses = [(row[2], row[4], row[7]) for row in found["attempts"]]
    assert statuses == [(1, "failed", START_MS + 3), (2, "queued", None), (3, "succeeded", START_MS + 6)]
    (run,) = found["runs"]
    assert run[:9] == ("r", "acme", "p", None, "failed", START_MS, START_MS, START_MS + 7, 8)
    (step,) = found["steps"]
    assert step[:6] == ("r", "a", 7, "http", "succeeded", 3)


async def test_a_revision_is_first_used_by_the_earliest_run_wherever_it_stands(database: AsyncEngine) -> None:
    """Partitions are read in any order: the earliest start may come last, in the same batch or in a later one."""
    starts = numbered([started(name, START_MS + at) for name, at in [("b", 5), ("a", 9), ("c", 3), ("d", 7)]])
    await record(database, starts[:2], starts[2:])
    assert (await everything(database))["revisions"] == [("acme", "p", 0, START_MS + 3)]
    await _empty(database)
    await record(database, starts)
    assert (await everything(database))["revisions"] == [("acme", "p", 0, START_MS + 3)]


async def test_replaying_all_of_it_changes_nothing(database: AsyncEngine) -> None:
    """In other batches as well."""
    events = numbered(life("r1") + life("r2"))
    await record(database, events)
    before = await everything(database)
    (again,) = await record(database, events)
    assert (again.recorded, again.repeated) == (0, 16)
    await record(database, *([one] for one in events))
    assert await everything(database) == before


async def test_any_cut_into_batches_makes_the_same_rows(database: AsyncEngine) -> None:
    """Also with what a crash repeats."""
    events = numbered(life("r1") + life("r2") + life("r3", START_MS + 1000))
    await record(database, events)
    whole = await everything(database)
    for seed in range(5):
        await _empty(database)
        rng = random.Random(seed)
        at, batches = 0, []
        while at < len(events):
            size = rng.randint(1, 7)
            batches.append(events[max(0, at - rng.randint(0, 3)) : at + size])
            at += size
        await record(database, *batches)
        assert await everything(database) == whole


async def test_a_key_used_again_begins_another_run_in_the_place_of_the_first(database: AsyncEngine) -> None:
    """Its id is the same; and a replay of both leaves the second."""
    first, second = life(at=START_MS), life(at=START_MS + 100_000)[:3]
    events = numbered(first + second)
    await record(database, events[:8], events[8:])
    found = await everything(database)
    assert [row[3] for row in found["events"]] == [milliseconds(event.at) for event in second]
    assert [(row[4], row[5], row[8]) for row in found["runs"]] == [("running", START_MS + 100_000, 3)]
    await record(database, events)
    await record(database, *([one] for one in events))
    assert await everything(database) == found


async def test_a_run_whose_start_comes_later_is_nobodys_until_then(database: AsyncEngine) -> None:
    """As when Kafka no longer has its start; a replay that has it fills it in."""
    events = numbered(life())
    await record(database, events[4:])
    (run,) = (await everything(database))["runs"]
    assert (run[1], run[4], run[8]) == (None, "failed", 8)


async def test_what_is_refused_for_ever_is_told_from_what_may_be_tried_again(database: AsyncEngine) -> None:
    """A row that breaks a rule of the table is refused, and nothing of its batch is written."""
    with pytest.raises(RowsRefused):
        async with RecordWriter(database).transaction() as session:
            await session.write("progress", [(1, 1, 1)])
            await session.write("progress", [(2, None, 1)])
    assert (await everything(database))["progress"] == []


async def test_a_pool_without_a_free_connection_is_one_that_may_have_one_later(database_url: str) -> None:
    """History waits then; whatever else it raised would end it."""
    engine = open_database(database_url, name="test", connections=1)
    engine.pool._timeout = 0.01  # type: ignore[attr-defined]
    async with engine.connect():
        with pytest.raises(RecordUnavailable):
            async with RecordWriter(engine).transaction():
                pass
    await engine.dispose()


async def test_a_connection_that_the_server_closed_while_nobody_used_it_is_replaced(postgres: str) -> None:
    async with a_database(postgres) as url, a_record_with_one_connection(url) as (database, backend):
        await execute(postgres, f"SELECT pg_terminate_backend({backend}, 5000)")
        await record(database, numbered(life("a")))
        assert (await everything(database))["runs"]


async def test_a_connection_that_was_lost_in_a_transaction_is_replaced(postgres: str) -> None:
    async with a_database(postgres) as url, a_record_with_one_connection(url) as (database, backend):
        with pytest.raises(RecordUnavailable):
            async with RecordWriter(database).transaction() as session:
                await execute(postgres, f"SELECT pg_terminate_backend({backend}, 5000)")
                await session.known(["a"])
        await record(database, numbered(life("a")))
        assert (await everything(database))["runs"]


async def test_a_connection_whose_server_hangs_is_replaced(postgres: str) -> None:
    async with a_database(postgres) as url, a_record_with_one_connection(url) as (database, backend):
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(RecordUnavailable, match="Timeout"):
                async with RecordWriter(database).transaction() as session:
                    await session.known(["a"])
            await record(database, numbered(life("a")))
            assert (await everything(database))["runs"]
        finally:
            os.kill(backend, signal.SIGCONT)


@asynccontextmanager
async def a_record_with_one_connection(url: str) -> AsyncIterator[tuple[AsyncEngine, int]]:
    """Yield an engine on an empty record, and the process of the server that answers its only connection."""
    database = open_database(url, name="test", connections=1, timeout_s=2.0)
    await upgrade(database)
    async with database.connect() as connection:
        backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    try:
        yield database, backend
    finally:
        await database.dispose()


@given(st.integers(0, 4_000_000_000_000))
@settings(max_examples=200, deadline=None)
def test_milliseconds_is_the_way_back_of_rfc3339(at_ms: int) -> None:
    """For every time that an event may have."""
    assert milliseconds(rfc3339(at_ms)) == at_ms


async def _empty(database: AsyncEngine) -> None:
    async with database.begin() as connection:
        for table in METADATA.sorted_tables:
            await connection.execute(table.delete())
