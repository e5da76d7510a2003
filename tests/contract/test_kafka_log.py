"""The log on Kafka keeps the contract, on a real broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.kafka_log import InboxReader, KafkaPartitionLog
from anabranch.services.orchestrator.ports import PartitionLog
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, RUN_EVENTS, STATE, STEPS
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer, new_producer
from tests.contract.log_contract import LogContract, TypedRecord

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

    async def start(self) -> None:
        topics = [(topic, topic.name(self._settings.topic_prefix)) for topic in _TOPICS]
        await ensure_topics(self._settings, [*topics, (STEPS, self.topics.steps("work"))])
        await self._outbox.start()
        await self._reader.start()
        self._reading = asyncio.create_task(self._reader.run(), name="reader")

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._reader.stop()
        await asyncio.gather(self._outbox.stop(), return_exceptions=True)  # one that has failed says so again

    def log(self, partition: int, assignment: int) -> PartitionLog:
        return KafkaPartitionLog(
            partition, assignment, settings=self._settings, reader=self._reader, outbox=self._outbox
        )

    async def arrive(self, partition: int, value: bytes) -> None:
        producer: AIOKafkaProducer = new_producer(self._settings)
        await producer.start()
        headers = [("h", b"1")]
        await producer.send_and_wait(self.topics.inbox, value, key=b"key", partition=partition, headers=headers)
        await producer.stop()

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
