"""The fetch session's bookkeeping, what is read out of an answer, and what may happen while one is awaited."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import (
    CorruptRecordException,
    KafkaConnectionError,
    KafkaError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.fetch import FetchRequest_v11, FetchResponse_v11
from aiokafka.record.default_records import DefaultRecordBase, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.runtime import topic_reader
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import (
    Fetch,
    FetchSession,
    OffsetGone,
    Record,
    SessionLost,
    TopicReader,
    _records_from,
)

from .fakes import turns

LARGEST_EPOCH = 2**31 - 1
NOT_FOUND, WRONG_EPOCH = 70, 71
GZIP = DefaultRecordBase.CODEC_GZIP
ATTRIBUTES = DefaultRecordBase.ATTRIBUTES_OFFSET
LAST_OFFSET_DELTA = ATTRIBUTES + 2


# --- records ----------------------------------------------------------------------------------------------------------


def a_batch(base: int, *values: bytes, is_transactional: bool = False, compression: int = 0) -> bytes:
    """Return a batch as it lies in a log: record n has key `k`, timestamp 1000 + offset, and a header."""
    builder = DefaultRecordBatchBuilder(2, compression, is_transactional, 1, 0, 0, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 1000 + base + number, b"k", value, [("h", b"%d" % number)])
    batch = builder.build()
    struct.pack_into(">q", batch, 0, base)  # what a broker does; the checksum begins behind it
    return bytes(batch)


def a_marker(base: int) -> bytes:
    """Return what a broker appends at the end of a transaction: a batch of one record that is nobody's."""
    batch = bytearray(a_batch(base, b"\0\0\0\0\0\0", is_transactional=True))
    (attributes,) = struct.unpack_from(">h", batch, ATTRIBUTES)
    struct.pack_into(">h", batch, ATTRIBUTES, attributes | DefaultRecordBase.CONTROL_MASK)
    return with_checksum(batch)


def with_checksum(batch: bytearray) -> bytes:
    struct.pack_into(">I", batch, DefaultRecordBase.CRC_OFFSET, calc_crc32c(bytes(batch[ATTRIBUTES:])))
    return bytes(batch)


def read(offset: int, *batches: bytes) -> tuple[list[tuple[int, bytes | None]], int]:
    records, following = _records_from(offset, b"".join(batches))
    return [(record.offset, record.value) for record in records], following


def test_record_is_what_was_written() -> None:
    records, following = _records_from(7, a_batch(7, b"v"))
    assert records == [Record(7, 1007, b"k", b"v", (("h", b"0"),))]
    assert following == 8


def test_record_without_key_and_value_has_none() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    builder.append(0, 5, None, None, [])
    assert _records_from(0, bytes(builder.build()))[0] == [Record(0, 5, None, None, ())]


def test_batches_follow_one_another() -> None:
    assert read(3, a_batch(3, b"a", b"b"), a_batch(5, b"c")) == ([(3, b"a"), (4, b"b"), (5, b"c")], 6)


def test_compressed_batch_is_read() -> None:
    values = [b"x" * 1000, b"y" * 1000]
    batch = a_batch(0, *values, compression=GZIP)
    assert len(batch) < 1000
    assert read(0, batch) == ([(0, values[0]), (1, values[1])], 2)


def test_nothing_leaves_the_offset_where_it_is() -> None:
    assert read(42) == ([], 42)


def test_records_before_the_wanted_one_are_cut_off_a_batch_that_is_sent_whole() -> None:
    assert read(12, a_batch(10, b"a", b"b", b"c", b"d"), a_batch(14, b"e")) == (
        [(12, b"c"), (13, b"d"), (14, b"e")],
        15,
    )


def test_batch_cut_short_by_the_limit_of_the_answer_is_left_for_the_next() -> None:
    whole, cut = a_batch(0, b"a", b"b"), a_batch(2, b"c")[:-1]
    assert read(0, whole, cut) == ([(0, b"a"), (1, b"b")], 2)
    assert read(2, cut) == ([], 2)


def test_gap_that_compaction_left_is_passed() -> None:
    assert read(0, a_batch(0, b"a"), a_batch(9, b"b")) == ([(0, b"a"), (9, b"b")], 10)


