"""The one partitioner."""

from collections import Counter

from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.partitioner import partition_of


def test_key_goes_to_the_partition_that_librdkafkas_consistent_gives() -> None:
    """CRC32 modulo the count: `crc32("123456789")` is 0xCBF43926, the check value of the algorithm."""
    assert partition_of(b"123456789", 2**32) == 0xCBF43926
    assert partition_of(b"123456789", 12) == 0xCBF43926 % 12


def test_runs_are_spread_over_all_partitions() -> None:
    """None has twice its share."""
    counts = Counter(partition_of(new_run_id().encode(), 12) for _ in range(12_000))
    assert len(counts) == 12
    assert max(counts.values()) < 2_000
