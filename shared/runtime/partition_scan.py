"""Reads one partition of a topic as it lies there, from a time or its beginning to its end: for operators' commands."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.clients import new_client, new_consumer, stop_consumer
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import Record

_POLL_MS: Final = 200


class PartitionScan:
    """The partition of a topic that holds the records of a key. Use it as `async with`; the topic may not exist."""

    def __init__(self, settings: Settings, topic: str, key: bytes) -> None:
        self._settings = settings
        self._topic = topic
        self._key = key
        self._partition: TopicPartition | None = None
        self._consumer: AIOKafkaConsumer = new_consumer(settings)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        try:
            await self._assign()
        except BaseException:
            await stop_consumer(self._consumer)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_consumer(self._consumer)

    async def _assign(self) -> None:
        count = await _partitions_of(self._settings, self._topic)
        if count:
            self._partition = TopicPartition(self._topic, partition_of(self._key, count))
            self._consumer.assign([self._partition])
            await self.seek(None)

    @property
    def partition(self) -> int | None:
        """The partition's number; None when there is no such topic."""
        return None if self._partition is None else self._partition.partition

    async def first_offset(self) -> int:
        """Return the offset of the oldest record that is still there."""
        if self._partition is None:
            return 0
        offsets: dict[Any, int] = await self._consumer.beginning_offsets([self._partition])
        return offsets[self._partition]

    async def seek(self, at_ms: int | None) -> None:
        """Go on with the first record that is as young as this, or with the oldest one."""
        if self._partition is None:
            return
        found = None if at_ms is None else await self._consumer.offsets_for_times({self._partition: at_ms})
        if found is None:
            self._consumer.seek(self._partition, await self.first_offset())
        elif found[self._partition] is None:  # all are older
            await self._consumer.seek_to_end(self._partition)
        else:
            self._consumer.seek(self._partition, found[self._partition].offset)

    async def to_end(self) -> AsyncIterator[Sequence[Record]]:
        """Yield what lies between here and where the partition ends now. What comes later is for the next call."""
        if self._partition is None:
            return
        end = (await self._consumer.end_offsets([self._partition]))[self._partition]
        while await self._consumer.position(self._partition) < end:
            taken = (await self._consumer.getmany(self._partition, timeout_ms=_POLL_MS)).get(self._partition, [])
            yield [Record(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in taken]


async def _partitions_of(settings: Settings, topic: str) -> int:
    """Return how many partitions a topic has, 0 if there is none: asking for a topic by its name may make it."""
    client = new_client(settings)
    try:
        await client.bootstrap()
        return len((await client.fetch_all_metadata()).partitions_for_topic(topic) or ())
    finally:
        await client.close()
