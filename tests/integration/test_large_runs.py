"""Reading runs that weigh as much as a run may, from a real Valkey: one after the other, within a bounded memory."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest_asyncio
from redis.asyncio import Redis

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.services.gateway import reads as reads_module
from anabranch.shared.contracts.limits import MAX_READING_BYTES, MIB
from tests.unit.gateway.fakes import Bench, a_gateway

RUN_ID = "00000000-0000-4000-8000-00000000000a"
SMALL_ID = "00000000-0000-4000-8000-00000000000b"
KEY = "pipelines:run:"
WITHIN_S = 120.0  # a guard against hanging
AT_ONCE = 12


@pytest_asyncio.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    async with LocalRedis(tmp_path, free_port()) as server:
        client = Redis.from_url(server.url)
        yield client
        await client.aclose()


@pytest_asyncio.fixture
async def gateway(redis: Redis) -> AsyncIterator[Bench]:
    async with a_gateway(redis) as bench:  # type: ignore[arg-type]
        yield bench


async def a_run(redis: Redis, run_id: str, outputs: int, size: int = MIB) -> None:
    """Write a run that has ended, with so many outputs of a MiB."""
    steps = {f"s{at}": "x" for at in range(outputs)}
    fields: dict[str, bytes] = {
        "seq": b"9",
        "status": b"succeeded",
        "tenant": b"default",
        "run": orjson.dumps({"steps": steps}),
    }
    for at in range(outputs):
        fields[f"step:s{at}"] = orjson.dumps({"output": "x" * size})
    await redis.hset(KEY + run_id, mapping=fields)  # type: ignore[misc]


async def read(gateway: Bench, run_id: str, query: str = "") -> tuple[int, int]:
    async with gateway.client.get(f"/v1/runs/{run_id}{query}") as response:
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
        return response.status, size


async def test_full_runs_are_read_one_after_the_other(gateway: Bench, redis: Redis) -> None:
    """Those that wait hold nothing, and a small run is not kept waiting."""
    await a_run(redis, RUN_ID, 32)
    await a_run(redis, SMALL_ID, 1, size=10)
    tracemalloc.start()
    try:
        async with asyncio.timeout(WITHIN_S):
            reading = [asyncio.create_task(read(gateway, RUN_ID)) for _ in range(AT_ONCE)]
            assert (await read(gateway, SMALL_ID))[0] == 200
            answers = await asyncio.gather(*reading)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {status for status, _ in answers} <= {200, 503}
    assert (200, answers[0][1]) == answers[0]
    assert all(size > 32 * MIB for status, size in answers if status == 200)
    assert peak < 1.5 * MAX_READING_BYTES


async def test_who_reads_slowly_does_not_keep_the_room_for_ever(gateway: Bench, redis: Redis, monkeypatch: Any) -> None:
    """The next one after four that do not read is told to come back, and served once they are gone."""
    monkeypatch.setattr(reads_module, "_ROOM_WITHIN_S", 0.2)
    await a_run(redis, RUN_ID, 32)
    async with asyncio.timeout(WITHIN_S):
        writers = []
        while (await read(gateway, RUN_ID))[0] == 200:
            reader, writer = await asyncio.open_connection(gateway.client.host, gateway.client.port, limit=1024)
            writer.write(b"GET /v1/runs/%s HTTP/1.1\r\nHost: x\r\n\r\n" % RUN_ID.encode())
            await reader.readline()
            writers.append(writer)
            assert len(writers) <= 4
        async with gateway.client.get(f"/v1/runs/{RUN_ID}") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
        for writer in writers:
            writer.transport.abort()
        while (await read(gateway, RUN_ID))[0] != 200:
            await asyncio.sleep(0.05)
    assert gateway.count("clients_left_total") == len(writers)


async def test_everybody_who_waited_gets_the_large_run(gateway: Bench, redis: Redis) -> None:
    """Or is told when to come back; while they wait, none of them holds a document."""
    await a_run(redis, RUN_ID, 32)
    await redis.hset(KEY + RUN_ID, "status", "running")  # type: ignore[misc]
    async with asyncio.timeout(WITHIN_S):
        waiting = [asyncio.create_task(read(gateway, RUN_ID, "?wait=60s")) for _ in range(AT_ONCE)]
        while gateway.count("waiters") < AT_ONCE:
            await asyncio.sleep(0.01)
        assert (await read(gateway, RUN_ID))[0] == 200
        await redis.hset(KEY + RUN_ID, "status", "succeeded")  # type: ignore[misc]
        gateway.watches.look(RUN_ID)
        answers = await asyncio.gather(*waiting)
    assert {status for status, _ in answers} <= {200, 503}
    assert 200 in {status for status, _ in answers}
