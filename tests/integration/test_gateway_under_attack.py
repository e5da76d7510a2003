"""The gateway as a process, on a real Kafka, while costly bodies come from all sides: no process of it grows."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.ports import free_port
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.contracts.topics import INBOX
from anabranch.shared.runtime.kafka import ensure_topics
from anabranch.shared.runtime.settings import Settings
from tests.support.one_service import OneService
from tests.unit.gateway.test_costly_bodies import a_definition, a_run, a_step, macros

WITHIN_S = 300.0  # a guard against hanging
MOST_BYTES = 512 * MIB
AT_ONCE = 4
LEAVING = 2_500
PASSWORD = "s3cret-of-redis"
SMALL = {"definition": {"name": "small", "steps": {"a": {"uses": "transform", "with": {"value": 1}}}}}

LEVELS = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(24)}
BODIES: list[dict[str, Any]] = [
    a_run({"propertyNames": {"pattern": "^.{5000}$"}}, {f"k{at}": 1 for at in range(20_000)}),
    a_run({"allOf": [{"type": "string"}] * 3000}, [1] * 100_000),
    a_run({"$ref": "#/$defs/d0", "$defs": LEVELS | {"d24": {"type": "string"}}}, 1),
    a_step([macros(11, at) for at in range(250)]),
    {f"k{at}": 1 for at in range(150_000)},
    {"definition": a_definition(steps={f"s{at}": {"uses": "nothing", "needs": [f"s-{at}"]} for at in range(9_000)})},
    a_step("x" * 3 * MIB),
]


@asynccontextmanager
async def watched_memory(pid: int) -> AsyncIterator[dict[int, int]]:
    """Yield the most bytes that were resident, by process, of a process and those it started."""
    most: dict[int, int] = {}

    async def watch() -> None:
        process = psutil.Process(pid)
        while True:
            for one in (process, *process.children(recursive=True)):
                try:
                    most[one.pid] = max(most.get(one.pid, 0), one.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watching.cancel()


async def attack(gateway: OneService, bodies: list[bytes]) -> list[tuple[int, str | None]]:
    answers = []
    for body in bodies:
        headers = {"Content-Type": "application/json"}
        async with gateway.http.post("/v1/runs", data=io.BytesIO(body), headers=headers) as response:
            await response.read()
            answers.append((response.status, response.headers.get("Retry-After")))
    return answers


async def leave(port: int) -> None:
    """Send one byte of a body and go away."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()


async def work(gateway: OneService, done: asyncio.Event) -> list[int]:
    """Submit small runs, one after the other, until the attack is over."""
    found = []
    while not done.is_set():
        async with gateway.http.post("/v1/runs", json=SMALL) as response:
            found.append(response.status)
    return found


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[OneService]:
    async with LocalKafka(tmp_path / "kafka", free_port()) as kafka:
        settings = Settings(kafka_bootstrap_servers=kafka.bootstrap, run_partitions=3)
        await ensure_topics(settings, [(INBOX, settings.topics.inbox)])
        async with OneService(
            "gateway",
            tmp_path / "gateway.log",
            KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap,
            REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0",
            ANABRANCH_RUN_PARTITIONS=3,
        ) as service:
            yield service


async def test_costly_bodies_are_answered_and_harm_nobody(gateway: OneService) -> None:
    """By 413, 422 or 503, several at once, while another client's runs are accepted and 2,500 others leave."""
    assert gateway._child is not None
    pid, done = gateway._child.pid, asyncio.Event()
    bodies = [orjson.dumps(body) for body in BODIES]
    async with asyncio.timeout(WITHIN_S), watched_memory(pid) as most:
        other = asyncio.create_task(work(gateway, done))
        attacks = [attack(gateway, bodies[at:] + bodies[:at]) for at in range(AT_ONCE)]
        attacking = asyncio.gather(*attacks)
        for _ in range(LEAVING // 50):
            await asyncio.gather(*(leave(gateway.port) for _ in range(50)))
        answers = [answer for each in await attacking for answer in each]
        done.set()
        accepted = await other
    assert all(status in (413, 422) or (status == 503 and later) for status, later in answers), answers
    assert set(accepted) == {202}
    assert gateway._child.running
    print({pid: size // MIB for pid, size in most.items()}, len(accepted), answers)
    assert max(most.values()) <= MOST_BYTES
    words = gateway.words()
    assert PASSWORD not in words
    assert "Traceback" not in words and "locals" not in words
    assert await gateway.metric("anabranch_gateway_clients_left_total") >= 1
