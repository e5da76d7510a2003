"""The runtime toolkit on a real broker: topics, the outbox, and what both do when the broker is killed."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count

import pytest
import pytest_asyncio
from aiokafka.structs import TopicPartition

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.contracts.topics import INBOX, RUN_EVENTS, STATE, STEPS
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.kafka import (
    AppendFailed,
    KafkaUnreachable,
    Outbox,
    TopicMismatch,
    ensure_topics,
    new_consumer,
    new_producer,
    wait_for_kafka,
)
from anabranch.shared.runtime.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEADERS = (("ce_id", b"1"), ("ce_type", b"Test"))
PREFIXES = count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def settings(kafka: LocalKafka) -> Settings:
    return Settings(
        kafka_bootstrap_servers=kafka.bootstrap,
        topic_prefix=f"test{next(PREFIXES)}",
        run_partitions=4,
        step_partitions=3,
    )


@pytest_asyncio.fixture(loop_scope="module")
async def outbox(settings: Settings) -> AsyncIterator[Outbox]:
    await ensure_topics(settings, [(INBOX, settings.topics.inbox), (RUN_EVENTS, settings.topics.run_events)])
    box = Outbox(settings)
    await box.start()
    yield box
    if not box.failed.done():
        await box.stop()


async def everything_in(settings: Settings, topic: str) -> dict[int, list[bytes | None]]:
    """Return the values of a topic, by partition."""
    consumer = new_consumer(settings)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.run_partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        values: dict[int, list[bytes | None]] = {tp.partition: [] for tp in partitions}
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                values[tp.partition] += [record.value for record in records]
        return values
    finally:
        await consumer.stop()


async def test_kafka_that_is_not_there_is_said_at_the_deadline() -> None:
    with pytest.raises(KafkaUnreachable, match=r"127\.0\.0\.1:1"):
        await wait_for_kafka(Settings(kafka_bootstrap_servers="127.0.0.1:1"), Deadline.after(0.3))


async def test_kafka_that_answers_is_noticed(settings: Settings) -> None:
    await wait_for_kafka(settings, Deadline.after(10))


async def test_topics_that_several_processes_create_at_once_are_ready_for_each_of_them(settings: Settings) -> None:
    topics = settings.topics
    wanted = [(INBOX, topics.inbox), (STATE, topics.state), (STEPS, topics.steps("http"))]
    await asyncio.gather(*(ensure_topics(settings, wanted) for _ in range(4)))
    await ensure_topics(settings, wanted)


async def test_topic_that_is_not_what_the_table_says_is_named_with_what_to_do(settings: Settings) -> None:
    name = settings.topics.inbox
    await ensure_topics(settings, [(INBOX, name)])
    with pytest.raises(TopicMismatch) as error:
        await ensure_topics(settings.model_copy(update={"run_partitions": 5}), [(RUN_EVENTS, name)])
    assert f"{name} has 4 partitions, the settings say 5" in str(error.value)
    assert f"{name} has message.timestamp.type=LogAppendTime, the topic table says CreateTime" in str(error.value)
    with pytest.raises(TopicMismatch, match=r"cleanup\.policy=delete, the topic table says compact"):
        await ensure_topics(settings, [(STATE, name)])


async def test_topic_that_cannot_be_replicated_is_an_error_of_the_cluster(settings: Settings) -> None:
    three = settings.model_copy(update={"replication_factor": 3})
    with pytest.raises(KafkaUnreachable, match=r"(?i)replication"):
        await ensure_topics(three, [(INBOX, three.topics.inbox)], deadline=Deadline.after(0.5))


async def test_records_arrive_in_order_with_headers_and_the_brokers_time(settings: Settings, outbox: Outbox) -> None:
    topic = settings.topics.inbox
    before = int(time.time() * 1000)
    for number in range(2000):
        outbox.append(topic, number % 4, b"key", b"%d" % number, HEADERS)
    await outbox.acknowledged()
    where = await outbox.append_and_wait(topic, 1, b"key", b"last", HEADERS)

    assert (where.partition, where.offset, where.timestamp_type) == (1, 500, 1)
    assert where.timestamp is not None
    assert before <= where.timestamp
    found = await everything_in(settings, topic)
    assert [found[p] for p in (0, 2, 3)] == [[b"%d" % n for n in range(p, 2000, 4)] for p in (0, 2, 3)]
    assert found[1][-1] == b"last"


async def test_largest_records_of_all_partitions_fit(settings: Settings, outbox: Outbox) -> None:
    value = b"x" * (MAX_RECORD_BYTES - 200)
    for partition in range(4):
        for topic in (settings.topics.inbox, settings.topics.run_events):
            outbox.append(topic, partition, b"key", value, HEADERS)
    await asyncio.wait_for(outbox.acknowledged(), 60)
    assert [len(records) for records in (await everything_in(settings, settings.topics.inbox)).values()] == [1] * 4


async def test_topic_that_does_not_exist_does_not_hold_up_the_others(settings: Settings, outbox: Outbox) -> None:
    outbox.append("nowhere", 0, b"key", b"1", HEADERS)
    await asyncio.wait_for(outbox.append_and_wait(settings.topics.inbox, 0, b"key", b"2", HEADERS), 60)
    with pytest.raises(AppendFailed, match="1 records unacknowledged"):
        await outbox.stop(Deadline.after(0.1))


async def test_partition_that_does_not_exist_fails_the_outbox(settings: Settings, outbox: Outbox) -> None:
    outbox.append(settings.topics.inbox, 99, b"key", b"1", HEADERS)
    with pytest.raises(AppendFailed, match="inbox-99"):
        await asyncio.wait_for(asyncio.shield(outbox.failed), 60)
    with pytest.raises(AppendFailed):
        await outbox.stop(Deadline.after(0.1))


async def test_checkpoints_of_one_transactional_id_fence_the_predecessor(settings: Settings) -> None:
    await ensure_topics(settings, [(STATE, settings.topics.state)])
    old, new = (new_producer(settings, transactional_id=f"{settings.topic_prefix}-0") for _ in range(2))
    await old.start()
    await old.begin_transaction()
    await old.send_and_wait(settings.topics.state, b"old", key=b"k", partition=0)
    await new.start()
    async with new.transaction():
        await new.send(settings.topics.state, b"new", key=b"k", partition=0)
    with pytest.raises(Exception, match=r"(?i)fenced|epoch"):
        await old.commit_transaction()
    await new.stop()
    await old.stop()


@pytest.mark.parametrize("signal", ["kill", "stop"])
async def test_records_survive_a_broker_that_ends_and_returns_once_each_in_order(
    kafka: LocalKafka, settings: Settings, outbox: Outbox, signal: str
) -> None:
    topic, number, sent = settings.topics.inbox, count(), [list[bytes]() for _ in range(4)]

    async def append_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for partition in range(4):
                value = b"%d" % next(number)
                sent[partition].append(value)
                outbox.append(topic, partition, b"key", value, HEADERS)
            await asyncio.sleep(0.001)

    for _ in range(2):
        await append_for(0.3)
        ends = asyncio.ensure_future(kafka.kill() if signal == "kill" else kafka.stop())
        await append_for(0.5)
        await ends
        await append_for(1.0)
        returns = asyncio.ensure_future(kafka.restart())
        await append_for(0.5)
        await returns

    await asyncio.wait_for(outbox.acknowledged(), 60)
    found = await everything_in(settings, topic)
    assert [found[partition] for partition in range(4)] == sent
