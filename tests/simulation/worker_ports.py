"""Commands, memory and cancellations in memory: the ports of a real `Worker`."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from anabranch.services.steps.ports import (
    Asked,
    AssignmentListener,
    CancelRecord,
    CommandRecord,
    MemoryUnavailable,
    Note,
    Remembered,
    Take,
)
from anabranch.shared.contracts.codec import Headers
from anabranch.shared.runtime.errors import CommitRefused

from .broker import EPOCH_MS, Broker, Producer, request, wake
from .group import Group, Member
from .virtual import Host

T = TypeVar("T")


def now_ms(broker: Broker) -> int:
    """Return what the clock of a process's machine says; broker time may be ahead of it or behind."""
    return EPOCH_MS + round(1000 * broker.loop.now)


class MemoryCommands:
    """The command topic as a member of the group sees it."""

    def __init__(self, topic: str, *, broker: Broker, group: Group, host: Host) -> None:
        self._topic = topic
        self._broker = broker
        self._group = group
        self._host = host
        self._listener: AssignmentListener | None = None
        self._generation = 0
        self._assignment = 0
        self._positions: dict[int, int] = {}
        self._before: dict[int, tuple[int, int]] = {}  # partition -> assignment, position: fetched before the last one
        self._paused: set[int] = set()
        self._arrived: asyncio.Future[None] | None = None
        self.member: Member = group.member(host, self)

    async def start(self, listener: AssignmentListener) -> None:
        """Join the group."""
        self._listener = listener
        self.member.start()

    async def on_assigned(self, partitions: Sequence[int], generation: int) -> None:
        """Go on from the committed offsets."""
        committed = await self._broker.call(self._host, self._group.committed.copy)
        before = {p: (self._assignment, position) for p, position in self._positions.items()}
        self._assignment += 1
        self._generation = generation
        self._positions = {partition: committed.get(partition, 0) for partition in partitions}
        self._before = {p: before[p] for p in partitions if p in before and self._broker.weather.serves_stale()}
        self._paused.clear()
        assert self._listener is not None
        self._listener.on_assigned(partitions, self._assignment, now_ms(self._broker))
        self._wake()

    async def on_revoked(self) -> None:
        """Hand over all."""
        assert self._listener is not None
        await self._listener.on_revoked(list(self._positions))

    async def take(self, max_records: int, wait_s: float) -> Sequence[CommandRecord]:
        """Return what there is of the assigned partitions."""
        records = self._there_is(max_records)
        if not records and wait_s > 0:
            await self._until_there_is_any(wait_s)
            records = self._there_is(max_records)
        return records

    def _there_is(self, max_records: int) -> Sequence[CommandRecord]:
        for partition, (assignment, position) in list(self._before.items()):
            del self._before[partition]
            stale = self._fetched(partition, position, max_records, assignment)
            self._broker.weather.count("stale records served", len(stale))
            if stale:
                return stale
        for partition, position in self._positions.items():
            if partition in self._paused:
                continue
            records = self._fetched(partition, position, max_records, self._assignment)
            if records:
                self._positions[partition] = records[-1].offset + 1
                return records
        return ()

    def _fetched(self, partition: int, position: int, count: int, assignment: int) -> Sequence[CommandRecord]:
        records = self._broker.log(self._topic, partition).records[position : position + count]
        return [CommandRecord(partition, r.offset, r.at_ms, r.key, r.value, assignment) for r in records]

    async def _until_there_is_any(self, wait_s: float) -> None:
        loop = self._broker.loop
        self._arrived = loop.create_future()
        for partition in self._positions:
            if partition not in self._paused:
                self._broker.log(self._topic, partition).watch(self._arrived)
        timer = loop.call_later(wait_s, wake, self._arrived)
        try:
            await self._arrived
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._arrived is not None:
            wake(self._arrived)

    async def commit(self, offsets: Mapping[int, int], assignment: int) -> None:
        """Commit, unless the assignment is over."""
        if assignment != self._assignment:
            raise CommitRefused(f"assignment {assignment} is over")
        commit = partial(self._group.commit, self.member, self._generation, dict(offsets))
        if not await self._broker.call(self._host, commit):
            raise CommitRefused("the group was rebalanced")

    def pause(self, partitions: Iterable[int]) -> None:
        """Serve none of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        """Serve these again."""
        self._paused.difference_update(partitions)
        self._wake()

    async def stop(self) -> None:
        """Leave the group."""
        self.member.leave()


class MemoryResults:
    """The worker's way to the producer of its process."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append without waiting."""
        self._producer.append(topic, partition, key, value, headers)

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged."""
        return self._producer.acknowledged()


@dataclass(slots=True)
class Redis:
    """What workers remember, as long as nothing wipes it."""

    known: dict[str, Remembered] = field(default_factory=dict)
    is_down: bool = False
    slow_s: float = 0.0
    was_lost: bool = False  # at some time it was down, slow or wiped: then a handler may run again

    def lose(self) -> None:
        """Forget everything."""
        self.known.clear()
        self.was_lost = True

    def recall(self, asked: Sequence[Asked]) -> Sequence[Remembered]:
        """Return what is known."""
        self._check()
        return [self.known.get(ask.attempt_id, Remembered()) for ask in asked]

    def count_takes(self, takes: Sequence[Take]) -> None:
        """Count one more take of each."""
        self._check()
        for take in takes:
            known = self.known.get(take.attempt_id, Remembered())
            known = known._replace(takes=known.takes + 1)
            if take.alone_on:
                known = known._replace(alone=known.alone + 1, alone_on=take.alone_on)
            self.known[take.attempt_id] = known

    def remember(self, notes: Sequence[Note]) -> None:
        """Write; a result stays."""
        self._check()
        for note in notes:
            known = self.known.get(note.attempt_id, Remembered())
            if note.result is not None:
                known = known._replace(result=note.result)
            else:
                known = known._replace(holder=note.holder, leased_until_ms=note.leased_until_ms)
            self.known[note.attempt_id] = known

    def _check(self) -> None:
        if self.is_down:
            raise MemoryUnavailable("Redis is down")


class MemoryMemory:
    """The worker's way to Redis."""

    def __init__(self, redis: Redis, broker: Broker, host: Host) -> None:
        self._redis = redis
        self._broker = broker
        self._host = host

    async def recall(self, asked: Sequence[Asked]) -> Sequence[Remembered]:
        """Return what is known of each attempt."""
        return await self._call(partial(self._redis.recall, asked))

    async def count_takes(self, takes: Sequence[Take]) -> None:
        """Add one to each attempt's takes."""
        await self._call(partial(self._redis.count_takes, takes))

    async def last_words(self, worker: str) -> str:
        """Return that nobody said."""
        return await self._call(lambda: "")

    async def remember(self, notes: Sequence[Note]) -> None:
        """Write the notes."""
        await self._call(partial(self._redis.remember, notes))

    async def _call(self, effect: Callable[[], T]) -> T:
        broker = self._broker
        return await request(broker.loop, self._host, broker.weather, self._redis_latency_s, effect)

    def _redis_latency_s(self) -> float:
        return self._redis.slow_s + self._broker.weather.redis_latency_s()


class MemoryControl:
    """The control topic."""

    def __init__(self, broker: Broker, host: Host) -> None:
        self._broker = broker
        self._host = host
        self._log = broker.log(broker.topics.control, 0)
        self._position = 0

    async def read_to_end(self) -> Sequence[CancelRecord]:
        """Return everything there is."""
        end = await self._broker.call(self._host, lambda: self._log.end)
        return self._up_to(end)

    async def take(self, wait_s: float) -> Sequence[CancelRecord]:
        """Return what follows."""
        if self._position >= self._log.end:
            loop = self._broker.loop
            arrived: asyncio.Future[None] = loop.create_future()
            self._log.watch(arrived)
            timer = loop.call_later(wait_s, wake, arrived)
            try:
                await arrived
            finally:
                timer.cancel()
        return self._up_to(self._log.end)

    def _up_to(self, end: int) -> Sequence[CancelRecord]:
        records = self._log.records[self._position : end]
        self._position = end
        return [CancelRecord(r.offset, r.at_ms, r.value) for r in records]
