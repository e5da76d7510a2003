"""Commands and cancellations on Kafka. (Results are the process's `Outbox`.)"""

from collections.abc import Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from anabranch.services.steps.ports import CancelRecord, CommandRecord
from anabranch.shared.contracts import groups
from anabranch.shared.runtime.group_reader import GroupReader
from anabranch.shared.runtime.kafka import follow, new_follower, stop_consumer
from anabranch.shared.runtime.owned import Fail
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import Record

_READ_POLL_MS: Final = 200
_CONTROL_BATCH: Final = 1_000


def group_of(settings: Settings, uses: str) -> str:
    """Return the consumer group that shares a step type's commands among all its workers."""
    return groups.workers(settings.topic_prefix, uses)


class KafkaCommands(GroupReader[CommandRecord]):
    """The command topic of a step type, as a member of its group. `overrides` are aiokafka's own names."""

    def __init__(self, settings: Settings, uses: str, *, fail: Fail, **overrides: Any) -> None:
        group = group_of(settings, uses)
        super().__init__(settings, settings.topics.steps(uses), group=group, tagged=_commands, fail=fail, **overrides)


def _commands(partition: int, records: Sequence[Record], assignment: int) -> list[CommandRecord]:
    return [CommandRecord(partition, r.offset, r.timestamp_ms, r.key, r.value, assignment) for r in records]


class KafkaControl:
    """The control topic: one partition, no group, from its retention's start."""

    def __init__(self, settings: Settings) -> None:
        self._partition = TopicPartition(settings.topics.control, 0)
        # A worker that was away for longer than the retention goes on from what there is.
        self._consumer: AIOKafkaConsumer = new_follower(settings, auto_offset_reset="earliest")

    async def start(self) -> None:
        """Connect."""
        await self._consumer.start()

    async def read_to_end(self) -> Sequence[CancelRecord]:
        """Return all there is; it may be an hour of cancellations."""
        end = await follow(self._consumer, self._partition)
        records: list[CancelRecord] = []
        while await self._consumer.position(self._partition) < end:
            records += await self.take(_READ_POLL_MS / 1000)
        return records

    async def take(self, wait_s: float) -> Sequence[CancelRecord]:
        """Return what follows."""
        fetched = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=_CONTROL_BATCH)
        return [
            CancelRecord(record.offset, record.timestamp, record.value)
            for records in fetched.values()
            for record in records
        ]

    async def stop(self) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)