def test_batch_whose_last_records_were_compacted_away_is_passed_to_its_end() -> None:
    """Compaction keeps a batch's range of offsets: the next offset is not the last record's plus one."""
    batch = bytearray(a_batch(0, b"a", b"b"))
    struct.pack_into(">i", batch, LAST_OFFSET_DELTA, 8)
    assert read(0, with_checksum(batch)) == ([(0, b"a"), (1, b"b")], 9)


def test_markers_are_no_records_but_their_offsets_are_passed() -> None:
    log = [a_batch(0, b"a", is_transactional=True), a_marker(1), a_batch(2, b"b"), a_marker(3)]
    assert read(0, *log) == ([(0, b"a"), (2, b"b")], 4)
    assert read(3, log[3]) == ([], 4)


@pytest.mark.parametrize("make", [a_batch, lambda base, _: a_marker(base)], ids=["records", "marker"])
def test_batch_with_a_wrong_checksum_is_refused(make: Any) -> None:
    damaged = bytearray(make(1, b"value"))
    damaged[-3] ^= 1
    with pytest.raises(CorruptRecordException, match="offset 1"):
        _records_from(0, a_batch(0, b"a") + bytes(damaged))


# --- the session ------------------------------------------------------------------------------------------------------


def an_answer(session: int, error: int = 0, partitions: Sequence[tuple[int, int, bytes]] = ()) -> FetchResponse_v11:
    """Return an answer as it comes off the wire: of each partition its number, error, data."""
    of_topic = [(number, code, 0, 0, 0, None, -1, data) for number, code, data in partitions]
    answer = FetchResponse_v11(0, error, session, [("t", of_topic)] if of_topic else [])
    return FetchResponse_v11.decode(answer.encode())


def asked(fetch: Fetch) -> tuple[int, int, dict[int, int], list[int]]:
    """Return a request's session, epoch, what it names newly, and what it drops."""
    return fetch.session, fetch.epoch, dict(fetch.new), sorted(fetch.gone)


def in_session(wanted: Mapping[int, int], number: int = 5) -> FetchSession:
    """Return a session in which the broker knows these offsets."""
    session = FetchSession("t")
    session.request(wanted)
    session.accept(an_answer(number))
    return session


def test_first_request_names_everything_and_asks_for_a_session() -> None:
    assert asked(FetchSession("t").request({0: 7, 3: 0})) == (0, 0, {0: 7, 3: 0}, [])


def test_later_requests_name_only_what_changed() -> None:
    session = in_session({0: 7, 1: 1, 2: 0})
    assert asked(session.request({0: 7, 1: 4, 2: 0})) == (5, 1, {1: 4}, [])
    session.accept(an_answer(5))
    assert asked(session.request({0: 7, 1: 4, 2: 0})) == (5, 2, {}, [])


def test_partition_that_is_wanted_no_more_is_dropped_once_and_named_when_it_returns() -> None:
    session = in_session({0: 7, 1: 1})
    assert asked(session.request({1: 1})) == (5, 1, {}, [0])
    session.accept(an_answer(5))
    assert asked(session.request({1: 1})) == (5, 2, {}, [])
    session.accept(an_answer(5))
    assert asked(session.request({0: 7, 1: 1})) == (5, 3, {0: 7}, [])


def test_partition_that_is_new_is_named() -> None:
    assert asked(in_session({0: 7}).request({0: 7, 1: 0})) == (5, 1, {1: 0}, [])


def test_offset_asked_for_is_known_by_partition() -> None:
    session = in_session({0: 7, 1: 1})
    session.request({0: 9})
    assert session.told == {0: 9}


def test_epoch_after_the_largest_is_one() -> None:
    """Zero would begin a session."""
    session = in_session({0: 0})
    session._epoch = LARGEST_EPOCH - 1
    epochs = []
    for _ in range(4):
        epochs.append(session.request({0: 0}).epoch)
        session.accept(an_answer(5))
    assert epochs == [LARGEST_EPOCH - 1, LARGEST_EPOCH, 1, 2]


@pytest.mark.parametrize("code", [NOT_FOUND, WRONG_EPOCH])
def test_session_that_the_broker_has_lost_is_begun_again_with_everything(code: int) -> None:
    session = in_session({0: 7, 1: 1})
    session.request({0: 7, 1: 2})
    with pytest.raises(SessionLost):
        session.accept(an_answer(0, code))
    assert asked(session.request({0: 7, 1: 2})) == (0, 0, {0: 7, 1: 2}, [])
    session.accept(an_answer(6))
    assert asked(session.request({0: 7, 1: 3})) == (6, 1, {1: 3}, [])


