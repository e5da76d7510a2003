"""The topic reader on a real broker: every record once, in order, whatever is paused, sought, lost or restarted."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.shared.contracts.limits import MAX_FETCH_BYTES, MAX_RECORD_BYTES, MIB
from anabranch.shared.contracts.topics import INBOX
from anabranch.shared.runtime.clients import new_admin, new_producer
from anabranch.shared.runtime.kafka import KafkaUnreachable, Outbox, ensure_topics
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import Fetch, FetchSession, OffsetGone, Record, TopicReader

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITIONS = 12
HEADERS = (("ce_id", b"1"),)
PREFIXES = count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


def settings_for(kafka: LocalKafka) -> Settings:
    return Settings(
        kafka_bootstrap_servers=kafka.bootstrap, topic_prefix=f"reader{next(PREFIXES)}", run_partitions=PARTITIONS
    )


@pytest.fixture
def settings(kafka: LocalKafka) -> Settings:
    return settings_for(kafka)


class Log:
    """The topic, as what is appended to it."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topics.inbox
        self._settings = settings
        self._outbox = Outbox(settings)
        self._number = count()
        self.appended: dict[int, list[bytes]] = defaultdict(list)

    async def start(self) -> None:
        await ensure_topics(self._settings, [(INBOX, self._topic)])
        await self._outbox.start()

    async def stop(self) -> None:
        await self._outbox.stop()

    def append(self, partition: int, records: int = 1, size: int = 0) -> None:
        for _ in range(records):
            value = b"%d." % next(self._number) + b"x" * size
            self.appended[partition].append(value)
            self._outbox.append(self._topic, partition, b"key", value, HEADERS)

    async def acknowledged(self) -> None:
        await self._outbox.acknowledged()

    async def delete_before(self, partition: int, offset: int) -> None:
        admin = new_admin(self._settings)
        await admin.start()
        await admin.delete_records({TopicPartition(self._topic, partition): RecordsToDelete(offset)})
        await admin.close()


@asynccontextmanager
async def a_log(settings: Settings) -> AsyncIterator[Log]:
    log = Log(settings)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def log(settings: Settings) -> AsyncIterator[Log]:
    async with a_log(settings) as log:
        yield log


class Reading:
    """A reader that runs, and what it has delivered."""

    def __init__(self, settings: Settings) -> None:
        self._arrived = asyncio.Event()
        self.records: dict[int, list[Record]] = defaultdict(list)
        self.reader = TopicReader(settings, settings.topics.inbox, self._deliver)
        self._running: asyncio.Task[None] | None = None

    def _deliver(self, partition: int, records: Sequence[Record]) -> None:
        self.records[partition] += records
        self._arrived.set()

    def run(self) -> None:
        self._running = asyncio.create_task(self.reader.run(), name="reading")

    async def ended(self) -> None:
        """Wait until the reading ends, and raise what ended it."""
        assert self._running is not None
        async with asyncio.timeout(60):
            await self._running

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self.reader.stop()

    def offsets(self, partition: int = 0) -> list[int]:
        return [record.offset for record in self.records[partition]]

    def values(self, partition: int = 0) -> list[bytes | None]:
        return [record.value for record in self.records[partition]]

    async def until(self, condition: Callable[[], bool], within_s: float = 60) -> None:
        """Wait until what was delivered meets a condition; fail at once when the reading has ended."""
        assert self._running is not None
        async with asyncio.timeout(within_s):
            while not condition():
                self._arrived.clear()
                arrived = asyncio.ensure_future(self._arrived.wait())
                await asyncio.wait([arrived, self._running], return_when=asyncio.FIRST_COMPLETED)
                arrived.cancel()
                if self._running.done():
                    self._running.result()

    async def until_comes(self, value: bytes, partition: int = 0) -> None:
        """Wait until this is the last record of the partition."""
        await self.until(lambda: self.values(partition)[-1:] == [value])

    async def until_all_of(self, log: Log, within_s: float = 60) -> None:
        """Wait until as many records came of each partition as were appended, and see that they are those."""
        await self.until(
            lambda: all(len(self.records[p]) >= len(values) for p, values in log.appended.items()), within_s
        )
        assert {p: self.values(p) for p in log.appended} == log.appended


