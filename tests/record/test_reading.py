"""What the record says of a run, and that it says so in time and to nobody else."""

import asyncio

import asyncpg
import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.record.database import open_database
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.reading import Progress, RecordReader
from anabranch.shared.record.schema import upgrade
from anabranch.shared.record.tables import PROGRESS
from anabranch.shared.runtime.snapshots import SEQ, Standing, document
from tests.support.record_rows import record, record_attempts
from tests.unit.history.fakes import AT, run_ended, run_started, step_succeeded, steps_queued

WHOLE_RUN = (run_started(), steps_queued(2, "a"), step_succeeded(3, "a", output={"x": [1]}), run_ended(4))
GUARD_S = 60.0
ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


async def test_a_run_is_read_with_its_steps_its_standing_and_its_status(database: AsyncEngine) -> None:
    """Whole, as far as it is recorded."""
    reader = RecordReader(database)
    await record(database, WHOLE_RUN)
    fields = await reader.fields("r", "default")
    assert fields is not None
    assert fields[SEQ] == b"4"
    assert b'"status":"succeeded","inputs":{"n":1},"outputs":{"o":2}' in document("r", fields)
    standing = await reader.standing("r", "default")
    assert standing is not None
    payload = sum(len(fields[name]) for name in (b"run", b"end", b"step:a"))
    assert standing == Standing("succeeded", 4, AT, payload)
    assert await reader.status("r") == "succeeded"


async def test_a_foreign_run_is_answered_like_an_unknown_one(database: AsyncEngine) -> None:
    """So is a run of which only later events are known, and an id or tenant that no database takes."""
    reader = RecordReader(database)
    await record(database, WHOLE_RUN)
    await record(database, [step_succeeded(3, "a", run_id="headless")])
    for run_id, tenant in (("r", "other"), ("x", "default"), ("headless", "default"), ("r\0", "r"), ("r", "\udcff")):
        assert await reader.standing(run_id, tenant) is None
        assert await reader.fields(run_id, tenant) is None
        assert await reader.attempts(run_id, "a", tenant) is None
    assert await reader.status("x") is None


async def test_attempts_come_in_their_order_with_how_long_they_took(database: AsyncEngine) -> None:
    """One that never ended was lost, unless it is the last: that one still runs."""
    await record(database, WHOLE_RUN[:1])
    await record_attempts(
        database, "r", "a",
        {"status": "failed", "queued_at": 1_000, "started_at": 1_200, "finished_at": 2_000, "error": b'{"type":"E"}'},
        {"status": "running", "queued_at": 3_000, "started_at": 3_001},
        {"status": "running", "queued_at": 9_000, "started_at": 9_004},
    )  # fmt: skip
    attempts = await RecordReader(database).attempts("r", "a", "default")
    assert attempts is not None
    shown = [(each.attempt, each.status, each.queued_ms, each.ran_ms, each.error) for each in attempts]
    assert shown == [
        (1, "failed", 200, 800, b'{"type":"E"}'),
        (2, "lost", 1, None, None),
        (3, "running", 4, None, None),
    ]


async def test_a_step_without_attempts_is_told_from_one_that_is_none(database: AsyncEngine) -> None:
    """A pending step has none yet."""
    await record(database, WHOLE_RUN[:1])
    reader = RecordReader(database)
    assert await reader.attempts("r", "b", "default") == []
    assert await reader.attempts("r", "nosuch", "default") is None


async def test_how_far_the_record_is_can_be_asked(database: AsyncEngine) -> None:
    """By partition."""
    async with database.begin() as connection:
        await connection.execute(insert(PROGRESS), [{"partition": 2, "next_offset": 7, "at": 5}])
    assert await RecordReader(database).progress() == {2: Progress(7, 5)}


async def test_a_database_without_tables_is_unavailable(empty: AsyncEngine) -> None:
    """Whatever is wrong with it: readers know one error."""
    with pytest.raises(RecordUnavailable) as refused:
        await RecordReader(empty).fields("the-run", "the-tenant")
    assert "the-" not in str(refused.value)


async def test_a_read_takes_no_longer_than_it_may(database_url: str) -> None:
    """Whoever finds no connection is told, and the next one is served."""
    engine = open_database(database_url, name="test", connections=1)
    await upgrade(engine)
    await record(engine, WHOLE_RUN)
    async with engine.connect(), asyncio.timeout(GUARD_S):
        with pytest.raises(RecordUnavailable):
            await RecordReader(engine, within_s=0.05).status("r")
    assert await RecordReader(engine).status("r") == "succeeded"
    await engine.dispose()


@ON_POSTGRESQL
async def test_a_read_that_somebody_locks_out_ends_in_time(database: AsyncEngine) -> None:
    """And leaves nothing behind: reading goes on as soon as the lock is gone. SQLite's readers wait for nobody."""
    await record(database, WHOLE_RUN)
    async with database.connect() as locking, asyncio.timeout(GUARD_S):
        await locking.execute(text("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE"))
        for _ in range(8):  # more than there are connections
            with pytest.raises(RecordUnavailable):
                await RecordReader(database, within_s=0.05).status("r")
        await locking.rollback()
        assert await RecordReader(database).status("r") == "succeeded"


@ON_POSTGRESQL
async def test_connections_that_the_server_has_closed_are_replaced(database: AsyncEngine, database_url: str) -> None:
    """A server that is started anew fails no read."""
    await record(database, WHOLE_RUN)
    reader = RecordReader(database)
    await asyncio.gather(*(reader.status("r") for _ in range(4)))
    operator = await asyncpg.connect(database_url)
    await operator.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await operator.close()
    assert await asyncio.gather(*(reader.status("r") for _ in range(4))) == 4 * ["succeeded"]


async def test_a_database_that_is_away_is_unavailable() -> None:
    """There is nobody to connect to."""
    engine = open_database("postgresql://nobody@127.0.0.1:1/none", name="test")
    with pytest.raises(RecordUnavailable):
        await RecordReader(engine).status("r")
    await engine.dispose()
