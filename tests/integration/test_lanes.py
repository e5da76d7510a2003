"""Records for topics of others, on a real broker: what becomes of those that their topic does not take."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.structs import TopicPartition

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.shared.runtime import lanes as module
from anabranch.shared.runtime.clients import new_admin
from anabranch.shared.runtime.kafka import new_consumer
from anabranch.shared.runtime.lanes import Lanes, LaneWatcher, Refusal
from anabranch.shared.runtime.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


class Watcher(LaneWatcher):
    """Keeps what it was told, but for every single refusal."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def closed(self, topic: str, reason: str) -> None:
        self.told.append(("closed", topic))

    def opened(self, topic: str) -> None:
        self.told.append(("opened", topic))

    def gone(self, topic: str) -> None:
        self.told.append(("gone", topic))


class Bench:
    """Lanes, a topic nobody has made yet, and what came of every record."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = f"work{next(NAMES)}"
        self.watcher = Watcher()
        self.lanes = Lanes(settings, self.watcher)
        self.refused: list[tuple[bytes, Refusal]] = []

    def append(self, value: bytes, topic: str = "", key: bytes = b"key") -> None:
        self.lanes.append(
            topic or self.topic, key, value, (("h", b"1"),), lambda why: self.refused.append((value, why))
        )

    async def settle(self, within_s: float = 60.0) -> None:
        await asyncio.wait_for(self.lanes.acknowledged(), within_s)

    async def create(self, topic: str = "", partitions: int = 3, **configs: Any) -> str:
        names = {name.replace("_", "."): str(value) for name, value in configs.items()}
        admin = new_admin(self.settings)
        await admin.start()
        await admin.create_topics([NewTopic(topic or self.topic, partitions, 1, topic_configs=names)])
        await admin.close()
        return topic or self.topic

    async def delete(self) -> None:
        admin = new_admin(self.settings)
        await admin.start()
        await admin.delete_topics([self.topic])
        await admin.close()

    async def until_taken(self, value: bytes) -> None:
        """Append a record until it is taken: its lane is tried now and then."""
        async with asyncio.timeout(60):
            while True:
                before = self.lanes.refusals
                self.append(value)
                await self.settle()
                if self.lanes.refusals == before:
                    return
                await asyncio.sleep(0.05)

    async def read(self, topic: str = "") -> Mapping[int, list[bytes]]:
        consumer = new_consumer(self.settings)
        await consumer.start()
        partitions = [TopicPartition(topic or self.topic, n) for n in await _partitions(consumer, topic or self.topic)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[int, list[bytes]] = {tp.partition: [] for tp in partitions}
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                found[tp.partition] += [record.value for record in records]
        await consumer.stop()
        return found


async def _partitions(consumer: Any, topic: str) -> list[int]:
    await consumer.topics()
    return sorted(await consumer._client._wait_on_metadata(topic))


@pytest_asyncio.fixture(loop_scope="module")
async def bench(kafka: LocalKafka) -> AsyncIterator[Bench]:
    bench = Bench(Settings(kafka_bootstrap_servers=kafka.bootstrap))
    await bench.lanes.start()
    yield bench
    await bench.lanes.stop()
    assert not bench.lanes.failed.done()


async def test_records_go_to_as_many_partitions_as_there_are_in_the_order_of_each(bench: Bench) -> None:
    """The number is the topic's own, not one of the settings."""
    await bench.create(partitions=5)
    for number in range(500):
        bench.append(b"%d" % number, key=b"key %d" % (number % 20))
    assert bench.lanes.unacknowledged == 500
    await bench.settle()
    found = await bench.read()
    assert len(found) == 5
    assert all(found.values())
    assert sorted(int(value) for values in found.values() for value in values) == [*range(500)]
    assert all([int(v) for v in values] == sorted(int(v) for v in values) for values in found.values())
    assert (bench.lanes.unacknowledged, bench.lanes.unacknowledged_bytes, bench.refused) == (0, 0, [])
    assert bench.watcher.told == []


async def test_topic_that_does_not_exist_refuses_and_the_others_go_on(bench: Bench) -> None:
    """It is said once that it begins and once that it ends, and the topic is used as soon as it is there."""
    there = await bench.create(f"there{next(NAMES)}")
    bench.append(b"1")
    bench.append(b"2", there)
    async with asyncio.timeout(60):
        while bench.lanes.unacknowledged > 1:
            await asyncio.sleep(0.01)
    await bench.settle()
    for _ in range(3):
        bench.append(b"3")
    await bench.settle(1)
    assert [value for value, _ in bench.refused] == [b"1", b"3", b"3", b"3"]
    assert {why for _, why in bench.refused} == {Refusal(f"{bench.topic}: the topic does not exist")}
    await bench.create(partitions=1)
    await bench.until_taken(b"4")
    assert await bench.read() == {0: [b"4"]}
    assert bench.watcher.told == [("closed", bench.topic), ("opened", bench.topic)]


