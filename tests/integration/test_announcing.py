"""A step type stays announced whatever is written over it, and its topic is made again, on a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
import structlog
from aiokafka.structs import TopicPartition
from pydantic import BaseModel

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.services.steps import announcing as module
from anabranch.services.steps.announcing import Announcing, CommandTopicGone, announcement_of
from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts.topics import STEP_TYPES, STEPS
from anabranch.shared.runtime.clients import new_admin
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.settings import Settings


class Words(BaseModel):
    text: str


def a_type(version: str) -> StepType[Words, Words]:
    @step_type("say", version=version)
    async def say(words: Words, context: StepContext) -> Words:
        return words

    return say


@pytest_asyncio.fixture
async def settings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        settings = Settings(kafka_bootstrap_servers=broker.bootstrap, run_partitions=2, step_partitions=2)
        await ensure_topics(settings, [(STEP_TYPES, settings.topics.step_types), (STEPS, settings.topics.steps("say"))])
        yield settings


class Service:
    """What a step service does to stay announced."""

    def __init__(self, settings: Settings, version: str = "1") -> None:
        self.outbox = Outbox(settings)
        self.value = announcement_of(a_type(version)).value
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._announcing = Announcing(a_type(version), self.outbox, settings, structlog.get_logger(), self._fail)

    async def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)

    async def start(self) -> None:
        await self.outbox.start()
        self._announcing.announce()
        self._keeping = asyncio.create_task(self._announcing.keep())

    async def stop(self) -> None:
        self._keeping.cancel()
        with suppress(asyncio.CancelledError):
            await self._keeping
        await self.outbox.stop()


async def announced(settings: Settings) -> list[bytes | None]:
    """Return everything that was ever announced."""
    consumer = new_consumer(settings)
    await consumer.start()
    partition = TopicPartition(settings.topics.step_types, 0)
    consumer.assign([partition])
    await consumer.seek_to_beginning(partition)
    end = (await consumer.end_offsets([partition]))[partition]
    found: list[bytes | None] = []
    while await consumer.position(partition) < end:
        found += [record.value for record in (await consumer.getmany(timeout_ms=200)).get(partition, [])]
    await consumer.stop()
    return found


async def until_stands(settings: Settings, value: bytes, count: int) -> None:
    """Return when `value` stands last, of at least `count` records."""
    async with asyncio.timeout(60):
        while len(found := await announced(settings)) < count or found[-1] != value:
            await asyncio.sleep(0.1)


async def test_what_is_written_over_an_announcement_is_written_over(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged one, one that nobody can read, a removal; two versions take turns with growing pauses."""
    monkeypatch.setattr(module, "_QUIET_S", 600.0)
    service = Service(settings)
    await service.start()
    await until_stands(settings, service.value, 1)
    forged = service.value.replace(b"Words", b"Lies")
    for number, value in enumerate((forged, b"{", None), 1):
        service.outbox.append(settings.topics.step_types, 0, b"say", value, ())
        await until_stands(settings, service.value, 1 + 2 * number)
        assert service._announcing._pause_s == (0, 0.1, 0.2)[number - 1]  # at once, then later each time
    service.outbox.append(settings.topics.step_types, 0, b"another", b"{", ())  # not ours
    other = Service(settings, "2")
    await other.start()
    await until_stands(settings, service.value, 16)  # each has taken its turn three times
    assert min(each._announcing._pause_s for each in (service, other)) >= 0.2  # doubled at each turn
    await service.stop()
    await until_stands(settings, other.value, 17)
    await other.stop()


async def test_command_topic_that_was_deleted_ends_the_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is created at the next start: offsets that the process knows are of a topic that is no more."""
    monkeypatch.setattr(module, "_LOOK_MS", 200)
    monkeypatch.setattr(module, "_GONE_AFTER_S", 0.5)
    service = Service(settings)
    await service.start()
    admin = new_admin(settings)
    await admin.start()
    await admin.delete_topics([settings.topics.steps("say")])
    await admin.close()
    assert isinstance(await asyncio.wait_for(service.failed, 60), CommandTopicGone)
    await service.stop()