def test_request_that_is_refused_for_another_reason_says_so_and_begins_again() -> None:
    session = in_session({0: 7})
    session.request({0: 7})
    with pytest.raises(NotLeaderForPartitionError):
        session.accept(an_answer(5, NotLeaderForPartitionError.errno))
    assert asked(session.request({0: 7})) == (0, 0, {0: 7}, [])


def test_request_without_an_answer_begins_again() -> None:
    """Nobody knows whether the broker has seen it."""
    session = in_session({0: 7, 1: 1})
    session.request({0: 8})
    session.forget()
    assert asked(session.request({0: 8})) == (0, 0, {0: 8}, [])


def test_broker_without_room_for_sessions_is_asked_for_everything_each_time() -> None:
    session = FetchSession("t")
    for offset in range(3):
        assert asked(session.request({0: 0, 1: offset})) == (0, 0, {0: 0, 1: offset}, [])
        session.accept(an_answer(0))
    session.accept(an_answer(9))  # it has room again
    assert asked(session.request({0: 0, 1: 2})) == (9, 1, {}, [])


class SessionOfBroker:
    """The broker's side of KIP-227: what it would look into for a request."""

    def __init__(self) -> None:
        self.id = 0
        self.epoch = 0
        self.partitions: dict[int, int] = {}

    def answer(self, fetch: Fetch, *, has_room: bool) -> FetchResponse_v11:
        if fetch.epoch == 0:
            self.partitions = {}
            self.id, self.epoch = (self.id + 1, 1) if has_room else (0, 0)
        elif fetch.session != self.id:
            return an_answer(0, NOT_FOUND)
        elif fetch.epoch != self.epoch:
            return an_answer(0, WRONG_EPOCH)
        else:
            self.epoch += 1
        self.partitions |= dict(fetch.new)
        for partition in fetch.gone:
            del self.partitions[partition]
        return an_answer(self.id)


WANTED = st.dictionaries(st.integers(0, 4), st.integers(0, 3), min_size=1)
LOT = st.sampled_from(["answered"] * 5 + ["no room", "request lost", "answer lost", "restarted"])


@given(st.lists(st.tuples(WANTED, LOT), max_size=30))
def test_broker_knows_what_is_wanted_and_nothing_else_whatever_befalls(story: list[tuple[dict[int, int], str]]) -> None:
    session, broker = FetchSession("t"), SessionOfBroker()
    for wanted, lot in story:
        fetch = session.request(wanted)
        if lot == "restarted":
            broker.partitions, broker.epoch = {}, -1
        if lot == "request lost":
            session.forget()
            continue
        answer = broker.answer(fetch, has_room=lot != "no room")
        if lot == "answer lost":
            session.forget()
            continue
        if answer.error_code:
            with pytest.raises(SessionLost):
                session.accept(answer)
            fetch = session.request(wanted)
            answer = broker.answer(fetch, has_room=True)
        assert not answer.error_code
        session.accept(answer)
        assert broker.partitions == session.told == wanted


# --- the request ------------------------------------------------------------------------------------------------------


def test_request_is_encoded_as_version_11() -> None:
    request = Fetch("t", 5, 9, [(0, 7), (3, 2**40)], [1, 2]).prepare({1: (4, 17)})
    assert isinstance(request, FetchRequest_v11)
    said = FetchRequest_v11.decode(request.encode()).to_object()
    named = [(p["partition"], p["fetch_offset"], p["max_bytes"]) for p in said["topics"][0]["partitions"]]
    assert (said["replica_id"], said["session_id"], said["session_epoch"]) == (-1, 5, 9)
    assert [topic["topic"] for topic in said["topics"]] == ["t"]
    assert named == [(0, 7, MAX_RECORD_BYTES), (3, 2**40, MAX_RECORD_BYTES)]
    assert said["forgotten_topics_data"] == [{"topic": "t", "partitions": [1, 2]}]
    assert said["isolation_level"] == 0
    assert said["max_bytes"] >= MAX_RECORD_BYTES
    assert (said["min_bytes"], said["rack_id"]) == (1, "")


