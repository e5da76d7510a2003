"""`PartitionLog` in memory."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from anabranch.services.orchestrator.core.changelog import CHECKPOINT_KEY, Change
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.ports import (
    AppendLost,
    CheckpointFailed,
    Fenced,
    InboxGone,
    InboxRecord,
    RestoreFailed,
)
from anabranch.services.orchestrator.refusals import refusal_of
from anabranch.shared.contracts.partitioner import partition_of

from .broker import AppendRefused, Broker, Changelog, Lanes, Producer, ProducerIsFenced, wake
from .virtual import Host
from .weather import Fate


class Reader:
    """What one process has fetched of the inbox and not yet served: it outlives an assignment."""

    def __init__(self) -> None:
        self.positions: dict[int, tuple[int, int]] = {}  # partition -> assignment, offset after what was served last


class MemoryLog:
    """One partition under one assignment."""

    committed_only = True

    def __init__(
        self,
        partition: int,
        assignment: int,
        *,
        broker: Broker,
        producer: Producer,
        lanes: Lanes,
        reader: Reader,
        host: Host | None = None,
        on_restore: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._partition = partition
        self._assignment = assignment
        self._broker = broker
        self._producer = producer
        self._lanes = lanes
        self._reader = reader
        self._host = host
        self._on_restore = on_restore
        self._inbox = broker.log(broker.topics.inbox, partition)
        self._changelog: Changelog = broker.changelogs[partition]
        self._epoch = 0
        self._position = 0
        self._is_interrupted = False
        self._waiting: asyncio.Future[None] | None = None
        self._stale: Sequence[InboxRecord] = ()

    @property
    def partition(self) -> int:
        """The partition's number."""
        return self._partition

    @property
    def assignment(self) -> int:
        """The number of the assignment this log serves."""
        return self._assignment

    # --- assign ---------------------------------------------------------------------------------------------------

    async def start_producer(self) -> None:
        """Take the next epoch: whoever wrote before is fenced."""
        await asyncio.sleep(self._broker.weather.start_latency_s())
        self._epoch = await self._broker.call(self._host, self._changelog.start_producer)

    async def read_changelog(self) -> Mapping[bytes, bytes]:
        """Return the live records, committed ones only."""
        live = await self._broker.call(self._host, partial(self._changelog.live, committed_only=self.committed_only))
        if self._broker.weather.restore_fails():
            if self._broker.weather.random.random() < 0.5:
                raise RestoreFailed(f"the changelog of partition {self._partition} could not be read")
            return {**live, CHECKPOINT_KEY: b"?"}  # until somebody mends it
        self._on_restore(self._partition, live, is_newest=self._epoch == self._changelog.epoch)
        return live

    async def seek(self, offset: int | None) -> None:
        """Take from this offset on, or from the first record there is."""
        self._position = offset or 0
        last = self._reader.positions.get(self._partition)
        if last is not None and last[0] < self._assignment and self._broker.weather.serves_stale():
            self._stale = self._tagged(last[1], last[0])
            self._broker.weather.count("stale records served", len(self._stale))

    # --- take -----------------------------------------------------------------------------------------------------

    async def take(self, wait_s: float) -> Sequence[InboxRecord]:
        """Return what has arrived, as soon as there is any."""
        if self._stale:
            stale, self._stale = self._stale, ()
            return stale
        if self._position == self._inbox.end and not self._is_interrupted and wait_s > 0:
            await self._until_there_is_any(wait_s)
        self._is_interrupted = False
        if self._position > self._inbox.end:
            raise InboxGone(f"inbox partition {self._partition} does not hold offset {self._position}")
        records = self._tagged(self._position, self._assignment)
        if records:
            self._position = records[-1].offset + 1
            self._reader.positions[self._partition] = (self._assignment, self._position)
        return records

    async def _until_there_is_any(self, wait_s: float) -> None:
        loop = self._broker.loop
        self._waiting = loop.create_future()
        self._inbox.watch(self._waiting)
        timer = loop.call_later(wait_s, wake, self._waiting)
        try:
            await self._waiting
        finally:
            timer.cancel()

    def _tagged(self, offset: int, assignment: int) -> Sequence[InboxRecord]:
        records = self._inbox.records[offset : offset + self._broker.weather.take_at_most()]
        return [InboxRecord(*record, assignment) for record in records]

    def interrupt(self) -> None:
        """Make the `take` under way, or the next, return at once."""
        self._is_interrupted = True
        if self._waiting is not None:
            wake(self._waiting)

    # --- append ---------------------------------------------------------------------------------------------------

    def append(self, output: Append) -> None:
        """Append without waiting."""
        key, topics = output.key.encode(), self._broker.topics
        match output.channel:
            case Channel.INBOX:
                topic, partition = topics.inbox, self._partition
            case Channel.COMMANDS:
                topic, partition = topics.steps(output.step_type), partition_of(key, topics.steps_partitions)
                refused = partial(self._refused, output)
                self._lanes.append_or_refuse(topic, partition, key, output.value, output.headers, refused)
                return
            case Channel.CONTROL:
                topic, partition = topics.control, 0
            case Channel.RUN_EVENTS:
                topic, partition = topics.run_events, self._partition
            case Channel.DEAD_LETTERS:
                topic, partition = topics.dead_letters, partition_of(key, topics.runs)
        try:
            self._producer.append(topic, partition, key, output.value, output.headers)
        except AppendRefused as error:
            raise AppendLost(str(error)) from error

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged."""
        return asyncio.ensure_future(self._acknowledged(self._producer.acknowledged(), self._lanes.acknowledged()))

    def _refused(self, command: Append, reason: str) -> None:
        with suppress(AppendLost):
            self.append(refusal_of(command, reason))

    async def _acknowledged(self, acknowledged: "asyncio.Future[None]", lanes: "asyncio.Future[None]") -> None:
        refusals = self._lanes.refusals
        try:
            await acknowledged
            await lanes
            if self._lanes.refusals != refusals:
                await self._producer.acknowledged()
        except AppendRefused as error:
            raise AppendLost(str(error)) from error

    @property
    def unacknowledged(self) -> int:
        """How many records are appended and not yet acknowledged."""
        return self._producer.unacknowledged + self._lanes.unacknowledged

    @property
    def unacknowledged_bytes(self) -> int:
        """How large their values are."""
        return self._producer.unacknowledged_bytes

    # --- checkpoint -----------------------------------------------------------------------------------------------

    async def checkpoint(self, changes: Sequence[Change]) -> None:
        """Write the changes in one transaction."""
        epoch, changelog = self._epoch, self._changelog
        fate = self._broker.weather.checkpoint_fate()
        try:
            transaction = await self._broker.call(self._host, changelog.write, epoch, changes)
            if fate is not Fate.REFUSED or self._broker.weather.random.random() < 0.5:
                commits = fate is not Fate.REFUSED
                await self._broker.call(self._host, partial(changelog.end, epoch, transaction, commits=commits))
        except ProducerIsFenced as error:
            raise Fenced(f"partition {self._partition} was taken over") from error
        if fate is not Fate.WELL:
            raise CheckpointFailed(f"partition {self._partition}: {fate.name}")

    async def close(self) -> None:
        """Take no more. A transaction that is open stays open until the next producer starts."""
