"""Kafka for services, under one name: clients, topics at start-up, and the outbox."""

from anabranch.shared.runtime.clients import (
    follow,
    new_consumer,
    new_follower,
    new_producer,
    stop_consumer,
    wait_for_kafka,
)
from anabranch.shared.runtime.errors import AppendFailed, KafkaUnreachable, RecordTooLarge, TopicMismatch
from anabranch.shared.runtime.outbox import Outbox
from anabranch.shared.runtime.topic_setup import ensure_topics

__all__ = [
    "AppendFailed",
    "KafkaUnreachable",
    "Outbox",
    "RecordTooLarge",
    "TopicMismatch",
    "ensure_topics",
    "follow",
    "new_consumer",
    "new_follower",
    "new_producer",
    "stop_consumer",
    "wait_for_kafka",
]
