"""The gateway as a process, on a real Kafka and a real Valkey; the test stands in for orchestrator and history."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.structs import TopicPartition
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from anabranch.client import keys as operating
from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.services.gateway.waiting import LOOK_S
from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.ids import run_id_for_key
from anabranch.shared.contracts.messages import INBOX as INBOX_MESSAGES
from anabranch.shared.contracts.messages import RunEnded, RunEventMessage, RunStarted, StepTypeAnnounced
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import INBOX, STEPS
from anabranch.shared.record.database import open_database
from anabranch.shared.record.schema import upgrade
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.settings import Settings
from tests.support import record_rows
from tests.support.one_service import OneService, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = "2026-01-31T12:00:00.000000Z"
PREFIXES = count()
PIPELINE = {"name": "p", "steps": {"a": {"uses": "transform", "with": {"value": 1}}}}


class Bench:
    """Reads the inbox and writes what others would write."""

    def __init__(self, settings: Settings, outbox: Outbox, redis: Redis, folder: Path) -> None:
        self.settings = settings
        self.redis = redis
        self._outbox = outbox
        self._folder = folder
        self._snapshots = RedisSnapshots(redis, RedisKeys(settings.topic_prefix), active_ttl_s=60, ended_ttl_s=60)

    def gateway(self, **env: object) -> OneService:
        return OneService(
            "gateway",
            self._folder / f"{self.settings.topic_prefix}.log",
            KAFKA_BOOTSTRAP_SERVERS=self.settings.kafka_bootstrap_servers,
            REDIS_URL=self.settings.redis_url,
            ANABRANCH_TOPIC_PREFIX=self.settings.topic_prefix,
            ANABRANCH_RUN_PARTITIONS=self.settings.run_partitions,
            **env,
        )

    async def create_inbox(self) -> None:
        await ensure_topics(self.settings, [(INBOX, self.settings.topics.inbox)])

    async def announce(self, name: str, *, with_topic: bool = True) -> None:
        if with_topic:
            await ensure_topics(self.settings, [(STEPS, self.settings.topics.steps(name))])
        message = StepTypeAnnounced(name=name, version="1", input_schema={"type": "object"}, output_schema={})
        record = encode(message, message_id=name, source="test", at_ms=0, trace_id="0" * 32)
        self._outbox.append(self.settings.topics.step_types, 0, name.encode(), record.value, record.headers)
        await self._outbox.acknowledged()

    async def forge(self, key: bytes, value: bytes) -> None:
        self._outbox.append(self.settings.topics.step_types, 0, key, value, ())
        await self._outbox.acknowledged()

    async def end(self, run_id: str) -> None:
        """Project a run that starts and ends."""
        await self.project(self.events(run_id))

    async def project(self, events: Sequence[RunEventMessage]) -> None:
        await self._snapshots.apply(project(events))

    def events(self, run_id: str) -> list[RunEventMessage]:
        started = RunStarted(run_id=run_id, seq=1, at=AT, pipeline="p", tenant="default", inputs={}, steps={"a": "x"})
        ended = RunEnded(
            type="RunSucceeded", run_id=run_id, seq=2, at=AT, status="succeeded", started_at=AT, outputs={"o": 1}
        )
        return [started, ended]

    async def submitted(self) -> list[Any]:
        """Return every message of the inbox, each from the partition that it has to be in."""
        consumer = new_consumer(self.settings)
        await consumer.start()
        partitions = [TopicPartition(self.settings.topics.inbox, n) for n in range(self.settings.run_partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[Any] = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    assert record.partition == partition_of(record.key, self.settings.run_partitions)
                    found.append(INBOX_MESSAGES.validate_json(record.value))
        await consumer.stop()
        return found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka"), free_port()) as broker:
        yield broker


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalRedis]:
    async with LocalRedis(tmp_path_factory.mktemp("redis"), free_port()) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def bench(kafka: LocalKafka, valkey: LocalRedis, tmp_path: Path) -> AsyncIterator[Bench]:
    settings = Settings(
        kafka_bootstrap_servers=kafka.bootstrap,
        redis_url=valkey.url,
        topic_prefix=f"gateway{next(PREFIXES)}",
        run_partitions=3,
    )
    redis, outbox = Redis.from_url(valkey.url, retry=Retry(ConstantBackoff(0.1), 20)), Outbox(settings)
    await outbox.start()
    yield Bench(settings, outbox, redis, tmp_path)
    await outbox.stop()
    await redis.aclose()


async def submit(gateway: OneService, definition: Any = PIPELINE, *, query: str = "", key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with gateway.http.post("/v1/runs" + query, json={"definition": definition}, headers=headers) as response:
        return response.status, await response.json(content_type=None), response.headers


async def test_an_accepted_run_stands_in_the_inbox_and_is_readable(bench: Bench) -> None:
    """Before anybody else has seen it."""
    await bench.create_inbox()
    async with bench.gateway() as gateway:
        answers = [await submit(gateway) for _ in range(10)]
        assert {status for status, _, _ in answers} == {202}
        ids = {answer["id"] for _, answer, _ in answers}
        assert {message.run_id for message in await bench.submitted()} == ids
        async with gateway.http.get(answers[0][2]["Location"]) as response:
            run = await response.json()
        assert (run["status"], run["steps"]["a"]["status"]) == ("accepted", "pending")
        assert abs(time.time() - _seconds(run["created_at"])) < 60  # broker time


async def test_a_type_may_be_used_once_it_is_announced(bench: Bench) -> None:
    """By a gateway that runs already, and by one that is started later."""
    await bench.create_inbox()
    definition = {"name": "p", "steps": {"a": {"uses": "http", "with": {}}}}
    async with bench.gateway() as gateway:
        status, document, _ = await submit(gateway, definition)
        assert (status, document["errors"][0]["pointer"]) == (422, "/definition/steps/a/uses")
        await bench.announce("http")
        await eventually(lambda: _is_accepted(gateway, definition))
    async with bench.gateway() as later:
        assert (await submit(later, definition))[0] == 202


async def test_a_type_without_a_command_topic_is_refused_until_it_has_one(bench: Bench) -> None:
    """With 503: the topic is its service's to make. Forged announcements are passed over, and stop nobody."""
    await bench.create_inbox()
    definition = {"name": "p", "steps": {"a": {"uses": "ghost", "with": {}}}}
    async with bench.gateway() as gateway:
        await bench.announce("ghost", with_topic=False)
        await bench.forge(b"transform", b'{"type": "StepTypeAnnounced", "name": "transform"}')
        await bench.forge(b"x", b"[" * 5_000_000)
        document = await eventually(lambda: _refused_with(gateway, definition, 503))
        assert "No command topic exists for ghost" in document["detail"]
        assert (await submit(gateway))[0] == 202
        await bench.announce("ghost")
        await eventually(lambda: _is_accepted(gateway, definition))


