"""Reads from Kafka that runs have ended, at little cost: a record is looked at, not parsed."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from anabranch.shared.contracts.messages import RUN_ENDED_TYPES
from anabranch.shared.runtime.kafka import new_consumer
from anabranch.shared.runtime.settings import Settings

_ENDED: Final = frozenset(("ce_type", name.encode()) for name in RUN_ENDED_TYPES)
_POLL_MS: Final = 500


class Ends:
    """The terminal run events from now on. `ended` counts each run once, with the value of its event."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.ended: dict[str, bytes] = {}
        self.events = 0

    async def __aenter__(self) -> Self:
        topics = self._settings.topics
        self._consumer: AIOKafkaConsumer = new_consumer(self._settings)
        await self._consumer.start()
        partitions = [TopicPartition(topics.run_events, number) for number in range(topics.runs)]
        self._consumer.assign(partitions)
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            self._consumer.seek(partition, end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def read(self, timeout_ms: int = _POLL_MS) -> None:
        """Take in what there is."""
        for records in (await self._consumer.getmany(timeout_ms=timeout_ms)).values():
            self._take(records)

    def _take(self, records: Sequence[Any]) -> None:
        self.events += len(records)
        for record in records:
            if not _ENDED.isdisjoint(record.headers):
                self.ended[record.key.decode()] = record.value

    async def until_count(self, count: int, timeout_s: float) -> None:
        """Wait until so many runs have ended."""
        async with asyncio.timeout(timeout_s):
            while len(self.ended) < count:
                await self.read()

    async def until(self, run_ids: Collection[str], timeout_s: float) -> None:
        """Wait until all these have ended; raise when one did not succeed."""
        wanted = set(run_ids)
        async with asyncio.timeout(timeout_s):
            while wanted:
                if wanted.isdisjoint(self.ended):
                    await self.read()
                wanted -= self.ended.keys()
        failed = [value for run_id in run_ids if b'"RunSucceeded"' not in (value := self.ended[run_id])]
        if failed:
            raise AssertionError(f"{len(failed)} runs did not succeed, the first: {failed[0].decode()}")
