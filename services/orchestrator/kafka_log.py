"""The log on Kafka: a reader of the inbox without a group, a changelog per partition, one outbox per process.

Commands go to topics of others: those are `Lanes` beside the outbox, and what they refuse comes back in the inbox.

A group member (`membership.py`) only tells who owns what. The reader is pointed at each partition's own offset, so no
position of the group's ever decides what is read.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaError,
    ProducerFenced,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.ports import (
    AppendLost,
    CheckpointFailed,
    Fenced,
    InboxGone,
    InboxRecord,
    LogError,
    RestoreFailed,
    TakeFailed,
)
from anabranch.services.orchestrator.refusals import refusal_of
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.shared.contracts.limits import MAX_FETCHED_BYTES
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import TopicNames
from anabranch.shared.runtime.kafka import AppendFailed, Outbox, new_consumer, new_producer, stop_consumer
from anabranch.shared.runtime.lanes import Lanes, Refusal
from anabranch.shared.runtime.topic_reader import OffsetGone, Record, TopicReader

_MAX_BUFFERED: Final = 5_000  # records of one partition that wait to be taken: above this it is paused
_TAKE_AT_MOST: Final = 500  # records of one turn: timers and checkpoints get theirs
_RESTORE_POLL_MS: Final = 200
_CLOSE_TIMEOUT_S: Final = 5.0
_TOPIC_NAMES_KEPT: Final = 1_000
_BATCH_BYTES: Final = 256 * 1024  # of a checkpoint: one request, or a few; a first record may be larger


class InboxReader:
    """Reads the inbox for all partitions of the process, each from where its task says."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        self._topic = settings.topics.inbox
        self._reader = TopicReader(settings, self._topic, self._deliver)
        self._logs: dict[int, KafkaPartitionLog] = {}
        self._buffered_bytes = 0  # of all logs
        self._paused: set[int] = set()

    async def start(self) -> None:
        """Connect."""
        await self._reader.start()

    async def stop(self) -> None:
        """Close the connection."""
        await self._reader.stop()

    def watch(self, log: "KafkaPartitionLog", offset: int) -> None:
        """Serve the log's partition from `offset`."""
        self._logs[log.partition] = log
        self._paused.discard(log.partition)
        self._reader.seek(log.partition, offset)

    def unwatch(self, log: "KafkaPartitionLog") -> None:
        """Serve the log no more."""
        if self._logs.get(log.partition) is log:
            del self._logs[log.partition]
            self._paused.discard(log.partition)
            self._reader.leave(log.partition)

    def buffered(self, size: int) -> None:
        """A log keeps so many bytes more, or fewer. Serve those again that were paused and have room."""
        self._buffered_bytes += size
        if self._paused and not self._is_full:
            for partition in [number for number in self._paused if not self._logs[number].is_full]:
                self._paused.discard(partition)
                self._reader.resume(partition)

    @property
    def _is_full(self) -> bool:
        return self._buffered_bytes > MAX_FETCHED_BYTES

    async def run(self) -> None:
        """Hand records to their logs until cancelled; what the reader raises is handed to every log."""
        try:
            await self._reader.run()
        except OffsetGone as error:
            self._break(InboxGone(f"{self._topic} no longer holds the next record: {error}"), error)
        except KafkaError as error:
            self._break(TakeFailed(f"{self._topic} cannot be read: {error!r}"), error)

    def _deliver(self, partition: int, records: Sequence[Record]) -> None:
        log = self._logs[partition]  # a partition is read while it has one
        log.deliver(records)
        if self._is_full:
            self._pause(*self._logs)
        elif log.is_full:
            self._pause(partition)

    def _pause(self, *partitions: int) -> None:
        for partition in partitions:
            self._paused.add(partition)
            self._reader.pause(partition)

    def _break(self, error: LogError, cause: Exception) -> None:
        error.__cause__ = cause
        for log in self._logs.values():
            log.break_off(error)


