"""Follows a small topic of one partition from its beginning, without a group: every gateway knows all of it."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition

from anabranch.shared.runtime.kafka import follow

_TAKE_MS: Final = 5_000


class Record(Protocol):
    """The part of a Kafka record that counts there."""

    key: bytes | None
    value: bytes | None


async def records_of(consumer: AIOKafkaConsumer, topic: str, complete: Callable[[], None]) -> AsyncIterator[Record]:
    """Yield every record, for ever. `complete` is called once, when what was there at the beginning has been taken."""
    partition = TopicPartition(topic, 0)
    end = await follow(consumer, partition)
    is_complete = False
    while True:
        if not is_complete and await consumer.position(partition) >= end:
            is_complete = True
            complete()
        batches: dict[Any, list[Record]] = await consumer.getmany(timeout_ms=_TAKE_MS)
        for records in batches.values():
            for record in records:
                yield record
