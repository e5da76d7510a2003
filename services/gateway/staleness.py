"""How far what is read is behind the engine: the ends of the run events, compared with how far each projection is.

Both are looked at once a second. What a projection has not reached although it stood in Kafka at an earlier look, it is
behind by at least the time between the two; no clock but this gateway's counts.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from anabranch.services.gateway.cache import CacheUnavailable, RunCache
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import Pressure
from anabranch.services.gateway.reads import Source
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.reading import RecordReader

HEADER: Final = "Anabranch-Stale"

_EVERY_S: Final = 1.0
_WITHIN_S: Final = 5.0  # a look that takes longer says nothing of now
_KEPT: Final = 600  # ends of a partition that a projection has yet to reach: the oldest tells how far it is behind

Offsets = Mapping[int, int]
"""By partition."""


class Projection:
    """How far behind one projection is, by partition, as of the last look."""

    def __init__(self) -> None:
        # By partition that it says something of: ends that it has yet to reach, and when each was first seen.
        self._ahead: dict[int, deque[tuple[int, float]]] = {}
        self._looked_s = 0.0
        self.worst_s = 0.0  # of the partition that is furthest behind

    def looked(self, ends: Offsets, reached: Offsets, now_s: float) -> None:
        """Compare. Of a partition of which it does not say how far it is nothing is known."""
        self._looked_s = now_s
        self._ahead = {
            partition: self._still_ahead(partition, end, reached[partition], now_s)
            for partition, end in ends.items()
            if partition in reached
        }
        self.worst_s = max((self.behind_s(partition) or 0.0 for partition in self._ahead), default=0.0)

    def behind_s(self, partition: int) -> float | None:
        """Return for how long it has not reached what was in Kafka, in seconds, at least; None when nobody knows."""
        ahead = self._ahead.get(partition)
        if ahead is None:
            return None
        return self._looked_s - ahead[0][1] if ahead else 0.0

    def _still_ahead(self, partition: int, end: int, reached: int, now_s: float) -> deque[tuple[int, float]]:
        ahead = self._ahead.get(partition, deque())
        while ahead and ahead[0][0] <= reached:
            ahead.popleft()
        if end > max(reached, ahead[-1][0] if ahead else 0):
            if len(ahead) == _KEPT:
                ahead.pop()
            ahead.append((end, now_s))
        return ahead


class Staleness:
    """How stale a read is, by where it was found."""

    def __init__(self, partitions: int, metrics: GatewayMetrics) -> None:
        self._partitions = partitions
        self._metrics = metrics
        self.snapshots = Projection()
        self.record = Projection()

    def looked(self, ends: Offsets, snapshots: Offsets, record: Offsets, now_s: float) -> None:
        """Take what was seen at once: the ends of the run events, and how far Redis and the record are."""
        self.snapshots.looked(ends, snapshots, now_s)
        self.record.looked(ends, record, now_s)
        self._metrics.projection_behind("snapshots", self.snapshots.worst_s)
        self._metrics.projection_behind("record", self.record.worst_s)

    def headers(self, run_id: str, source: Source) -> dict[str, str]:
        """Return the header that says by how many seconds a read is behind, at least; none for a second or less."""
        behind_s = self._behind_s(run_id, source)
        return {HEADER: str(int(behind_s))} if behind_s > 1 else {}

    def headers_of_list(self) -> dict[str, str]:
        """Return the same of what was read of many runs, which the record has, in any partition."""
        return {HEADER: str(int(self.record.worst_s))} if self.record.worst_s > 1 else {}

    def _behind_s(self, run_id: str, source: Source) -> float:
        if not (self.snapshots.worst_s or self.record.worst_s):
            return 0.0
        partition = partition_of(run_id.encode(), self._partitions)
        projections = (self.record,) if source is Source.RECORD else (self.snapshots, self.record)
        known = [behind_s for each in projections if (behind_s := each.behind_s(partition)) is not None]
        # What Redis shows was compared with the record; what neither has yet may be in what either has not read.
        return (min if source is Source.REDIS else max)(known, default=0.0)


class StalenessWatch:
    """Looks how far the projections are, for ever."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        cache: RunCache,
        record: RecordReader | None,
        *,
        staleness: Staleness,
        pressure: Pressure,
        settings: GatewaySettings,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumer = consumer
        self._cache = cache
        self._record = record
        self._staleness = staleness
        self._pressure = pressure
        self._partitions = [TopicPartition(settings.topics.run_events, n) for n in range(settings.run_partitions)]
        self._monotonic_s = monotonic_s

    async def watch(self) -> None:
        """Look once a second. While Kafka does not answer, what was seen last stands."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._pressure.inbox_exists:  # the orchestrator makes all its topics at once
                await self._look()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(_WITHIN_S):
                ends = _by_partition(await self._consumer.end_offsets(self._partitions))
                now_s = self._monotonic_s()
                record = await self._of_record(ends)
        except (KafkaError, OSError, TimeoutError):
            return  # the watch of the inbox says so in the log
        self._staleness.looked(ends, await self._of_snapshots(), record, now_s)

    async def _of_snapshots(self) -> Offsets:
        try:
            return await self._cache.reached()
        except CacheUnavailable:
            return {}

    async def _of_record(self, ends: Offsets) -> Offsets:
        """Return how far the record is; where it has nothing yet, that is the beginning."""
        if self._record is None:
            return {}
        try:
            reached = {partition: each.next_offset for partition, each in (await self._record.progress()).items()}
        except RecordUnavailable:
            return {}
        if untouched := [each for each in self._partitions if each.partition not in reached and ends[each.partition]]:
            reached |= _by_partition(await self._consumer.beginning_offsets(untouched))
        return dict.fromkeys(ends, 0) | reached


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {each.partition: offset for each, offset in offsets.items()}
