"""Commands and cancellations on Kafka. (Results are the process's `Outbox`.)

What aiokafka's group consumer does, and this has to live with: it logs and swallows what a listener raises (so the
listener ends the process itself); it calls revoke for zombies too; between two polls no more than `max.poll.interval`
may pass; a new assignment begins unpaused; records of a new assignment are served after the synchronous part of
`on_partitions_assigned`, so the assignment's number is set there and nowhere else.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError

from anabranch.services.steps.ports import AssignmentListener, CancelRecord, CommandRecord, CommitRefused
from anabranch.shared.runtime.kafka import new_consumer
from anabranch.shared.runtime.settings import Settings

_READ_POLL_MS: Final = 200
_CONTROL_BATCH: Final = 1_000

Fail = Callable[[BaseException], Awaitable[None]]


def now_ms() -> int:
    """Return this host's wall clock, to be compared with broker times with a margin."""
    return time.time_ns() // 1_000_000


def group_of(settings: Settings, uses: str) -> str:
    """Return the consumer group that shares a step type's commands among all its workers."""
    return f"{settings.topic_prefix}.steps.{uses}"


class KafkaCommands:
    """The command topic of a step type, as a member of its group. `overrides` are aiokafka's own names."""

    def __init__(self, settings: Settings, uses: str, *, fail: Fail, **overrides: Any) -> None:
        self._topic = settings.topics.steps(uses)
        # The client keeps a sticky assignor's memory on its class: each consumer needs one of its own.
        sticky = type("Sticky", (StickyPartitionAssignor,), {})
        own: dict[str, Any] = {"partition_assignment_strategy": (sticky,)}
        self._consumer: AIOKafkaConsumer = new_consumer(
            settings, group_id=group_of(settings, uses), **(own | overrides)
        )
        self._fail = fail
        self.assignment = 0

    @property
    def is_member(self) -> bool:
        """Whether the group has given this process its share, which may be none."""
        return self.assignment > 0

    async def start(self, listener: AssignmentListener) -> None:
        """Join the group; return when it has given us our share."""
        self._consumer.subscribe([self._topic], listener=_Rebalances(self, listener, self._fail))
        await self._consumer.start()

    async def take(self, max_records: int, wait_s: float) -> Sequence[CommandRecord]:
        """Return what was fetched, tagged with the assignment it was fetched under."""
        fetched = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=max_records)
        assignment = self.assignment  # the client returns no record across a reassignment
        return [
            CommandRecord(tp.partition, record.offset, record.timestamp, record.key, record.value, assignment)
            for tp, records in fetched.items()
            for record in records
        ]

    async def commit(self, offsets: Mapping[int, int], assignment: int) -> None:
        """Commit the offsets to go on from, unless the partitions may be another member's by now."""
        if assignment != self.assignment:
            raise CommitRefused(f"assignment {assignment} of {self._topic} is over")
        try:
            await self._consumer.commit({TopicPartition(self._topic, number): at for number, at in offsets.items()})
        except (CommitFailedError, IllegalStateError) as error:
            raise CommitRefused(f"offsets of {self._topic} {dict(offsets)}: {error}") from error

    def pause(self, partitions: Iterable[int]) -> None:
        """Fetch no more of these; what was fetched and not served is fetched again later."""
        self._consumer.pause(*self._assigned(partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        """Fetch again."""
        self._consumer.resume(*self._assigned(partitions))

    async def stop(self) -> None:
        """Leave the group."""
        await self._consumer.stop()

    def _assigned(self, partitions: Iterable[int]) -> list[TopicPartition]:
        assigned = self._consumer.assignment()
        return [tp for number in partitions if (tp := TopicPartition(self._topic, number)) in assigned]


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Passes rebalances on; an error in the listener ends the process, since the client would swallow it."""

    def __init__(self, commands: KafkaCommands, listener: AssignmentListener, fail: Fail) -> None:
        self._commands = commands
        self._listener = listener
        self._fail = fail

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Hand over, while the group waits."""
        try:
            await self._listener.on_revoked([tp.partition for tp in revoked])
        except Exception as error:  # noqa: BLE001  the client would log it and go on
            await self._fail(error)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Number the assignment. Nothing is awaited before: the first records may follow at once."""
        self._commands.assignment += 1
        try:
            self._listener.on_assigned([tp.partition for tp in assigned], self._commands.assignment, now_ms())
        except Exception as error:  # noqa: BLE001  as above
            await self._fail(error)


class KafkaControl:
    """The control topic: one partition, no group, from its retention's start."""

    def __init__(self, settings: Settings) -> None:
        self._partition = TopicPartition(settings.topics.control, 0)
        # A worker that was away for longer than the retention goes on from what there is.
        self._consumer: AIOKafkaConsumer = new_consumer(settings, auto_offset_reset="earliest")

    async def start(self) -> None:
        """Connect."""
        await self._consumer.start()
        self._consumer.assign([self._partition])

    async def read_to_end(self) -> Sequence[CancelRecord]:
        """Return all there is; it may be an hour of cancellations."""
        await self._consumer.seek_to_beginning(self._partition)
        end = (await self._consumer.end_offsets([self._partition]))[self._partition]
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
        await self._consumer.stop()