@asynccontextmanager
async def reading(settings: Settings, offsets: Mapping[int, int] | Iterable[int]) -> AsyncIterator[Reading]:
    """A reader that reads these partitions, from these offsets or from the start."""
    it = Reading(settings)
    await it.reader.start()
    try:
        for partition, offset in dict(offsets if isinstance(offsets, Mapping) else dict.fromkeys(offsets, 0)).items():
            it.reader.seek(partition, offset)
        it.run()
        yield it
    finally:
        await it.stop()


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_partitions_are_read_from_their_offsets_in_order_once_each(settings: Settings, log: Log) -> None:
    """Some of it is there before, some comes while it is read, and the first offsets are amid batches."""
    for partition in range(PARTITIONS):
        log.append(partition, 200)
    await log.acknowledged()
    async with reading(settings, {partition: 10 * partition for partition in range(PARTITIONS)}) as it:
        for turn in range(300):
            log.append(turn % PARTITIONS, 1 + turn % 3)
            if turn % 7 == 0:
                await log.acknowledged()
        await it.until(lambda: all(it.values(p)[-1:] == log.appended[p][-1:] for p in range(PARTITIONS)))
        for partition in range(PARTITIONS):
            values = log.appended[partition]
            assert it.offsets(partition) == list(range(10 * partition, len(values)))
            assert it.values(partition) == values[10 * partition :]


async def test_record_is_as_it_was_written(settings: Settings, log: Log) -> None:
    log.append(3)
    async with reading(settings, [3]) as it:
        await it.until(lambda: bool(it.records[3]))
        (record,) = it.records[3]
        assert (record.offset, record.key, record.value, record.headers) == (0, b"key", b"0.", HEADERS)
        assert record.timestamp_ms > 1_600_000_000_000


async def test_records_of_many_mib_come_through_beside_small_ones(settings: Settings, log: Log) -> None:
    """More than one answer holds, and each the largest there may be."""
    sizes = [MAX_RECORD_BYTES - 200, 10, 3 * MIB, MIB]
    for size in sizes:
        for partition in range(PARTITIONS):
            log.append(partition, size=size)
        await log.acknowledged()
    assert sum(sum(map(len, values)) for values in log.appended.values()) > 2 * MAX_FETCH_BYTES
    async with reading(settings, range(PARTITIONS)) as it:
        await it.until_all_of(log)


async def test_topic_that_is_created_later_is_read_from_its_start(settings: Settings) -> None:
    async with reading(settings, [0, 5]) as it, a_log(settings) as log:
        log.append(0, 3)
        log.append(5, 2)
        await it.until_all_of(log)


async def test_broker_that_is_not_there_is_said() -> None:
    reader = TopicReader(Settings(kafka_bootstrap_servers="127.0.0.1:1"), "t", lambda _, __: None)
    with pytest.raises(KafkaUnreachable, match=r"127\.0\.0\.1:1"):
        await reader.start()


# --- seek, pause, resume, leave ---------------------------------------------------------------------------------------


async def test_sought_partition_is_read_from_there_while_the_others_go_on(settings: Settings, log: Log) -> None:
    log.append(0, 20)
    log.append(1, 20)
    await log.acknowledged()
    async with reading(settings, [0, 1]) as it:
        await it.until_all_of(log)
        it.reader.seek(0, 5)
        await it.until(lambda: len(it.records[0]) >= 35)
        it.reader.leave(0)
        log.append(0, 10)
        log.append(1)
        await log.acknowledged()
        it.reader.seek(0, 28)
        await it.until(lambda: len(it.records[0]) >= 37 and len(it.records[1]) >= 21)
        assert it.offsets(0) == [*range(20), *range(5, 20), 28, 29]
        assert it.offsets(1) == [*range(21)]


async def test_paused_partition_is_not_read_until_it_is_resumed_then_all_of_it(settings: Settings, log: Log) -> None:
    """A poll of it is under way when it is paused."""
    log.append(0, 5)
    log.append(1)
    async with reading(settings, [0, 1]) as it:
        await it.until_all_of(log)
        for _ in range(3):
            before = len(it.records[0])
            it.reader.pause(0)
            log.append(0, 4)
            await log.acknowledged()
            log.append(1)  # an answer with this record would hold those before it, too
            await it.until(lambda: len(it.records[1]) == len(log.appended[1]))
            assert len(it.records[0]) == before
            it.reader.resume(0)
            await it.until_all_of(log)