def test_request_that_names_nothing_is_short() -> None:
    request = Fetch("t", 5, 9, [], []).prepare({1: (4, 17)})
    said = FetchRequest_v11.decode(request.encode()).to_object()
    assert said["topics"] == said["forgotten_topics_data"] == []
    assert len(request.encode()) == 35


# --- the reader -------------------------------------------------------------------------------------------------------


class FakeCluster:
    def __init__(self, leaders: dict[int, int]) -> None:
        self.leaders = leaders

    def partitions_for_topic(self, _: str) -> set[int] | None:
        return set(self.leaders) or None

    def leader_for_partition(self, tp: Any) -> int:
        return self.leaders[tp.partition]


class FakeClient:
    """Brokers that are the test: it sees each request and answers when it wants to."""

    def __init__(self, leaders: dict[int, int]) -> None:
        self.cluster = FakeCluster(leaders)
        self.updates = 0
        self.later: dict[int, int] = {}  # the leaders that an update of the metadata finds
        self._requests: asyncio.Queue[tuple[int, Fetch, asyncio.Future[Any]]] = asyncio.Queue()

    async def send(self, node: int, fetch: Fetch) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((node, fetch, answer))
        return await answer

    async def force_metadata_update(self) -> bool:
        self.updates += 1
        self.cluster.leaders |= self.later
        return True

    async def asked(self) -> tuple[int, Fetch, "asyncio.Future[Any]"]:
        return await self._requests.get()

    @property
    def is_asked(self) -> bool:
        return not self._requests.empty()


class Reading:
    """A reader, its brokers, and what it delivered."""

    def __init__(self, leaders: dict[int, int], rest_s: Callable[[int], float] = topic_reader.at_once) -> None:
        self.delivered: list[tuple[int, int]] = []
        self.client = FakeClient(leaders)
        self.reader = TopicReader(Settings(), "t", self._deliver, rest_s=rest_s)
        self.reader._client = self.client
        self.running: asyncio.Task[None] = asyncio.create_task(self.reader.run())

    def _deliver(self, partition: int, records: Sequence[Record]) -> None:
        self.delivered += [(partition, record.offset) for record in records]

    async def asked(self) -> tuple[Fetch, "asyncio.Future[Any]"]:
        """Return the next request, which is node 0's."""
        node, fetch, answer = await self.client.asked()
        assert node == 0
        return fetch, answer


@asynccontextmanager
async def reading(
    leaders: dict[int, int] | None = None, rest_s: Callable[[int], float] = topic_reader.at_once, **offsets: int
) -> AsyncIterator[Reading]:
    """A reader that has sought `p0`, `p1`, ... Its partitions 0 to 2 are led by node 0 unless `leaders` says more."""
    one = Reading({0: 0, 1: 0, 2: 0} if leaders is None else leaders, rest_s)
    for name, offset in offsets.items():
        one.reader.seek(int(name[1:]), offset)
    try:
        async with asyncio.timeout(60):
            yield one
    finally:
        one.running.cancel()
        await asyncio.gather(one.running, return_exceptions=True)


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_reader, "_BACKOFF_S", 0.001)


async def test_next_request_goes_on_behind_what_was_delivered() -> None:
    async with reading(p0=3, p1=8) as it:
        fetch, answer = await it.asked()
        assert asked(fetch) == (0, 0, {0: 3, 1: 8}, [])
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(2, b"a", b"b", b"c"))]))
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 1, {0: 5}, [])
        assert it.delivered == [(0, 3), (0, 4)]


async def test_reader_that_rests_after_what_it_read_asks_for_nothing_meanwhile() -> None:
    rested: list[int] = []

    def an_hour(records: int) -> float:
        rested.append(records)
        return 3600.0

    async with reading(rest_s=an_hour, p0=3) as it:
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(2, b"a", b"b", b"c"))]))
        await turns(50)
        assert (rested, it.delivered) == ([2], [(0, 3), (0, 4)])
        assert not it.client.is_asked


async def test_polls_without_records_take_longer_and_longer() -> None:
    """Up to two seconds; a record, or a partition that waits to be resumed, makes the next one short again."""
    waits = []

    async def next_wait(it: Reading, *records: bytes) -> None:
        fetch, answer = await it.asked()
        waits.append(fetch.wait_ms)
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, *records))] if records else []))

    async with reading(p0=3, p1=8) as it:
        for _ in range(4):
            await next_wait(it)
        await next_wait(it, b"a")
        await next_wait(it)
        it.reader.pause(1)
        for _ in range(3):
            await next_wait(it)
        it.reader.resume(1)
        await next_wait(it)
    assert waits == [500, 1_000, 2_000, 2_000, 2_000, 500, 500, 500, 500, 1_000]


