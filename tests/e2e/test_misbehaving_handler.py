"""A real step service on a real Kafka whose handler exits, stops the loop, cancels everything, or crashes."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiokafka.structs import TopicPartition

from anabranch.deploy.local.console import Console
from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.deploy.local.service_process import ServiceProcess
from anabranch.deploy.local.supervisor import RestartBudget, supervise
from anabranch.shared.contracts.codec import Undecodable, decode, encode
from anabranch.shared.contracts.messages import INBOX as INBOX_MESSAGES
from anabranch.shared.contracts.messages import RunStep
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, STEP_TYPES, STEPS
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.settings import Settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

RUN = "0190b0a0-0000-7000-8000-000000000001"
PREFIXES = count()
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.support.misbehaving")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """Kafka and Redis."""
    place = tmp_path_factory.mktemp("servers")
    async with LocalKafka(place / "kafka") as kafka, LocalRedis(place / "redis") as redis:
        yield kafka.bootstrap, redis.url


@pytest_asyncio.fixture(loop_scope="module")
async def settings(servers: tuple[str, str]) -> Settings:
    """A prefix of its own, with its topics."""
    settings = Settings(
        kafka_bootstrap_servers=servers[0], redis_url=servers[1], run_partitions=2, step_partitions=2,
        topic_prefix=f"misbehaving{next(PREFIXES)}",
    )  # fmt: skip
    topics = [(topic, topic.name(settings.topic_prefix)) for topic in (INBOX, CONTROL, DEAD_LETTERS, STEP_TYPES)]
    await ensure_topics(settings, [*topics, (STEPS, settings.topics.steps("misbehaving"))])
    return settings


@dataclass
class Running:
    """The step service."""

    settings: Settings
    log: Path
    env: dict[str, str]
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    def environment(self) -> dict[str, str]:
        """What it is told."""
        return (
            os.environ
            | self.env
            | {
                "KAFKA_BOOTSTRAP_SERVERS": self.settings.kafka_bootstrap_servers,
                "REDIS_URL": self.settings.redis_url,
                "ANABRANCH_TOPIC_PREFIX": self.settings.topic_prefix,
                "ANABRANCH_RUN_PARTITIONS": "2",
                "ANABRANCH_STEP_PARTITIONS": "2",
                "ANABRANCH_HTTP_PORT": str(self.port),
            }
        )

    async def start(self) -> asyncio.subprocess.Process:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *COMMAND, cwd=ROOT, env=self.environment(), stdout=log, stderr=log,
            )  # fmt: skip
        return self.process

    async def until_ready(self) -> None:
        """Return when `/readyz` says 200."""
        async with asyncio.timeout(60):
            while await self.readiness() != 200:
                await asyncio.sleep(0.05)

    async def readiness(self) -> int:
        """Return what `/readyz` says, 0 when nobody answers."""
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{self.port}/readyz") as response:
                return response.status
        except aiohttp.ClientError:
            return 0


@asynccontextmanager
async def supervised(settings: Settings, log: Path, **env: str) -> AsyncIterator[Running]:
    """A service that is gone afterwards."""
    service = Running(settings, log, env)
    try:
        yield service
    finally:
        if service.process is not None and service.process.returncode is None:
            service.process.kill()
            await service.process.wait()


async def command(settings: Settings, acts: Iterable[tuple[str, str, float]]) -> None:
    """Dispatch an attempt for each (step, act, seconds before)."""
    outbox = Outbox(settings)
    await outbox.start()
    at_ms = time.time_ns() // 1_000_000
    for number, (step, act, sleep_s) in enumerate(acts):
        message = RunStep(
            run_id=RUN, step=step, attempt=1, uses="misbehaving", tenant="t", timeout_s=30, at_ms=at_ms,
            input={"act": act, "sleep_s": sleep_s},
        )  # fmt: skip
        record = encode(message, message_id=f"{RUN}/{step}/1", source="test", at_ms=at_ms, trace_id="1" * 32)
        topic = settings.topics.steps("misbehaving")
        await outbox.append_and_wait(topic, number % 2, RUN.encode(), record.value, record.headers)
    await outbox.stop()


async def answers(settings: Settings, steps: Iterable[str], within_s: float) -> dict[str, str]:
    """Return what was answered for each of the steps: the error's type, or that it succeeded."""
    return {step: said.partition(": ")[0] for step, said in (await errors(settings, steps, within_s)).items()}


async def errors(settings: Settings, steps: Iterable[str], within_s: float) -> dict[str, str]:
    """Return what was answered for each of the steps: the error's type and text, or that it succeeded."""
    wanted, found = set(steps), dict[str, str]()
    consumer = new_consumer(settings)
    await consumer.start()
    try:
        every = [TopicPartition(settings.topics.inbox, number) for number in range(2)]
        consumer.assign(every)
        await consumer.seek_to_beginning(*every)
        async with asyncio.timeout(within_s):
            while wanted - set(found):
                message: Any = decode(INBOX_MESSAGES, (await consumer.getone()).value)
                assert not isinstance(message, Undecodable)
                if message.type in ("AttemptFailed", "AttemptSucceeded"):
                    failed = message.type == "AttemptFailed"
                    found[message.step] = f"{message.error.type}: {message.error.message}" if failed else message.type
    finally:
        await consumer.stop()
    return found


