"""What a gateway answers while Redis is emptied, behind or away, or the record is: a real Redis, both databases."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.deploy.local.ports import free_port
from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.ids import new_run_id, run_id_for_key
from anabranch.shared.contracts.messages import RunEventMessage
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.record.asking import Asking
from anabranch.shared.record.database import open_database
from anabranch.shared.runtime.redis import RedisKeys
from tests.support.record_rows import record
from tests.unit.gateway.fakes import Bench, a_gateway, problem
from tests.unit.history.fakes import run_ended, run_started, step_succeeded

KEYS = RedisKeys("pipelines")
GUARD_S = 60.0
HAS_ENDED = {"status": "succeeded", "outputs": {"o": 2}}


@pytest.fixture
async def gateway(redis: Redis, database: AsyncEngine) -> AsyncIterator[Bench]:
    """Yield a gateway on an empty Redis and an empty record."""
    async with a_gateway(redis, record=database) as bench:  # type: ignore[arg-type]
        yield bench


@pytest.fixture
async def no_redis() -> AsyncIterator[Redis]:
    """Yield a client of a Redis that is away."""
    client = Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
    yield client
    await client.aclose()


@pytest.fixture
async def no_database() -> AsyncIterator[AsyncEngine]:
    """Yield an engine on a database that is away."""
    engine = open_database(f"postgresql://nobody@127.0.0.1:{free_port()}/none", name="test")
    yield engine
    await engine.dispose()


def whole_run(run_id: str) -> list[RunEventMessage]:
    """Return the events of a run from its start to its end."""
    return [run_started(run_id), step_succeeded(2, "a", run_id), run_ended(3, run_id)]


async def projected(redis: Redis, events: Sequence[RunEventMessage]) -> None:
    """Have the events in Redis."""
    await RedisSnapshots(redis, KEYS, active_ttl_s=60, ended_ttl_s=60).apply(project(events))


async def read(gateway: Bench, run_id: str, query: str = "") -> tuple[int, Any]:
    """Return the answer to a read."""
    async with asyncio.timeout(GUARD_S), gateway.client.get(f"/v1/runs/{run_id}{query}") as answer:
        return answer.status, await answer.json(content_type=None)


async def is_ended(gateway: Bench, run_id: str) -> bool:
    """Return whether a read shows the run as it ended."""
    status, run = await read(gateway, run_id)
    return status == 200 and HAS_ENDED.items() <= run.items() and run["steps"]["a"]["status"] == "succeeded"


def reads(gateway: Bench) -> dict[str, float]:
    """Return where runs were found, as counted."""
    sources = ("redis", "sql", "accepted", "none")
    counts = {source: gateway.count("run_reads_total", source=source) for source in sources}
    return {source: count for source, count in counts.items() if count}


@contextmanager
def statements() -> Iterator[list[str]]:
    """Note what the database is asked."""
    asked: list[str] = []
    fetch = Asking._fetch_once

    async def noted(self: Asking, text: Any, values: Any) -> Any:
        asked.append(text.sql)
        return await fetch(self, text, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asking, "_fetch_once", noted)
        yield asked


async def test_an_ended_run_that_redis_lost_is_read_from_the_record_and_put_back(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """The same document; the next one who asks finds it in Redis, which keeps it as long as any that has ended."""
    run_id = new_run_id()
    await projected(redis, whole_run(run_id))
    await record(database, whole_run(run_id))
    before, kept = await read(gateway, run_id), await redis.hgetall(KEYS.run(run_id))
    await redis.flushall()
    assert await read(gateway, run_id) == before
    assert await redis.hgetall(KEYS.run(run_id)) == kept
    assert await redis.ttl(KEYS.run(run_id)) > 3600
    assert await read(gateway, run_id) == before
    assert reads(gateway) == {"redis": 2, "sql": 1}


async def test_a_large_run_is_put_back_whole(gateway: Bench, redis: Redis, database: AsyncEngine) -> None:
    """Its fields are more than one call of Redis takes."""
    run_id = new_run_id()
    steps = {f"s{n}": "http" for n in range(2_500)}
    events = [run_started(run_id, steps=steps), *(step_succeeded(2, step, run_id) for step in steps)]
    events = [each.model_copy(update={"seq": seq}) for seq, each in enumerate(events, start=1)]
    await record(database, [*events, run_ended(len(events) + 1, run_id)])
    assert (await read(gateway, run_id))[1]["steps"]["s2499"]["status"] == "succeeded"
    assert await redis.hlen(KEYS.run(run_id)) == len(steps) + 7
    assert (await read(gateway, run_id))[1]["steps"]["s2499"]["status"] == "succeeded"
    assert reads(gateway) == {"redis": 1, "sql": 1}


async def test_a_live_run_that_redis_lost_is_not_put_back(gateway: Bench, redis: Redis, database: AsyncEngine) -> None:
    """Its next events would not join what stands there: that is history's to say."""
    run_id = new_run_id()
    await record(database, whole_run(run_id)[:2])
    assert (await read(gateway, run_id))[1]["status"] == "running"
    assert not await redis.exists(KEYS.run(run_id))