async def test_marker_alone_is_passed_and_delivers_nothing() -> None:
    async with reading(p0=0) as it:
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, 0, a_marker(0))]))
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 1, {0: 1}, [])
        assert it.delivered == []


async def test_nothing_is_asked_until_something_is_wanted() -> None:
    async with reading() as it:
        await turns(20)
        assert not it.client.is_asked
        it.reader.seek(1, 4)
        fetch, _ = await it.asked()
        assert asked(fetch) == (0, 0, {1: 4}, [])


async def test_partition_that_is_left_while_it_is_asked_for_delivers_nothing_of_it() -> None:
    async with reading(p0=0, p1=0) as it:
        _, answer = await it.asked()
        it.reader.leave(0)
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(0, b"a")), (1, 0, a_batch(0, b"b"))]))
        fetch, answer = await it.asked()
        assert it.delivered == [(1, 0)]
        assert asked(fetch) == (5, 1, {1: 1}, [0])
        it.reader.resume(0)  # it was not paused
        answer.set_result(an_answer(5))
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 2, {}, [])


async def test_partition_that_is_left_when_paused_is_not_resumed() -> None:
    async with reading(p0=3, p1=0) as it:
        _, answer = await it.asked()
        it.reader.pause(0)
        it.reader.leave(0)
        it.reader.resume(0)
        answer.set_result(an_answer(5))
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 1, {}, [0])


async def test_partition_that_is_paused_while_it_is_asked_for_goes_on_where_it_was() -> None:
    async with reading(p0=3, p1=0) as it:
        _, answer = await it.asked()
        it.reader.pause(0)
        it.reader.pause(0)
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, b"a"))]))
        fetch, answer = await it.asked()
        assert it.delivered == []
        assert asked(fetch) == (5, 1, {}, [0])
        it.reader.resume(0)
        it.reader.resume(0)
        answer.set_result(an_answer(5))
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 2, {0: 3}, [])


async def test_partition_that_is_paused_and_resumed_while_it_is_asked_for_is_delivered_once() -> None:
    async with reading(p0=3) as it:
        _, answer = await it.asked()
        it.reader.pause(0)
        it.reader.resume(0)
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, b"a"))]))
        fetch, _ = await it.asked()
        assert it.delivered == [(0, 3)]
        assert asked(fetch) == (5, 1, {0: 4}, [])


async def test_partition_that_is_sought_while_it_is_asked_for_is_read_from_where_it_was_sought() -> None:
    async with reading(p0=3) as it:
        _, answer = await it.asked()
        it.reader.seek(0, 0)
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, b"a"))]))
        fetch, answer = await it.asked()
        assert it.delivered == []
        assert asked(fetch) == (5, 1, {0: 0}, [])
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(0, b"a"))]))
        await it.asked()
        assert it.delivered == [(0, 0)]


async def test_error_of_a_partition_that_was_left_meanwhile_is_nobodys() -> None:
    async with reading(p0=3, p1=0) as it:
        _, answer = await it.asked()
        it.reader.leave(0)
        answer.set_result(an_answer(5, partitions=[(0, OffsetOutOfRangeError.errno, b"")]))
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 1, {}, [0])


async def test_sought_partition_is_paused_no_more() -> None:
    async with reading(p0=3) as it:
        await it.asked()
        it.reader.pause(0)
        it.reader.seek(0, 9)
        it.reader.resume(0)
        assert it.reader._positions == {0: 9}


async def test_partition_paused_by_what_it_is_delivered_to_goes_on_behind_it() -> None:
    async with reading(p0=0) as it:
        it.reader._deliver = lambda partition, _: it.reader.pause(partition)
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(0, b"a", b"b"))]))
        await turns(20)
        assert not it.client.is_asked
        it.reader.resume(0)
        fetch, _ = await it.asked()
        assert asked(fetch) == (5, 1, {0: 2}, [])


