"""History as a process, on a real Kafka and a real Valkey."""

import asyncio
import base64
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import orjson
import pytest
import pytest_asyncio
from aiokafka.structs import TopicPartition
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.shared.contracts.messages import DEAD_LETTERS, QueuedStep, RunEnded, RunStarted, StepChanged, StepsQueued
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import DEAD_LETTERS as DEAD_LETTERS_TOPIC
from anabranch.shared.contracts.topics import RUN_EVENTS
from anabranch.shared.record.database import open_database
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.record.schema import upgrade
from anabranch.shared.record.tables import METADATA, RUNS
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.snapshots import SEQ, document
from tests.support.databases import a_database, a_postgres, execute, postgres_tools
from tests.support.one_service import OneService, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
AT = "2026-01-31T12:00:00.000000Z"
PREFIXES = count()


def events_of(run_id: str, steps: int = 2) -> list[Any]:
    """A whole run: started, its steps queued and succeeded, ended."""
    names = [f"s{number}" for number in range(steps)]
    base = {"run_id": run_id, "at": AT}
    events: list[Any] = [
        RunStarted(
            **base, seq=1, pipeline="p", tenant="default", inputs={"n": 1}, steps=dict.fromkeys(names, "simulate")
        )
    ]
    queued = tuple(QueuedStep(step=name, uses="simulate", attempt=1) for name in names)
    events.append(StepsQueued(**base, seq=2, queued=queued))
    for name in names:
        changed = StepChanged(
            **base,
            type="StepSucceeded",
            seq=len(events) + 1,
            step=name,
            uses="simulate",
            status="succeeded",
            attempt=1,
            output={"of": name},
        )
        events.append(changed)
    ended = RunEnded(**base, type="RunSucceeded", seq=len(events) + 1, status="succeeded", started_at=AT, outputs={})
    return [*events, ended]


class Bench:
    """Writes run events and reads what becomes of them."""

    def __init__(self, settings: Settings, outbox: Outbox, redis: Redis, folder: Path) -> None:
        self.settings = settings
        self.keys = RedisKeys(settings.topic_prefix)
        self.redis = redis
        self._outbox = outbox
        self._folder = folder

    def history(self, **env: object) -> OneService:
        return OneService(
            "history",
            self._folder / f"{self.settings.topic_prefix}.log",
            KAFKA_BOOTSTRAP_SERVERS=self.settings.kafka_bootstrap_servers,
            REDIS_URL=self.settings.redis_url,
            ANABRANCH_TOPIC_PREFIX=self.settings.topic_prefix,
            ANABRANCH_RUN_PARTITIONS=self.settings.run_partitions,
            **env,
        )

    async def create_topics(self) -> None:
        topics = self.settings.topics
        await ensure_topics(self.settings, [(RUN_EVENTS, topics.run_events), (DEAD_LETTERS_TOPIC, topics.dead_letters)])

    async def write(self, *events: Any) -> None:
        for event in events:
            value = event if isinstance(event, bytes) else event.model_dump_json(exclude_none=True).encode()
            key = b"poison" if isinstance(event, bytes) else event.run_id.encode()
            partition = partition_of(key, self.settings.run_partitions)
            self._outbox.append(self.settings.topics.run_events, partition, key, value, (("ce_id", b"x"),))
        await self._outbox.acknowledged()

    async def run(self, run_id: str) -> Any:
        fields = await self.redis.hgetall(self.keys.run(run_id))
        return orjson.loads(document(run_id, fields)) if fields else None

    async def ended(self, run_id: str) -> Any:
        async def look() -> Any:
            run = await self.run(run_id)
            return run if run and run["status"] == "succeeded" else None

        return await eventually(look)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka"), free_port()) as broker:
        yield broker


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalRedis]:
    async with LocalRedis(tmp_path_factory.mktemp("redis"), free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with a_postgres() as url:
        yield url


@pytest_asyncio.fixture(loop_scope="module")
async def bench(kafka: LocalKafka, valkey: LocalRedis, tmp_path: Path) -> AsyncIterator[Bench]:
    settings = Settings(
        kafka_bootstrap_servers=kafka.bootstrap,
        redis_url=valkey.url,
        topic_prefix=f"history{next(PREFIXES)}",
        run_partitions=3,
    )
    redis, outbox = Redis.from_url(valkey.url, retry=Retry(ConstantBackoff(0.1), 20)), Outbox(settings)
    await outbox.start()
    yield Bench(settings, outbox, redis, tmp_path)
    await outbox.stop()
    await redis.aclose()


async def test_run_events_become_a_document_that_readers_are_told_of(bench: Bench) -> None:
    """And the snapshot goes when its time is up."""
    await bench.create_topics()
    async with bench.history(ANABRANCH_SNAPSHOT_TTL_S=777), bench.redis.pubsub() as channel:
        await channel.subscribe(bench.keys.channel("r1"))
        await bench.write(*events_of("r1"))
        run = await bench.ended("r1")
        assert (run["pipeline"], run["inputs"], run["finished_at"]) == ("p", {"n": 1}, AT)
        assert [(step, each["output"]) for step, each in run["steps"].items()] == [
            ("s0", {"of": "s0"}), ("s1", {"of": "s1"}),
        ]  # fmt: skip

        async def last_words() -> Any:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=0.1)
            words = message["data"].split() if message else []
            return words if len(words) == 3 else None

        size = await bench.redis.memory_usage(bench.keys.run("r1"), samples=0)
        assert await eventually(last_words) == [b"5", b"succeeded", str(size).encode()]
        assert 0 < await bench.redis.ttl(bench.keys.run("r1")) <= 777


