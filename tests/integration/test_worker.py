"""Workers on a real Kafka and a real Valkey: leases, rebalances, the poll interval, the memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
import structlog
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition
from pydantic import BaseModel
from redis.asyncio import Redis

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.redis import LocalRedis
from anabranch.services.steps.context import StepContext
from anabranch.services.steps.kafka_ports import KafkaCommands, KafkaControl, group_of
from anabranch.services.steps.ports import (
    Asked,
    CommandRecord,
    MemoryUnavailable,
    Note,
    Remembered,
    Take,
)
from anabranch.services.steps.redis_memory import RedisMemory
from anabranch.services.steps.settings import StepServiceSettings, WorkerSettings
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.services.steps.worker import Worker
from anabranch.shared.contracts.codec import decode, encode
from anabranch.shared.contracts.messages import INBOX as INBOX_MESSAGES
from anabranch.shared.contracts.messages import RunStep
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, STEPS
from anabranch.shared.runtime import group_reader
from anabranch.shared.runtime.clients import new_admin
from anabranch.shared.runtime.clock import now_ms
from anabranch.shared.runtime.errors import CommitRefused
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.redis import RedisKeys, new_redis

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIXES = count()
POLL_INTERVAL_MS = 2_000
RUN = "0190b0a0-0000-7000-8000-{:012x}"


class Nap(BaseModel):
    seconds: float


class Woken(BaseModel):
    seconds: float


@dataclass
class Witness:
    started: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)


def nap_type(witness: Witness) -> StepType[Nap, Woken]:
    @step_type("nap")
    async def nap(given: Nap, context: StepContext) -> Woken:
        witness.started[context.run_id] += 1
        context.heartbeat({"asleep": given.seconds})
        await asyncio.sleep(given.seconds)
        witness.finished[context.run_id] += 1
        return Woken(seconds=given.seconds)

    return nap


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalRedis]:
    async with LocalRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def settings(kafka: LocalKafka, redis_server: LocalRedis) -> StepServiceSettings:
    settings = StepServiceSettings(
        kafka_bootstrap_servers=kafka.bootstrap,
        redis_url=redis_server.url,
        topic_prefix=f"worker{next(PREFIXES)}",
        run_partitions=4,
        step_partitions=4,
    )
    topics = settings.topics
    await ensure_topics(
        settings,
        [
            (INBOX, topics.inbox),
            (CONTROL, topics.control),
            (DEAD_LETTERS, topics.dead_letters),
            (STEPS, topics.steps("nap")),
        ],
    )
    return settings


@pytest_asyncio.fixture(loop_scope="module")
async def redis(settings: StepServiceSettings) -> AsyncIterator[Redis]:
    client = new_redis(settings)
    yield client
    await client.aclose()


@asynccontextmanager
async def a_worker(
    settings: StepServiceSettings, name: str, serves: StepType[Any, Any], **numbers: Any
) -> AsyncIterator[Worker[Any, Any]]:
    """A worker that serves until the block is left, and stops gracefully then."""
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        outbox, control, client = Outbox(settings), KafkaControl(settings), new_redis(settings)
        await outbox.start()
        stack.push_async_callback(outbox.stop)
        await control.start()
        stack.push_async_callback(control.stop)
        stack.push_async_callback(client.aclose)
        failures: list[BaseException] = []

        async def fail(error: BaseException) -> None:
            failures.append(error)

        commands = KafkaCommands(settings, serves.name, fail=fail, max_poll_interval_ms=POLL_INTERVAL_MS)
        worker = Worker(
            serves,
            name=name,
            topics=settings.topics,
            commands=commands,
            results=outbox,
            memory=RedisMemory(client, RedisKeys(settings.topic_prefix), serves.name),
            control=control,
            now_ms=now_ms,
            log=structlog.get_logger(worker=name),
            settings=WorkerSettings(**numbers),
        )
        running = asyncio.create_task(worker.run(stopping), name=name)
        while not commands.is_member and not running.done():
            await asyncio.sleep(0.02)
        yield worker
        stopping.set()
        await running
        assert failures == []


async def send(settings: StepServiceSettings, *seconds: float, first: int = 0) -> None:
    """Send a command for each nap, of runs numbered from `first`."""
    outbox = Outbox(settings)
    await outbox.start()
    for number, nap_s in enumerate(seconds, start=first):
        run_id = RUN.format(number)
        command = RunStep(
            run_id=run_id,
            step="nap",
            attempt=1,
            uses="nap",
            tenant="t",
            input={"seconds": nap_s},
            timeout_s=60,
            at_ms=now_ms(),
        )
        record = encode(command, message_id=f"{run_id}/nap/1", source="test", at_ms=0, trace_id="1" * 32)
        partition = number % settings.step_partitions
        outbox.append(settings.topics.steps("nap"), partition, run_id.encode(), record.value, record.headers)
    await outbox.stop()


async def inbox(settings: StepServiceSettings) -> list[Any]:
    """Return what was sent to the orchestrator so far."""
    consumer = new_consumer(settings)
    await consumer.start()
    try:
        partitions = [TopicPartition(settings.topics.inbox, number) for number in range(settings.run_partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        messages = []
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                messages += [decode(INBOX_MESSAGES, record.value) for record in records]
        return messages
    finally:
        await consumer.stop()


async def committed(settings: StepServiceSettings) -> int:
    """Return how many commands the group has released."""
    consumer = new_consumer(settings, group_id=group_of(settings, "nap"))
    consumer.assign([TopicPartition(settings.topics.steps("nap"), 0)])
    await consumer.start()
    try:
        partitions = [TopicPartition(settings.topics.steps("nap"), n) for n in range(settings.step_partitions)]
        return sum([await consumer.committed(tp) or 0 for tp in partitions])
    finally:
        await consumer.stop()


async def until(condition: Any, within_s: float = 60) -> None:
    """Wait for a condition, a function or a coroutine function."""
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if asyncio.iscoroutine(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.05)


async def test_a_handler_longer_than_the_poll_interval_runs_once_and_its_partition_moves_on(
    settings: StepServiceSettings,
) -> None:
    """Three times `max.poll.interval`, while workers join and leave: one start, one result, heartbeats."""
    witness = Witness()
    nap = nap_type(witness)
    async with a_worker(settings, "w1", nap, grace_s=0.5, lease_s=3):
        await send(settings, 3 * POLL_INTERVAL_MS / 1000)
        await until(lambda: witness.started)
        await send(settings, 0, 0, 0, 0, first=1)  # run 4 is behind the long one
        await until(lambda: len(witness.finished) == 4)
        await until(lambda: _equals(committed(settings), 5))
        async with a_worker(settings, "w2", nap, grace_s=0.5, lease_s=3):
            await send(settings, *[0] * 8, first=10)
            await until(lambda: len(witness.finished) == 12)
        await until(lambda: len(witness.finished) == 13)

    assert set(witness.started.values()) == {1}
    messages = await inbox(settings)
    answers = [message for message in messages if message.type == "AttemptSucceeded"]
    renewals = [message for message in messages if message.type == "LeasesRenewed"]
    assert Counter(answer.run_id for answer in answers) == witness.started
    assert len(renewals) >= 4
    assert renewals[-1].leases[0].progress == {"asleep": 6.0}


async def test_short_handlers_run_once_while_workers_join_and_leave(settings: StepServiceSettings) -> None:
    """Each of 600 naps of 200 ms is started once, answered once, and released."""
    witness = Witness()
    nap = nap_type(witness)
    async with a_worker(settings, "w1", nap, concurrency=16):
        sending = asyncio.create_task(_send_slowly(settings, 600))
        async with a_worker(settings, "w2", nap, concurrency=16):
            await asyncio.sleep(1)
            async with a_worker(settings, "w3", nap, concurrency=16):
                await asyncio.sleep(1)
            await asyncio.sleep(0.5)
        await sending
        await until(lambda: len(witness.finished) == 600)
        await until(lambda: _equals(committed(settings), 600))

    assert set(witness.started.values()) == {1}
    answers = [message for message in await inbox(settings) if message.type == "AttemptSucceeded"]
    assert len(answers) == len({answer.run_id for answer in answers}) == 600


async def test_a_repeat_that_reaches_another_worker_is_answered_from_the_memory(settings: StepServiceSettings) -> None:
    """The orchestrator repeats commands after a crash; the worker that knew them is gone."""
    witness = Witness()
    nap = nap_type(witness)
    async with a_worker(settings, "w1", nap):
        await send(settings, 0, 0)
        await until(lambda: len(witness.finished) == 2)
    before = await inbox(settings)
    async with a_worker(settings, "w2", nap):
        consumer = new_consumer(settings)
        await consumer.start()
        partitions = [TopicPartition(settings.topics.steps("nap"), number) for number in (0, 1)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        records = [await consumer.getone(tp) for tp in partitions]
        await consumer.stop()
        outbox = Outbox(settings)
        await outbox.start()
        for record in records:
            outbox.append(record.topic, record.partition, record.key, record.value, record.headers)
        await outbox.stop()
        await until(lambda: _equals(committed(settings), 4))
    assert set(witness.started.values()) == {1}
    assert Counter(map(repr, await inbox(settings))) == Counter(2 * [*map(repr, before)])


async def test_memory_recalls_what_was_noted(settings: StepServiceSettings, redis: Redis) -> None:
    """By attempt, in one round trip, across buckets; takes are counted atomically."""
    memory = RedisMemory(redis, RedisKeys(settings.topic_prefix), "nap")
    first, second, unknown = Asked("r/a/1", 0), Asked("r/b/1", 600_000), Asked("r/c/1", 0)
    await memory.remember([Note(*first, holder="w 1", leased_until_ms=7), Note(*second, result=b"AttemptX\n{}")])
    await memory.count_takes([Take(*first), Take(*unknown)])
    await memory.count_takes([Take(*first, alone_on="w 2")])
    assert await memory.recall([second, unknown, first]) == [
        Remembered(result=b"AttemptX\n{}"),
        Remembered(takes=1),
        Remembered(holder="w 1", leased_until_ms=7, takes=2, alone=1, alone_on="w 2"),
    ]
    for key in await redis.keys(f"{settings.topic_prefix}:worker:*"):
        assert 3500 < await redis.ttl(key) <= 3600


async def test_memory_that_is_away_says_so() -> None:
    client = new_redis(StepServiceSettings(redis_url="redis://127.0.0.1:1/0"))
    memory = RedisMemory(client, RedisKeys("x"), "nap")
    with pytest.raises(MemoryUnavailable):
        await memory.recall([Asked("r/a/1", 0)])
    await client.aclose()


# --- the port of commands ---------------------------------------------------------------------------------------------

ALL = {0, 1, 2, 3}


class Member:
    """Takes commands as a worker does, and notes what it was given. It commits what it took when that is revoked."""

    def __init__(self, settings: StepServiceSettings, **overrides: Any) -> None:
        self.commands = KafkaCommands(settings, "nap", fail=self._fail, **overrides)
        self.assignments: list[set[int]] = []  # number n is at n - 1
        self.taken: list[CommandRecord] = []
        self.failures: list[BaseException] = []
        self.when_assigned: Callable[[], object] = lambda: None

    async def _fail(self, error: BaseException) -> None:
        self.failures.append(error)

    def on_assigned(self, partitions: Iterable[int], assignment: int, at_ms: int) -> None:
        self.assignments.append(set(partitions))
        assert assignment == len(self.assignments)
        self.when_assigned()

    async def on_revoked(self, partitions: Iterable[int]) -> None:
        await self.commit()

    async def commit(self) -> None:
        """Commit what was taken under the assignment that is."""
        number = self.commands.assignment
        offsets = {record.partition: record.offset + 1 for record in self.taken if record.assignment == number}
        if offsets:
            await self.commands.commit(offsets, number)

    @property
    def owns(self) -> set[int]:
        return self.assignments[-1] if self.assignments else set()

    async def take(self, max_records: int = 1000, wait_s: float = 0.2) -> list[CommandRecord]:
        records = list(await self.commands.take(max_records, wait_s))
        assert len(records) <= max_records
        assert all(record.assignment == len(self.assignments) for record in records)
        assert {record.partition for record in records} <= self.owns
        self.taken += records
        return records

    async def take_until(self, condition: Any, max_records: int = 1000) -> None:
        """Take until a condition holds of what was taken since."""
        async with asyncio.timeout(60):
            since = len(self.taken)
            while not condition(self.taken[since:]):
                await self.take(max_records)

    def offsets(self, partition: int) -> list[int]:
        return [record.offset for record in self.taken if record.partition == partition]


@asynccontextmanager
async def a_member(settings: StepServiceSettings, **overrides: Any) -> AsyncIterator[Member]:
    """A member of the group that has its share."""
    member = Member(settings, **overrides)
    await member.commands.start(member)
    try:
        await until(lambda: member.commands.is_member)
        yield member
    finally:
        await member.commands.stop()
    assert member.failures == []


async def append(settings: StepServiceSettings, counts: dict[int, int]) -> None:
    """Append so many records to each partition, a batch of each; return when they are acknowledged."""
    outbox = Outbox(settings)
    await outbox.start()
    for partition, records in counts.items():
        for number in range(records):
            outbox.append(settings.topics.steps("nap"), partition, b"key", b"%d" % number, ())
    await outbox.stop()


async def test_commands_are_taken_a_few_at_a_time_in_the_order_of_their_partitions(
    settings: StepServiceSettings,
) -> None:
    async with a_member(settings) as member:
        await append(settings, dict.fromkeys(ALL, 50))
        sizes = set()
        while len(member.taken) < 200:
            sizes.add(len(await member.take(7)))
        assert max(sizes) == 7
        assert [member.offsets(partition) for partition in ALL] == [[*range(50)]] * 4


async def test_commands_of_a_paused_partition_are_kept_back_and_come_when_it_is_resumed(
    settings: StepServiceSettings,
) -> None:
    """Also those that were fetched and not taken: none is lost, none comes twice."""
    async with a_member(settings) as member:
        for turn in range(3):
            before = 43 * turn
            await append(settings, {0: 40})
            assert len(await member.take(5, 10)) == 5
            member.commands.pause([0])
            await append(settings, {0: 3})
            await append(settings, {1: 1})  # an answer with this one would hold those before it, too
            await member.take_until(len)
            assert member.offsets(0) == [*range(before + 5)]
            assert member.offsets(1) == [*range(turn + 1)]
            member.commands.resume([0])
            await member.take_until(lambda taken: len(taken) == 38)
            assert member.offsets(0) == [*range(before + 43)]


async def test_resuming_what_is_not_paused_changes_nothing(settings: StepServiceSettings) -> None:
    async with a_member(settings) as member:
        await append(settings, {0: 20})
        await member.take(5, 10)
        member.commands.resume([0])
        await append(settings, {0: 1})
        await member.take_until(lambda taken: taken and taken[-1].offset == 20)
        assert member.offsets(0) == [*range(21)]


async def test_pause_before_the_offsets_are_known_holds(settings: StepServiceSettings) -> None:
    member = Member(settings)
    member.when_assigned = lambda: member.commands.pause(ALL)
    await append(settings, dict.fromkeys(ALL, 20))
    await member.commands.start(member)
    await until(lambda: member.commands.is_member)
    assert member.commands._seeking is not None
    await member.commands._seeking.task
    assert member.commands._reader._positions == {}
    member.commands.resume(ALL)
    await member.take_until(lambda taken: len(taken) == 80)
    assert [member.offsets(partition) for partition in ALL] == [[*range(20)]] * 4
    await member.commands.stop()
    assert member.failures == []


async def test_commands_that_are_large_fill_the_buffer_by_their_bytes(
    settings: StepServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_reader, "MAX_FETCHED_BYTES", 40)  # values of one and of two digits
    async with a_member(settings) as member:
        await append(settings, {0: 30})
        await until(lambda: len(member.commands._fetched) == 30)
        assert member.commands._reader._positions == {}  # of no partition is anything read
        await append(settings, {0: 5})
        await append(settings, {1: 1})
        await member.take_until(lambda taken: len(taken) == 36, max_records=7)
        assert member.offsets(0) == [*range(35)]


async def test_full_buffer_is_filled_no_further_and_what_waits_comes_when_it_is_half_empty(
    settings: StepServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_reader, "_MAX_FETCHED", 50)
    async with a_member(settings) as member:
        fetched = member.commands._fetched
        for turn in range(3):
            await append(settings, {0: 100})
            await until(lambda: len(fetched) == 100)
            assert member.commands._reader._positions == {}
            await append(settings, {0: 20})
            await append(settings, {1: 1})
            await member.take_until(lambda taken: len(taken) == 121, max_records=9)
            assert member.offsets(0) == [*range(120 * (turn + 1))]
            assert member.offsets(1) == [*range(turn + 1)]


async def test_commands_fetched_under_an_assignment_that_is_over_are_never_taken(settings: StepServiceSettings) -> None:
    """Whoever has their partitions now takes them: each command is taken once, by its owner."""
    async with a_member(settings) as first:
        await append(settings, dict.fromkeys(ALL, 200))
        await until(lambda: len(first.commands._fetched) == 800)
        await first.take(10)
        async with a_member(settings) as second:
            await until(lambda: len(first.assignments) == 2 and first.owns | second.owns == ALL)
            assert not first.owns & second.owns
            with pytest.raises(CommitRefused):
                await first.commands.commit({0: 1}, 1)
            assert len(await first.take(10, 5)) == len(await second.take(10, 5)) == 10
            async with a_member(settings) as third:
                members = [first, second, third]
                await until(lambda: len(third.owns) + len(second.owns) + len(first.owns) == 4)
                everything = asyncio.gather(
                    *(member.take_until(lambda _: _count(members) >= 800) for member in members)
                )
                await everything
    taken = Counter((record.partition, record.offset) for member in members for record in member.taken)
    assert taken == Counter((partition, offset) for partition in ALL for offset in range(200))


async def test_worker_that_takes_no_more_leaves_the_group_and_the_one_that_does_stays(
    settings: StepServiceSettings,
) -> None:
    """One that takes again is a member again, and goes on with what is its own."""
    interval = {"max_poll_interval_ms": POLL_INTERVAL_MS}
    async with a_member(settings, **interval) as idle, a_member(settings, **interval) as busy:
        await until(lambda: len(idle.owns) == 2)
        await busy.take_until(lambda _: busy.owns == ALL)
        assert [len(owned) for owned in busy.assignments] == [2, 4]
        await append(settings, dict.fromkeys(ALL, 3))
        await busy.take_until(lambda taken: len(taken) == 12)

        taking = asyncio.create_task(idle.take_until(lambda taken: len(taken) == 4))
        await busy.take_until(lambda _: len(busy.owns) == 2)
        await append(settings, dict.fromkeys(ALL, 2))
        await busy.take_until(lambda taken: len(taken) == 4)
        await taking
        assert [len(owned) for owned in busy.assignments] == [2, 4, 2]
        assert {(r.partition, r.offset) for r in idle.taken} == {(p, o) for p in idle.owns for o in (3, 4)}


async def test_commands_whose_offset_is_gone_are_taken_from_the_first_there_is(settings: StepServiceSettings) -> None:
    """What else there is goes on."""
    async with a_member(settings) as member:
        await append(settings, {0: 20, 1: 3})
        await member.take_until(lambda taken: len(taken) == 23)
        await member.commands.commit({0: 5, 1: 2}, member.commands.assignment)
    await delete_before(settings, 0, 12)
    async with a_member(settings) as member:
        await member.take_until(lambda taken: len(taken) == 9)
        assert member.offsets(0) == [*range(12, 20)]
        assert member.offsets(1) == [2]


async def delete_before(settings: StepServiceSettings, partition: int, offset: int) -> None:
    admin = new_admin(settings)
    await admin.start()
    await admin.delete_records({TopicPartition(settings.topics.steps("nap"), partition): RecordsToDelete(offset)})
    await admin.close()


def _count(members: list[Member]) -> int:
    return sum(len(member.taken) for member in members)


async def _send_slowly(settings: StepServiceSettings, commands: int) -> None:
    for first in range(0, commands, 50):
        await send(settings, *[0.2] * 50, first=first)
        await asyncio.sleep(0.2)


async def _equals(awaitable: Any, expected: object) -> bool:
    return await awaitable == expected
