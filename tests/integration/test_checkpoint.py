"""A checkpoint on a real broker: all of it or nothing, however many batches it takes."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.services.orchestrator.kafka_log import InboxReader, KafkaPartitionLog
from anabranch.services.orchestrator.ports import Fenced
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.contracts.topics import INBOX, STATE
from anabranch.shared.runtime.kafka import Outbox, ensure_topics
from anabranch.shared.runtime.lanes import Lanes

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIXES = count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest_asyncio.fixture(loop_scope="module")
async def settings(kafka: LocalKafka) -> OrchestratorSettings:
    prefix = f"checkpoint{next(PREFIXES)}"
    settings = OrchestratorSettings(
        kafka_bootstrap_servers=kafka.bootstrap, topic_prefix=prefix, run_partitions=1, step_partitions=1
    )
    await ensure_topics(settings, [(topic, topic.name(prefix)) for topic in (INBOX, STATE)])
    return settings


@pytest_asyncio.fixture(loop_scope="module")
async def reader(settings: OrchestratorSettings) -> AsyncIterator[InboxReader]:
    reader = InboxReader(settings)
    await reader.start()
    yield reader
    await reader.stop()


def a_log(settings: OrchestratorSettings, reader: InboxReader, assignment: int = 1) -> KafkaPartitionLog:
    return KafkaPartitionLog(
        0, assignment, settings=settings, reader=reader, outbox=Outbox(settings), lanes=Lanes(settings)
    )


async def test_checkpoint_of_many_batches_is_read_back_whole(
    settings: OrchestratorSettings, reader: InboxReader
) -> None:
    small = [(b"run/%d" % n, b"x" * 1000) for n in range(3000)]
    large = [(b"large/%d" % n, bytes([n]) * MIB) for n in range(3)]
    log = a_log(settings, reader)
    await log.start_producer()
    await log.checkpoint([*small, *large, (b"_checkpoint", b"1")])
    await log.checkpoint([(key, None) for key, _ in small] + [(b"_checkpoint", b"2")])
    await log.start_producer()  # ends the transaction: an answered commit may still be on its way to the readers
    assert await log.read_changelog() == {**dict(large), b"_checkpoint": b"2"}
    await log.close()


async def test_checkpoint_of_a_predecessor_is_refused_and_leaves_nothing(
    settings: OrchestratorSettings, reader: InboxReader
) -> None:
    before, after = a_log(settings, reader, 1), a_log(settings, reader, 2)
    await before.start_producer()
    await after.start_producer()
    with pytest.raises(Fenced):
        await before.checkpoint([(b"run", b"of the zombie"), (b"_checkpoint", b"9")])
    await after.checkpoint([(b"_checkpoint", b"1")])
    await after.start_producer()
    assert await after.read_changelog() == {b"_checkpoint": b"1"}
    await asyncio.gather(before.close(), after.close())


@pytest.mark.parametrize("batches", [1, 2])
async def test_checkpoint_is_fenced_also_when_the_producer_learns_so_before_it_commits(
    settings: OrchestratorSettings, reader: InboxReader, batches: int
) -> None:
    before, after = a_log(settings, reader, 1), a_log(settings, reader, 2)
    await before.start_producer()
    await after.start_producer()
    producer = before._producer
    assert producer is not None
    send_batch = producer.send_batch

    async def send_and_hear(*args: Any, **kwargs: Any) -> "asyncio.Future[Any]":
        sent: asyncio.Future[Any] = await send_batch(*args, **kwargs)
        await asyncio.wait([sent], timeout=60)
        return sent

    producer.send_batch = send_and_hear
    with pytest.raises(Fenced):
        await before.checkpoint([(b"run/%d" % number, bytes(MIB)) for number in range(batches)])
    await asyncio.gather(before.close(), after.close())