async def _refused_with(gateway: OneService, definition: Any, wanted: int) -> Any:
    status, document, _ = await submit(gateway, definition)
    return document if status == wanted else None


async def test_a_waiting_request_hears_of_the_end_at_once(bench: Bench) -> None:
    """Through the run's channel, on submit and on read; the slow look is not what answers."""
    await bench.create_inbox()
    async with bench.gateway() as gateway:
        waiting = asyncio.create_task(submit(gateway, query="?wait=60s"))
        [message] = await eventually(bench.submitted)
        began = time.monotonic()
        reading = asyncio.create_task(_read(gateway, f"/v1/runs/{message.run_id}?wait=60s"))
        await eventually(lambda: _is_at(gateway, "anabranch_gateway_waiters", 2))
        await bench.end(message.run_id)
        read = await reading
        assert time.monotonic() - began < LOOK_S  # its first look comes later
        status, run, _ = await waiting
        assert (status, run["status"], run["outputs"]) == (200, "succeeded", {"o": 1})
        assert read == run
        assert await gateway.metric("anabranch_gateway_waiters") == 0


async def test_a_client_that_goes_away_waits_no_longer(bench: Bench) -> None:
    """Its place is free again at the next look."""
    await bench.create_inbox()
    async with bench.gateway() as gateway:
        waiting = asyncio.create_task(submit(gateway, query="?wait=60s"))
        await eventually(lambda: _is_at(gateway, "anabranch_gateway_waiters", 1))
        waiting.cancel()
        await eventually(lambda: _is_at(gateway, "anabranch_gateway_waiters", 0))


async def test_without_redis_runs_are_accepted_and_keys_are_kept(bench: Bench, valkey: LocalRedis) -> None:
    """And when it is back, waiting works again."""
    await bench.create_inbox()
    await valkey.kill()
    async with bench.gateway() as gateway:
        first, second = await submit(gateway, key="k"), await submit(gateway, key="k")
        other = await submit(gateway, PIPELINE | {"name": "other"}, key="k")
        assert (first[0], second[0], other[0]) == (202, 202, 422)
        assert first[1] == second[1] == {"id": run_id_for_key("default", "k"), "status": "accepted"}
        async with gateway.http.get(f"/v1/runs/{first[1]['id']}") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
        await valkey.start()
        waiting = asyncio.create_task(submit(gateway, query="?wait=60s", key="late"))
        run_id = run_id_for_key("default", "late")
        await eventually(lambda: _is_in(bench, run_id))
        await bench.end(run_id)
        assert (await waiting)[:1] == (200,)


async def test_a_dead_broker_is_an_unknown_outcome_and_a_retry_with_the_key_is_the_same_run(
    bench: Bench, kafka: LocalKafka
) -> None:
    """503 names the run; after the broker's return the key finds it."""
    await bench.create_inbox()
    async with bench.gateway(ANABRANCH_APPEND_TIMEOUT_S=0.5) as gateway:
        assert (await submit(gateway))[0] == 202
        await kafka.kill()
        status, document, headers = await submit(gateway, key="k")
        assert (status, document["type"]) == (503, "urn:anabranch:problem:outcome-unknown")
        assert document["id"] == run_id_for_key("default", "k")
        assert headers["Retry-After"]
        await kafka.start()

        async def retried() -> Any:
            status, answer, _ = await submit(gateway, key="k")
            return answer["id"] if status == 202 else None

        assert await eventually(retried) == document["id"]
        runs = {message.run_id for message in await bench.submitted()}
        assert len(runs) == 2


