"""How many commands wait is seen of the partitions that there are, and of the topics that there are."""

from collections.abc import Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata
from prometheus_client import CollectorRegistry
from structlog import get_logger

from anabranch.services.gateway.command_lag import CommandLagWatch
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.step_types import StepTypes
from tests.unit.gateway.fakes import announced

PARTITIONS = {"pipelines.steps.http": 3, "pipelines.steps.simulate": 0}


class Kafka:
    """Three partitions with ten records each; the workers are done with four of the first, and none of the others."""

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"topic": name, "partitions": [{"partition": n} for n in range(PARTITIONS[name])]} for name in sorted(names)
        ]

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        assert all(each.partition < PARTITIONS[each.topic] for each in partitions), "such are waited for in vain"
        return dict.fromkeys(partitions, 10)

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 2)

    async def list_consumer_group_offsets(
        self, group: str, *, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        assert group == "pipelines.steps.http"
        return {each: OffsetAndMetadata(4 if each.partition == 0 else -1, "") for each in partitions}


async def test_partitions_are_counted_as_kafka_has_them() -> None:
    """The settings may say another number since the topic was made; a type may have no topic yet."""
    step_types, kafka = StepTypes(), Kafka()
    for name in ("http", "simulate"):
        step_types.announce(announced(name))
    settings = GatewaySettings(step_partitions=12)
    watch = CommandLagWatch(
        kafka, kafka, step_types=step_types, settings=settings,  # type: ignore[arg-type]
        metrics=GatewayMetrics(CollectorRegistry()), log=get_logger(),
    )  # fmt: skip
    assert await watch.look() == {"http": {0: 6, 1: 8, 2: 8}}
