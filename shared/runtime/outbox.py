"""The process's one way to append: batches by partition, order kept, nobody waits.

A record goes into the newest batch of its partition, synchronously. That batch is already in the producer's queue, or
the partition's lane is about to put it there; it takes records until the sender picks it up. So an idle outbox sends at
once, and a busy one sends batches as large as a round trip is long. `AIOKafkaProducer.send()` does the same at twenty
times the price: a coroutine and a future for every record.

What happens to a record, and where it can fail:

1. It is added to its partition's open batch, or to a new one.
2. The lane hands new batches to the producer, in order; it waits while the producer still holds a full one.
3. The producer retries until the broker answers; sequence numbers keep order and drop repeats across retries.
4. The batch is acknowledged: records are counted off, and whoever waits for them is told.

Whatever goes wrong for good in 2 or 3, or takes longer than `DELIVERY_TIMEOUT_S`, ends the outbox: sequence numbers
leave no gap for a lost batch, and the records behind it were decided on the assumption that it exists.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar

from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import RecordMetadata, TopicPartition

from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES, MIB
from anabranch.shared.runtime.batch import BATCH_BYTES, GrowingBatch
from anabranch.shared.runtime.clients import new_producer
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import AppendFailed, KafkaUnreachable, RecordTooLarge
from anabranch.shared.runtime.room import Room
from anabranch.shared.runtime.settings import Settings

# Longer than a broker's restart or an election (some 20 s), or two requests that are never answered.
DELIVERY_TIMEOUT_S: Final = 120.0

# The producer puts one batch of every partition of a broker into one request. A broker drops the connection of a
# request above `socket.request.max.bytes` (100 MiB by default, 16 MiB in the local stack), and the same request would
# follow.
IN_FLIGHT_BYTES: Final = 12 * MIB

_CLOSE_TIMEOUT_S: Final = 2.0
_DEFAULT_STOP_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


class Producer(Protocol):
    """The part of `AIOKafkaProducer` that an outbox uses."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Send what is queued and close."""

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> "asyncio.Future[RecordMetadata]":
        """Queue a batch when the partition's previous one was taken; the future is done when it is acknowledged."""


@dataclass(slots=True, eq=False)
class _Batch:
    builder: GrowingBatch
    opened_at: float
    number: int
    records: int = 0
    bytes: int = 0
    room: int = 0
    acknowledged: bool = False
    waiters: "list[tuple[int, asyncio.Future[RecordMetadata]]]" = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Lane:
    """One partition: the batch that takes records, those to be handed over, and the task that does it."""

    topic: str
    partition: int
    newest: _Batch | None = None
    queue: deque[_Batch] = field(default_factory=deque)
    task: "asyncio.Task[None] | None" = None

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}"


