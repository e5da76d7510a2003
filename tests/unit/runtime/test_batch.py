"""What the outbox relies on in aiokafka: a batch is counted when it is taken, and not before."""

from aiokafka.structs import TopicPartition

from anabranch.shared.runtime.batch import GrowingBatch

from .fakes import FakeProducer, values


def put(batch: GrowingBatch, value: bytes) -> bool:
    return batch.append(timestamp=None, key=None, value=value, headers=[]) is not None


async def test_batch_in_the_queue_grows_until_it_is_taken_and_its_sequence_covers_every_record() -> None:
    producer, batch = FakeProducer(), GrowingBatch()
    put(batch, b"1")
    await producer.send_batch(batch, "t", partition=0)
    assert put(batch, b"2")

    taken = await producer.take()

    assert not put(batch, b"3")
    assert producer.sequences.sequence_number(TopicPartition("t", 0)) == 2
    assert values(taken[0]) == [b"1", b"2"]


async def test_batch_that_is_sent_again_keeps_its_records_and_its_sequence() -> None:
    producer, batch = FakeProducer(), GrowingBatch()
    put(batch, b"1")
    await producer.send_batch(batch, "t", partition=0)
    first = await producer.take()
    producer.queue.reenqueue(first[0])

    again = await producer.take()

    assert values(again[0]) == [b"1"]
    assert producer.sequences.sequence_number(TopicPartition("t", 0)) == 1
