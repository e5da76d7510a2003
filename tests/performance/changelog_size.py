"""How large the changelog is: what was written, what the log still holds, what it takes on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiokafka import TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from anabranch.shared.runtime.kafka import new_consumer
from tests.performance.bed import Bed

_WRITTEN = "anabranch_orchestrator_checkpointed_records_total"


@dataclass(frozen=True, slots=True)
class Held:
    """What the changelog holds: records that can be read, the keys among them that are live, bytes on disk."""

    records: int
    live: int
    disk_bytes: int

    def __str__(self) -> str:
        return f"{self.records:,} records, {self.live:,} of them live; {self.disk_bytes / 1e6:.1f} MB on disk"


async def written(bed: Bed) -> int:
    """Return how many changelog records the orchestrators that run now have written."""
    total = 0.0
    async with aiohttp.ClientSession() as session:
        for name in bed.stack.names("orchestrator"):
            if bed.stack.service(name).pid is not None:
                async with session.get(f"{bed.stack.service(name).url}/metrics") as answer:
                    total += _total(await answer.text())
    return int(total)


def _total(metrics: str) -> float:
    samples = (s for family in text_string_to_metric_families(metrics) for s in family.samples)
    return sum(sample.value for sample in samples if sample.name == _WRITTEN)


def disk_bytes(bed: Bed) -> int:
    """Return what the changelog's segments take on disk; their indexes are sparse files of no size to speak of."""
    topic = bed.settings.topics.state
    return sum(segment.stat().st_size for segment in bed.stack.home.path.rglob(f"{topic}-*/*.log"))


async def held(bed: Bed) -> Held:
    """Read the whole changelog, as a restore of every partition would."""
    topics = bed.settings.topics
    consumer = new_consumer(bed.settings, isolation_level="read_committed")
    await consumer.start()
    partitions = [TopicPartition(topics.state, number) for number in range(topics.runs)]
    live: set[tuple[int, bytes]] = set()  # every partition has a `_checkpoint`
    records = 0
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition, begin in (await consumer.beginning_offsets(partitions)).items():
            consumer.seek(partition, begin)
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for tp, batch in (await consumer.getmany(timeout_ms=200)).items():
                records += len(batch)
                live.update((tp.partition, record.key) for record in batch)
                live.difference_update((tp.partition, record.key) for record in _dead(batch))
    finally:
        await consumer.stop()
    return Held(records, len(live), disk_bytes(bed))


def _dead(batch: Sequence[Any]) -> Iterator[Any]:
    """Yield the tombstones; of one key the last record in a batch counts."""
    last = {record.key: record for record in batch}
    return (record for record in last.values() if record.value is None)
