"""Streams of events have every event once, in order, whatever is emptied, replaced or away meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.api import AnabranchClient
from anabranch.client.cli import main
from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.messages import RunEventMessage
from anabranch.shared.record.rows import Place, Rows
from anabranch.shared.record.writing import RecordWriter, write
from anabranch.shared.runtime.redis import RedisKeys
from tests.unit.gateway.fakes import Bench, a_gateway, problem
from tests.unit.history.fakes import run_ended, run_started, step_succeeded

GUARD_S = 60.0
KEYS = RedisKeys("pipelines")


class Sent(NamedTuple):
    """A server-sent event."""

    place: str
    type: str
    data: str


class Log:
    """Appends events to partitions of the record, as history does."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._ends: dict[int, int] = {}

    async def append(self, *events: RunEventMessage, partition: int = 0) -> list[tuple[str, int, str]]:
        """Write a batch and return what history would tell of it."""
        async with RecordWriter(self._database).transaction() as session:
            rows = Rows(await session.known(sorted({event.run_id for event in events})))
            for event in events:
                offset = self._ends.get(partition, 0)
                self._ends[partition] = offset + 1
                place = Place(partition, offset, 1_000, event.model_dump_json().encode())
                rows.passed(place)
                rows.add(event, place)
            await write(session, rows)
        return rows.changed()


@pytest.fixture
async def gateway(redis: Redis, database: AsyncEngine) -> AsyncIterator[Bench]:
    """Yield a gateway on an empty Redis and an empty record."""
    async with a_gateway(redis, record=database) as bench:  # type: ignore[arg-type]
        yield bench


