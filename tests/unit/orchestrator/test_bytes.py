"""A partition takes no more than it gets rid of: what is read, on its way and in no checkpoint is bounded in bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from anabranch.services.orchestrator import kafka_log
from anabranch.services.orchestrator.kafka_log import InboxReader
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.partition_task import Pace, PartitionTask
from anabranch.services.orchestrator.ports import InboxRecord
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import KIB, MAX_FETCHED_BYTES, MIB
from anabranch.shared.runtime.metrics import new_registry
from anabranch.shared.runtime.topic_reader import Record
from tests.support.scripted_log import ScriptedLog

SLOW = 3600.0


def a_submission(number: int) -> bytes:
    """Return a record of some 100 KiB that leads to an event of as much."""
    return (
        m.SubmitRun(
            run_id=f"r{number}", tenant="t", definition='{"name":"p","steps":{"a":{"uses":"x"}}}',
            inputs={"x": "x" * 100 * KIB},
        )
        .model_dump_json()
        .encode()
    )  # fmt: skip


@asynccontextmanager
async def an_owner(log: ScriptedLog, pace: Pace) -> AsyncIterator[PartitionTask]:
    """Own the partition for a while."""
    task = PartitionTask(
        log, "inbox", OrchestratorMetrics(new_registry()), structlog.get_logger(), pace, now_ms=lambda: 0
    )
    running = asyncio.create_task(task.run())
    yield task
    task.stop()
    log.acknowledge_at_once = True
    log.acknowledge()
    await asyncio.wait_for(running, 60)


async def _until_at_rest(task: PartitionTask) -> int:
    """Wait until the task decides no more, and return the offset it stands at."""
    async with asyncio.timeout(60):
        while True:
            before = task.offset
            for _ in range(200):
                await asyncio.sleep(0)
            if task.offset is not None and task.offset == before:
                return before


async def test_in_the_middle_of_a_batch_no_more_is_decided_than_can_be_on_its_way() -> None:
    """Five hundred records are taken at once, each may lead to megabytes."""
    log = ScriptedLog()
    log.acknowledge_at_once = False
    for number in range(100):
        log.feed(a_submission(number))
    async with an_owner(log, Pace(checkpoint_s=SLOW, max_unacknowledged_bytes=MIB)) as task:
        assert await _until_at_rest(task) <= 12
        log.acknowledge()
        assert 13 <= await _until_at_rest(task) <= 24


async def test_a_partition_checkpoints_earlier_when_much_has_changed() -> None:
    """So that none takes long to encode or to write."""
    log = ScriptedLog()
    for number in range(50):
        log.feed(a_submission(number))
    pace = Pace(checkpoint_s=SLOW, checkpoint_bytes=MIB, max_uncheckpointed_bytes=2 * MIB)
    async with an_owner(log, pace) as task:
        async with asyncio.timeout(60):
            while task.offset != 50:
                await asyncio.sleep(0)
        assert log.calls.count("checkpoint") >= 3  # of 10 MiB, at most 2 MiB and a record in none


async def test_no_more_is_decided_than_one_checkpoint_may_hold() -> None:
    """While one is being written the next one grows, up to its limit."""
    log = ScriptedLog()
    log.acknowledge_at_once = False
    for number in range(100):
        log.feed(a_submission(number))
    pace = Pace(checkpoint_s=SLOW, checkpoint_bytes=MIB, max_uncheckpointed_bytes=2 * MIB)
    async with an_owner(log, pace) as task:
        assert await _until_at_rest(task) <= 20


class _Reading:
    """Which partitions a reader of the topic reads."""

    def __init__(self) -> None:
        self.reads: set[int] = set()
        self.pause = self.leave = self.reads.discard

    def seek(self, partition: int, offset: int) -> None:
        self.reads.add(partition)

    def resume(self, partition: int) -> None:
        self.reads.add(partition)


def _some(count: int, size: int) -> list[Record]:
    return [Record(number, 0, b"k", b"x" * size, ()) for number in range(count)]


async def test_all_partitions_together_buffer_what_one_process_may() -> None:
    """When they have read too much, none reads on until enough of it is taken."""
    settings = OrchestratorSettings()
    inbox = InboxReader(settings)
    inbox._reader = reading = _Reading()  # type: ignore[assignment]
    logs = [
        kafka_log.KafkaPartitionLog(number, 1, settings=settings, reader=inbox, outbox=None, lanes=None)  # type: ignore[arg-type]
        for number in range(12)
    ]
    for log in logs:
        inbox.watch(log, 0)
    for log in logs[:-1]:
        inbox._deliver(log.partition, _some(3, MAX_FETCHED_BYTES // 33))
    assert reading.reads == set(range(12))
    inbox._deliver(11, _some(1, MIB))
    assert reading.reads == set()
    assert sum(isinstance(record, InboxRecord) for record in await logs[0].take(0)) == 3
    assert reading.reads == set(range(12))
    inbox._deliver(0, _some(6_000, 1))
    assert reading.reads == set(range(1, 12))
