"""Where run events come from: the port, and Kafka behind it."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.services.history.metrics import HistoryMetrics

Record = Any  # aiokafka.ConsumerRecord, which is not typed

_TAKE_MS: Final = 1000  # how long an idle service sleeps at most before it looks whether it has to stop


class EventLog(Protocol):
    """Run events in the order of their partitions, each given again until it is `done`."""

    async def take(self) -> list[Record]:
        """Return what has arrived, after a while nothing."""
        ...

    async def hold(self, seconds: float) -> list[Record]:
        """Take nothing for a while but stay a member; returns what came of partitions assigned in between."""
        ...

    def resume(self) -> None:
        """Take again after `hold`."""
        ...

    def done(self, records: Sequence[Record]) -> None:
        """These need not be given again."""
        ...


class KafkaEventLog:
    """The run-events topic, shared by a consumer group.

    Offsets are committed in the background and on revoke: a record between two commits is projected again by whoever
    reads it next, which changes nothing.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        *,
        max_records: int,
        gather_s: float,
        metrics: HistoryMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._consumer = consumer
        self._max_records = max_records
        self._gather_s = gather_s
        self._gathers_until: float | None = None  # on the loop's clock; None: nothing is paused
        self._metrics = metrics
        self._log = log
        self._done: dict[TopicPartition, int] = {}

    def subscribe(self, topic: str) -> None:
        """Join the group."""
        self._consumer.subscribe([topic], listener=_CommitOnRevoke(self))

    async def stop(self) -> None:
        """Commit and leave the group."""
        await self.commit()
        await self._consumer.stop()

    async def take(self) -> list[Record]:
        """Return what has arrived within a second.

        What follows a batch gathers at the broker for `gather_s`, unasked for: a reader that asks for every event as it
        is written takes a third of a run's time away from those that run it (docs/benchmarks.md). An idle one asks.
        """
        loop = asyncio.get_running_loop()
        if self._gathers_until is not None:
            await asyncio.sleep(max(0.0, self._gathers_until - loop.time()))
            self._gathers_until = None
            self.resume()
        records = _flat(await self._consumer.getmany(timeout_ms=_TAKE_MS, max_records=self._max_records))
        if records:  # before the client's next request: it goes out when this task waits
            self._consumer.pause(*self._consumer.assignment())
            self._gathers_until = loop.time() + self._gather_s
        return records

    async def hold(self, seconds: float) -> list[Record]:
        """Pause what is assigned. Polling goes on, or else the group would take this member for dead."""
        self._consumer.pause(*self._consumer.assignment())
        return _flat(await self._consumer.getmany(timeout_ms=int(seconds * 1000), max_records=self._max_records))

    def resume(self) -> None:
        """Take from every assigned partition again."""
        self._consumer.resume(*self._consumer.paused())

    def done(self, records: Sequence[Record]) -> None:
        """Note the offsets for the next commit: of each partition, the last counts."""
        for record in {record.partition: record for record in records}.values():
            self._done[TopicPartition(record.topic, record.partition)] = record.offset + 1

    async def commit(self) -> None:
        """Commit what is done of the partitions that are still ours."""
        ours = self._consumer.assignment()
        offsets = {partition: offset for partition, offset in self._done.items() if partition in ours}
        self._done.clear()
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except (KafkaError, IllegalStateError) as error:
            self._metrics.commit_failed()
            self._log.warning("offsets not committed; the next commit covers them", error=repr(error))

    async def commit_every(self, seconds: float) -> None:
        """Commit for ever."""
        while True:
            await asyncio.sleep(seconds)
            await self.commit()


class _CommitOnRevoke(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, log: KafkaEventLog) -> None:
        self._log = log

    async def on_partitions_revoked(self, revoked: object) -> None:
        await self._log.commit()

    async def on_partitions_assigned(self, assigned: object) -> None:
        """Nothing to do: reading goes on where the group's offsets stand."""


def _flat(batches: dict[TopicPartition, list[Record]]) -> list[Record]:
    return [record for batch in batches.values() for record in batch]
