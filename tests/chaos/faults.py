"""What is done to a stack so that an alert fires: it really happens, lasts for the context, and is undone after it."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from anabranch.deploy.local.services import Service
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.topics import STATE
from anabranch.shared.runtime.clients import new_admin, new_producer
from anabranch.shared.runtime.settings import Settings
from tests.support.databases import KillablePostgres
from tests.support.diamond import diamond

MISBEHAVING: Final = Service("misbehaving", (sys.executable, "-m", "tests.support.misbehaving"))
WITNESS: Final = Service("witness", (sys.executable, "-m", "tests.support.witness"))
_LEASES: Final = {"ANABRANCH_LEASE_S": "5", "ANABRANCH_LEASE_GRACE_S": "0.3"}
ROLE_ENV: Final[Mapping[str, Mapping[str, str]]] = {
    "gateway": {
        "ANABRANCH_APPEND_TIMEOUT_S": "3", "ANABRANCH_LAG_CHECK_S": "0.5", "ANABRANCH_SUSPECT_S": "1",
        "ANABRANCH_RATE_LIMIT": "0", "ANABRANCH_READ_RATE_LIMIT": "0",
    },
    "misbehaving": _LEASES,
    "witness": {"ANABRANCH_CONCURRENCY": "8"},
}  # fmt: skip
_BATCH: Final = 400
_QUICK: Final = {"name": "quick", "steps": {"t": {"uses": "transform", "with": {"value": 1}}}}  # needs no worker
_BACK_WITHIN_S: Final = 60.0
_STOPPED_S: Final = 2.0
_RUNNING_S: Final = 0.2


def steps_of(uses: str, count: int = 1, **given: Any) -> dict[str, Any]:
    """Return a pipeline of so many steps beside one another, tried once."""
    step = {"uses": uses, "with": given, "retry": {"max_attempts": 1}}
    return {"name": uses, "steps": {f"s{number}": step for number in range(count)}}


@dataclass(frozen=True, slots=True)
class Field:
    """A stack, the database of its record, and a client of its gateway."""

    stack: LocalStack
    database: KillablePostgres
    http: aiohttp.ClientSession

    @property
    def settings(self) -> Settings:
        return Settings(kafka_bootstrap_servers=self.stack.bootstrap)

    async def warm_up(self) -> None:
        """Run some one after the other: a machine that is still starting is late with everything."""
        for number in range(50):
            body = {"definition": diamond("simulate"), "inputs": {"n": number}}
            async with self.http.post("/v1/runs?wait=10s", json=body) as answer:
                assert answer.status in (200, 202), await answer.text()

    async def submit(self, definition: Mapping[str, Any], **inputs: Any) -> None:
        """Submit a run; what becomes of it, others look at."""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.post("/v1/runs", json={"definition": definition, "inputs": inputs}) as answer:
                assert answer.status in (202, 503), await answer.text()

    async def submit_many(self, definition: Mapping[str, Any], count: int) -> None:
        """Submit so many runs in one request."""
        with suppress(aiohttp.ClientError, TimeoutError):
            body = {"runs": [{"definition": definition}] * count}
            async with self.http.post("/v1/runs:batch", json=body) as answer:
                assert (await answer.json())["accepted"] == count, await answer.text()


@asynccontextmanager
async def again_and_again(act: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """Do it at a steady pace, also when the last one has not ended: who submits does not wait for the others."""
    doing: set[asyncio.Task[None]] = set()

    async def begin() -> None:
        while True:
            task = asyncio.ensure_future(act())
            doing.add(task)
            task.add_done_callback(doing.discard)
            await asyncio.sleep(every_s)

    beginning = asyncio.create_task(begin())
    try:
        yield
    finally:
        beginning.cancel()
        for task in doing:
            task.cancel()
        await asyncio.gather(beginning, *doing, return_exceptions=True)


def load(field: Field) -> AbstractAsyncContextManager[None]:
    """A few diamonds a second, whatever happens: what stands still is seen by what waits."""
    definition = diamond("simulate")
    return again_and_again(lambda: field.submit(definition, n=1), every_s=0.33)


@asynccontextmanager
async def a_handler_fails(field: Field) -> AsyncIterator[None]:
    async with again_and_again(lambda: field.submit(steps_of("simulate", error="Broken", terminal=True)), 0.1):
        yield


@asynccontextmanager
async def a_worker_is_gone(field: Field) -> AsyncIterator[None]:
    """The only one of its type, and there is a run that needs it."""
    worker = field.stack.service("html")
    worker.kill()
    await worker.gone()
    await field.submit(steps_of("html", html="<p>", select={"p": "p"}))
    yield
    await worker.start()
    await worker.until_ready()


@asynccontextmanager
async def a_handler_blocks_its_loop(field: Field) -> AsyncIterator[None]:
    async with again_and_again(lambda: field.submit(steps_of("misbehaving", act="block")), 1.6):
        yield


@asynccontextmanager
async def workers_die_with_leases(field: Field) -> AsyncIterator[None]:
    await field.submit(steps_of("misbehaving", 8, sleep_s=4))
    await asyncio.sleep(2)  # the handlers are called, and their leases are known
    worker = field.stack.service("misbehaving")
    worker.kill()
    await worker.gone()
    yield
    await worker.start()
    await worker.until_ready()


@asynccontextmanager
async def handlers_wait_for_others(field: Field) -> AsyncIterator[None]:
    """A few at once, as many as there may be; nothing comes of them until the gate is open."""
    gate = field.stack.home.path / "gate"
    gate.touch()
    slow = steps_of("witness", gate=str(gate))
    for _ in range(3):
        await field.submit_many(slow, _BATCH)
    async with again_and_again(lambda: field.submit_many(slow, 20), 1.0):
        yield
    gate.unlink()


@asynccontextmanager
async def letters_that_nobody_can_read(field: Field) -> AsyncIterator[None]:
    producer = new_producer(field.settings)
    await producer.start()
    try:
        for number in range(100):
            await producer.send_and_wait(field.settings.topics.inbox, b"{", key=b"%d" % number)
        yield
    finally:
        await producer.stop()


@asynccontextmanager
async def redis_is_gone(field: Field) -> AsyncIterator[None]:
    assert field.stack.redis is not None
    await field.stack.redis.kill()
    yield
    await field.stack.redis.start()


@asynccontextmanager
async def the_database_is_gone(field: Field) -> AsyncIterator[None]:
    await field.database.kill()
    yield
    await field.database.start()


@asynccontextmanager
async def history_stands_still(field: Field) -> AsyncIterator[None]:
    async with standing_still(field.stack.service("history").signal):
        yield


@asynccontextmanager
async def the_orchestrator_is_stopped(field: Field) -> AsyncIterator[None]:
    """And runs are submitted all the same. It is started again by whoever comes next."""
    orchestrator = field.stack.service("orchestrator")
    await orchestrator.stop(deadline_s=30)
    for _ in range(3):
        await field.submit_many(_QUICK, _BATCH)
    async with again_and_again(lambda: field.submit_many(_QUICK, 100), 1.0):
        yield


@asynccontextmanager
async def kafka_is_slow_while_partitions_are_taken_over(field: Field) -> AsyncIterator[None]:
    """It stands still most of the time; the orchestrator is started, and clients submit."""
    orchestrator = field.stack.service("orchestrator")
    async with slow_kafka(field.stack), again_and_again(lambda: field.submit(_QUICK), 0.05):
        await orchestrator.start()
        yield
    async with asyncio.timeout(_BACK_WITHIN_S):
        await orchestrator.until_ready()


@asynccontextmanager
async def slow_kafka(stack: LocalStack) -> AsyncIterator[None]:
    """Have it run for one eleventh of the time: no restore is over before it is scraped."""
    assert stack.kafka is not None
    stop = stack.kafka.signal

    async def keep_stopping() -> None:
        while True:
            stop(signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_S)
            stop(signal.SIGCONT)
            await asyncio.sleep(_RUNNING_S)

    stopping = asyncio.create_task(keep_stopping())
    try:
        yield
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        stop(signal.SIGCONT)


@asynccontextmanager
async def checkpoints_are_refused(field: Field) -> AsyncIterator[None]:
    """The changelog takes no record of more than a hundred bytes; everything else is written."""
    topic, table = field.settings.topics.state, STATE.settings()
    admin = new_admin(field.settings)
    await admin.start()

    async def configure(configs: dict[str, str]) -> None:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])

    try:
        await configure({**table, "max.message.bytes": "100"})
        yield
        await configure(dict(table))
    finally:
        await admin.close()


@asynccontextmanager
async def kafka_stands_still(field: Field) -> AsyncIterator[None]:
    assert field.stack.kafka is not None
    async with standing_still(field.stack.kafka.signal):
        yield


@asynccontextmanager
async def standing_still(send: Callable[[signal.Signals], None]) -> AsyncIterator[None]:
    """SIGSTOP, and SIGCONT."""
    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


Fault = Callable[[Field], AbstractAsyncContextManager[None]]
Case = tuple[Fault, tuple[str, ...]]

# Acts follow one another; the rows of an act are done at the same time, the cases of a row one after the other.
ACTS: Final[Sequence[Sequence[Sequence[Case]]]] = (
    (
        ((a_worker_is_gone, ("AnabranchTargetDown", "AnabranchNoWorker", "AnabranchRunStuck")),),
        (
            (redis_is_gone, ("AnabranchRedisAway",)),
            (the_database_is_gone, ("AnabranchSqlAway",)),
            (history_stands_still, ("AnabranchProjectionBehind",)),
        ),
        ((a_handler_fails, ("AnabranchRunSuccessBudgetBurns",)),),
        ((letters_that_nobody_can_read, ("AnabranchDeadLetters",)),),
        ((a_handler_blocks_its_loop, ("AnabranchEventLoopBlocked",)),),
    ),
    (
        ((handlers_wait_for_others, ("AnabranchCommandLagGrows",)),),
        ((workers_die_with_leases, ("AnabranchWorkersLost",)),),
    ),
    (((the_orchestrator_is_stopped, ("AnabranchPartitionsWithoutOwner", "AnabranchInboxLagGrows")),),),
    (
        (
            (
                kafka_is_slow_while_partitions_are_taken_over,
                ("AnabranchRestoreSlow", "AnabranchApiLatencyBudgetBurns"),
            ),
        ),
    ),
    (((checkpoints_are_refused, ("AnabranchCheckpointFailing",)),),),
    (((kafka_stands_still, ("AnabranchApiErrorBudgetBurns",)),),),
)