@asynccontextmanager
async def stream(gateway: Bench, path: str, last: str | None = None) -> AsyncIterator[AsyncIterator[Sent]]:
    """Yield the events of a stream as they come."""
    headers = {} if last is None else {"Last-Event-ID": last}
    async with asyncio.timeout(GUARD_S), gateway.client.get(path, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        yield sent(answer)


async def sent(answer: aiohttp.ClientResponse) -> AsyncIterator[Sent]:
    """Yield what a client's parser would (WHATWG HTML §9.2.6), for streams that use one line each."""
    fields: dict[str, str] = {}
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if text and not text.startswith(":"):
            name, _, value = text.partition(": ")
            fields[name] = value
        elif not text and fields:
            yield Sent(fields["id"], fields["event"], fields["data"])
            fields = {}


async def first(events: AsyncIterator[Sent], count: int) -> list[Sent]:
    """Return the next so many."""
    return [await anext(events) for _ in range(count)]


def a_run(run_id: str, steps: int = 5) -> list[RunEventMessage]:
    """Return a run with a step after the other."""
    names = [f"s{number}" for number in range(steps)]
    started = run_started(run_id, steps=dict.fromkeys(names, "http"))
    changed = [step_succeeded(number, name, run_id) for number, name in enumerate(names, start=2)]
    return [started, *changed, run_ended(steps + 2, run_id)]


def bodies(events: Sequence[RunEventMessage]) -> list[str]:
    """Return the data of events as streams send it."""
    return [event.model_dump_json() for event in events]


async def test_a_stream_has_what_was_what_comes_and_ends_with_the_run(gateway: Bench, database: AsyncEngine) -> None:
    """Numbered as the events are, whatever was told to whom."""
    run_id, log = new_run_id(), Log(database)
    events = a_run(run_id)
    await log.append(*events[:3])
    async with stream(gateway, f"/v1/runs/{run_id}/events") as live:
        assert [each.place for each in await first(live, 3)] == ["1", "2", "3"]
        changed = await log.append(*events[3:])
        gateway.followers.tell([run for run, _, _ in changed])
        rest = [each async for each in live]
    assert [each.place for each in rest] == ["4", "5", "6", "7"]
    assert [each.data for each in rest] == bodies(events[3:])
    assert rest[-1].type == "RunSucceeded"


async def test_a_client_goes_on_at_any_event_at_any_gateway(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """Without gap or repeat, also when Redis was emptied meanwhile."""
    run_id = new_run_id()
    events = a_run(run_id)
    await Log(database).append(*events)
    await redis.flushall()
    async with a_gateway(redis, record=database) as other:  # type: ignore[arg-type]
        for seen in range(len(events)):
            async with stream(other if seen % 2 else gateway, f"/v1/runs/{run_id}/events", str(seen)) as live:
                assert [each.data async for each in live] == bodies(events[seen:])


async def test_streams_cut_while_their_runs_go_on_have_every_event_once(gateway: Bench, database: AsyncEngine) -> None:
    """Sixty at a time, each cut after another event and gone on with while the next ones are being recorded."""
    log, runs = Log(database), [a_run(new_run_id()) for _ in range(60)]
    await log.append(*(events[0] for events in runs))

    async def followed(run_id: str, count: int, cut: int) -> list[str]:
        seen: list[Sent] = []
        while len(seen) < count:
            async with stream(gateway, f"/v1/runs/{run_id}/events", seen[-1].place if seen else None) as live:
                async for each in live:
                    seen.append(each)
                    if len(seen) in (cut, cut + 3):
                        break
        return [each.data for each in seen]

    async with asyncio.TaskGroup() as clients:
        following = [
            clients.create_task(followed(events[0].run_id, len(events), number % len(events)))
            for number, events in enumerate(runs)
        ]
        for number in range(1, len(runs[0])):
            gateway.followers.tell([run for run, _, _ in await log.append(*(events[number] for events in runs))])
    assert [each.result() for each in following] == [bodies(events) for events in runs]


async def test_events_that_do_not_fit_into_one_answer_all_come(gateway: Bench, database: AsyncEngine) -> None:
    """Large ones among small ones, and more of both than are read at once; of one run and of all, of many at a time."""
    log, runs = Log(database), [a_large_run(new_run_id()) for _ in range(12)]
    for events in runs:
        await log.append(*events)

    async def followed(events: list[RunEventMessage]) -> None:
        async with stream(gateway, f"/v1/runs/{events[0].run_id}/events") as live:
            assert [each.data async for each in live] == bodies(events)

    async with asyncio.TaskGroup() as clients:
        for events in runs:
            clients.create_task(followed(events))
    async with stream(gateway, "/v1/events", "0:0") as live:
        everything = [body for events in runs for body in bodies(events)]
        assert [each.data for each in await first(live, len(everything))] == everything


def a_large_run(run_id: str) -> list[RunEventMessage]:
    """Return a run of 110 events: some of 60 kB, two of 300 kB, the others small."""
    sizes = [60_000 * (number % 5 == 0) + 240_000 * (number in (10, 65)) for number in range(108)]
    names = [f"s{number}" for number in range(len(sizes))]
    started = run_started(run_id, steps=dict.fromkeys(names, "http"))
    changed = [
        step_succeeded(number, name, run_id, output="x" * size)
        for number, (name, size) in enumerate(zip(names, sizes, strict=True), start=2)
    ]
    return [started, *changed, run_ended(len(sizes) + 2, run_id)]


async def test_a_client_that_does_not_read_holds_up_nobody(gateway: Bench, database: AsyncEngine) -> None:
    """Another one's stream of the same run goes on to its end meanwhile."""
    events = a_large_run(new_run_id())
    await Log(database).append(*events)
    path = f"/v1/runs/{events[0].run_id}/events"
    async with asyncio.timeout(GUARD_S):
        asked = [await asyncio.open_connection("127.0.0.1", gateway.client.port, limit=1024) for _ in range(20)]
        for reader, writer in asked:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with stream(gateway, path) as live:
            assert [each.data async for each in live] == bodies(events)
        for _, writer in asked:
            writer.transport.abort()


async def test_all_runs_of_a_tenant_are_followed_from_any_place(gateway: Bench, database: AsyncEngine) -> None:
    """In several partitions; what other tenants run is not seen, and a place names exactly what was sent."""
    log, mine = Log(database), [a_run(new_run_id(), 2) for _ in range(4)]
    others = run_started(new_run_id()).model_copy(update={"tenant": "other"})
    await log.append(*mine[0], others)
    async with stream(gateway, "/v1/events") as live:
        for number, events in enumerate(mine[1:]):
            gateway.followers.tell([run for run, _, _ in await log.append(others, *events, partition=number % 2)])
        seen = await first(live, 12)
    expected = sorted(body for events in mine[1:] for body in bodies(events))
    assert sorted(each.data for each in seen) == expected
    for cut in range(0, 12, 5):
        async with stream(gateway, "/v1/events", seen[cut].place) as live:
            again = await first(live, 11 - cut)
        assert sorted(each.data for each in again) == sorted(each.data for each in seen[cut + 1 :])


async def test_a_stopping_gateway_ends_its_streams(gateway: Bench, database: AsyncEngine) -> None:
    """Their clients go on elsewhere."""
    run_id = new_run_id()
    await Log(database).append(*a_run(run_id)[:2])
    async with stream(gateway, f"/v1/runs/{run_id}/events") as live:
        await first(live, 2)
        gateway.followers.close()
        assert [each async for each in live] == []


async def test_who_has_seen_the_last_event_is_told_that_there_is_no_more(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """With 204, not with a stream that never says anything; a run whose end is not recorded yet is followed."""
    run_id, log = new_run_id(), Log(database)
    events = a_run(run_id)
    path = f"/v1/runs/{run_id}/events"
    await log.append(*events[:-1])
    await RedisSnapshots(redis, KEYS, active_ttl_s=60, ended_ttl_s=60).apply(project(events))
    async with stream(gateway, path, "6") as live:
        gateway.followers.tell([run for run, _, _ in await log.append(events[-1])])
        assert [each.place async for each in live] == ["7"]
    for place in ("7", "2147483647"):
        async with asyncio.timeout(GUARD_S), gateway.client.get(path, headers={"Last-Event-ID": place}) as answer:
            assert (answer.status, await answer.read()) == (204, b"")
        async with asyncio.timeout(GUARD_S), AnabranchClient(url_of(gateway)) as client:
            assert [event async for event in client.events(run_id, after=place)] == []


@pytest.mark.parametrize("place", ["12:0", "0:1,0:2", "999999:0", "0:9223372036854775808", ",", "0:1,"])
async def test_a_place_in_no_partition_is_refused(gateway: Bench, place: str) -> None:
    """It would be sent back with every event."""
    async with gateway.client.get("/v1/events", headers={"Last-Event-ID": place}) as answer:
        assert (await problem(answer))["status"] == 400


@pytest.mark.parametrize("place", ["x", "-1", "1.5", "99999999999999999999", "\u0661", "1,2"])
async def test_a_place_that_is_none_is_refused(gateway: Bench, database: AsyncEngine, place: str) -> None:
    """With a 400 that says what it should be."""
    run_id = new_run_id()
    await Log(database).append(*a_run(run_id))
    for path in (f"/v1/runs/{run_id}/events", "/v1/events"):
        async with gateway.client.get(path, params={"last_event_id": place}) as answer:
            assert (await problem(answer))["status"] == 400


async def test_a_foreign_run_is_followed_no_more_than_an_unknown_one(gateway: Bench, database: AsyncEngine) -> None:
    """Both are 404."""
    run_id, unknown = new_run_id(), new_run_id()
    await Log(database).append(run_started(run_id).model_copy(update={"tenant": "other"}))
    told = []
    for each in (run_id, unknown):
        async with gateway.client.get(f"/v1/runs/{each}/events") as answer:
            document = await problem(answer)
            told.append((answer.status, document["detail"].replace(each, "")))
    assert told[0] == told[1]
    assert told[0][0] == 404


async def test_without_a_record_there_are_no_streams(redis: Redis) -> None:
    """And the answer says what to set."""
    async with a_gateway(redis) as gateway, gateway.client.get("/v1/events") as answer:  # type: ignore[arg-type]
        document: dict[str, Any] = await problem(answer)
        assert (answer.status, "DATABASE_URL" in document["detail"]) == (503, True)


async def test_streams_of_a_client_are_bounded(redis: Redis, database: AsyncEngine) -> None:
    """One more is a 429, and one that has ended makes room."""
    run_id = new_run_id()
    await Log(database).append(*a_run(run_id)[:2])
    path = f"/v1/runs/{run_id}/events"
    async with a_gateway(redis, record=database, max_streams_of_client=1) as gateway:  # type: ignore[arg-type]
        async with stream(gateway, path) as live:
            await first(live, 2)
            answer = await gateway.client.get(path)
            assert (await problem(answer))["status"] == 429
        await gateway.client.close()


def url_of(gateway: Bench) -> str:
    """Return where the gateway listens."""
    return str(gateway.client.make_url("")).rstrip("/")


async def test_what_there_is_by_now_ends(gateway: Bench, database: AsyncEngine) -> None:
    """For a run that goes on, when it is not to be followed."""
    run_id = new_run_id()
    await Log(database).append(*a_run(run_id)[:3])
    async with AnabranchClient(url_of(gateway)) as client:
        assert [event.place async for event in client.events(run_id, follow=False)] == ["1", "2", "3"]
        assert [event.place async for event in client.events(run_id, after="1", follow=False)] == ["2", "3"]


async def test_a_watched_run_is_unfolded_from_its_events(gateway: Bench, redis: Redis, database: AsyncEngine) -> None:
    """At its end it is what a read of it says, and another gateway goes on where one has stopped."""
    run_id, log = new_run_id(), Log(database)
    events = a_run(run_id)
    await log.append(*events[:2])
    async with AnabranchClient(url_of(gateway)) as client, asyncio.timeout(GUARD_S):
        seen = []
        async for run in client.watch(run_id):
            seen.append(run)
            if len(seen) == 1:
                gateway.followers.tell([run for run, _, _ in await log.append(*events[2:])])
        assert [each.status for each in (seen[0], seen[-1])] == ["running", "succeeded"]
        assert seen[-1] == await client.run(run_id)


async def test_the_command_prints_what_happened(gateway: Bench, database: AsyncEngine) -> None:
    """A line for each event, or JSON as it stands."""
    run_id = new_run_id()
    events = a_run(run_id, 1)
    await Log(database).append(*events)

    async def said(*options: str) -> list[str]:
        command = ["events", run_id, "--url", url_of(gateway), *options]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    assert await said("--json") == bodies(events)
    assert ["RunStarted" in line for line in await said("--follow")] == [True, False, False]
