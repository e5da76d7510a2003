"""The one partitioner: CRC32 of the key modulo the number of partitions (librdkafka's `consistent`)."""

from zlib import crc32


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition, 0 to `partitions` - 1, that every record with this key goes to."""
    return crc32(key) % partitions