class KafkaPartitionLog:
    """`PartitionLog` on Kafka, for one partition under one assignment; make it inside the running loop."""

    def __init__(
        self,
        partition: int,
        assignment: int,
        *,
        settings: OrchestratorSettings,
        reader: InboxReader,
        outbox: Outbox,
        lanes: Lanes,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._partition = partition
        self._assignment = assignment
        self._settings = settings
        self._topics: TopicNames = settings.topics
        self._reader = reader
        self._outbox = outbox
        self._lanes = lanes
        self._producer: AIOKafkaProducer | None = None
        self._buffer: list[InboxRecord] = []
        self._arrived = asyncio.Event()
        self._broken: LogError | None = None
        self._command_topics: dict[str, str] = {}  # by step type
        self._addresses: Mapping[Channel, tuple[str, int]] = {
            Channel.INBOX: (self._topics.inbox, partition),
            Channel.CONTROL: (self._topics.control, 0),
            Channel.RUN_EVENTS: (self._topics.run_events, partition),
        }

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
        """Fence the predecessor: its transactional id is this partition's, and the newest producer wins."""
        await self._stop_producer()
        self._reader.unwatch(self)
        self._drop_buffer()
        transactional_id = f"{self._settings.group}-{self._partition}"
        producer: AIOKafkaProducer = new_producer(self._settings, transactional_id=transactional_id)
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise RestoreFailed(f"no transactional producer for partition {self._partition}: {error!r}") from error
        self._producer = producer

    async def read_changelog(self) -> Mapping[bytes, bytes]:
        """Return the live records of the changelog partition, committed ones only, to its end."""
        tp = TopicPartition(self._topics.state, self._partition)
        consumer: AIOKafkaConsumer = new_consumer(self._settings, isolation_level="read_committed")
        live: dict[bytes, bytes] = {}
        try:
            await consumer.start()
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            consumer.seek(tp, (await consumer.beginning_offsets([tp]))[tp])
            while await consumer.position(tp) < end:
                batches = await consumer.getmany(timeout_ms=_RESTORE_POLL_MS)
                for record in batches.get(tp, ()):
                    if record.value is None:
                        live.pop(record.key, None)
                    else:
                        live[record.key] = record.value
        except KafkaError as error:
            raise RestoreFailed(f"changelog partition {self._partition} cannot be read: {error!r}") from error
        finally:
            await stop_consumer(consumer)
        return live

    async def seek(self, offset: int | None) -> None:
        """Take from this offset on. Without a checkpoint that is the first record ever: if it is gone, it was lost."""
        self._reader.watch(self, offset or 0)

    # --- take -----------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether more records wait than should."""
        return len(self._buffer) > _MAX_BUFFERED

    def deliver(self, records: Sequence[Record]) -> None:
        """Take records from the reader."""
        assignment = self._assignment
        self._buffer += [InboxRecord(*record, assignment) for record in records]
        self._reader.buffered(_size_of(records))
        self._arrived.set()

    def break_off(self, error: LogError) -> None:
        """Make every `take` raise."""
        self._broken = error
        self._arrived.set()

    async def take(self, wait_s: float) -> Sequence[InboxRecord]:
        """Return what has arrived, as soon as there is any; nothing after `wait_s` or an `interrupt`."""
        if not self._arrived.is_set():
            await self._wait(wait_s)
        self._arrived.clear()
        if self._broken is not None:
            raise self._broken
        taken, self._buffer = self._buffer[:_TAKE_AT_MOST], self._buffer[_TAKE_AT_MOST:]
        if self._buffer:
            self._arrived.set()
        if taken:
            self._reader.buffered(-_size_of(taken))
        return taken

    def _drop_buffer(self) -> None:
        dropped, self._buffer = self._buffer, []
        self._reader.buffered(-_size_of(dropped))

    async def _wait(self, wait_s: float) -> None:
        timer = self._loop.call_later(wait_s, self._arrived.set)
        try:
            await self._arrived.wait()
        finally:
            timer.cancel()

    def interrupt(self) -> None:
        """Make the `take` under way, or the next, return at once."""
        self._arrived.set()

    # --- append ---------------------------------------------------------------------------------------------------

    def append(self, output: Append) -> None:
        """Append without waiting; a command that its topic does not take comes back in the inbox."""
        key = output.key.encode()
        if output.channel is Channel.COMMANDS:
            topic = self._command_topic(output.step_type)
            self._lanes.append(topic, key, output.value, output.headers, partial(self._refused, output))
            return
        topic, partition = self._addresses.get(output.channel) or self._dead_letters(key)
        try:
            self._outbox.append(topic, partition, key, output.value, output.headers)
        except AppendFailed as error:
            raise AppendLost(str(error)) from error

    def _dead_letters(self, key: bytes) -> tuple[str, int]:
        return self._topics.dead_letters, partition_of(key, self._topics.runs)

    def _command_topic(self, step_type: str) -> str:
        topic = self._command_topics.get(step_type)
        if topic is None:
            if len(self._command_topics) >= _TOPIC_NAMES_KEPT:
                self._command_topics.clear()
            topic = self._command_topics[step_type] = self._topics.steps(step_type)
        return topic

    def _refused(self, command: Append, why: Refusal) -> None:
        with suppress(AppendLost):  # the outbox has failed: it says so itself, and whoever waits for it learns it
            self.append(refusal_of(command, why.reason, too_large=why.too_large))

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged."""
        return asyncio.ensure_future(self._acknowledged(self._outbox.acknowledged(), self._lanes.acknowledged()))

    async def _acknowledged(self, outbox: "asyncio.Future[None]", lanes: "asyncio.Future[None]") -> None:
        refusals = self._lanes.refusals
        try:
            await outbox
            await lanes
            if self._lanes.refusals != refusals:  # of a command that was refused, the refusal is waited for
                await self._outbox.acknowledged()
        except AppendFailed as error:
            raise AppendLost(str(error)) from error

    @property
    def unacknowledged(self) -> int:
        """How many records of the process are appended and not yet acknowledged."""
        return self._outbox.unacknowledged + self._lanes.unacknowledged

    @property
    def unacknowledged_bytes(self) -> int:
        """How large their values are."""
        return self._outbox.unacknowledged_bytes + self._lanes.unacknowledged_bytes

    # --- checkpoint -----------------------------------------------------------------------------------------------

    async def checkpoint(self, changes: Sequence[Change]) -> None:
        """Write the changes in one transaction."""
        assert self._producer is not None, "start_producer first"
        try:
            async with self._producer.transaction():
                await self._write(self._producer, changes)
        except (ProducerFenced, InvalidProducerEpoch) as error:
            raise Fenced(f"partition {self._partition} was taken over by another process") from error
        except KafkaError as error:
            raise CheckpointFailed(f"the checkpoint of partition {self._partition} failed: {error!r}") from error

    async def _write(self, producer: AIOKafkaProducer, changes: Sequence[Change]) -> None:
        """Return when the changes are written. A transaction that has failed by then would not say why."""
        written: list[asyncio.Future[object]] = []
        try:
            for batch in _batches(changes):
                written.append(await producer.send_batch(batch, self._topics.state, partition=self._partition))
        except IllegalOperation:  # the transaction has failed already, and the batches know why
            await asyncio.gather(*written)
            raise
        await asyncio.gather(*written)

    async def close(self) -> None:
        """Stop the producer and take no more."""
        self._reader.unwatch(self)
        self._drop_buffer()
        await self._stop_producer()

    async def _stop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await producer.stop()
        except (KafkaError, TimeoutError):  # nothing of it is wanted any more; the next producer fences it
            return


def _size_of(records: Sequence[Record] | Sequence[InboxRecord]) -> int:
    return sum(len(record.value or b"") for record in records)


def _batches(changes: Sequence[Change]) -> Iterator[BatchBuilder]:
    """Yield transactional batches with all changes. `send()` would cost each of them a coroutine and a future."""
    batch = _new_batch()
    for key, value in changes:
        if batch.append(timestamp=None, key=key, value=value) is None:  # full: it takes no more
            yield batch
            batch = _new_batch()
            batch.append(timestamp=None, key=key, value=value)
    batch.close()
    yield batch


def _new_batch() -> BatchBuilder:
    return BatchBuilder(_BATCH_BYTES, 0, is_transactional=True)
