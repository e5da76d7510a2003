"""The document of a run is the same, byte for byte, wherever the run was read from."""

from collections.abc import Sequence

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.messages import RunEventMessage, RunStarted
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.snapshots import STATUS, Fields, accepted_fields, document, is_whole, standing_of
from tests.support.record_rows import record
from tests.unit.history.fakes import AT, run_ended, run_started, step_succeeded, steps_queued

KEYS = RedisKeys("test")
ODD = '\u00e9\u2028\U0001f600\\"\x01</script>'

HISTORIES = {
    "begun": [run_started()],
    "going on": [run_started(), steps_queued(2, "a", "b"), step_succeeded(3, "b", output=[1.5, None])],
    "ended": [run_started(), step_succeeded(2, "b"), step_succeeded(3, "a", output={ODD: 2**70}), run_ended(4)],
    "failed": [run_started(steps={ODD: "http"}), run_ended(2, status="failed")],
    "wide": [
        run_started(steps={f"s{n}": "http" for n in range(300)}),
        steps_queued(2, *(f"s{n}" for n in reversed(range(300)))),
    ],
    "of steps that no definition names": [run_started(), steps_queued(2, "z", "y", "a.0")],
}


@pytest.mark.parametrize("events", HISTORIES.values(), ids=HISTORIES)
async def test_a_run_is_the_same_from_sql_redis_and_its_events(
    events: Sequence[RunEventMessage], database: AsyncEngine, redis: Redis
) -> None:
    """Its document, and where it stands."""
    [change] = project(events)
    folded: Fields = change.fields | {b"seq": str(change.last_seq).encode()}
    await RedisSnapshots(redis, KEYS, active_ttl_s=60, ended_ttl_s=60).apply([change])
    await record(database, events)
    hashed = await redis.hgetall(KEYS.run("r"))
    rows = await RecordReader(database).fields("r", "default")
    assert rows is not None
    for fields in (hashed, rows):
        assert is_whole(fields)
        assert document("r", fields) == document("r", folded)
        assert standing_of(fields) == standing_of(folded)
    assert rows == hashed


async def test_a_run_that_was_just_accepted_looks_as_it_will(database: AsyncEngine) -> None:
    """Of one that has begun it lacks only that it has."""
    started = run_started()
    await record(database, [started])
    rows = await RecordReader(database).fields("r", "default")
    assert rows is not None
    begun = document("r", rows | {STATUS: b"accepted"})
    assert document("r", _accepted(started)) == begun.replace(b'"started_at":"%b"' % AT.encode(), b'"started_at":null')


def _accepted(started: RunStarted) -> Fields:
    return accepted_fields(
        pipeline=started.pipeline,
        tenant=started.tenant,
        inputs=started.inputs,
        labels=started.labels,
        steps=started.steps,
        created_at=started.at,
    )
