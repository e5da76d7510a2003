"""History, the gateway, Redis and PostgreSQL are killed at random under load, clients waiting and streaming meanwhile.

`ANABRANCH_KILLS` says how often, 12 times unless set.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.api import AnabranchClient
from anabranch.client.model import GatewayUnreachableError, ProblemError
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.messages import RUN_EVENTS
from anabranch.shared.record.database import open_database
from anabranch.shared.record.rows import Place, Rows
from anabranch.shared.record.schema import upgrade
from anabranch.shared.record.tables import METADATA
from anabranch.shared.record.writing import RecordWriter, write
from anabranch.shared.runtime.settings import Settings
from tests.support.databases import KillablePostgres
from tests.support.diamond import diamond, right_outputs
from tests.support.one_service import eventually

_KILLS: Final = int(os.environ.get("ANABRANCH_KILLS", "12"))
_WAITERS: Final = 8
_FOLLOWERS: Final = 4
_WITHIN_S: Final = 1_500.0
_ROLES: Final = frozenset({"gateway", "orchestrator", "history", "simulate"})
_DIAMOND: Final = diamond("simulate")
_UNLIMITED: Final = {"ANABRANCH_RATE_LIMIT": "0", "ANABRANCH_READ_RATE_LIMIT": "0"}

Kill = Callable[[], Awaitable[None]]


class Clients:
    """Some wait for the ends of their runs, others follow their events; each notes what it was told wrong."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = asyncio.Event()
        self._working: list[asyncio.Task[None]] = []
        self._number = 0
        self.ended = 0
        self.followed = 0
        self.faults: list[str] = []

    async def __aenter__(self) -> "Clients":
        work = [self._wait] * _WAITERS + [self._follow] * _FOLLOWERS
        self._working = [asyncio.create_task(self._keep(each)) for each in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def stop(self) -> None:
        """Have everybody end what he is at; raise what went wrong."""
        self._stopping.set()
        await asyncio.gather(*self._working)

    async def _keep(self, work: Callable[[AnabranchClient, int], Awaitable[None]]) -> None:
        async with AnabranchClient(self._url) as client:
            while not self._stopping.is_set():
                self._number += 1
                await work(client, self._number)

    async def _wait(self, client: AnabranchClient, number: int) -> None:
        key = new_run_id()
        while True:
            try:
                run = await client.submit(_DIAMOND, inputs={"n": number}, idempotency_key=key, wait=60)
                if not run.ended:
                    run = await client.run(run.id, wait=60)
            except (ProblemError, GatewayUnreachableError):
                await asyncio.sleep(0.2)
                continue
            if run.ended and run.outputs is None:
                continue  # answered by the key alone: its status, not the run
            if run.ended:
                break
        if (run.status, run.outputs) != ("succeeded", right_outputs(number)):
            self.faults.append(f"{run.id} was told to be {run.status} with {run.outputs}")
        self.ended += 1

    async def _follow(self, client: AnabranchClient, number: int) -> None:
        run = await _persistently(lambda: client.submit(_DIAMOND, inputs={"n": number}, idempotency_key=new_run_id()))
        seen: list[int] = []
        last = ""
        while last != "RunSucceeded":
            try:
                async for event in client.events(run.id, after=str(seen[-1]) if seen else ""):
                    seen.append(int(event.place))
                    last = event.type
            except (ProblemError, GatewayUnreachableError):
                await asyncio.sleep(0.2)
        if seen != list(range(1, len(seen) + 1)):
            self.faults.append(f"{run.id} was streamed as {seen}")
        self.followed += 1


async def _persistently(ask: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await ask()
        except (ProblemError, GatewayUnreachableError):
            await asyncio.sleep(0.2)


@asynccontextmanager
async def a_record(kind: str, folder: Path) -> AsyncIterator[tuple[str, Kill | None]]:
    """Yield the URL of a database, and what kills its server, which then comes back."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/record.db", None
        return
    async with KillablePostgres() as server:

        async def kill() -> None:
            await server.kill()
            await server.start()

        yield server.url, kill


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_every_client_gets_the_right_end_and_the_record_is_that_of_a_replay(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No stream has a gap or a repeat, and the rows are those that the whole topic makes when it is read afresh."""
    rng = random.Random(20)
    services = [
        each for each in anabranch_services() if each.role in ("gateway", "orchestrator", "history", "simulate")
    ]
    async with asyncio.timeout(_WITHIN_S), a_record(kind, tmp_path) as (url, kill_database):
        stack = LocalStack(
            tmp_path / "home", port=0, services=services, database_url=url, env=_UNLIMITED,
            restart_delay_s=0.1, restarts_per_window=_KILLS,
        )  # fmt: skip
        async with stack, Clients(stack.gateway_url) as clients:

            async def kill_service(name: str) -> None:
                stack.service(name).signal(signal.SIGKILL)

            async def kill_redis() -> None:
                assert stack.redis is not None
                stack.redis.signal(signal.SIGKILL)

            victims: list[Kill] = [lambda: kill_service("gateway"), lambda: kill_service("history"), kill_redis]
            victims += [kill_database] if kill_database else []
            for number in range(_KILLS):
                before = clients.ended + clients.followed
                await victims[number % len(victims) if number < len(victims) else rng.randrange(len(victims))]()
                await eventually(lambda before=before: _is_beyond(clients, before + _WAITERS), within_s=300)
            await clients.stop()
            database = open_database(url, name="test")
            fresh = open_database(f"sqlite:///{tmp_path}/fresh.db", name="test")
            await upgrade(fresh)
            await _replay(stack.bootstrap, fresh)
            expected = await _everything(fresh)
            assert expected["events"]
            with suppress(AssertionError):  # how far it is stands in what is compared
                await eventually(lambda: _is_as_far(database, expected), within_s=120)
            found = await _everything(database)
            await database.dispose()
            await fresh.dispose()
    with capsys.disabled():
        print(f"\n{kind}: {_KILLS} kills, {clients.ended} ends told, {clients.followed} streams, "
              f"{len(found['events'])} events recorded")  # fmt: skip
    assert clients.faults == []
    for table, rows in expected.items():
        assert found[table] == rows, table


async def _is_beyond(clients: Clients, count: int) -> bool:
    return clients.ended + clients.followed >= count


async def _is_as_far(database: AsyncEngine, expected: dict[str, list[Any]]) -> bool:
    return (await _everything(database))["progress"] == expected["progress"]


async def _everything(database: AsyncEngine) -> dict[str, list[Any]]:
    async with database.connect() as connection:
        return {
            table.name: sorted(map(tuple, (await connection.execute(select(table))).all()), key=repr)
            for table in METADATA.sorted_tables
        }


async def _replay(bootstrap: str, database: AsyncEngine) -> None:
    """Write all that the topic of run events holds into an empty record."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        topics = Settings().topics
        partitions = [TopicPartition(topics.run_events, number) for number in range(Settings().run_partitions)]
        consumer.assign(partitions)
        ends = {tp: end for tp, end in (await consumer.end_offsets(partitions)).items() if end}
        while [tp for tp, end in ends.items() if await consumer.position(tp) < end]:
            for records in (await consumer.getmany(timeout_ms=1_000, max_records=500)).values():
                await _write(database, records)
    finally:
        await consumer.stop()


async def _write(database: AsyncEngine, records: list[Any]) -> None:
    events = [(record, decode(RUN_EVENTS, record.value)) for record in records]
    async with RecordWriter(database).transaction() as session:
        known = await session.known(sorted({e.run_id for _, e in events if not isinstance(e, Undecodable)}))
        rows = Rows(known)
        for record, event in events:
            place = Place(record.partition, record.offset, record.timestamp, record.value)
            rows.passed(place)
            assert not isinstance(event, Undecodable)
            rows.add(event, place)
        await write(session, rows)
