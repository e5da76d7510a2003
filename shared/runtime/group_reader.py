"""Reads a topic as a member of a consumer group, at a fraction of what `AIOKafkaConsumer` costs (ADR 0005).

What aiokafka's group consumer does, and this has to live with: it logs and swallows what a listener raises (so the
listener ends the process itself); it calls revoke for zombies too; between two polls no more than `max.poll.interval`
may pass; a new assignment begins unpaused, so its partitions are paused in the synchronous part of
`on_partitions_assigned`; the assignment's number is set there and nowhere else.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError

from anabranch.shared.contracts.limits import MAX_FETCHED_BYTES, MIB
from anabranch.shared.runtime.clients import new_consumer, stop_consumer
from anabranch.shared.runtime.clock import now_ms
from anabranch.shared.runtime.errors import CommitRefused
from anabranch.shared.runtime.owned import Fail, OwnedTask
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import OffsetGone, Record, TopicReader, at_once

# Records that wait to be taken: above this all partitions are paused, below half of it they go on.
_MAX_FETCHED: Final = 2_000
_TAKE_BYTES: Final = 4 * MIB  # of one take: what is taken is parsed at once
_POLL_S: Final = 0.5  # far below max.poll.interval


async def _where_the_group_is(_partition: int) -> None:
    """Say nothing else."""


class AssignmentListener(Protocol):
    """What is called when the group is rebalanced."""

    def on_assigned(self, partitions: Iterable[int], assignment: int, at_ms: int) -> None:
        """Hear that these partitions, and no others, are ours from now on: assignment number `assignment`."""

    async def on_revoked(self, partitions: Iterable[int]) -> None:
        """Make these partitions ready for another owner; they are its own when this returns."""


class Fetched(Protocol):
    """What a reader makes of a record, at the least."""

    @property
    def partition(self) -> int:
        """Where it lies."""

    @property
    def offset(self) -> int:
        """Its number there."""

    @property
    def value(self) -> bytes | None:
        """What it holds."""


R = TypeVar("R", bound=Fetched)


class GroupReader(Generic[R]):
    """A topic, as a member of a consumer group. `overrides` are aiokafka's own names.

    The member itself reads nothing: it tells what is ours and from which offsets on, and a `TopicReader` reads.
    `tagged` makes of the records of a partition, fetched under an assignment, what is served; `rest_s` is as in
    `TopicReader`; `begins` says of a partition that has become ours where to go on, None for where the group is.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        *,
        group: str,
        tagged: Callable[[int, Sequence[Record], int], Sequence[R]],
        fail: Fail,
        rest_s: Callable[[int], float] = at_once,
        begins: Callable[[int], Awaitable[int | None]] = _where_the_group_is,
        **overrides: Any,
    ) -> None:
        self._topic = topic
        self._tagged = tagged
        # The client keeps a sticky assignor's memory on its class: each consumer needs one of its own.
        sticky = type("Sticky", (StickyPartitionAssignor,), {})
        own: dict[str, Any] = {"partition_assignment_strategy": (sticky,)}
        self._member: AIOKafkaConsumer = new_consumer(settings, group_id=group, **(own | overrides))
        self._reader = TopicReader(settings, topic, self._deliver, rest_s=rest_s)
        self._fail = fail
        self._begins = begins
        self._background: list[OwnedTask] = []
        self._seeking: OwnedTask | None = None
        self._next: dict[int, int] = {}  # the offset to serve next, of each partition that is ours
        self._fetched: deque[R] = deque()
        self._fetched_bytes = 0  # of their values
        self._is_full = False
        self._paused: set[int] = set()
        self._arrived = asyncio.Event()
        self._was_asked = asyncio.Event()
        self.assignment = 0

    @property
    def is_member(self) -> bool:
        """Whether the group has given this process its share, which may be none."""
        return self.assignment > 0

    async def start(self, listener: AssignmentListener) -> None:
        """Join the group; return when it has given us our share."""
        await self._reader.start()
        self._background = [
            OwnedTask(work, name=f"group reader: {name}", fail=self._fail)
            for name, work in (("read", self._keep_reading()), ("poll", self._keep_polling()))
        ]
        self._member.subscribe([self._topic], listener=_Rebalances(self, listener, self._fail))
        await self._member.start()

    async def take(self, max_records: int, wait_s: float) -> Sequence[R]:
        """Return what was fetched, tagged with the assignment it was fetched under."""
        self.stay()
        if not self._fetched and wait_s > 0:
            await self._until_arrived(wait_s)
        fetched = self._fetched
        taken = some_of(fetched, max_records)
        for record in taken:
            self._next[record.partition] = record.offset + 1
            self._fetched_bytes -= len(record.value or b"")
        if self._is_full and not self._is_above(_MAX_FETCHED // 2, MAX_FETCHED_BYTES // 2):
            self._is_full = False
            for partition in self._next:
                self._reader.resume(partition)
        return taken

    @property
    def positions(self) -> dict[int, int]:
        """The offset to serve next, of each partition that is ours."""
        return dict(self._next)

    def stay(self) -> None:
        """Stay a member for another `max.poll.interval` without taking anything, as `take` does."""
        self._was_asked.set()

    async def commit(self, offsets: Mapping[int, int], assignment: int) -> None:
        """Commit the offsets to go on from, unless the partitions may be another member's by now."""
        if assignment != self.assignment:
            raise CommitRefused(f"assignment {assignment} of {self._topic} is over")
        try:
            await self._member.commit({TopicPartition(self._topic, number): at for number, at in offsets.items()})
        except (CommitFailedError, IllegalStateError) as error:
            raise CommitRefused(f"offsets of {self._topic} {dict(offsets)}: {error}") from error

    def pause(self, partitions: Iterable[int]) -> None:
        """Fetch no more of these; what was fetched and not served is fetched again later."""
        self._paused.update(partitions)
        for partition in self._paused:
            self._reader.leave(partition)
        self._keep(record for record in self._fetched if record.partition not in self._paused)

    def resume(self, partitions: Iterable[int]) -> None:
        """Fetch again."""
        for partition in self._paused.intersection(partitions):
            self._paused.discard(partition)
            self._seek_to_next(partition)

    async def stop(self) -> None:
        """Leave the group."""
        for task in (*self._background, *([self._seeking] if self._seeking else ())):
            task.let_go()
        await stop_consumer(self._member)
        await self._reader.stop()

    # --- what is ours -------------------------------------------------------------------------------------------------

    def revoked(self) -> None:
        """Nothing is ours; what was fetched and not served is somebody else's."""
        if self._seeking is not None:
            self._seeking.let_go()
        for partition in self._next:
            self._reader.leave(partition)
        self._next = {}
        self._paused.clear()
        self._keep(())

    def assigned(self, partitions: Collection[TopicPartition]) -> int:
        """Begin a new assignment, and return its number. Nothing is served before the offsets are known."""
        self.revoked()
        self._member.pause(*partitions)
        self.assignment += 1
        self._seeking = OwnedTask(self._seek(partitions), name="group reader: seek", fail=self._fail, may_return=True)
        return self.assignment

    async def _seek(self, partitions: Collection[TopicPartition]) -> None:
        for tp in partitions:
            told = await self._begins(tp.partition)
            # That of the group is the committed one, or the first there is.
            self._next[tp.partition] = await self._member.position(tp) if told is None else told
            self._seek_to_next(tp.partition)

    def _seek_to_next(self, partition: int) -> None:
        if partition in self._next and partition not in self._paused:
            self._reader.seek(partition, self._next[partition])

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _keep_reading(self) -> None:
        while True:
            try:
                await self._reader.run()
            except OffsetGone as gone:  # as a group's consumer does: from the first record there is
                tp, assignment = TopicPartition(self._topic, gone.partition), self.assignment
                begins = await self._member.beginning_offsets([tp])
                if gone.partition in self._next and assignment == self.assignment:
                    self._next[gone.partition] = begins[tp]
                    self._seek_to_next(gone.partition)

    async def _keep_polling(self) -> None:
        """Tell the group that we are alive, as long as we are asked for records."""
        while True:
            await self._was_asked.wait()
            self._was_asked.clear()
            await self._member.getmany(timeout_ms=0)
            await asyncio.sleep(_POLL_S)

    def _deliver(self, partition: int, records: Sequence[Record]) -> None:
        self._fetched += self._tagged(partition, records, self.assignment)
        self._fetched_bytes += sum(len(r.value or b"") for r in records)
        self._arrived.set()
        if self._is_above(_MAX_FETCHED, MAX_FETCHED_BYTES):
            self._is_full = True
            for each in self._next:
                self._reader.pause(each)

    def _is_above(self, count: int, size: int) -> bool:
        return len(self._fetched) > count or self._fetched_bytes > size

    def _keep(self, records: Iterable[R]) -> None:
        self._fetched = deque(records)
        self._fetched_bytes = sum(len(record.value or b"") for record in self._fetched)

    async def _until_arrived(self, wait_s: float) -> None:
        self._arrived.clear()
        timer = asyncio.get_running_loop().call_later(wait_s, self._arrived.set)
        try:
            await self._arrived.wait()
        finally:
            timer.cancel()


def some_of(fetched: deque[R], max_records: int) -> list[R]:
    """Take so many records off the front, or as many as may be parsed at once."""
    taken: list[R] = []
    size = 0
    while fetched and len(taken) < max_records and size < _TAKE_BYTES:
        taken.append(fetched.popleft())
        size += len(taken[-1].value or b"")
    return taken


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Passes rebalances on; an error in the listener ends the process, since the client would swallow it."""

    def __init__(self, reader: GroupReader[Any], listener: AssignmentListener, fail: Fail) -> None:
        self._reader = reader
        self._listener = listener
        self._fail = fail

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Hand over, while the group waits."""
        self._reader.revoked()
        try:
            await self._listener.on_revoked([tp.partition for tp in revoked])
        except Exception as error:  # noqa: BLE001  the client would log it and go on
            await self._fail(error)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Number the assignment. Nothing is awaited before: the first records may follow at once."""
        partitions = list(assigned)
        number = self._reader.assigned(partitions)
        try:
            self._listener.on_assigned([tp.partition for tp in partitions], number, now_ms())
        except Exception as error:  # noqa: BLE001  as above
            await self._fail(error)
