"""The outbox: who is told what, when, and in which order."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka.errors import MessageSizeTooLargeError, OutOfOrderSequenceNumber, UnknownTopicOrPartitionError

from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.runtime.batch import BATCH_BYTES
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import AppendFailed, RecordTooLarge
from anabranch.shared.runtime.outbox import Outbox
from anabranch.shared.runtime.settings import Settings

from .fakes import FakeProducer, turns, values

FULL = b"x" * (BATCH_BYTES - 200)


@pytest.fixture
async def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def started(producer: FakeProducer) -> Callable[..., Outbox]:
    def start(**options: float) -> Outbox:
        return Outbox(Settings(), producer=producer, **options)

    return start


def append(outbox: Outbox, value: bytes, partition: int = 0) -> None:
    outbox.append("t", partition, b"key", value, (("ce_id", b"1"),))


async def test_records_appended_in_one_turn_are_one_batch_of_their_partition(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    for value in (b"1", b"2"):
        append(outbox, value, 0)
    append(outbox, b"3", 1)

    taken = await producer.take()

    assert {partition: values(batch) for partition, batch in taken.items()} == {0: [b"1", b"2"], 1: [b"3"]}


async def test_record_joins_the_queued_batch_and_one_that_comes_later_the_next(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1")
    await turns()
    append(outbox, b"2")

    first = await producer.take()
    append(outbox, b"3")
    second = await producer.take()

    assert [values(first[0]), values(second[0])] == [[b"1", b"2"], [b"3"]]


async def test_full_batches_follow_one_another_in_order(producer: FakeProducer, started: Callable[..., Outbox]) -> None:
    outbox = started()
    for number in range(4):
        append(outbox, FULL + str(number).encode())

    taken = [await producer.take() for _ in range(4)]

    assert [values(batches[0]) for batches in taken] == [[FULL + str(number).encode()] for number in range(4)]


async def test_acknowledged_waits_for_what_was_appended_before_whatever_the_order_of_answers(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1", 0)
    append(outbox, b"2", 1)
    before = outbox.acknowledged()
    taken = await producer.take()
    append(outbox, b"3", 2)
    later = outbox.acknowledged()

    taken[1].done(0)
    await turns()
    assert (before.done(), outbox.unacknowledged, outbox.unacknowledged_bytes) == (False, 2, 2)
    taken[0].done(0)
    await turns()
    assert (before.done(), later.done(), outbox.unacknowledged) == (True, False, 1)
    (await producer.take())[2].done(0)
    await later
    assert (outbox.unacknowledged, outbox.unacknowledged_bytes) == (0, 0)


async def test_nothing_appended_is_acknowledged_at_once(started: Callable[..., Outbox]) -> None:
    assert started().acknowledged().done()


async def test_cancelling_one_who_waits_leaves_the_others_waiting(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1")
    one, other = outbox.acknowledged(), outbox.acknowledged()
    one.cancel()
    (await producer.take())[0].done(0)
    await asyncio.wait_for(other, 60)


async def test_whoever_waits_for_a_record_is_told_its_own_offset(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1")
    waits = asyncio.ensure_future(outbox.append_and_wait("t", 0, b"key", b"2", ()))
    (await producer.take())[0].done(41, timestamp=7)
    where = await waits
    assert (where.topic, where.partition, where.offset, where.timestamp) == ("t", 0, 42, 7)


async def test_rejected_batch_fails_the_outbox_and_everyone_who_waits(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1", 1)
    other = outbox.acknowledged()
    one = asyncio.ensure_future(outbox.append_and_wait("t", 0, b"key", b"2", ()))
    (await producer.take())[0].failure(OutOfOrderSequenceNumber())

    for waiter in (one, other, outbox.failed, outbox.acknowledged()):
        with pytest.raises(AppendFailed, match="did not accept records for t-0") as told:
            await waiter
        assert isinstance(told.value.__cause__, OutOfOrderSequenceNumber)
    with pytest.raises(AppendFailed):
        append(outbox, b"3")


async def test_batch_that_the_producer_does_not_take_fails_the_outbox(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    producer.queue.fail_all(UnknownTopicOrPartitionError())
    append(outbox, b"1")
    with pytest.raises(AppendFailed, match="were not taken"):
        await outbox.failed


async def test_partition_without_a_leader_holds_up_no_other(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    producer.cluster.leaderless = {0}
    for number in range(5):
        append(outbox, FULL + str(number).encode(), 0)
        append(outbox, b"free", 1)
        assert list(await producer.take()) == [1]


async def test_full_queue_is_waited_for_as_long_as_it_takes(started: Callable[..., Outbox]) -> None:
    producer = FakeProducer(queue_timeout_s=0.01)
    outbox = Outbox(Settings(), producer=producer)
    producer.cluster.leaderless = {0}
    append(outbox, FULL + b"1")
    append(outbox, FULL + b"2")
    await asyncio.sleep(0.05)
    producer.cluster.leaderless = set()

    for _ in range(2):
        (await producer.take())[0].done(0)
    await asyncio.wait_for(outbox.acknowledged(), 60)


async def test_record_without_an_answer_fails_the_outbox_after_the_delivery_timeout(
    started: Callable[..., Outbox],
) -> None:
    outbox = started(delivery_timeout_s=0.02)
    append(outbox, b"1")
    with pytest.raises(AppendFailed, match="1 records were not acknowledged within"):
        await outbox.failed


async def test_delivery_timeout_counts_from_the_oldest_record_without_an_answer(
    producer: FakeProducer, started: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy outbox is as old as what it waits for, however long that goes on; the clock is moved by hand."""
    loop, passed_s = asyncio.get_running_loop(), 0.0
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + passed_s)
    outbox = started(delivery_timeout_s=1000)
    for _ in range(4):
        append(outbox, b"1")
        passed_s += 600
        (await producer.take())[0].done(0)
        await turns()
    assert not outbox.failed.done()
    append(outbox, b"1")
    await turns()
    passed_s += 1001
    with pytest.raises(AppendFailed):
        await outbox.failed