async def test_name_that_no_topic_can_have_is_refused(bench: Bench) -> None:
    """At once: nothing will help."""
    bench.append(b"1", "n" * 300)
    await bench.settle(10)
    assert "Kafka does not allow such a name" in bench.refused[0][1].reason


async def test_topic_that_is_deleted_in_use_refuses_and_is_told_to_be_gone(bench: Bench) -> None:
    """Its records are lost; those that follow are refused until it is there again, with fewer partitions."""
    await bench.create(partitions=4)
    bench.append(b"lost")
    await bench.settle()
    await bench.delete()
    for number in range(20):
        bench.append(b"refused", key=b"%d" % number)
    await bench.settle()
    assert [value for value, _ in bench.refused] == [b"refused"] * 20
    async with asyncio.timeout(60):
        while ("gone", bench.topic) not in bench.watcher.told:
            bench.append(b"refused")
            await asyncio.sleep(0.05)
    await bench.settle()
    await bench.create(partitions=2)
    await bench.until_taken(b"taken")
    assert sorted(await bench.read()) == [0, 1]
    told = [what for what, _ in bench.watcher.told]
    assert sorted(told[:-1]) == ["closed", "gone"]  # whichever is noticed first: a look, or the first refusal
    assert told[-1] == "opened"


async def test_record_that_is_too_large_for_its_topic_is_refused_alone(bench: Bench) -> None:
    """Also out of a batch; none that follows it suffers."""
    await bench.create(partitions=1, max_message_bytes=2_000)
    values = [b"%d" % n * size for n, size in enumerate((10, 5_000, 10, 1_500, 1_500, 3_000, 10))]
    for value in values:
        bench.append(value)
    await bench.settle()
    assert [value for value, _ in bench.refused] == [values[1], values[5]]
    assert all(why.too_large for _, why in bench.refused)
    assert await bench.read() == {0: [value for value in values if len(value) < 2_000]}
    assert bench.watcher.told == []


async def test_partitions_that_are_added_are_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted now and then."""
    monkeypatch.setattr(module, "_METADATA_S", 0.1)
    bench.lanes._count_again()
    await bench.create(partitions=1)
    bench.append(b"1")
    await bench.settle()
    admin = new_admin(bench.settings)
    await admin.start()
    await admin.create_partitions({bench.topic: NewPartitions(6)})
    await admin.close()
    async with asyncio.timeout(60):
        while bench.lanes._topics[bench.topic].partitions != 6:
            await asyncio.sleep(0.02)
    for number in range(60):
        bench.append(b"2", key=b"%d" % number)
    await bench.settle()
    assert all((await bench.read()).values())


async def test_records_survive_a_broker_that_is_killed_and_returns(kafka: LocalKafka, bench: Bench) -> None:
    """None is refused, none lost, the order kept; one may be there twice."""
    await bench.create(partitions=2)
    sent: dict[bytes, list[bytes]] = {b"a": [], b"b": []}
    until, number = time.monotonic() + 2.5, count()
    kill = asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(kafka.kill()))
    back: asyncio.Task[None] | None = None
    while time.monotonic() < until:
        for key, values in sent.items():
            values.append(b"%d" % next(number))
            bench.append(values[-1], key=key)
        await asyncio.sleep(0.002)
        if back is None and time.monotonic() > until - 1.0:
            back = asyncio.ensure_future(kafka.restart())
    kill.cancel()
    assert back is not None
    await back
    await bench.settle()
    assert bench.refused == []
    found = [value for values in (await bench.read()).values() for value in values]
    assert {*found} == {value for values in sent.values() for value in values}


async def test_record_that_nobody_answers_for_is_refused_when_patience_is_over(
    kafka: LocalKafka, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the queue is bounded: what comes on top is refused at once."""
    monkeypatch.setattr(module, "_SILENCE_PATIENCE_S", 3.0)
    monkeypatch.setattr(module, "_MAX_WAITING", 10)
    await bench.create(partitions=1)
    bench.append(b"0")
    await bench.settle()
    await kafka.kill()
    bench.append(b"1")
    (lane,) = bench.lanes._topics[bench.topic].lanes.values()
    async with asyncio.timeout(60):
        while not lane.why:
            await asyncio.sleep(0.01)
    for _ in range(50):
        bench.append(b"2")
    assert len(bench.refused) == 41
    await bench.settle()
    assert (len(bench.refused), bench.lanes.unacknowledged) == (51, 0)
    await kafka.restart()
    await bench.until_taken(b"3")
    assert bench.watcher.told == [("closed", bench.topic), ("opened", bench.topic)]
