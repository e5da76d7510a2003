"""What the gateway says while Kafka is away: one line when it begins, not one with every look."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry
from structlog import get_logger
from structlog.testing import capture_logs

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import LagWatch, Pressure
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.step_types import CommandTopicWatch, StepTypes
from anabranch.shared.contracts.topics import TopicNames

from .fakes import announced


class Admin:
    """Kafka's, which can be away."""

    is_away = False

    async def describe_topics(self, _: list[str]) -> list[dict[str, object]]:
        if self.is_away:
            raise KafkaConnectionError("away")
        return []


async def test_an_outage_is_said_when_it_begins_and_when_it_is_over() -> None:
    """However often it is looked meanwhile, and again when it comes again."""
    admin, types = Admin(), StepTypes()
    types.announce(announced("x"))
    watch = CommandTopicWatch(admin, TopicNames("p", 1), types, get_logger())  # type: ignore[arg-type]
    with capture_logs() as said:
        for away in (False, True, True, True, False, False, True):
            admin.is_away = away
            await watch.look()
    assert [line["event"] for line in said] == [
        "command topics cannot be looked for",
        "command topics can be looked for again",
        "command topics cannot be looked for",
    ]


class Offsets:
    """The consumer that is asked for ends, which fails as often as it is told."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        if not self.answers:
            raise EndOfTestError
        answer = self.answers.pop(0)
        if answer is None:
            raise KafkaConnectionError("away")
        return dict.fromkeys(partitions, answer)


class Committed:
    """Nothing was ever committed."""

    async def list_consumer_group_offsets(self, *_: object, **__: object) -> dict[TopicPartition, Any]:
        return {}


class EndOfTestError(Exception):
    """All answers were given."""


async def test_a_lag_that_is_not_known_is_said_once() -> None:
    """Until it was known again."""
    settings = GatewaySettings(lag_check_s=0.001)
    pressure = Pressure(Outbox(), settings, GatewayMetrics(CollectorRegistry()))
    pressure.inbox_exists = True
    offsets = Offsets(None, None, 5, None, None, 7)
    watch = LagWatch(offsets, Committed(), pressure, settings, get_logger())  # type: ignore[arg-type]
    watch._begins = dict.fromkeys(watch._partitions, 0)
    with capture_logs() as said, pytest.raises(EndOfTestError):
        await watch.watch()
    assert [line["event"] for line in said] == ["the inbox's lag is unknown"] * 2
    assert pressure.lag == 7 * settings.run_partitions


class Outbox:
    """Nothing is on its way."""

    unacknowledged = unacknowledged_bytes = 0