async def test_record_too_large_to_wait_for_concerns_nobody_else(started: Callable[..., Outbox]) -> None:
    outbox = started()
    with pytest.raises(RecordTooLarge, match=f"the limit is {MAX_RECORD_BYTES}"):
        await outbox.append_and_wait("t", 0, b"key", b"x" * MAX_RECORD_BYTES, ())
    assert (outbox.failed.done(), outbox.unacknowledged) == (False, 0)


async def test_record_too_large_to_append_fails_the_outbox(started: Callable[..., Outbox]) -> None:
    outbox = started()
    with pytest.raises(RecordTooLarge):
        append(outbox, b"x" * MAX_RECORD_BYTES)
    assert isinstance(outbox.failed.exception(), AppendFailed)


async def test_broker_that_finds_a_batch_too_large_fails_the_outbox(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1")
    (await producer.take())[0].failure(MessageSizeTooLargeError())
    with pytest.raises(AppendFailed):
        await outbox.failed


async def test_large_records_are_not_all_on_their_way_at_once(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    for partition in range(12):
        append(outbox, b"x" * (MAX_RECORD_BYTES - 200), partition)
    sent: list[int] = []
    while len(sent) < 12:
        taken = await producer.take()
        assert len(taken) <= 3
        sent += taken
        for batch in taken.values():
            batch.done(0)
    assert sorted(sent) == list(range(12))


async def test_stop_waits_for_acknowledgements_and_then_refuses_records(
    producer: FakeProducer, started: Callable[..., Outbox]
) -> None:
    outbox = started()
    append(outbox, b"1")
    stops = asyncio.ensure_future(outbox.stop())
    taken = await producer.take()
    assert not producer.stopped
    taken[0].done(0)
    await stops
    assert producer.stopped
    with pytest.raises(AppendFailed):
        append(outbox, b"2")


async def test_stop_says_when_records_are_left_behind(producer: FakeProducer, started: Callable[..., Outbox]) -> None:
    outbox = started()
    append(outbox, b"1")
    with pytest.raises(AppendFailed, match="1 records unacknowledged"):
        await outbox.stop(Deadline.after(0.01))
    assert producer.stopped