async def test_a_long_inbox_pushes_back(bench: Bench) -> None:
    """Nobody reads it: after some runs the next ones are sent away, with a time to come back."""
    await bench.create_inbox()
    async with bench.gateway(ANABRANCH_MAX_INBOX_LAG=5, ANABRANCH_LAG_CHECK_S=0.05) as gateway:

        async def refused() -> Any:
            status, document, headers = await submit(gateway)
            return (document, headers) if status == 503 else None

        document, headers = await eventually(refused)
        assert "behind" in document["detail"]
        assert int(headers["Retry-After"]) > 0
        assert len(await bench.submitted()) > 5


async def test_a_gateway_without_an_inbox_is_not_ready_until_there_is_one(bench: Bench) -> None:
    """The orchestrator creates it."""
    gateway = bench.gateway()
    gateway._waits_for_ready = False
    async with gateway:
        await eventually(lambda: _refuses(gateway))
        await bench.create_inbox()
        await gateway.until_ready()
        assert (await submit(gateway))[0] == 202


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def test_a_run_that_redis_lost_is_read_from_the_record(bench: Bench, tmp_path: Path) -> None:
    """By whoever waits while Redis is emptied, whom the record tells of the end, and by whoever asks later."""
    await bench.create_inbox()
    url, keys = f"sqlite:///{tmp_path}/record.db", RedisKeys(bench.settings.topic_prefix)
    database = open_database(url, name="test")
    await upgrade(database)
    async with bench.gateway(DATABASE_URL=url) as gateway:
        waiting = asyncio.create_task(submit(gateway, query="?wait=60s"))
        [message] = await eventually(bench.submitted)
        await eventually(lambda: _is_at(gateway, "anabranch_gateway_waiters", 1))
        events = bench.events(message.run_id)
        await bench.project(events[:1])
        await bench.redis.flushall()
        await record_rows.record(database, events)
        await bench.redis.publish(keys.record(), f"{message.run_id} 2 succeeded")
        status, run, _ = await waiting
        assert (status, run["status"], run["outputs"]) == (200, "succeeded", {"o": 1})
        assert await _read(gateway, f"/v1/runs/{message.run_id}") == run
        assert await gateway.metric('anabranch_gateway_run_reads_total{source="redis"}') == 1  # it was put back
        await bench.redis.flushall()
        assert await _read(gateway, f"/v1/runs/{message.run_id}?wait=60s") == run
    await database.dispose()


async def _read(gateway: OneService, path: str) -> Any:
    async with gateway.http.get(path) as response:
        return await response.json()


async def _is_accepted(gateway: OneService, definition: Any) -> bool:
    return (await submit(gateway, definition))[0] == 202


async def _is_at(gateway: OneService, metric: str, value: float) -> bool:
    return await gateway.metric(metric) == value


async def _is_in(bench: Bench, run_id: str) -> bool:
    return run_id in {message.run_id for message in await bench.submitted()}


async def _refuses(gateway: OneService) -> bool:
    try:
        return (await submit(gateway))[0] == 503
    except OSError:
        return False


# ---- API keys --------------------------------------------------------------------------------------------------------


async def test_a_key_works_once_it_is_written_until_it_is_revoked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Kafka, by what `anabranch keys` does, which also shows when the key was last used."""
    await bench.create_inbox()
    text, issued = operating.new_key(tenant="acme", scopes=("read",), name="", days=None, now_ms=0)
    async with bench.gateway(ANABRANCH_AUTH="keys", ANABRANCH_AUTH_FAILURE_LIMIT=0) as gateway:

        async def status() -> int:
            async with gateway.http.get("/v1/step-types", headers={"X-API-Key": text}) as response:
                return response.status

        assert await status() == 401
        await operating.write(bench.settings, issued)
        await eventually(lambda: _is(status(), 200), 60, gateway.words)

        async def was_used() -> bool:
            return issued.id in (await operating.read(bench.settings)).used_at

        await eventually(was_used, 60, gateway.words)
        assert await operating.revoke(bench.settings, issued.id) == 0
        await eventually(lambda: _is(status(), 401), 60, gateway.words)
    async with bench.gateway(ANABRANCH_AUTH="keys") as gateway:
        assert await status() == 401
    monkeypatch.setattr(operating, "MAX_API_KEYS", 1)
    codes = [
        await operating.create(bench.settings, tenant="acme", scopes=("read",), name="", days=None) for _ in range(2)
    ]
    assert codes == [0, 1]
    assert len((await operating.read(bench.settings)).issued) == 2


async def _is(status: Awaitable[int], wanted: int) -> bool:
    return await status == wanted
