"""The log on Kafka keeps the contract, on a real broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import NoReturn

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CorruptRecordException

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.services.orchestrator import kafka_log
from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.kafka_log import InboxReader, KafkaPartitionLog
from anabranch.services.orchestrator.ports import TakeFailed
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, RUN_EVENTS, STATE, STEPS
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer, new_producer
from anabranch.shared.runtime.lanes import Lanes
from tests.contract.log_contract import LogContract, TypedRecord, taken

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PREFIXES = count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


class KafkaBench:
    """One process: its reader and its outbox. Others: a producer and a consumer for each call."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        self.topics = settings.topics
        self._settings = settings
        self._reader = InboxReader(settings)
        self._outbox = Outbox(settings)
        self._lanes = Lanes(settings)

    async def start(self) -> None:
        topics = [(topic, topic.name(self._settings.topic_prefix)) for topic in _TOPICS]
        await ensure_topics(self._settings, [*topics, (STEPS, self.topics.steps("work"))])
        await self._outbox.start()
        await self._lanes.start()
        await self._reader.start()
        self._reading = asyncio.create_task(self._reader.run(), name="reader")

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._reader.stop()
        await self._lanes.stop()
        await asyncio.gather(self._outbox.stop(), return_exceptions=True)  # one that has failed says so again

    def log(self, partition: int, assignment: int) -> KafkaPartitionLog:
        return KafkaPartitionLog(
            partition, assignment, settings=self._settings, reader=self._reader, outbox=self._outbox, lanes=self._lanes
        )

    async def arrive(self, partition: int, value: bytes) -> None:
        producer: AIOKafkaProducer = new_producer(self._settings)
        await producer.start()
        headers = [("h", b"1")]
        await producer.send_and_wait(self.topics.inbox, value, key=b"key", partition=partition, headers=headers)
        await producer.stop()

    async def arrive_at_once(self, partition: int, values: Sequence[bytes]) -> None:
        """Have records arrive in one batch."""
        for value in values:
            self._outbox.append(self.topics.inbox, partition, b"key", value, ())
        await self._outbox.acknowledged()

    async def leave_open(self, partition: int, changes: Sequence[Change]) -> None:
        transactional_id = f"{self._settings.group}-{partition}"
        producer: AIOKafkaProducer = new_producer(self._settings, transactional_id=transactional_id)
        await producer.start()
        await producer.begin_transaction()
        for key, value in changes:
            await producer.send_and_wait(self.topics.state, value, key=key, partition=partition)
        await producer.client.close()  # it vanishes: no abort, no commit
        producer._closed = True

    async def read(self, topic: str, partition: int) -> Sequence[TypedRecord]:
        tp = TopicPartition(topic, partition)
        consumer: AIOKafkaConsumer = new_consumer(self._settings)
        await consumer.start()
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        consumer.seek(tp, 0)
        found: list[TypedRecord] = []
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [(r.key, r.value, tuple(r.headers)) for r in records]
        await consumer.stop()
        return found


_TOPICS = (INBOX, STATE, RUN_EVENTS, CONTROL, DEAD_LETTERS)


class TestKafkaLog(LogContract):
    @pytest_asyncio.fixture(loop_scope="module")
    async def bench(self, kafka: LocalKafka) -> AsyncIterator[KafkaBench]:
        settings = OrchestratorSettings(
            kafka_bootstrap_servers=kafka.bootstrap, topic_prefix=f"log{next(_PREFIXES)}", run_partitions=2,
            step_partitions=2,
        )  # fmt: skip
        bench = KafkaBench(settings)
        await bench.start()
        yield bench
        await bench.stop()

    async def test_a_full_log_pauses_its_partition_and_no_other(
        self, bench: KafkaBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It holds no more than it must, and goes on in order when there is room, without loss or repeats."""
        monkeypatch.setattr(kafka_log, "_MAX_BUFFERED", 50)
        monkeypatch.setattr(kafka_log, "_TAKE_AT_MOST", 20)
        full, other = bench.log(0, 1), bench.log(1, 1)
        for log in (full, other):
            await log.seek(None)
        for turn in range(3):
            values = [b"%d/%d" % (turn, number) for number in range(130)]
            await bench.arrive_at_once(0, values[:100])
            await bench.arrive_at_once(1, [b"1"])  # an answer with this one would hold those before it, too
            assert len(await taken(other, 1)) == 1
            assert full.is_full
            await bench.arrive_at_once(0, values[100:])
            await bench.arrive_at_once(1, [b"2"])
            assert len(await taken(other, 1)) == 1
            assert len(full._buffer) == 100
            records = await taken(full, 130)
            assert [(r.offset, r.value) for r in records] == [*enumerate(values, 130 * turn)]
        await asyncio.gather(full.close(), other.close())

    async def test_all_logs_are_paused_when_one_of_them_has_a_few_large_records(
        self, bench: KafkaBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process's memory is bounded whatever the records weigh and wherever they are, and it empties again."""
        monkeypatch.setattr(kafka_log, "MAX_FETCHED_BYTES", 1000)
        log, other = bench.log(0, 1), bench.log(1, 1)
        for each in (log, other):
            await each.seek(None)
        await bench.arrive_at_once(0, [b"x" * 300] * 4)
        async with asyncio.timeout(60):
            while len(log._buffer) < 4:
                await asyncio.sleep(0.01)
        assert bench._reader._reader._positions == {}
        await bench.arrive_at_once(1, [b"1"])
        assert [record.offset for record in await taken(log, 4)] == [*range(4)]
        assert [record.offset for record in await taken(other, 1)] == [0]
        await asyncio.gather(log.close(), other.close())

    async def test_a_full_log_that_seeks_is_read_from_there(
        self, bench: KafkaBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That is how a partition is restored."""
        monkeypatch.setattr(kafka_log, "_MAX_BUFFERED", 50)
        monkeypatch.setattr(kafka_log, "_TAKE_AT_MOST", 20)
        log = bench.log(0, 1)
        await log.seek(None)
        await bench.arrive_at_once(0, [b"%d" % number for number in range(100)])
        await taken(log, 1)
        assert log.is_full
        await log.start_producer()
        await log.seek(70)
        assert [record.offset for record in await taken(log, 30)] == [*range(70, 100)]
        await log.close()

    async def test_a_log_that_is_closed_late_leaves_the_partition_to_its_successor(self, bench: KafkaBench) -> None:
        """Of two logs for one partition, the one that sought last is served."""
        before, after = bench.log(0, 1), bench.log(0, 2)
        await before.seek(None)
        await bench.arrive(0, b"0")
        await taken(before, 1)
        await after.seek(0)
        await before.close()
        await bench.arrive(0, b"1")
        assert [(r.offset, r.assignment) for r in await taken(after, 2)] == [(0, 2), (1, 2)]
        assert await before.take(0) == []
        await after.close()

    async def test_what_ends_the_reading_ends_every_log(
        self, bench: KafkaBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Here a batch with a wrong checksum; the records before it were taken."""
        logs = [bench.log(partition, 1) for partition in range(2)]
        for log in logs:
            await log.seek(None)
            await bench.arrive(log.partition, b"0")
            await taken(log, 1)
        monkeypatch.setattr("anabranch.shared.runtime.topic_reader._records_from", _corrupt)
        await bench.arrive(1, b"1")
        for log in logs:
            with pytest.raises(TakeFailed, match="a damaged batch"):
                await log.take(20)
            await log.close()


def _corrupt(offset: int, data: bytes) -> NoReturn:
    raise CorruptRecordException("a damaged batch")