async def test_pausing_and_resuming_all_the_while_loses_and_repeats_nothing(settings: Settings, log: Log) -> None:
    async with reading(settings, range(PARTITIONS)) as it:
        for turn in range(400):
            log.append(turn % PARTITIONS)
            if turn % 5 == 0:
                await log.acknowledged()
            it.reader.pause(turn * 5 % PARTITIONS)
            it.reader.resume((turn * 5 - 10) % PARTITIONS)
        for partition in range(PARTITIONS):
            it.reader.resume(partition)
        await it.until_all_of(log)


async def test_left_partition_is_read_no_more_until_it_is_sought(settings: Settings, log: Log) -> None:
    """A poll of it is under way when it is left."""
    log.append(0)
    log.append(1)
    async with reading(settings, [0, 1]) as it:
        await it.until_all_of(log)
        it.reader.leave(0)
        it.reader.resume(0)
        log.append(0, 3)
        await log.acknowledged()
        log.append(1)
        await it.until(lambda: len(it.records[1]) == 2)
        assert it.offsets(0) == [0]
        it.reader.seek(0, 2)
        await it.until(lambda: len(it.records[0]) == 3)
        assert it.offsets(0) == [0, 2, 3]


# --- transactions -----------------------------------------------------------------------------------------------------


async def test_records_of_all_transactions_are_read_and_their_markers_passed(settings: Settings, log: Log) -> None:
    """Offsets 2 and 5 are markers, of a commit and of an abort: the broker writes them before the next transaction."""
    producer = new_producer(settings, transactional_id=settings.topic_prefix)
    await producer.start()
    async with reading(settings, [0]) as it:
        for values, ends in (
            ([b"1", b"2"], producer.commit_transaction),
            ([b"3", b"4"], producer.abort_transaction),
            ([b"5"], producer.commit_transaction),
        ):
            await producer.begin_transaction()
            for value in values:
                await producer.send_and_wait(settings.topics.inbox, value, key=b"key", partition=0)
                await it.until_comes(value)  # while the transaction is open
            await ends()
        await producer.stop()
        assert it.offsets() == [0, 1, 3, 4, 6]
        assert it.values() == [b"1", b"2", b"3", b"4", b"5"]

        it.reader.seek(0, 5)
        await it.until(lambda: len(it.records[0]) == 6)
        assert it.offsets()[5:] == [6]


# --- what is gone -----------------------------------------------------------------------------------------------------


async def test_deleted_record_is_said_to_be_gone_and_reading_goes_on_from_what_is_left(
    settings: Settings, log: Log
) -> None:
    log.append(0, 20)
    log.append(1, 3)
    await log.acknowledged()
    await log.delete_before(0, 12)
    async with reading(settings, {0: 11, 1: 0}) as it:
        with pytest.raises(OffsetGone, match=f"partition 0 of {settings.topics.inbox} has no offset 11") as gone:
            await it.ended()
        assert (gone.value.partition, gone.value.offset) == (0, 11)
        it.reader.seek(0, 12)
        it.run()
        await it.until(lambda: len(it.records[0]) == 8 and len(it.records[1]) == 3)
        assert (it.offsets(0), it.offsets(1)) == ([*range(12, 20)], [0, 1, 2])


async def test_records_that_are_deleted_before_they_are_read_are_said_to_be_gone(settings: Settings, log: Log) -> None:
    """Also in a session, in which the partition is not named again."""
    log.append(0, 20)
    log.append(1)
    await log.acknowledged()
    async with reading(settings, [0, 1]) as it:
        await it.until_all_of(log)
        it.reader.pause(0)
        log.append(0, 20)
        await log.acknowledged()
        await log.delete_before(0, 30)
        it.reader.resume(0)
        with pytest.raises(OffsetGone) as gone:
            await it.ended()
        assert (gone.value.partition, gone.value.offset) == (0, 20)


async def test_offset_behind_the_end_is_said_to_be_gone_but_the_end_is_not(settings: Settings, log: Log) -> None:
    log.append(0, 4)
    await log.acknowledged()
    async with reading(settings, {0: 4}) as it:
        log.append(0)
        await it.until(lambda: it.offsets() == [4])
    async with reading(settings, {0: 6}) as it:
        with pytest.raises(OffsetGone) as gone:
            await it.ended()
        assert (gone.value.partition, gone.value.offset) == (0, 6)


# --- sessions ---------------------------------------------------------------------------------------------------------


