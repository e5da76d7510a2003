"""A batch of records that may grow until the producer takes it."""

from aiokafka.producer.message_accumulator import BatchBuilder

# A request holds one batch of every partition it is for. 64 KiB is 60 records of 1 KiB per partition and round trip,
# far more than a process decides in one, and keeps a request of 100 partitions below 7 MiB.
BATCH_BYTES = 64 * 1024


class GrowingBatch(BatchBuilder):  # type: ignore[misc]  # aiokafka is not typed
    """A batch that lies in the producer's queue and still takes records, until the sender counts it.

    The sender counts a batch once, when it takes it off its queue: the count advances the partition's idempotent
    sequence number. It builds the bytes in a later turn of the loop. A record added in between would have a sequence
    number that the next batch has too. So whoever asks for the count closes the batch, in the same breath.
    """

    def __init__(self) -> None:
        super().__init__(BATCH_BYTES, 0)

    def record_count(self) -> int:
        """Return the number of records, which from now on does not change."""
        self.close()
        return int(super().record_count())