async def test_a_handler_that_exits_interrupts_or_cancels_itself_fails_its_attempt_only(
    settings: Settings, tmp_path: Path
) -> None:
    """The process goes on, and is ready."""
    async with supervised(settings, tmp_path / "log") as service:
        process = await service.start()
        await service.until_ready()
        acts = ("sys.exit", "interrupt", "next", "cancel-itself", "close", "well")
        await command(settings, [(act, act, 0) for act in acts])
        assert await answers(settings, acts, 60) == {
            "sys.exit": "SystemExit", "interrupt": "KeyboardInterrupt", "next": "StopIteration",
            "cancel-itself": "CancelledError", "close": "RuntimeError", "well": "AttemptSucceeded",
        }  # fmt: skip
        assert await service.readiness() == 200
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("stop", 1),
        ("exit-in-a-task", 1),
        ("cancel-all", 1),
        ("cancel-announcing", 1),
        ("cancel-polling", 1),
        ("_exit", 9),
        ("segfault", -11),
    ],
)
async def test_a_handler_that_ends_its_worker_ends_it_at_once(
    settings: Settings, tmp_path: Path, act: str, code: int
) -> None:
    """With an exit code that says so, and, where Python still can, a line that names what was in hand."""
    async with supervised(settings, tmp_path / "log") as service:
        process = await service.start()
        await service.until_ready()
        await command(settings, [("bomb", act, 0)])
        sent = time.monotonic()
        assert await asyncio.wait_for(process.wait(), 60) == code
        print(f"\n{act}: ended with {code} {time.monotonic() - sent:.2f} s after its command was sent")
    words = (tmp_path / "log").read_text()
    if code == 1:
        assert f"{RUN}/bomb/1" in words
    if act == "segfault":
        assert "misbehaving.py" in words


@pytest.mark.parametrize(
    ("act", "how"),
    [
        ("_exit", "its process ended with exit code 9"),
        ("segfault", "its process was ended by SIGSEGV (11)"),
        ("exit-in-a-task", "it said SystemExit: 3; its process ended with exit code 1"),
        (
            "cancel-announcing",
            "it said EndedUnasked: keep announced: it was cancelled; its process ended with exit code 1",
        ),
    ],
)
async def test_beside_a_step_that_ends_its_worker_its_neighbours_succeed_and_its_error_says_how_that_ended(
    settings: Settings, tmp_path: Path, act: str, how: str
) -> None:
    """The step is put aside after four ends of the worker, which the local stack's supervisor starts again."""
    await command(settings, [*((f"n{n}", "well", 0.3) for n in range(5)), ("bomb", act, 0.1)])
    service = ServiceProcess(
        "misbehaving", "misbehaving", command=COMMAND, env=Running(settings, tmp_path, {}).environment(),
        log=tmp_path / "log", console=Console(), port=free_port(), keeps_port=False,
    )  # fmt: skip
    await service.start()
    supervising = asyncio.create_task(supervise(service, Console(), RestartBudget(), delay_s=0.1))
    try:
        found = await errors(settings, [*(f"n{n}" for n in range(5)), "bomb"], 300)
    finally:
        supervising.cancel()
        service.kill()
    lost = found.pop("bomb")
    assert found == {f"n{n}": "AttemptSucceeded" for n in range(5)}
    print(f"\nends of the worker: {service.starts - 1}; {lost}")
    assert lost.startswith("WorkerLost: bomb was tried alone 3 times")
    assert lost.endswith(how)
    assert service.starts <= 6


@pytest.mark.parametrize(("lifespan", "name"), [("sys.exit", "SystemExit"), ("cancel", "CancelledError")])
async def test_a_lifespan_that_raises_anything_ends_the_service_with_a_line_that_says_so(
    settings: Settings, tmp_path: Path, lifespan: str, name: str
) -> None:
    """Also what is no `Exception`."""
    async with supervised(settings, tmp_path / "log", MISBEHAVING_LIFESPAN=lifespan) as service:
        process = await service.start()
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert f"the lifespan of misbehaving raised {name}" in (tmp_path / "log").read_text()


async def test_a_lifespan_that_exits_at_the_end_is_said_too(settings: Settings, tmp_path: Path) -> None:
    """The service stopped, though not well."""
    async with supervised(settings, tmp_path / "log", MISBEHAVING_LIFESPAN="at the end") as service:
        process = await service.start()
        await service.until_ready()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert "the lifespan of misbehaving raised SystemExit" in (tmp_path / "log").read_text()
