"""Numbers are the same wherever a run is read from, and its events stay as they were written, byte for byte."""

import random
import struct
from pathlib import Path

import orjson
import pyarrow.parquet as pq
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.export import Wanted, write
from anabranch.client.stored_events import from_database
from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.messages import RUN_EVENTS, RunEventMessage
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.record.rows import Place, Rows
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.writing import RecordWriter
from anabranch.shared.record.writing import write as write_rows
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.snapshots import document
from tests.unit.history.fakes import run_ended, run_started, step_succeeded

KEYS = RedisKeys("test")
CHANCE = random.Random(4)
FLOATS = [struct.unpack("<d", CHANCE.randbytes(8))[0] for _ in range(2_000)]
EXACT = [
    *("0", "-0.0", "0.1", "0.30000000000000004", "5e-324", "1.7976931348623157e308", "9007199254740993"),
    *("-9223372036854775808", "9223372036854775807", "18446744073709551615"),
    *(repr(each) for each in FLOATS if each - each == 0),
]
"""As they may stand in an event; what is finite of them is read back as the same number."""
BEYOND = ["18446744073709551616", "-9223372036854775809", str(2**70), "1" * 300]
"""Integers beyond 64 bits: numbers of JSON, and read as the nearest float."""
NUMBERS = ("[" + ",".join([*EXACT, *BEYOND]) + "]").encode()


def with_numbers(event: RunEventMessage, place: bytes) -> bytes:
    """Return the event as another writer of JSON might have written it, with the numbers in one place."""
    written = orjson.dumps(event.model_dump(exclude_none=True))
    assert written.count(place) == 1
    return written.replace(place, place.partition(b":")[0] + b":" + NUMBERS)


WRITTEN = [
    with_numbers(run_started(), b'"n":1'),
    with_numbers(step_succeeded(2, "a", output={"here": 1}), b'"here":1'),
    with_numbers(run_ended(3), b'"o":2'),
]


async def test_numbers_are_the_same_from_everywhere(
    database: AsyncEngine, database_url: str, redis: Redis, tmp_path: Path
) -> None:
    """In the document from SQL and from Redis, and in each column of an export; events are as they were written."""
    events = [decode(RUN_EVENTS, value) for value in WRITTEN]
    assert not any(isinstance(event, Undecodable) for event in events)
    await RedisSnapshots(redis, KEYS, active_ttl_s=60, ended_ttl_s=60).apply(project(events))  # type: ignore[arg-type]
    async with RecordWriter(database).transaction() as session:
        rows = Rows({})
        for offset, (event, value) in enumerate(zip(events, WRITTEN, strict=True)):
            rows.add(event, Place(0, offset, 0, value))  # type: ignore[arg-type]
        await write_rows(session, rows)

    stored = await RecordReader(database).fields("r", "default")
    assert stored is not None
    shown = document("r", stored)
    assert document("r", await redis.hgetall(KEYS.run("r"))) == shown
    expected = [*(orjson.loads(each) for each in EXACT), *(float(each) for each in BEYOND)]
    said = orjson.loads(shown)
    for found in (said["inputs"]["n"], said["outputs"]["o"], said["steps"]["a"]["output"]["here"]):
        assert list(map(repr, found)) == list(map(repr, expected))

    held = await from_database(RecordSettings(database_url=database_url), "r")
    assert [held[seq] for seq in (1, 2, 3)] == [(value,) for value in WRITTEN]
    await write(database, tmp_path, Wanted())
    exported = {name: pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("runs", "steps", "events")}
    assert [row["event"].encode() for row in exported["events"]] == WRITTEN
    numbers = orjson.dumps(expected)
    assert exported["runs"][0]["inputs"].encode() == b'{"n":%b}' % numbers
    assert exported["runs"][0]["outputs"].encode() == b'{"o":%b}' % numbers
    assert exported["steps"][0]["output"].encode() == b'{"here":%b}' % numbers
    assert shown.count(numbers) == 3