async def test_history_waits_for_a_topic_that_comes_later(bench: Bench) -> None:
    """It is not ready before, and needs no restart."""
    history = bench.history()
    history._waits_for_ready = False
    async with history:
        await eventually(lambda: _not_ready_because(history, "waits for topic"))
        await bench.create_topics()
        await history.until_ready()
        await bench.write(*events_of("r1"))
        assert await bench.ended("r1")


async def test_history_waits_for_a_database_that_does_not_let_it_in(bench: Bench, postgres: str) -> None:
    """Redis is kept all the same; the record catches up without a restart."""
    name = f"late_{uuid4().hex}"
    url = postgres.replace("/postgres?", f"/{name}?")
    await bench.create_topics()
    history = bench.history(DATABASE_URL=url)
    history._waits_for_ready = False
    async with history:
        await eventually(lambda: _not_ready_because(history, "does not exist"), words=history.words)
        await bench.write(*events_of("r1"))
        assert await bench.ended("r1")
        await execute(postgres, f"CREATE DATABASE {name}")
        await _with_database(url, upgrade)
        await history.until_ready()
        await eventually(lambda: _with_database(url, partial(_has, run_id="r1", seq=5)), words=history.words)
    await execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


async def test_poison_is_dead_lettered_and_nothing_stops(bench: Bench) -> None:
    """Byte for byte, with its place."""
    poison = [b"", b"\xff", b'{"type":"RunStarted"}']
    await bench.create_topics()
    async with bench.history() as history:
        await bench.write(*poison, *events_of("r1"))
        assert await bench.ended("r1")
        assert await history.metric('anabranch_history_events_total{outcome="dead_lettered"}') == 3
    consumer = new_consumer(bench.settings)
    await consumer.start()
    place = TopicPartition(bench.settings.topics.dead_letters, partition_of(b"poison", 3))
    consumer.assign([place])
    await consumer.seek_to_beginning(place)
    letters = [DEAD_LETTERS.validate_json(record.value) for record in (await consumer.getmany(timeout_ms=5000))[place]]
    await consumer.stop()
    assert [base64.b64decode(letter.value_base64 or "") for letter in letters] == poison
    assert [letter.offset for letter in letters] == [0, 1, 2]


async def test_a_run_whose_key_is_taken_is_dead_lettered_and_those_beside_it_are_projected(bench: Bench) -> None:
    """One of them with more steps than Lua's stack holds; they are written together."""
    await bench.create_topics()
    await bench.redis.set(bench.keys.run("taken"), b"something else")
    await bench.write(*events_of("first"), *events_of("taken"), *events_of("wide", steps=5000))
    async with bench.history() as history:
        assert await bench.ended("first")
        assert len((await bench.ended("wide"))["steps"]) == 5000
        dead = 'anabranch_history_events_total{outcome="dead_lettered"}'
        await eventually(lambda: _at_least(history, dead, 5))
        assert await history.metric("anabranch_history_flushes_refused_total") == 0
        assert await bench.redis.get(bench.keys.run("taken")) == b"something else"


