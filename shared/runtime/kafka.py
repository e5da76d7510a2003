"""Kafka for services: the project's producers and consumers. (`topics` and `outbox` are re-exported here.)"""

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import AppendFailed, KafkaUnreachable, RecordTooLarge, TopicMismatch
from anabranch.shared.runtime.outbox import Outbox
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_setup import ensure_topics

__all__ = [
    "AppendFailed", "KafkaUnreachable", "Outbox", "RecordTooLarge", "TopicMismatch",
    "ensure_topics", "new_consumer", "new_producer", "wait_for_kafka",
]  # fmt: skip


async def wait_for_kafka(settings: Settings, deadline: Deadline) -> None:
    """Return when a broker answers; `KafkaUnreachable` at the deadline."""
    raise NotImplementedError


def new_consumer(
    settings: Settings, *topics: str, group_id: str | None = None, **overrides: object
) -> AIOKafkaConsumer:
    """Return a consumer, not started, with the project's defaults."""
    raise NotImplementedError


def new_producer(settings: Settings, *, transactional_id: str | None = None) -> AIOKafkaProducer:
    """Return a producer, not started: acks=all, idempotent, records up to MAX_RECORD_BYTES."""
    raise NotImplementedError