class Outbox:
    """Appends records through one idempotent producer; make it inside the running loop.

    `unacknowledged` is the number of records appended and not yet acknowledged, `unacknowledged_bytes` the size of
    their values: whoever appends what others ask for takes no more of it when that is too much. `failed` fails with
    `AppendFailed` when a record was not accepted and never will be; the owner then ends the process.
    """

    unacknowledged: int
    unacknowledged_bytes: int
    failed: "asyncio.Future[NoReturn]"

    def __init__(
        self, settings: Settings, *, producer: Producer | None = None, delivery_timeout_s: float = DELIVERY_TIMEOUT_S
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._delivery_timeout_s = delivery_timeout_s
        self._settings = settings
        self._producer = producer
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._room = Room(IN_FLIGHT_BYTES)
        self._opened = 0
        self._outstanding: deque[_Batch] = deque()  # in the order in which they were opened, without gaps at the left
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._failure: AppendFailed | None = None
        self.unacknowledged = self.unacknowledged_bytes = 0
        self.failed = self._loop.create_future()

    async def start(self) -> None:
        """Connect; `KafkaUnreachable` when no broker answers."""
        self._producer = self._producer or new_producer(self._settings)
        try:
            await self._producer.start()
        except KafkaError as error:
            await self._producer.stop()
            raise KafkaUnreachable(f"no broker of {self._settings.kafka_bootstrap_servers} answers") from error

    async def stop(self, deadline: Deadline | None = None) -> None:
        """Wait until everything is acknowledged and close; `AppendFailed` when that is not so by the deadline."""
        deadline = deadline or Deadline.after(_DEFAULT_STOP_TIMEOUT_S)
        with contextlib.suppress(TimeoutError, AppendFailed):
            await asyncio.wait_for(self.acknowledged(), deadline.remaining())
        lost = self._failure is not None or self.unacknowledged > 0
        self._fail(f"the outbox was stopped with {self.unacknowledged} records unacknowledged", None)
        await self._close()
        if lost:
            raise self._failed_again()

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append a record: never blocks; the order within a partition is the order of calls.

        Raises `AppendFailed` when the outbox has failed or was stopped. A record that is too large fails it.
        """
        try:
            self._add(topic, partition, key, value, headers)
        except RecordTooLarge as error:
            self._fail(str(error), error)
            raise

    def append_and_wait(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> "asyncio.Future[RecordMetadata]":
        """Append a record and return a future of where it is; `AppendFailed` there or here, or here `RecordTooLarge`,
        which concerns this record only.

        Cancelling the future does not take the record back: its outcome is then unknown. The offset is -1 when the
        broker recognised a repeat of a batch whose offset it no longer knows.
        """
        batch = self._add(topic, partition, key, value, headers)
        where: asyncio.Future[RecordMetadata] = self._loop.create_future()
        batch.waiters.append((batch.records - 1, where))
        return where

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged; `AppendFailed` if it will not
        be.

        What is appended later is not waited for, except that it may share a batch with what is.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        if self._failure is not None:
            _settle_with(done, self._failed_again())
        elif not self._outstanding:
            done.set_result(None)
        else:
            self._waiters.append((self._opened, done))
        return done

    # 1. Add.

    def _add(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> _Batch:
        if self._failure is not None:
            raise self._failed_again()
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition)
        batch = lane.newest
        if batch is None or batch.builder.append(timestamp=None, key=key, value=value, headers=list(headers)) is None:
            batch = self._open(lane, key, value, headers)
        batch.records += 1
        size = len(value or b"")
        batch.bytes += size
        self.unacknowledged += 1
        self.unacknowledged_bytes += size
        return batch

    def _open(self, lane: _Lane, key: bytes | None, value: bytes | None, headers: Headers) -> _Batch:
        builder = GrowingBatch()
        builder.append(timestamp=None, key=key, value=value, headers=list(headers))
        if builder.size() > MAX_RECORD_BYTES:
            raise RecordTooLarge(
                f"a record of {builder.size()} bytes for {lane.topic}; the limit is {MAX_RECORD_BYTES}"
            )
        self._opened += 1
        batch = lane.newest = _Batch(builder, self._loop.time(), self._opened)
        lane.queue.append(batch)
        self._outstanding.append(batch)
        if lane.task is None:
            lane.task = self._loop.create_task(self._hand_over(lane), name="outbox")
        if self._watch is None:
            self._watch = self._loop.call_later(self._delivery_timeout_s, self._check_age)
        return batch

    # 2. Hand over.

    async def _hand_over(self, lane: _Lane) -> None:
        try:
            while lane.queue:
                batch = lane.queue[0]
                batch.room = await self._room.take(max(BATCH_BYTES, batch.builder.size()))
                delivery = await self._queued(lane, batch)
                lane.queue.popleft()
                delivery.add_done_callback(partial(self._delivered, lane, batch))
        except Exception as error:  # noqa: BLE001  whatever it is: what is behind this batch can never be sent
            self._fail(f"records for {lane.name} were not taken by the producer: {error!r}", error)
        finally:
            lane.task = None

    async def _queued(self, lane: _Lane, batch: _Batch) -> "asyncio.Future[RecordMetadata]":
        assert self._producer is not None, "start the outbox first"
        while True:
            try:
                return await self._producer.send_batch(batch.builder, lane.topic, partition=lane.partition)
            except KafkaTimeoutError:  # the previous batch is still being retried: how long, `_check_age` decides
                continue

    def _check_age(self) -> None:
        self._watch = None
        if not self._outstanding or self._failure is not None:
            return
        remaining = self._outstanding[0].opened_at + self._delivery_timeout_s - self._loop.time()
        if remaining > 0:
            self._watch = self._loop.call_later(remaining, self._check_age)
        else:
            self._fail(
                f"{self.unacknowledged} records were not acknowledged within {self._delivery_timeout_s:.0f} s", None
            )

    # 4. Acknowledge.

    def _delivered(self, lane: _Lane, batch: _Batch, delivery: "asyncio.Future[RecordMetadata]") -> None:
        if delivery.cancelled():
            self._fail(f"the delivery of records for {lane.name} was cancelled", None)
        elif (error := delivery.exception()) is not None:
            self._fail(f"Kafka did not accept records for {lane.name}: {error!r}", error)
        else:
            self._acknowledge(batch, delivery.result())

    def _acknowledge(self, batch: _Batch, where: RecordMetadata) -> None:
        batch.acknowledged = True
        self._room.give_back(batch.room)
        self.unacknowledged -= batch.records
        self.unacknowledged_bytes -= batch.bytes
        for position, waiter in batch.waiters:
            _settle(waiter, _of_record(where, position))
        while self._outstanding and self._outstanding[0].acknowledged:
            self._outstanding.popleft()
        oldest = self._outstanding[0].number if self._outstanding else self._opened + 1
        while self._waiters and self._waiters[0][0] < oldest:
            _settle(self._waiters.popleft()[1], None)

    # The end.

    def _fail(self, what: str, cause: BaseException | None) -> None:
        if self._failure is not None:
            return
        self._failure = AppendFailed(what)
        self._failure.__cause__ = cause
        _settle_with(self.failed, self._failure)
        for _, waiter in self._waiters:
            _settle_with(waiter, self._failed_again())
        for batch in self._outstanding:
            for _, record in batch.waiters:
                _settle_with(record, self._failed_again())

    def _failed_again(self) -> AppendFailed:
        # A copy for everyone who is told: a traceback grows with every raise.
        again = AppendFailed(*(self._failure.args if self._failure else ()))
        again.__cause__ = self._failure.__cause__ if self._failure else None
        return again

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._producer is not None:
            with contextlib.suppress(TimeoutError, KafkaError):  # it waits for ever for records that cannot be sent
                await asyncio.wait_for(self._producer.stop(), _CLOSE_TIMEOUT_S)


def _of_record(batch: RecordMetadata, position: int) -> RecordMetadata:
    offset = batch.offset + position if batch.offset >= 0 else -1
    return RecordMetadata(
        batch.topic,
        batch.partition,
        TopicPartition(batch.topic, batch.partition),
        offset,
        batch.timestamp,
        batch.timestamp_type,
        batch.log_start_offset,
    )


def _settle(future: "asyncio.Future[T]", value: T) -> None:
    if not future.done():
        future.set_result(value)


def _settle_with(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it counts as seen: `failed` says it to the owner, and not everybody awaits their future