async def test_a_killed_history_projects_again_and_changes_nothing(bench: Bench) -> None:
    """Offsets not yet committed are read again by the next one."""
    await bench.create_topics()
    async with bench.history(ANABRANCH_HISTORY_COMMIT_S=3600) as history:
        await bench.write(*events_of("r1"))
        before = await bench.ended("r1")
        await history.kill()
        await bench.write(*events_of("r2"))
        await history.start()
        await bench.ended("r2")
        repeated = 'anabranch_history_events_total{outcome="repeated"}'
        await eventually(lambda: _at_least(history, repeated, 5))
        assert await bench.run("r1") == before
        assert await history.metric("anabranch_history_missing_events_total") == 0


async def test_nothing_is_lost_while_redis_is_away(bench: Bench, valkey: LocalRedis) -> None:
    """Run events wait in Kafka; the service neither spins nor ends."""
    await bench.create_topics()
    async with bench.history() as history:
        await bench.write(*events_of("before"))
        await bench.ended("before")
        await valkey.kill()
        await bench.write(*events_of("during"))
        await eventually(lambda: _at_least(history, "anabranch_history_paused", 1))
        assert await history.metric("anabranch_history_flushes_refused_total") < 20
        await valkey.start()
        await bench.write(*events_of("after"))
        assert await bench.ended("during")
        assert await bench.ended("after")
        assert await history.metric("anabranch_history_paused") == 0


async def test_two_histories_share_the_work_and_a_gap_is_counted(bench: Bench) -> None:
    """A run whose second event is absent is still shown."""
    await bench.create_topics()
    async with bench.history() as one, bench.history() as other:
        whole = events_of("gap")
        await bench.write(whole[0], *whole[2:], *(event for n in range(20) for event in events_of(f"r{n}")))
        await bench.ended("gap")
        for n in range(20):
            await bench.ended(f"r{n}")
        missing = [await each.metric("anabranch_history_missing_events_total") for each in (one, other)]
        assert sum(missing) == 1
        assert await bench.redis.hget(bench.keys.run("gap"), SEQ) == b"5"


async def test_redis_emptied_under_a_run_holds_nothing_of_it_and_the_record_all(bench: Bench, tmp_path: Path) -> None:
    """A hash that begins in the middle would be a run with holes; who follows runs is told by the record."""
    url = f"sqlite:///{tmp_path}/record.db"
    database = open_database(url, name="test")
    await upgrade(database)
    await bench.create_topics()
    events, channel = events_of("r"), bench.redis.pubsub()
    await channel.subscribe(bench.keys.record())
    async with bench.history(DATABASE_URL=url) as history:
        await bench.write(*events[:2])
        await eventually(lambda: bench.run("r"))
        await bench.redis.flushall()
        await bench.write(*events[2:])
        async for message in channel.listen():
            if message["type"] == "message" and message["data"].endswith(b" 5 succeeded"):
                break
        await eventually(lambda: _at_least(history, 'anabranch_history_events_total{outcome="not_joined"}', 3))
        assert await bench.run("r") is None
        fields = await RecordReader(database).fields("r", "default")
        assert fields is not None
        shown = orjson.loads(document("r", fields))
        assert (shown["status"], shown["steps"]["s1"]["output"]) == ("succeeded", {"of": "s1"})
    await channel.aclose()
    await database.dispose()


