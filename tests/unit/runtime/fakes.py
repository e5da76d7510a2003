"""aiokafka's own queue behind a producer whose broker is the test."""

import asyncio
from typing import Any

from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import RecordMetadata, TopicPartition


class FakeCluster:
    def __init__(self) -> None:
        self.leaderless: set[int] = set()

    def leader_for_partition(self, tp: TopicPartition) -> int:
        return -1 if tp.partition in self.leaderless else 0


class FakeProducer:
    """`AIOKafkaProducer` without a sender: `take()` is the sender's turn, and the test answers for the broker."""

    def __init__(self, queue_timeout_s: float = 60.0) -> None:
        self.cluster = FakeCluster()
        self.sequences = TransactionManager(None, 0)
        self.sequences.set_pid_and_epoch(1, 0)
        self.queue = MessageAccumulator(self.cluster, 1, 0, 60.0, txn_manager=self.sequences)
        self.queue_timeout_s = queue_timeout_s
        self.stopped = False

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> "asyncio.Future[RecordMetadata]":
        tp = TopicPartition(topic, partition)
        delivery: asyncio.Future[RecordMetadata] = await self.queue.add_batch(batch, tp, self.queue_timeout_s)
        return delivery

    async def take(self) -> dict[int, MessageBatch]:
        """Take what is queued, as the sender does: at most one batch of every partition."""
        await turns()
        nodes, _ = self.queue.drain_by_nodes(ignore_nodes=[])
        return {tp.partition: batch for batches in nodes.values() for tp, batch in batches.items()}


def values(batch: MessageBatch) -> list[bytes | None]:
    records = MemoryRecords(bytes(batch.get_data_buffer()))
    found = []
    while records.has_next():
        found += [record.value for record in records.next_batch()]
    return found


async def turns(count: int = 5) -> None:
    """Let the loop do everything that is ready, and what follows from it."""
    for _ in range(count):
        await asyncio.sleep(0)
