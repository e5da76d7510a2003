"""What the gateway says while Kafka is away: one line when it begins, not one with every look."""

from aiokafka.errors import KafkaConnectionError
from structlog import get_logger
from structlog.testing import capture_logs

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