BACKUP_COMMANDS = re.findall(
    r"^```sh\n(.*?)^```",
    (ROOT / "docs" / "record.md").read_text().partition("## Backup and restore")[2],
    flags=re.MULTILINE | re.DOTALL,
)
"""Of the guide, in its order: backup and backup, restore and restore; of SQLite and of PostgreSQL each."""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_record_that_was_lost_is_restored_as_the_guide_says_and_catches_up(
    bench: Bench, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Backed up while runs go on; after more of them it is dropped and restored, and every row is as it was.

    One partition has its first event after the backup, which says nothing of it then.
    """
    backs_up, restores = BACKUP_COMMANDS[kind == "postgresql" :: 2]
    partitions = bench.settings.run_partitions
    runs = [events_of(f"r{number}", steps=5) for number in range(30)]
    late = [events for events in runs if partition_of(events[0].run_id.encode(), partitions) == 0]
    *early, half_done = [events for events in runs if events not in late]
    async with AsyncExitStack() as open_:
        url = f"sqlite:///{tmp_path}/record.db"
        if kind == "postgresql":
            url = await open_.enter_async_context(a_database(request.getfixturevalue("postgres")))
        await _with_database(url, upgrade)
        await bench.create_topics()
        async with bench.history(DATABASE_URL=url, ANABRANCH_RECORD_KEEP_DAYS=0) as history:
            await bench.write(*(event for events in early for event in events), *half_done[:4])
            await eventually(lambda: _with_database(url, partial(_has, run_id=half_done[0].run_id, seq=4)))
            await _carry_out(backs_up, tmp_path, url)
            await bench.write(*half_done[4:], *(event for events in late for event in events))
            ends = await _ends(bench)
            await eventually(lambda: _with_database(url, partial(_is_at, ends=ends)))
            rows = await _with_database(url, _rows)
            assert len(rows["events"]) == 30 * 8
            await history.stop()
            await _carry_out(restores, tmp_path, url)
            assert 0 < len((await _with_database(url, _rows))["events"]) < len(rows["events"])
            await history.start()
            await eventually(lambda: _with_database(url, partial(_is_at, ends=ends)), words=history.words)
            assert await _with_database(url, _rows) == rows


async def _carry_out(commands: str, folder: Path, url: str) -> None:
    """Run commands of the guide, with PostgreSQL's tools from its wheel and Python in place of SQLite's."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    sqlite3 = tools / "sqlite3"
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute(sys.argv[2])"
    sqlite3.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{program}' \"$@\"\n")
    sqlite3.chmod(0o755)
    environment = os.environ | {"DATABASE_URL": url, "PATH": f"{tools}:{postgres_tools()}:{os.environ['PATH']}"}
    shell = await asyncio.create_subprocess_exec(
        "sh", "-eu", "-c", commands, cwd=folder, env=environment, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await asyncio.wait_for(shell.communicate(), 60)
    assert shell.returncode == 0, said.decode()


async def _with_database(url: str, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    database = open_database(url, name="test", connections=1)
    try:
        return await work(database)
    finally:
        await database.dispose()


async def _rows(database: AsyncEngine) -> dict[str, list[Any]]:
    """Return every row of every table."""
    async with database.connect() as connection:
        return {
            name: [tuple(row) for row in await connection.execute(select(table).order_by(*table.primary_key.columns))]
            for name, table in METADATA.tables.items()
        }


async def _has(database: AsyncEngine, run_id: str, seq: int) -> bool:
    """Whether the record has a run up to an event."""
    async with database.connect() as connection:
        return await connection.scalar(select(RUNS.c.seq).where(RUNS.c.run_id == run_id)) == seq


async def _is_at(database: AsyncEngine, ends: dict[int, int]) -> bool:
    """Whether the record is where the run events end."""
    progress = await RecordReader(database).progress()
    return {partition: one.next_offset for partition, one in progress.items()} == ends


async def _ends(bench: Bench) -> dict[int, int]:
    topic = bench.settings.topics.run_events
    consumer = new_consumer(bench.settings)
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, n) for n in range(bench.settings.run_partitions)])
    finally:
        await consumer.stop()
    assert all(ends.values())
    return {place.partition: end for place, end in ends.items()}


async def _at_least(history: OneService, metric: str, value: float) -> bool:
    return await history.metric(metric) >= value


async def _not_ready_because(history: OneService, why: str) -> bool:
    try:
        async with history.http.get("/readyz") as response:
            return response.status == 503 and why in await response.text()
    except OSError:
        await asyncio.sleep(0)
        return False