class Requests:
    """What is asked of the broker, and a session to damage."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[Fetch] = []
        self._damage: Callable[[FetchSession], None] | None = None
        request = FetchSession.request

        def noted(session: FetchSession, wanted: Mapping[int, int], wait_ms: int) -> Fetch:
            if self._damage is not None:
                self._damage(session)
                self._damage = None
            self.made.append(request(session, wanted, wait_ms))
            return self.made[-1]

        patch.setattr(FetchSession, "request", noted)

    def damage(self, how: Callable[[FetchSession], None]) -> None:
        """Damage the session at the next request."""
        self._damage = how


def another_id(session: FetchSession) -> None:
    session._id += 1


def another_epoch(session: FetchSession) -> None:
    session._epoch += 1


async def test_requests_within_a_session_name_only_what_changed(
    settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Requests(monkeypatch)
    async with reading(settings, range(PARTITIONS)) as it:
        for partition in [3, 7, 3]:
            log.append(partition)
            await it.until_all_of(log)
        it.reader.pause(3)
        log.append(7)
        await it.until_all_of(log)
        it.reader.resume(3)
        log.append(3)
        await it.until_all_of(log)
    first, *later = requests.made
    assert (first.epoch, [partition for partition, _ in first.new]) == (0, list(range(PARTITIONS)))
    assert [fetch.epoch for fetch in later] == list(range(1, len(requests.made)))
    named = [partition for fetch in later for partition, _ in fetch.new]
    assert set(named) == {3, 7}
    assert len(named) <= 6  # five deliveries and a resumption
    assert [fetch.gone for fetch in later if fetch.gone] == [[3]]


@pytest.mark.parametrize("damage", [another_id, another_epoch])
async def test_session_that_is_lost_is_begun_again_and_nothing_is_lost_or_repeated(
    settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch, damage: Callable[[FetchSession], None]
) -> None:
    requests = Requests(monkeypatch)
    async with reading(settings, range(PARTITIONS)) as it:
        for times in range(3):
            for partition in range(PARTITIONS):
                log.append(partition, 2)
            await it.until_all_of(log)
            requests.damage(damage)
            for partition in range(PARTITIONS):
                log.append(partition, 3)
            await it.until_all_of(log)
            for partition in range(PARTITIONS):
                log.append(partition)
            await it.until_all_of(log)
            assert [fetch.epoch for fetch in requests.made].count(0) == 2 + times


@pytest.mark.parametrize("signal", ["kill", "stop"])
async def test_broker_that_ends_and_returns_is_read_on_without_loss_or_repeats(
    kafka: LocalKafka, settings: Settings, log: Log, signal: str
) -> None:
    """Records are appended before, while it is away, and after."""
    async with reading(settings, range(PARTITIONS)) as it:
        for partition in range(PARTITIONS):
            log.append(partition, 50)
        await it.until_all_of(log)
        for partition in range(PARTITIONS):
            log.append(partition, 50)
        await (kafka.kill() if signal == "kill" else kafka.stop())
        for partition in range(PARTITIONS):
            log.append(partition, 5)
        it.reader.pause(4)
        it.reader.seek(5, 2)
        await kafka.restart()
        for partition in range(PARTITIONS):
            log.append(partition, 5)
        await it.until(lambda: all(it.values(p)[-1] == log.appended[p][-1] for p in range(PARTITIONS) if p != 4), 60)
        it.reader.resume(4)
        await it.until(lambda: it.values(4)[-1] == log.appended[4][-1])
        assert {p: it.values(p) for p in range(PARTITIONS) if p != 5} == {
            p: log.appended[p] for p in range(PARTITIONS) if p != 5
        }
        before = it.offsets(5).index(2, 3)
        assert it.offsets(5) == [*range(before), *range(2, 110)]


async def test_broker_without_room_for_sessions_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Requests(monkeypatch)
    no_room = {"max.incremental.fetch.session.cache.slots": "0"}
    async with LocalKafka(tmp_path, settings=no_room) as kafka:
        settings = settings_for(kafka)
        async with a_log(settings) as log, reading(settings, range(PARTITIONS)) as it:
            for _ in range(3):
                for partition in range(PARTITIONS):
                    log.append(partition, 20)
                await it.until_all_of(log)
            it.reader.leave(0)
            log.append(0)
            await log.acknowledged()
            log.append(1)
            await it.until(lambda: len(it.records[1]) == 61)
            assert len(it.records[0]) == 60
    assert {(fetch.session, fetch.epoch) for fetch in requests.made} == {(0, 0)}
    assert {len(fetch.new) for fetch in requests.made} == {PARTITIONS, PARTITIONS - 1}