@pytest.mark.parametrize("code", [NOT_FOUND, WRONG_EPOCH])
async def test_lost_session_is_begun_again_without_delay_or_new_metadata(code: int) -> None:
    async with reading(p0=3, p1=0) as it:
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, b"a"))]))
        _, answer = await it.asked()
        answer.set_result(an_answer(0, code))
        fetch, _ = await it.asked()
        assert asked(fetch) == (0, 0, {0: 4, 1: 0}, [])
        assert it.client.updates == 0


async def test_broker_that_is_away_is_asked_again_with_everything_and_new_metadata() -> None:
    async with reading(p0=3, p1=0) as it:
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, b"a"))]))
        _, answer = await it.asked()
        answer.set_exception(KafkaConnectionError("closed"))
        fetch, _ = await it.asked()
        assert asked(fetch) == (0, 0, {0: 4, 1: 0}, [])
        assert it.client.updates == 1
        assert it.delivered == [(0, 3)]


async def test_partition_that_has_moved_is_read_from_its_new_leader() -> None:
    async with reading(p0=3, p1=0) as it:
        it.client.later = {0: 1}
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, NotLeaderForPartitionError.errno, b"")]))
        requests = [(await it.client.asked())[:2] for _ in range(2)]
        assert {node: asked(fetch) for node, fetch in requests} == {0: (5, 1, {}, [0]), 1: (0, 0, {0: 3}, [])}


async def test_answer_of_a_former_leader_that_comes_late_is_not_delivered_again() -> None:
    async with reading({0: 0, 1: 1}, p0=0, p1=0) as it:
        answers = {node: answer for node, _, answer in [await it.client.asked(), await it.client.asked()]}
        it.client.later = {0: 1}
        answers[1].set_result(an_answer(6, partitions=[(1, NotLeaderForPartitionError.errno, b"")]))
        node, fetch, answer = await it.client.asked()
        assert (node, asked(fetch)) == (1, (6, 1, {0: 0}, []))
        answer.set_result(an_answer(6, partitions=[(0, 0, a_batch(0, b"a"))]))
        await it.client.asked()
        answers[0].set_result(an_answer(5, partitions=[(0, 0, a_batch(0, b"a"))]))
        await turns(20)
        assert it.delivered == [(0, 0)]


async def test_topic_without_leaders_is_read_when_it_has_some() -> None:
    async with reading({0: -1, 1: 0}, p0=0) as it:
        while it.client.updates < 2:
            await asyncio.sleep(0.001)
        assert not it.client.is_asked
        it.client.later = {0: 0}
        fetch, _ = await it.asked()
        assert asked(fetch) == (0, 0, {0: 0}, [])


async def test_offset_that_is_gone_ends_the_reading_which_can_go_on_elsewhere() -> None:
    async with reading(p0=3, p1=0) as it:
        _, answer = await it.asked()
        gone = (0, OffsetOutOfRangeError.errno, b"")
        answer.set_result(an_answer(5, partitions=[(1, 0, a_batch(0, b"a")), gone]))
        with pytest.raises(OffsetGone) as error:
            await it.running
        assert (error.value.partition, error.value.offset) == (0, 3)
        it.reader.seek(0, 7)
        it.running = asyncio.create_task(it.reader.run())
        fetch, _ = await it.asked()
        assert asked(fetch) == (0, 0, {0: 7, 1: 1}, [])
        assert it.delivered == [(1, 0)]


@pytest.mark.parametrize(
    ("code", "data", "error"),
    [
        (TopicAuthorizationFailedError.errno, b"", TopicAuthorizationFailedError),
        (0, a_batch(0, b"a")[:-1] + b"\xff", CorruptRecordException),
    ],
)
async def test_what_asking_again_does_not_heal_ends_the_reading(
    code: int, data: bytes, error: type[KafkaError]
) -> None:
    async with reading(p0=0) as it:
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, code, data)]))
        with pytest.raises(error):
            await it.running


async def test_reader_that_is_cancelled_goes_on_where_it_was() -> None:
    async with reading(p0=3) as it:
        _, answer = await it.asked()
        answer.set_result(an_answer(5, partitions=[(0, 0, a_batch(3, b"a"))]))
        await it.asked()
        it.running.cancel()
        await asyncio.gather(it.running, return_exceptions=True)
        it.running = asyncio.create_task(it.reader.run())
        fetch, _ = await it.asked()
        assert asked(fetch) == (0, 0, {0: 4}, [])