async def test_what_only_later_events_say_of_a_run_is_no_run(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """Redis was emptied in the middle of it: the record is asked, and what is in Redis stays as it is."""
    run_id = new_run_id()
    await projected(redis, whole_run(run_id)[2:])
    part = await redis.hgetall(KEYS.run(run_id))
    assert (await read(gateway, run_id))[0] == 404
    await record(database, whole_run(run_id))
    assert await is_ended(gateway, run_id)
    assert await redis.hgetall(KEYS.run(run_id)) == part


async def test_redis_that_came_back_with_an_old_snapshot_fools_nobody(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """It shows a run as going on that has ended: however often it is read, and to those who would cancel or wait."""
    run_id = new_run_id()
    await projected(redis, whole_run(run_id)[:1])
    await record(database, whole_run(run_id))
    for _ in range(3):
        assert await is_ended(gateway, run_id)
    assert (await gateway.client.post(f"/v1/runs/{run_id}/cancel")).status == 409
    assert (await read(gateway, run_id, "?wait=60s"))[1]["status"] == "succeeded"


async def test_a_live_run_is_compared_with_the_record_once_a_second_at_most(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """Those who ask for it again and again are answered by Redis."""
    run_id = new_run_id()
    await projected(redis, whole_run(run_id)[:2])
    await record(database, whole_run(run_id)[:2])
    with statements() as asked:
        for _ in range(20):
            assert (await read(gateway, run_id))[1]["status"] == "running"
    assert len([each for each in asked if "SELECT" in each]) < 20
    assert reads(gateway) == {"redis": 20}


async def test_redis_that_is_away_costs_nobody_his_answer(no_redis: Redis, database: AsyncEngine) -> None:
    """Reading, waiting and cancelling go on; what nobody knows is 404."""
    run_id, other = new_run_id(), new_run_id()
    await record(database, whole_run(run_id))
    await record(database, whole_run(other)[:1])
    async with a_gateway(no_redis, record=database) as gateway:  # type: ignore[arg-type]
        for _ in range(3):
            assert await is_ended(gateway, run_id)
        assert (await read(gateway, other, "?wait=10ms"))[1]["status"] == "running"
        assert (await gateway.client.post(f"/v1/runs/{other}/cancel")).status == 202
        assert (await gateway.client.post(f"/v1/runs/{run_id}/cancel")).status == 409
        assert (await read(gateway, new_run_id()))[0] == 404


async def test_what_was_accepted_here_is_not_guessed_while_redis_is_away(
    no_redis: Redis, database: AsyncEngine
) -> None:
    """It may have gone on, and the record may be behind; as soon as the record knows it, it is told."""
    async with a_gateway(no_redis, record=database) as gateway:  # type: ignore[arg-type]
        run_id = (await (await gateway.submit()).json())["id"]
        answer = await gateway.client.get(f"/v1/runs/{run_id}")
        assert "Redis does not answer" in (await problem(answer))["detail"]
        await record(database, whole_run(run_id))
        assert await is_ended(gateway, run_id)


async def test_a_record_that_is_away_is_named_where_redis_does_not_know_the_run(
    redis: Redis, no_redis: Redis, no_database: AsyncEngine
) -> None:
    """What Redis has whole is read all the same, live or ended; accepted is nothing that can be said then."""
    live, ended = new_run_id(), new_run_id()
    await projected(redis, [*whole_run(live)[:1], *whole_run(ended)])
    async with a_gateway(redis, record=no_database) as gateway:  # type: ignore[arg-type]
        assert await is_ended(gateway, ended)
        assert (await read(gateway, live))[1]["status"] == "running"
        accepted = (await (await gateway.submit()).json())["id"]
        for run_id in (accepted, new_run_id()):
            answer = await gateway.client.get(f"/v1/runs/{run_id}")
            assert "the record of runs does not answer" in (await problem(answer))["detail"]
            assert answer.status == 503
    async with a_gateway(no_redis, record=no_database) as gateway:  # type: ignore[arg-type]
        answer = await gateway.client.get(f"/v1/runs/{ended}")
        assert "neither Redis nor the record of runs answers" in (await problem(answer))["detail"]


async def test_accepted_is_said_when_both_were_asked_and_neither_knows(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """Whoever asks for the first time, and never once either of them knows more."""
    run_id = (await (await gateway.submit()).json())["id"]
    with statements() as asked:
        assert (await read(gateway, run_id))[1]["status"] == "accepted"
    assert any("runs" in each for each in asked)
    await record(database, whole_run(run_id))
    assert await is_ended(gateway, run_id)
    assert (await read(gateway, new_run_id()))[0] == 404
    assert reads(gateway) == {"accepted": 1, "sql": 1, "none": 1}


async def test_many_who_ask_for_a_run_that_redis_lost_are_answered_by_few_reads(
    gateway: Bench, database: AsyncEngine
) -> None:
    """Or by two: whoever comes while one is under way must not be told what was known before he asked."""
    run_id = new_run_id()
    await record(database, whole_run(run_id))
    with statements() as asked:
        found = await asyncio.gather(*(is_ended(gateway, run_id) for _ in range(30)))
    assert found == 30 * [True]
    assert len([each for each in asked if "UNION ALL" in each]) < 15


async def test_a_foreign_run_costs_what_an_unknown_one_does(redis: Redis, database: AsyncEngine) -> None:
    """As many questions to the database, and the same words."""
    foreign = new_run_id()
    await record(database, whole_run(foreign))
    told = set()
    async with a_gateway(redis, record=database, default_tenant="evil") as gateway:  # type: ignore[arg-type]
        for run_id in (foreign, new_run_id()):
            for query in ("", "?wait=1"):
                with statements() as asked:
                    answer = await gateway.client.get(f"/v1/runs/{run_id}{query}")
                words = (await problem(answer))["detail"].replace(run_id, "ID")
                told.add((query, answer.status, words, tuple(asked)))
    assert [status for _, status, _, _ in told] == [404, 404]


def a_keyed_run(run_id: str, gateway: Bench, *, ended_s_ago: float = 1.0) -> list[RunEventMessage]:
    """Return the events of the run that the gateway accepted last, as it ended so long ago."""
    body_hash = gateway.log.submitted[-1].body_hash
    at = rfc3339(int(1000 * (time.time() - ended_s_ago)))
    started, *rest = (each.model_copy(update={"at": at}) for each in whole_run(run_id))
    return [started.model_copy(update={"body_hash": body_hash}), *rest]


async def test_a_key_that_comes_again_is_answered_with_how_its_run_ended(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """Also when Redis has lost the run."""
    headers, run_id = {"Idempotency-Key": "k"}, run_id_for_key("default", "k")
    assert (await gateway.submit(headers=headers)).status == 202
    await record(database, a_keyed_run(run_id, gateway))
    await redis.flushall()
    answer = await gateway.submit(headers=headers)
    assert (answer.status, await answer.json()) == (200, {"id": run_id, "status": "succeeded"})


@pytest.mark.parametrize("with_redis", [True, False])
async def test_a_key_that_redis_has_lost_is_refused_with_another_body_at_any_gateway(
    with_redis: bool, gateway: Bench, redis: Redis, no_redis: Redis, database: AsyncEngine
) -> None:
    """The record says what came first; what came second is noted nowhere, so that the first goes on to be its run."""
    headers, run_id = {"Idempotency-Key": "k"}, run_id_for_key("default", "k")
    assert (await gateway.submit(headers=headers, inputs={"n": 1})).status == 202
    await record(database, a_keyed_run(run_id, gateway))
    await redis.flushall()
    async with a_gateway(redis if with_redis else no_redis, record=database) as other:  # type: ignore[arg-type]
        for _ in range(2):
            answer = await other.submit(headers=headers, inputs={"n": 2})
            assert (await problem(answer))["type"] == "urn:anabranch:problem:idempotency-key-reused"
        answer = await other.submit(headers=headers, inputs={"n": 1})
        assert (answer.status, await answer.json()) == (200, {"id": run_id, "status": "succeeded"})
        assert other.log.records == []
    async with a_gateway(redis) as without_record:  # type: ignore[arg-type]
        answer = await without_record.submit(headers=headers, inputs={"n": 2})
        assert (answer.status == 422) == with_redis


async def test_a_key_is_free_again_when_its_time_is_over(gateway: Bench, redis: Redis, database: AsyncEngine) -> None:
    """The record still has the run; the next one with this key is another."""
    headers, run_id = {"Idempotency-Key": "k"}, run_id_for_key("default", "k")
    assert (await gateway.submit(headers=headers, inputs={"n": 1})).status == 202
    await record(database, a_keyed_run(run_id, gateway, ended_s_ago=gateway.settings.idempotency_keep_s + 60))
    await redis.flushall()
    async with a_gateway(redis, record=database) as other:  # type: ignore[arg-type]
        assert (await other.submit(headers=headers, inputs={"n": 2})).status == 202
        assert len(other.log.records) == 1


async def test_a_record_that_is_away_holds_up_no_key(redis: Redis, no_database: AsyncEngine) -> None:
    """The run is accepted: the core drops repeats anyway."""
    async with asyncio.timeout(GUARD_S), a_gateway(redis, record=no_database) as gateway:  # type: ignore[arg-type]
        assert (await gateway.submit(headers={"Idempotency-Key": "k"})).status == 202


async def test_a_request_that_waits_is_told_by_the_record_where_redis_lost_the_run(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """The message of an end says no size then; an old snapshot in Redis is not taken for the run."""
    submitting = asyncio.create_task(gateway.submit(query="?wait=60s"))
    [run_id] = await watched(gateway)
    await projected(redis, whole_run(run_id)[:1])
    await record(database, whole_run(run_id))
    gateway.watches.end(run_id)
    async with asyncio.timeout(GUARD_S):
        answer = await submitting
    assert (answer.status, (await answer.json())["status"]) == (200, "succeeded")


@pytest.mark.parametrize("size", [0, 500])
async def test_a_request_waits_on_while_the_end_it_was_told_of_is_nowhere(
    size: int, gateway: Bench, database: AsyncEngine
) -> None:
    """Redis told it and was emptied; the record has it a little later, and says so."""
    submitting = asyncio.create_task(gateway.submit(query="?wait=60s"))
    [run_id] = await watched(gateway)
    reading = asyncio.create_task(read(gateway, run_id, "?wait=60s"))
    await watched(gateway, 2)
    with statements() as asked:
        gateway.watches.end(run_id, size)
        await until(lambda: len([each for each in asked if "FROM runs" in each]) >= 2)
    assert not submitting.done()
    assert not reading.done()
    await record(database, whole_run(run_id))
    gateway.watches.end(run_id)
    async with asyncio.timeout(GUARD_S):
        answer = await submitting
        assert (await reading)[1]["status"] == (await answer.json())["status"] == "succeeded"


async def watched(gateway: Bench, count: int = 1) -> list[str]:
    """Return the runs that are waited for, once so many requests wait."""
    await until(lambda: gateway.count("waiters") == count)
    return gateway.watches.runs()


async def until(condition: Any) -> None:
    """Return as soon as the condition holds."""
    async with asyncio.timeout(GUARD_S):
        while not condition():
            await asyncio.sleep(0.001)
